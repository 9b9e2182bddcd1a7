"""`Recorder`: the Keras callback, and the wrapper of custom training loops.

What users call, and no more: keeping steps, judging them and writing files is done by `Recording`,
`Incidents` and `Ending`, of which each recorder has one.
"""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Literal

import keras
import tensorflow as tf

from nanreplay import notebook
from nanreplay.capture.storage import Location, location
from nanreplay.errors import AttachError, NonFiniteError
from nanreplay.program import listening, observe
from nanreplay.program.listening import thread_state
from nanreplay.recorder import notices, signals
from nanreplay.recorder.ambient import Ambient
from nanreplay.recorder.block_training import BlockTraining
from nanreplay.recorder.compiled_calls import CompiledCalls
from nanreplay.recorder.eager_step import EagerStep, recorded_step
from nanreplay.recorder.ending import Ending
from nanreplay.recorder.fit_hooks import (
    SUPERSEDED,
    DirectCalls,
    EagerTrainStep,
    callbacks_of_fit,
    check_model,
    end_earlier_fit,
    learn_model,
    successor_of,
    tell_of_unseen_steps,
    watch_callbacks,
)
from nanreplay.recorder.incidents import Incidents
from nanreplay.recorder.lifecycle import Event, Suspicion
from nanreplay.recorder.recording import Recording
from nanreplay.recorder.sessions import SessionNotice
from nanreplay.recorder.settings import check_settings, remove_leftovers
from nanreplay.recorder.wrapped_step import WrappedStep, as_function


