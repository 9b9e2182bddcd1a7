"""Recording `model.fit` of Keras 3 and of Keras 2: what is fitted, and what has to be known of its way through a batch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from nanreplay.errors import AttachError
from nanreplay.recorder.compiled_calls import CompiledCalls
from nanreplay.recorder.ending import Ending
from nanreplay.recorder.recorded_function import RecordedFunction
from nanreplay.tensorflow_internals import tf_datasets

# Seeing `fit` end by an exception of another callback: Keras calls `on_train_end` only when all
# went well.

_HOOKS = [
    f"on_{what}_{when}" for what in ("epoch", "train_batch", "test", "test_batch") for when in ("begin", "end")
]  # fmt: skip


def callbacks_of_fit() -> Any:
    """The `CallbackList` that is calling now, or None."""
    frame = sys._getframe(1)
    while frame is not None and not isinstance(
        frame.f_locals.get("self"), keras.callbacks.CallbackList
    ):
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else frame.f_locals["self"]


def watch_callbacks(callbacks: Any, ending: Ending) -> None:
    """Have `ending` told of exceptions that come out of `callbacks`; the list belongs to this one `fit`."""
    if type(callbacks) is keras.callbacks.CallbackList:
        callbacks.__class__ = WatchedCallbackList
        callbacks.nanreplay_endings = []
    if isinstance(callbacks, WatchedCallbackList):
        callbacks.nanreplay_endings.append(ending)


class WatchedCallbackList(keras.callbacks.CallbackList):
    """A `CallbackList` whose exceptions are noted on their way."""

    nanreplay_endings: list[Ending]


def _watched(name: str) -> Any:
    def hook(self: WatchedCallbackList, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(keras.callbacks.CallbackList, name)(self, *args, **kwargs)
        except BaseException as error:
            for ending in self.nanreplay_endings:
                ending.ended_by(error)
            raise

    return hook


for _name in _HOOKS:
    setattr(WatchedCallbackList, _name, _watched(_name))
# --- recorder.fit

_RECORDED = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.OneDeviceStrategy,
)


def check_model(model: Any) -> None:
    """Fail at attach when `model.fit` cannot be recorded.

    Raises:
        AttachError: Another backend, no model of Keras, a model that is not compiled, a distribution strategy.
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
            f"The model {model.name!r} is not compiled. Call model.compile(...) before recording model.fit."
        )
    check_strategy(model.distribute_strategy)
    if model.distribute_strategy.num_replicas_in_sync > 1 and (
        model.run_eagerly or model.jit_compile
    ):
        how = "run_eagerly=True" if model.run_eagerly else "jit_compile=True"
        raise AttachError(
            f"A model on several replicas cannot be recorded with {how}. Compile it without, or train on one device."
        )


def _check_backend() -> None:
    import keras

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


def check_strategy(strategy: Any) -> None:
    """Fail when what a distribution strategy runs cannot be recorded.

    Raises:
        AttachError: It is not one of those whose replicas run the same step in lock-step, each with all variables.
    """
    if (
        not isinstance(strategy, _RECORDED)
        and type(strategy).__name__ != "_DefaultDistributionStrategy"
    ):
        raise AttachError(
            f"nanreplay records MirroredStrategy and MultiWorkerMirroredStrategy; {type(strategy).__name__} is not supported."
        )


class EagerTrainStep:
    """Puts a recorded step in the place of `model.train_step` for a training that runs eagerly.

    Args:
        model: The model.
        step: Makes the recorded step of the model's own.
    """

    def __init__(
        self, model: Any, step: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self._model = model
        self._function = model.train_function
        recorded = step(model.train_step)

        def train_step(*args: Any, **kwargs: Any) -> Any:
            return recorded(*args, **kwargs)

        model.__dict__["train_step"] = train_step
        if not is_keras_2(
            model
        ):  # whose train function asks for the step in each call; that of Keras 3 holds it
            model.make_train_function(force=True)
        self._made = model.train_function

    def undo(self) -> None:
        """Leave the model as it was."""
        self._model.__dict__.pop("train_step", None)
        if self._model.train_function is self._made:
            self._model.train_function = self._function


class DirectCalls:
    """Stands in for the train function that Keras 3 makes, and calls what is compiled in it directly.

    Keras hands the logs of a step over in an Optional, and asks TensorFlow anew for each step which of its traces fits. Here the same
    trace is called with the same iterator, and the logs are taken where they come from. That saves more than recording costs. The first
    step, and each of another kind of data, goes Keras's own way.

    Args:
        model: The Keras model.
        calls: Records compiled functions.
    """

    def __init__(self, model: Any, calls: CompiledCalls) -> None:
        self._model = model
        self._calls = calls
        self.original = model.train_function
        self._spec: Any = None
        self._known: tuple[Any, RecordedFunction] | None = None
        model.train_function = self

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether this is Keras's own function, on one device."""
        name = getattr(model.train_function, "__qualname__", "")
        is_own = name == "TensorFlowTrainer._make_function.<locals>.function"
        return is_own and is_default_strategy(model) and not is_keras_2(model)

    def __call__(self, iterator: Any) -> Any:
        """Run the steps of one call; returns the logs of the last one."""
        spec = getattr(iterator, "element_spec", None)
        if (
            self._known is None
            or (spec is not self._spec and spec != self._spec)
            or not self._calls.session.lifecycle.is_active
        ):
            return self._keras_way(iterator, spec)
        self._spec = spec
        reference, recorded = self._known
        function = reference()
        handle = (
            None
            if function is None
            else self._calls.session.guard(lambda: tf_datasets.iterator_handle(iterator))
        )
        ran, outputs = (
            (False, None)
            if handle is None
            else self._calls.call_directly(function, [handle], function.captured_inputs)
        )
        if not ran:
            return self._keras_way(iterator, spec)
        if outputs is None:
            raise StopIteration  # as Keras does once the data has ended
        return tf.nest.pack_sequence_as(recorded.slot.traced.graph.structured_outputs, outputs)

    def _keras_way(self, iterator: Any, spec: Any) -> Any:
        self._calls.last = self._known = None
        result = self.original(iterator)
        recorded = self._calls.last
        is_whole = (
            recorded is not None
            and recorded.variant is not None
            and (recorded.variant.n_returned or recorded.steps_in_call)
        )
        if recorded is not None and is_whole and spec is not None:
            self._spec, self._known = spec, (recorded.function, recorded)
            if recorded.steps_in_call:
                recorded.runs_steps(int(self._model.steps_per_execution))
        return result

    def undo(self) -> None:
        """Leave the model as it was."""
        if self._model.train_function is self:
            self._model.train_function = self.original


def is_default_strategy(model: Any) -> bool:
    """Whether a model trains without a distribution strategy."""
    return type(model.distribute_strategy).__name__ == "_DefaultDistributionStrategy"
