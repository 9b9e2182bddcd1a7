"""How a recording ends: well, by an exception, or by a signal.

What no file holds by then is written, and nothing stays behind. A `Recorder` has one `Ending`,
which hears of each step's beginning and end, and which `signals` asks to write.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import weakref
from collections.abc import Callable
from typing import Any

from nanreplay.errors import NonFiniteError, without_own_frames
from nanreplay.recorder import notices, signals
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
        recording: The recording.
        restore: Puts back what the recorder replaced.
        before_writing: Brings in what steps have fetched and nobody took yet.
    """

    def __init__(
        self,
        recording: Recording,
        restore: Callable[[], None],
        before_writing: Callable[[], None],
    ) -> None:
        self._recording = recording
        self._restore = restore
        self._before_writing = before_writing
        self.is_listening = False
        """Whether signals that end the process come here."""
        self._has_left = True
        """Whether what the recorder replaces may have been put back since the last step."""
        self._callbacks_gone: weakref.finalize[Any, Any] | None = None
        self.is_in_step = False
        """Whether a step is under way: signals that come now are answered at its end."""
        recording.on_detach = self.leave

    @property
    def is_writing(self) -> bool:
        """Whether a file is being written."""
        return self._recording.lifecycle.is_writing

    # Steps

    def around(self, step: Callable[..., Any], before: Callable[[], None]) -> Callable[..., Any]:
        """A step that tells when it begins and ends.

        Args:
            step: The step.
            before: Called first; an exception in an earlier step may have put everything back.
        """

        @functools.wraps(step, updated=())
        def run(*args: Any, **kwargs: Any) -> Any:
            is_recorded = self._recording.lifecycle.is_active and tf_functions.is_top_level()
            if self.is_in_step or not is_recorded:
                return step(*args, **kwargs)
            if self._has_left:
                self._has_left = False
                self._recording.guard(before)
            self.is_in_step = True
            try:
                result = step(*args, **kwargs)
            except BaseException as error:
                self.ended_by(error)
                if isinstance(error, NonFiniteError):
                    raise without_own_frames(error) from error.__cause__
                raise
            self.end_step()
            return result

        return run

    def end_step(self) -> None:
        """A step has ended."""
        self.is_in_step = False
        if not self.is_listening:
            self._recording.guard(self._listen)
        if signals.pending:
            signals.answer_pending()

    def _listen(self) -> None:
        """Listen to the signals that end a process, from the end of the first step on.

        Before that there is nothing to save: compiling the first step may take long, and is better
        ended at once.
        """
        self.is_listening = True
        signals.listen(self, signal.SIGTERM)
        signals.listen(self, signal.SIGINT)
        if self._recording.settings.dump_signal is not None:
            signals.listen(self, self._recording.settings.dump_signal)

    # Trainings

    def begin(self, callbacks: Any = None) -> None:
        """Before training: listen to the signal that asks for a file.

        Args:
            callbacks: The `CallbackList` of `fit`. It lives as long as `fit` runs, and so tells
                when `fit` has gone without calling `on_train_end`.
        """
        number = self._recording.settings.dump_signal
        if number is not None and not signals.listen(self, number):
            notices.say("dump_signal has no effect: signals reach the main thread of Python only.")
        if callbacks is not None:
            if self._callbacks_gone is not None:
                self._callbacks_gone.detach()
            self._callbacks_gone = weakref.finalize(callbacks, self.leave)
            self._callbacks_gone.atexit = False

    def leave(self) -> None:
        """Leave nothing installed."""
        self.is_listening, self._has_left = False, True
        # The finalizer keeps the recording alive, and with it the frames of an error of our own.
        if self._callbacks_gone is not None:
            self._callbacks_gone.detach()
        signals.leave(self)
        self._restore()

    def ended_by(self, error: BaseException) -> None:
        """An exception passes through the training: write if it ends the program, and leave."""
        self.is_in_step = False
        if self._recording.guard(lambda: is_end_of_data(error)):
            return
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.write(type(error).__name__, prove=False)
        self._recording.guard(self._recording.forget_unfinished)
        self._recording.guard(self.leave)
        signals.answer_pending()

    # Writing

    def write(self, name: str, *, prove: bool) -> None:
        """Write the window, when it holds anything new.

        Args:
            name: Name of the signal or exception that is the reason.
            prove: Re-execute the window, which takes a while.
        """
        if self._recording.lifecycle.is_active or self._recording.lifecycle.has_failed:
            self._recording.guard(lambda: self._write(name, prove))

    def _write(self, name: str, prove: bool) -> None:
        recording = self._recording
        self._before_writing()
        if not recording.has_news():
            return
        trigger = Trigger("manual", name, _MEANINGS.get(name, "a file was asked for"))
        path, problem = recording.write(trigger, recording.step - 1, prove=prove)
        with contextlib.suppress(Exception):  # the terminal may be gone
            message = f"nanreplay: {name}: {problem or f'wrote {path}'}"
            print(message, file=sys.stderr, flush=True)