class Recorder(keras.callbacks.Callback):
    """Records a training, and writes one HDF5 file when it becomes NaN or infinite.

    That is when a loss, a gradient or a variable does. With Keras it is a callback of `fit`; in a
    custom loop it wraps the step; as a context manager it records whatever trains in the block.

    Examples:
        A Keras training, which it records from the first step of `fit` to the last:

        >>> history = model.fit(data, callbacks=[Recorder("run.h5")], verbose=0)

        A custom loop:

        >>> recorder = Recorder("run.h5")
        >>> step = recorder.wrap(train_step, model=model, optimizer=optimizer)
        >>> for batch in data:
        ...     loss = step(batch)
        >>> recorder.close()

        A block of code, with all that trains in it:

        >>> with Recorder("run.h5"):
        ...     history = model.fit(data, verbose=0)

    Args:
        path: The capture file, or a URL such as `s3://bucket/run.h5`; may hold `{step}`, `{time}`,
            `{pid}`, `{worker}`. An older file is replaced.
        on_nan: "raise" raises `NonFiniteError`; "stop" stops `fit` (in a loop, look at
            `recorder.stopped`); "continue" goes on, and writes a next incident, after a healthy
            step, to `run.1.h5`, `run.2.h5`, ...
        max_incidents: Incidents that are recorded with "continue".
        window: Steps whose batches are kept.
        keyframe_every: Steps between copies of all variables; "auto" lets them add half a
            hundredth to the time of the steps.
        memory_limit: What batches, copies and the timeline may hold, bytes or a text such as
            "1GiB"; "auto" here and below goes by the model, and by what is free.
        disk_limit: What the file may take; what is left out for it is named in the file.
        full_steps: Last steps whose weights and gradients are written.
        history: Steps of the timeline (loss, learning rate, norms).
        sources: "lines" writes the source lines of the training step into the file, "none" leaves
            them out.
        max_skipped: Updates that loss scaling may skip in a row before that counts as an incident.
        dump_signal: A signal that asks for a file while training goes on, such as "SIGUSR1".
        explain: Explain each incident in a process of its own and store the answer in its file,
            which then answers at once, without TensorFlow too. The end of the program waits for it.

    Raises:
        AttachError: An argument is not valid or the file could not be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        on_nan: Literal["raise", "stop", "continue"] = "raise",
        max_incidents: int = 3,
        window: int = 32,
        keyframe_every: int | Literal["auto"] = "auto",
        memory_limit: int | str = "auto",
        disk_limit: int | str = "auto",
        full_steps: int | Literal["auto"] = "auto",
        history: int = 10_000,
        sources: Literal["lines", "none"] = "lines",
        max_skipped: int = 20,
        dump_signal: signal.Signals | int | str | None = None,
        explain: bool = False,
    ) -> None:
        arguments = dict(locals())
        self._arguments: dict[str, Any] = {
            name: value for name, value in arguments.items() if name not in ("self", "__class__")
        }
        super().__init__()
        self._recording = Recording(check_settings(**self._arguments))
        self._calls = CompiledCalls(self._recording, self._suspected)
        self._incidents = Incidents(self._recording, self._stop_training, self._calls.take_all)
        self._ending = Ending(self._recording, self._uninstall, self._calls.take_all)
        self._ambient: Ambient | None = None
        self.in_block = BlockTraining(
            self._recording, self._calls, self._ending, self._hook, self._suspected
        )
        """What records this training where it is one of those of a block of code."""
        self._replaced: EagerTrainStep | DirectCalls | None = None
        self._in_session = SessionNotice()
        """What stands in for functions of the model while `fit` runs."""
        self._release_hooks: Callable[[], None] | None = None
        self._recording.guard(lambda: remove_leftovers(self._recording.settings.path))

    @property
    def path(self) -> Location | None:
        """The capture, once one has been written: the last one."""
        return self._incidents.path

    @property
    def paths(self) -> tuple[Location, ...]:
        """All captures that were written, in that order; those of copies of this recorder too."""
        return tuple(self._recording.written)

    @property
    def stopped(self) -> bool:
        """Whether an incident asks the loop to stop, with `on_nan="stop"`."""
        return self._recording.lifecycle.is_stopped

    @property
    def steps(self) -> int:
        """How many steps of the training were seen so far."""
        return self._recording.step

    def _repr_html_(self) -> str:
        """Show in a notebook what became of the training."""
        return notebook.html_of(self)

    # A block of code, and a process

    def __enter__(self) -> Recorder:
        """Record whatever trains within the block, each training in a file of its own."""
        self._recording.guard(self._record_block)
        return self

    def _record_block(self) -> None:
        unused = [self]  # records the first training; each later one gets a copy

        def make() -> Recorder:
            return unused.pop() if unused else self.__deepcopy__({})

        self._ambient = Ambient(make)
        self._ambient.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._ending.ended_by(error)
        try:
            if self._ambient is not None:
                self._ambient.stop()
            self.close()
        except NonFiniteError:
            if error is None:  # an error on its way out goes on; the capture has been written
                raise

    @property
    def raised(self) -> tuple[weakref.ref[NonFiniteError], str] | None:
        """The last error that was raised for an incident, and what it says."""
        return self._incidents.raised

    # Copies

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        """A recorder of its own with the same arguments.

        Hyperparameter searches copy their callbacks for each trial.
        """
        copied = type(self)(**self._arguments_now())
        copied._recording.written = self._recording.written
        memo[id(self)] = copied
        return copied

    def __copy__(self) -> Recorder:
        return self.__deepcopy__({})

    def __reduce__(self) -> tuple[Any, ...]:
        return _recorder_of, (type(self), self._arguments_now())

    def _arguments_now(self) -> dict[str, Any]:
        """The arguments, with a path that leads where it did when they were given."""
        settings = self._recording.settings
        return {**self._arguments, "path": str(settings.told(location(settings.path)))}

    # Keras

    def set_model(self, model: Any) -> None:
        """Check the model that `fit` hands over.

        Raises:
            AttachError: `fit` of this model cannot be recorded.
        """
        try:
            check_model(model)
        except AttachError:
            raise
        except Exception as error:
            self._recording.fail(error)
        # Not by the method of Keras 3's callback, whose `model` property gives this back: it knows
        # no models of Keras 2.
        self._model = model

    # Keras 2 asks by these whether it may leave out the calls for each batch.

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begin to record."""
        self._recording.guard(self._begin)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Metrics were reset, and other callbacks may have changed the state."""
        self._recording.guard(partial(self._recording.request_keyframe, is_sure=False))

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Record what is called from now on."""
        if self._recording.lifecycle.is_active or self._recording.lifecycle.has_failed:
            self._ending.is_in_step = True
            if not isinstance(self._replaced, EagerTrainStep):
                thread_state.listener = self._calls

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Record no more until the next batch."""
        if thread_state.listener is self._calls:
            thread_state.listener = None
        self._ending.is_in_step = False
        if signals.pending or not self._ending.is_listening:
            self._ending.end_step()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Record no more until the next epoch."""
        self._end_batches()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the steps that were not looked at yet."""
        self._end_batches()
        self._incidents.settle()

    def _end_batches(self) -> None:
        # Data of unknown length ends within a batch, without a call of `on_train_batch_end`.
        listening.stop_listening(self._calls)
        self._ending.is_in_step = False

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave the model as it was."""
        try:
            self._incidents.settle()
            self._recording.guard(partial(tell_of_unseen_steps, self._calls, logs))
        finally:
            self._recording.guard(self._ending.leave)

    def _begin(self) -> None:
        callbacks = callbacks_of_fit()  # Keras does not hand it over
        end_earlier_fit(self.model)
        watch_callbacks(callbacks, self._ending)
        self._ending.begin(callbacks)
        if self._has_successor(callbacks):
            return
        self._incidents.begin()
        self._recording.request_keyframe()
        if not self._recording.lifecycle.is_active:
            return
        if not tf.executing_eagerly():  # Keras 2 without eager execution
            self._in_session.tell()
            return
        self._hook()
        self._calls.on_error = self._ending.ended_by
        learn_model(self._calls, self.model)
        if self.model.run_eagerly or tf.config.functions_run_eagerly():
            record = partial(recorded_step, self._recording, self._suspected)
            self._replaced = EagerTrainStep(self.model, record, self._ending)
        elif DirectCalls.fits(self.model):
            self._replaced = DirectCalls(self.model, self._calls, self._ending)

    def _has_successor(self, callbacks: Any) -> bool:
        """Whether a later callback of this `fit` records it, which is told; two would mix."""
        other = successor_of(self, callbacks)
        if other is not None:
            paths = [str(each._recording.settings.path) for each in (self, other)]
            notices.say(SUPERSEDED.format(*paths))
        return other is not None

    def _suspected(self, suspicion: Suspicion) -> None:
        self._incidents.handle(suspicion)

    def _stop_training(self) -> None:
        model = getattr(self, "_model", None)
        if model is not None:
            model.stop_training = True

    def _hook(self) -> None:
        """Replace the functions that tell of a training, until this recorder is done with."""
        if self._release_hooks is None:
            self._release_hooks = observe.install()
            listening.bystanders.add(self._calls)
            # A recorder may be forgotten without an end; the process may not wait for that.
            weakref.finalize(self, self._release_hooks).atexit = False

    def _uninstall(self) -> None:
        """Leave nothing of this recorder behind: in the thread, the model, TensorFlow."""
        self._recording.keeper.assignments.stop()
        listening.stop_listening(self._calls)
        listening.bystanders.discard(self._calls)
        self._ending.is_in_step = False
        if self._replaced is not None:
            self._replaced.undo()
            self._replaced = None
        if self._release_hooks is not None:
            release, self._release_hooks = self._release_hooks, None
            release()

    # Loops

    def wrap(
        self, step: Callable[..., Any], *, model: Any = None, optimizer: Any = None
    ) -> Callable[..., Any]:
        """Record a custom training step.

        It may be a `tf.function`, anything that calls some, or a plain eager function. The step
        runs as it is. Each compiled function that trains within it is recorded as a step; a
        gradient that is computed or applied in Python makes the whole call one step.

        Examples:
            >>> recorder = Recorder("run.h5", on_nan="stop")
            >>> step = recorder.wrap(train_step, model=model, optimizer=optimizer)
            >>> for batch in data:
            ...     loss = step(batch)
            ...     if recorder.stopped:
            ...         break

            A method of an object:

            >>> trainer.train_step = recorder.wrap(trainer.train_step, model=trainer.model)
            >>> loss = trainer.train_step(next(iter(data)))

        Args:
            step: Runs one training step on what it is given.
            model: The Keras model, or several models or layers, that the step trains; names
                variables. Optional.
            optimizer: Its optimizer, or several; names the slots. Optional.

        Returns:
            A function to call in place of `step`.

        Raises:
            AttachError: `step` is not callable.
        """
        if not callable(step):
            raise AttachError(
                f"Expected a function or a tf.function. Received: {type(step).__name__}"
            )
        recorded: Callable[..., Any] | None = self._recording.guard(
            lambda: self._wrap(step, model, optimizer)
        )
        return step if recorded is None else recorded

    def _wrap(self, step: Any, model: Any, optimizer: Any) -> Callable[..., Any]:
        recording = self._recording
        for one_model in tf.nest.flatten(model):
            recording.variables.name_model(one_model)
        for one_optimizer in tf.nest.flatten(optimizer):
            recording.variables.name_optimizer(one_optimizer)
        self._ending.begin()
        self._hook()
        eager = EagerStep(recording, step, self._suspected)
        wrapped = WrappedStep(recording, step, self._calls, eager)
        return as_function(self._ending.around(wrapped, self._hook), step)

    def dump(self, reason: str = "on demand") -> Location | None:
        """Write what is held now, without an incident.

        For a look at a training that goes on: from another callback, or between steps of a loop.

        Args:
            reason: Why, for the file.

        Returns:
            The file, or None when it could not be written.

        Raises:
            NonFiniteError: One of the last steps was non-finite, and `on_nan` is "raise".
        """
        return self._incidents.dump(reason)

    def close(self) -> None:
        """Look at the last steps, then let go of batches, keyframes and the model.

        For the end of a custom loop; `fit` and a `with` block need no call.

        Raises:
            NonFiniteError: One of the last steps was non-finite, and `on_nan` is "raise".
        """
        try:
            self._incidents.settle()
        finally:
            self._recording.guard(self._ending.leave)
            self._recording.guard(self._recording.release)
            self._recording.guard(self._calls.release)
            self._recording.guard(self.in_block.forget)
            self._recording.lifecycle.note(Event.CLOSE)


def _recorder_of(kind: type[Recorder], arguments: dict[str, Any]) -> Recorder:
    """Make a recorder again in another process."""
    return kind(**arguments)
