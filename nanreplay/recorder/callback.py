"""`Recorder`: the Keras callback, and the wrapper of custom training loops."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import keras
import tensorflow as tf

from nanreplay.capture.storage import Location
from nanreplay.errors import AttachError, NonFiniteError
from nanreplay.recorder.eager_step import EagerStep
from nanreplay.recorder.ending import Ending
from nanreplay.recorder.fit import FitFunction, check_model, traced_train_step
from nanreplay.recorder.fit_callbacks import callbacks_of_fit, watch_callbacks
from nanreplay.recorder.graph_step import GraphStep
from nanreplay.recorder.incidents import Incidents
from nanreplay.recorder.loop import traced_function
from nanreplay.recorder.names import remove_leftovers
from nanreplay.recorder.session import Session
from nanreplay.recorder.settings import check_settings


class Recorder(keras.callbacks.Callback):
    """Records a training and writes one HDF5 file when a loss, a gradient or a variable becomes NaN or infinite.

    ```python
    model.fit(data, callbacks=[Recorder("run.h5")])                     # Keras

    recorder = Recorder("run.h5")                                       # custom loop
    step = recorder.wrap(train_step, model=model, optimizer=optimizer)
    for batch in data:
        loss = step(batch)
    ```

    Args:
        path: The capture file, or a URL such as `s3://bucket/run.h5`; may hold `{step}`, `{time}`, `{pid}`, `{worker}`. An older
            file is replaced.
        on_nan: "raise" raises `NonFiniteError`; "stop" stops `fit` (in a loop, look at `recorder.stopped`); "continue" goes on,
            and writes a next incident, after a healthy step, to `run.1.h5`, `run.2.h5`, ...
        max_incidents: Incidents that are recorded with "continue".
        window: Steps whose batches are kept.
        keyframe_every: Steps between copies of all variables; "auto" lets them add a hundredth to the time of the steps.
        memory_limit: What batches, copies and the timeline may hold, bytes or a text such as "1GiB".
        disk_limit: What the file may take; what would be too much is left out, and named in the file.
        history: Steps of the timeline (loss, learning rate, norms).
        sources: "lines" writes the source lines of the training step into the file, "none" leaves them out.
        max_skipped: Updates that loss scaling may skip in a row before that counts as an incident.
        dump_signal: A signal that asks for a file while training goes on, such as "SIGUSR1".

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
        memory_limit: int | str = "1GiB",
        disk_limit: int | str = "1GiB",
        history: int = 10_000,
        sources: Literal["lines", "none"] = "lines",
        max_skipped: int = 20,
        dump_signal: signal.Signals | int | str | None = None,
    ) -> None:
        super().__init__()
        given = {
            "on_nan": on_nan, "max_incidents": max_incidents, "window": window, "keyframe_every": keyframe_every,
            "memory_limit": memory_limit, "disk_limit": disk_limit, "history": history, "sources": sources,
            "max_skipped": max_skipped, "dump_signal": dump_signal,
        }  # fmt: skip
        self._session = Session(check_settings(path, **given))
        self._incidents = Incidents(self._session, self._stop_training)
        self._ending = Ending(self._session, self._uninstall)
        self._fit: FitFunction | None = None
        self._expected = False
        self._session.guard(lambda: remove_leftovers(self._session.settings.path))

    @property
    def path(self) -> Location | None:
        """The capture, once one has been written: the last one."""
        return self._incidents.path

    @property
    def paths(self) -> tuple[Location, ...]:
        """All captures that were written, in that order."""
        return tuple(self._session.written)

    @property
    def stopped(self) -> bool:
        """Whether an incident asks the loop to stop."""
        return self._incidents.stopped

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._ending.ended_by(error)
        try:
            self.close()
        except NonFiniteError:
            if error is None:  # an error on its way out goes on; the capture has been written
                raise

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
            self._session.detach(error)
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the recording train function in place."""
        self._session.guard(self._begin)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Metrics were reset, and other callbacks may have changed the state."""
        self._session.guard(self._session.request_keyframe)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Announce the step; put the train function back when another callback replaced it."""
        self._expected = True
        if self.model.train_function is not self._fit:
            self._session.guard(self._session.request_keyframe)
            self._session.guard(self._install)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the steps that were not looked at yet."""
        self._incidents.settle()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave the model as it was."""
        try:
            self._incidents.settle()
        finally:
            self._session.guard(self._ending.leave)

    def _begin(self) -> None:
        callbacks = callbacks_of_fit()
        if callbacks is not None:
            watch_callbacks(callbacks, self._ending)
        self._incidents.begin()
        self._session.request_keyframe()
        if not self._session.detached:
            self._ending.begin(callbacks)
        self._install()

    def _install(self) -> None:
        model, original = self.model, self.model.train_function
        if self._session.detached:
            return
        if isinstance(original, FitFunction):
            original = original.original
        if self._fit is None or self._fit.model is not model or self._fit.original is not original:
            step = self._fit_step(model)
            run = self._ending.around(step)
            self._fit = FitFunction(model, original, run, self._take_expected, self._ending.ended_by, self._guarded(step.expect))
        model.train_function = self._fit

    def _fit_step(self, model: Any) -> EagerStep | GraphStep:
        session = self._session
        session.variables.name_model(model)
        if model.run_eagerly:
            return EagerStep(session, model.train_step, self._incidents.handle)
        traced, bare = traced_train_step(model, session)
        return GraphStep(session, traced, bare, self._incidents.handle)

    def _guarded(self, expect: Callable[[Any], None]) -> Callable[[Any], None]:
        return lambda spec: self._session.guard(lambda: expect(spec))

    def _take_expected(self) -> bool:
        expected, self._expected = self._expected, False
        return expected

    def _stop_training(self) -> None:
        model = getattr(self, "_model", None)
        if model is not None:
            model.stop_training = True

    def _uninstall(self) -> None:
        self._session.keeper.assignments.stop()
        model = getattr(self, "_model", None)
        if self._fit is not None and model is not None and model.train_function is self._fit:
            model.train_function = self._fit.original

    # Loops

    def wrap(self, step: Callable[..., Any], *, model: Any = None, optimizer: Any = None) -> Callable[..., Any]:
        """Record a custom training step.

        A `tf.function` is traced again with the watch inside; a plain Python function runs eagerly as it is.

        Args:
            step: Runs one training step on the batch that it is given, and returns the loss (or any outputs).
            model: The Keras model (or layers) that the step trains; names variables. Optional.
            optimizer: Its optimizer; names the slots. Optional.

        Returns:
            A function to call in place of `step`.

        Raises:
            AttachError: `step` is not callable.
        """
        if not callable(step):
            raise AttachError(f"Expected a function or a tf.function. Received: {type(step).__name__}")
        recorded: Callable[..., Any] | None = self._session.guard(lambda: self._wrap(step, model, optimizer))
        return step if recorded is None else recorded

    def _wrap(self, step: Any, model: Any, optimizer: Any) -> Callable[..., Any]:
        session = self._session
        for each in tf.nest.flatten(model):
            session.variables.name_model(each)
        for each in tf.nest.flatten(optimizer):
            session.variables.name_optimizer(each)
        self._ending.begin()
        if hasattr(step, "get_concrete_function") and hasattr(step, "python_function"):
            return self._ending.around(traced_function(session, step, self._incidents.handle))
        return self._ending.around(EagerStep(session, step, self._incidents.handle))

    def dump(self, reason: str = "on demand") -> Location | None:
        """Write what is held now, without an incident; returns the file, or None when it could not be written."""
        return self._incidents.dump(reason)

    def close(self) -> None:
        """Look at the last steps, then let go of batches, keyframes and the model.

        Raises:
            NonFiniteError: One of the last steps, which a GPU was still computing, was non-finite, and `on_nan` is "raise".
        """
        try:
            self._incidents.settle()
        finally:
            self._session.guard(self._ending.leave)
            self._session.guard(self._session.release)
            self._session.detached = True
