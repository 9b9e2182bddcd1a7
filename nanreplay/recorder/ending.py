"""How a recording ends: well, by an exception, or by a signal. What no file holds by then is written, and nothing stays behind."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

from nanreplay.recorder import signals
from nanreplay.recorder.lifecycle import is_end_of_data
from nanreplay.recorder.recording import Recording
from nanreplay.records import Trigger
from nanreplay.tensorflow_internals import tf_functions

_MEANINGS = {
    "SIGTERM": "the process was told to end",
    "KeyboardInterrupt": "the training was interrupted",
    "SystemExit": "the program ended itself",
}


class Ending:
    """Sees the steps of one recorder begin and end, and what comes between them.

    Args:
        session: The recording.
        restore: Puts back what the recorder replaced.
    """

    def __init__(self, session: Recording, restore: Callable[[], None]) -> None:
        self._session = session
        self._restore = restore
        self._is_listening = False
        self._callbacks_gone: weakref.finalize[Any, Any] | None = None
        self.is_in_step = False
        self.before_writing: Callable[[], None] = lambda: None
        """Brings in what steps have fetched and nobody took yet."""
        session.on_detach = self.leave

    @property
    def is_writing(self) -> bool:
        """Whether a file is being written."""
        return self._session.lifecycle.is_writing

    def around(self, step: Callable[..., Any], before: Callable[[], None]) -> Callable[..., Any]:
        """A step that tells when it begins and ends; `before` is called first, for an exception may have put everything back."""

        @functools.wraps(step, updated=())
        def run(*args: Any, **kwargs: Any) -> Any:
            if (
                self.is_in_step
                or not self._session.lifecycle.is_active
                or not tf_functions.is_top_level()
            ):
                return step(*args, **kwargs)
            self._session.guard(before)
            self.begin_step()
            try:
                result = step(*args, **kwargs)
            except BaseException as error:
                self.ended_by(error)
                raise
            self.end_step()
            return result

        return run

    def begin_step(self) -> None:
        """A step begins: what comes now is answered at its end."""
        self.is_in_step = True

    def end_step(self) -> None:
        """A step has ended."""
        self.is_in_step = False
        if not self._is_listening:
            self._session.guard(self._listen)
        signals.answer_pending()

    def begin(self, callbacks: Any = None) -> None:
        """Before training: listen to the signal that asks for a file; note when `fit` has gone without an end.

        Args:
            callbacks: The `CallbackList` of `fit`, which lives as long as `fit` runs.
        """
        number = self._session.settings.dump_signal
        if number is not None and not signals.listen(self, number):
            warnings.warn(
                "nanreplay: dump_signal has no effect: signals reach the main thread of Python only.",
                stacklevel=2,
            )
        if callbacks is not None:
            if self._callbacks_gone is not None:
                self._callbacks_gone.detach()
            self._callbacks_gone = weakref.finalize(callbacks, self.leave)
            self._callbacks_gone.atexit = False

    def _listen(self) -> None:
        """After the first step, since before there is nothing to save: compiling it may take long, and is better ended at once."""
        self._is_listening = True
        signals.listen(self, signal.SIGTERM)
        signals.listen(self, signal.SIGINT)
        if self._session.settings.dump_signal is not None:
            signals.listen(self, self._session.settings.dump_signal)

    def leave(self) -> None:
        """Leave nothing installed."""
        self._is_listening = False
        if (
            self._callbacks_gone is not None
        ):  # it would keep the recording alive, and what an error of ours had on its stack
            self._callbacks_gone.detach()
        signals.leave(self)
        self._restore()

    def write(self, name: str, *, prove: bool) -> None:
        """Write the window because of what `name` is, when it holds anything new."""
        if self._session.lifecycle.is_active or self._session.lifecycle.has_failed:
            self._session.guard(lambda: self._write(name, prove))

    def _write(self, name: str, prove: bool) -> None:
        session = self._session
        self.before_writing()
        if session.has_news():
            path, problem = session.write(
                Trigger("manual", name, _MEANINGS.get(name, "a file was asked for")),
                session.step - 1,
                prove=prove,
            )
            with contextlib.suppress(Exception):  # the terminal may be gone
                print(
                    f"nanreplay: {name}: {problem or f'wrote {path}'}", file=sys.stderr, flush=True
                )

    def ended_by(self, error: BaseException) -> None:
        """An exception passes through the training: write when it ends the program, and put everything back."""
        self.is_in_step = False
        if self._session.guard(lambda: is_end_of_data(error)):
            return
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.write(type(error).__name__, prove=False)
        self._session.guard(self._session.forget_unfinished)
        self._session.guard(self.leave)
        signals.answer_pending()
