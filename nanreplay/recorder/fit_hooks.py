"""Recording `model.fit` of Keras 3 and of Keras 2: what `Recorder` has to know of its ways.

Which models can be recorded; how `fit` ends by an exception of another callback; and what stands in
for the model's own functions while it trains (`EagerTrainStep`, `DirectCalls`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import keras
import tensorflow as tf

from nanreplay.errors import AttachError, NonFiniteError, without_own_frames
from nanreplay.recorder import notices
from nanreplay.recorder.compiled_calls import CompiledCalls
from nanreplay.recorder.ending import Ending
from nanreplay.recorder.recorded_function import RecordedFunction
from nanreplay.tensorflow_internals import tf_datasets, tf_distribution

SUPERSEDED = (
    "the recorder of {} records nothing: fit has another one after it, that of {}. "
    "Give fit one recorder."
)

# Seeing `fit` end by an exception of another callback. Keras calls `on_train_end` only when all
# went well, so the list of callbacks is given a class that notes what passes through it.


def callbacks_of_fit() -> Any:
    """The `CallbackList` that is calling now, or None."""
    keras_2 = sys.modules.get("tf_keras.callbacks")
    kinds = (keras.callbacks.CallbackList, getattr(keras_2, "CallbackList", ()))
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kinds):
            return owner
        frame = frame.f_back
    return None


def successor_of(callback: Any, callbacks: Any) -> Any:
    """The next callback of the same kind in a `CallbackList`; None without one."""
    given = list(getattr(callbacks, "callbacks", ()))
    later = given[given.index(callback) + 1 :] if callback in given else []
    return next((other for other in later if isinstance(other, type(callback))), None)


def end_earlier_fit(model: Any) -> None:
    """Have put back what stands in for functions of a model since a `fit` that raised.

    Such a `fit` is seen to be over when its list of callbacks goes. While somebody keeps the
    exception, as notebooks do, the list stays.
    """
    for function in (vars(model).get("train_step"), model.train_function):
        leave = getattr(function, "leave_fit", None)
        if leave is not None:
            leave()


def learn_model(calls: CompiledCalls, model: Any) -> None:
    """Note what the `fit` that calls now trains, and how it hands out its batches."""
    calls.recording.variables.name_model(model)
    calls.recording.variables.forgive_others(model)
    calls.recording.splits_batches = _splits_batches(model)
    calls.fit_began = calls.recording.step, notices.spoken()


def tell_of_unseen_steps(calls: CompiledCalls, logs: Any) -> None:
    """Say so where a `fit` that ends now ran batches of which none was seen to train.

    Args:
        calls: Its calls.
        logs: Those of its last epoch; empty where there was no batch.
    """
    began, calls.fit_began = calls.fit_began, None
    if logs and began == (calls.recording.step, notices.spoken()):
        notices.say(
            "nothing of this fit is recorded: no compiled step was seen in it that takes a "
            "gradient with a tape and sets variables. To record another kind of step, train in a "
            "loop: `step = recorder.wrap(step)`."
        )


def _splits_batches(model: Any) -> bool:
    """Whether each replica gets a part of a batch that the user gave to the `fit` that calls now.

    The parts follow each other in the batch. With several workers each one has data of its own.
    """
    if not isinstance(model.distribute_strategy, tf.distribute.MirroredStrategy):
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_locals.get("self") is model and "epoch_iterator" in frame.f_locals:
            return tf_distribution.splits_batches(frame.f_locals["epoch_iterator"])
        frame = frame.f_back
    return False


def watch_callbacks(callbacks: Any, ending: Ending) -> None:
    """Have `ending` told of exceptions that come out of `callbacks`.

    The list belongs to this one `fit`, so nothing has to be undone.
    """
    if type(callbacks) is keras.callbacks.CallbackList:
        callbacks.__class__ = WatchedCallbackList
        callbacks.nanreplay_endings = []
    if isinstance(callbacks, WatchedCallbackList):
        callbacks.nanreplay_endings.append(ending)


class WatchedCallbackList(keras.callbacks.CallbackList):
    """A `CallbackList` whose exceptions are noted on their way."""

    nanreplay_endings: list[Ending]


def _watched_hook(name: str) -> Any:
    def hook(self: WatchedCallbackList, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(keras.callbacks.CallbackList, name)(self, *args, **kwargs)
        except BaseException as error:
            for ending in self.nanreplay_endings:
                ending.ended_by(error)
            raise

    return hook


for _part in ("epoch", "train_batch", "test", "test_batch"):
    for _moment in ("begin", "end"):
        _name = f"on_{_part}_{_moment}"
        setattr(WatchedCallbackList, _name, _watched_hook(_name))
# Which models can be recorded

_RECORDED_STRATEGIES = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.OneDeviceStrategy,
)


def check_model(model: Any) -> None:
    """Fail at attach when `model.fit` cannot be recorded.

    Raises:
        AttachError: Another backend, no model of Keras, a model that is not compiled, a
            distribution strategy.
    """
    if not is_keras_2(model):
        _check_backend()
    if not hasattr(model, "train_function") or not hasattr(model, "train_step"):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise AttachError(
            f"Expected a keras.Model of Keras 3, or one of Keras 2 (tf_keras). Received: {kind}."
        )
    if not getattr(model, "compiled", getattr(model, "_is_compiled", False)):
        raise AttachError(
            f"The model {model.name!r} is not compiled. "
            "Call model.compile(...) before recording model.fit."
        )
    check_strategy(model.distribute_strategy)
    if model.distribute_strategy.num_replicas_in_sync > 1:
        _check_replicated(model)


def _check_replicated(model: Any) -> None:
    if not model.run_eagerly and not model.jit_compile:
        return
    how = "run_eagerly=True" if model.run_eagerly else "jit_compile=True"
    raise AttachError(
        f"A model on several replicas cannot be recorded with {how}. "
        "Compile it without, or train on one device."
    )


def _check_backend() -> None:
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise AttachError(
            f"nanreplay records Keras on TensorFlow, but the Keras backend is {backend}. "
            "Set KERAS_BACKEND=tensorflow before importing keras."
        )


def is_keras_2(model: Any) -> bool:
    """Whether a model is one of Keras 2."""
    return any(
        kind.__module__.startswith(("tf_keras", "keras.src.engine")) for kind in type(model).__mro__
    )


def is_default_strategy(strategy: Any) -> bool:
    """Whether this is what TensorFlow uses where nobody chose a strategy; the class is private."""
    return type(strategy).__name__ == "_DefaultDistributionStrategy"


def check_strategy(strategy: Any) -> None:
    """Fail when what a distribution strategy runs cannot be recorded.

    Raises:
        AttachError: It is not one of those whose replicas run the same step in lock-step, each with
            all variables.
    """
    if isinstance(strategy, _RECORDED_STRATEGIES) or is_default_strategy(strategy):
        return
    raise AttachError(
        "nanreplay records MirroredStrategy and MultiWorkerMirroredStrategy; "
        f"{type(strategy).__name__} is not supported."
    )


# What stands in for the model's own functions


class EagerTrainStep:
    """Puts a recorded step in the place of `model.train_step` for a training that runs eagerly.

    Args:
        model: The model.
        make_recorded: Makes the recorded step of the model's own.
        ending: Knows whether a batch of this `fit` is under way, and puts everything back.
    """

    def __init__(
        self,
        model: Any,
        make_recorded: Callable[[Callable[..., Any]], Callable[..., Any]],
        ending: Ending,
    ) -> None:
        self._model = model
        self._function = model.train_function
        original = model.train_step
        recorded = make_recorded(original)

        def train_step(*args: Any, **kwargs: Any) -> Any:
            # Else it is a step of another `fit`, after one that raised.
            return (recorded if ending.is_in_step else original)(*args, **kwargs)

        train_step.leave_fit = ending.leave  # type: ignore[attr-defined]
        model.__dict__["train_step"] = train_step
        # The train function of Keras 2 asks for the step in each call; that of Keras 3 holds it.
        if not is_keras_2(model):
            model.make_train_function(force=True)
        self._made = model.train_function

    def undo(self) -> None:
        """Leave the model as it was."""
        self._model.__dict__.pop("train_step", None)
        if self._model.train_function is self._made:
            self._model.train_function = self._function


class DirectCalls:
    """Stands in for the train function that Keras 3 makes, and calls what is compiled in it.

    Keras hands the logs of a step over in an Optional, and asks TensorFlow anew for each step which
    of its traces fits. Here the same trace is called with the same iterator, and the logs are taken
    where they come from. That saves more than recording costs. The first step, and each of another
    kind of data, goes Keras's own way.

    Args:
        model: The Keras model.
        calls: Records compiled functions.
        ending: Knows whether a batch of this `fit` is under way, and puts everything back.
    """

    def __init__(self, model: Any, calls: CompiledCalls, ending: Ending) -> None:
        self._model = model
        self._calls = calls
        self._ending = ending
        self.leave_fit = ending.leave
        self.original = model.train_function
        self._spec: Any = None
        """Spec of the elements that the known trace takes."""
        self._known: tuple[Any, RecordedFunction] | None = None
        """(weak reference to the trace, how it is recorded) once a step went Keras's own way."""
        model.train_function = self

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether this is Keras's own function, on one device."""
        name = getattr(model.train_function, "__qualname__", "")
        # As Keras 3 names it: code of the user's own has another name, and is called as it is.
        if name != "TensorFlowTrainer._make_function.<locals>.function":
            return False
        return is_default_strategy(model.distribute_strategy) and not is_keras_2(model)

    def __call__(self, iterator: Any) -> Any:
        """Run the steps of one call; returns the logs of the last one."""
        if not self._ending.is_in_step:  # of another `fit`, after one that raised
            return self.original(iterator)
        spec = getattr(iterator, "element_spec", None)
        if self._known is None or not self._calls.recording.lifecycle.is_active:
            return self._keras_way(iterator, spec)
        if spec is not self._spec and spec != self._spec:
            return self._keras_way(iterator, spec)
        self._spec = spec
        reference, recorded = self._known
        function = reference()
        if function is None:
            return self._keras_way(iterator, spec)
        handle = getattr(iterator, tf_datasets.ITERATOR_HANDLE, None)
        if handle is None:
            return self._keras_way(iterator, spec)
        try:
            has_run, outputs = self._calls.call_directly(
                function, [handle], function.captured_inputs
            )
        except NonFiniteError as error:
            raise without_own_frames(error) from error.__cause__
        if not has_run:
            return self._keras_way(iterator, spec)
        if outputs is None:
            raise StopIteration  # as Keras does once the data has ended
        return tf.nest.pack_sequence_as(recorded.slot.traced.graph.structured_outputs, outputs)

    def _keras_way(self, iterator: Any, spec: Any) -> Any:
        """Run the steps as Keras does, and learn which trace it chose."""
        self._calls.last = self._known = None
        try:
            result = self.original(iterator)
        except NonFiniteError as error:
            raise without_own_frames(error) from error.__cause__
        recorded = self._calls.last
        if recorded is None or recorded.variant is None or spec is None:
            return result
        # Else the logs cannot be had without Keras's own function around the trace.
        if recorded.variant.n_returned or recorded.steps_in_call:
            self._spec, self._known = spec, (recorded.function, recorded)
            if recorded.steps_in_call:
                recorded.runs_steps(int(self._model.steps_per_execution))
        return result

    def undo(self) -> None:
        """Leave the model as it was."""
        if self._model.train_function is self:
            self._model.train_function = self.original
