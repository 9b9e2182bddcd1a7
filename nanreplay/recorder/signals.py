"""Signals while a training is recorded: SIGTERM, Ctrl-C, and one that asks for a file.

Python runs a signal's handler in the main thread, between two instructions, so also in the middle
of a step. There the handler only notes the signal, and the end of the step answers it. Between
steps everything is whole, and the handler answers at once. Each recorder's `Ending` listens here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import weakref
from types import FrameType
from typing import Any, Protocol

_ENDS = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a process."""
# Listening

_handlers: dict[int, Handler] = {}
"""The handlers that are in place, by signal."""
pending: set[Handler] = set()
"""Those whose signal came in the middle of a step, and is to be answered; nearly always none."""


def listen(listener: Listener, number: int) -> bool:
    """Tell `listener` of a signal.

    Returns:
        Whether that is possible: it is in the main thread, unless the signal is not ours to take.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    handler = _handlers.get(number)
    # Recordings that were forgotten without an end leave a handler without listeners.
    if handler is not None and not handler.listeners:
        _handlers.pop(number).remove()
        handler = None
    if handler is None:
        handler = Handler(number)
        if not handler.install():
            return False
        _handlers[number] = handler
    handler.add(listener)
    return True


def leave(listener: Listener) -> None:
    """Tell `listener` no more; the last one to leave puts the previous handlers back."""
    for number, handler in list(_handlers.items()):
        if handler.discard(listener) and threading.current_thread() is threading.main_thread():
            handler.remove()
            del _handlers[number]


def answer_pending() -> None:
    """Answer signals that came in the middle of a step, as soon as no recording is busy."""
    for handler in list(_handlers.values()):
        if handler in pending and not handler.is_busy:
            handler.answer()


# Answering


class Listener(Protocol):
    """A recording that wants to know of signals."""

    @property
    def is_in_step(self) -> bool:
        """Whether a step is under way."""

    @property
    def is_writing(self) -> bool:
        """Whether a file is being written."""

    def write(self, name: str, *, prove: bool) -> None:
        """Write the window because of the signal `name`."""

    def ended_by(self, error: BaseException) -> None:
        """Note that `error` passes through the training between two steps."""


class Handler:
    """Stands before the handler of one signal while any recording listens.

    A handler that others have put theirs before cannot be taken out; it then only calls the one
    before it.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._is_passed_on = False
        """Whether another thread has answered, and the main thread is to do the rest."""
        self._previous: Any = None
        """The handler that was there before, as `signal.getsignal` gives it."""
        self._listeners: weakref.WeakSet[Any] = weakref.WeakSet()
        self._pid = os.getpid()
        self._watchdog: Watchdog | None = None

    @property
    def listeners(self) -> list[Listener]:
        """The recordings that listen; none in a process that was forked."""
        return list(self._listeners) if os.getpid() == self._pid else []

    @property
    def is_writing(self) -> bool:
        """Whether any of them writes a file."""
        return any(listener.is_writing for listener in self.listeners)

    @property
    def is_busy(self) -> bool:
        """Whether any of them cannot answer now."""
        return self.is_writing or any(listener.is_in_step for listener in self.listeners)

    def add(self, listener: Listener) -> None:
        """Tell `listener` from now on."""
        self._listeners.add(listener)

    def discard(self, listener: Listener) -> bool:
        """Do not tell `listener` any more; returns whether nobody is left."""
        self._listeners.discard(listener)
        return not self._listeners

    def install(self) -> bool:
        """Put the handler in place; not where the signal is ignored, or not Python's to handle."""
        self._previous = signal.getsignal(self.number)
        if self._previous is None or (self._previous == signal.SIG_IGN and self.number in _ENDS):
            return False
        # On Windows nobody is told of SIGTERM: what ends a process there ends it at once.
        if self._kills() and hasattr(os, "register_at_fork"):
            self._watchdog = Watchdog(self)
        signal.signal(self.number, self)
        return True

    def remove(self) -> None:
        """Put the previous handler back."""
        pending.discard(self)
        if self._watchdog is not None:
            self._watchdog.stop()
        if self.is_in_place():
            signal.signal(self.number, self._previous)

    def is_in_place(self) -> bool:
        """Whether the signal comes here first."""
        return signal.getsignal(self.number) is self

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Python calls this in the main thread."""
        if not self.listeners or self._is_passed_on:
            self._call_previous(frame)
        elif number == signal.SIGINT:
            self._interrupt(frame)
        elif self.is_writing or (self.is_busy and not (self in pending and self._kills())):
            pending.add(self)
        else:
            # Between steps; or SIGTERM came twice in a step that takes long: its work is lost.
            self.answer(frame)

    def answer(self, frame: FrameType | None = None) -> None:
        """Write, then do what would have been done without a recorder."""
        pending.discard(self)
        if self._watchdog is not None:
            self._watchdog.is_answered.set()
        self.write()
        if threading.current_thread() is threading.main_thread():
            self._call_previous(frame)
        elif self.number in _ENDS:  # handlers run in the main thread only
            self._is_passed_on = True
            os.kill(os.getpid(), self.number)

    def write(self) -> None:
        """Have all recordings written."""
        name = signal.Signals(self.number).name
        for listener in self.listeners:
            listener.write(name, prove=self.number not in _ENDS)

    def _kills(self) -> bool:
        """Whether the signal ends the process at once, as SIGTERM does where nobody handles it."""
        return self.number == signal.SIGTERM and self._previous == signal.SIG_DFL

    def _interrupt(self, frame: FrameType | None) -> None:
        try:
            self._call_previous(frame)
        except KeyboardInterrupt as error:
            if not self.is_busy:  # else the error passes through the step, which tells of it
                for listener in self.listeners:
                    listener.ended_by(error)
            raise

    def _call_previous(self, frame: FrameType | None) -> None:
        self._is_passed_on = False
        if callable(self._previous):
            self._previous(self.number, frame)
        elif self._previous == signal.SIG_DFL and (self.number in _ENDS or not self.listeners):
            signal.signal(self.number, signal.SIG_DFL)
            os.kill(os.getpid(), self.number)


# Ending a process whose main thread does not come to answer SIGTERM, such as one that waits in
# TensorFlow for data that never comes.

GRACE_S = 5.0
"""Seconds that the main thread has to answer; a step that takes longer is not waited for."""


class AnsweringHandler(Protocol):
    """The handler of a signal, which is to answer in the main thread."""

    number: int

    @property
    def is_writing(self) -> bool:
        """Whether a file is being written, which ends."""

    def is_in_place(self) -> bool:
        """Whether the signal comes to this handler first."""

    def write(self) -> None:
        """Write what is whole."""


class Watchdog:
    """A thread that learns of signals at once, through `signal.set_wakeup_fd`.

    Python writes the number of a signal to that descriptor as it arrives, whatever the main thread
    does. A process has one such descriptor: one of somebody else's is left alone.

    Args:
        handler: The handler that is to answer.
    """

    def __init__(self, handler: AnsweringHandler) -> None:
        self.is_answered = threading.Event()
        self._handler = handler
        self._stopped = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        others_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if others_fd != -1:
            signal.set_wakeup_fd(others_fd)
            os.close(self._read)
            os.close(self._write)
            self._stopped = True
            return
        _in_use.add(self._write)
        threading.Thread(target=self._watch, name="nanreplay-watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the thread; called in the main thread."""
        if not self._stopped:
            self._stopped = True
            current_fd = signal.set_wakeup_fd(-1)
            if current_fd != self._write:
                signal.set_wakeup_fd(current_fd)
            _in_use.discard(self._write)
            os.write(self._write, b"\0")
            os.close(self._write)

    def _watch(self) -> None:
        # In Python 3.11 a thread that a debugger or coverage traces never gets past the beginning
        # of a function while a signal waits for the main thread.
        sys.settrace(None)
        while True:
            byte = os.read(self._read, 1)
            if byte in (b"", b"\0"):  # as `stop` writes it; no signal has the number 0
                break
            if byte[0] == self._handler.number:
                self._end()
        os.close(self._read)

    def _end(self) -> None:
        """Wait for the main thread to answer; else write what is whole, and end the process."""
        if self._is_answered(GRACE_S):
            return
        # The handler has noted the signal, and waits for the end of a step that runs in Python: a
        # second one it answers at once.
        os.kill(os.getpid(), self._handler.number)
        if self._is_answered(GRACE_S / 5):
            return
        self.is_answered.set()
        self._handler.write()
        # NULL is SIG_DFL; `signal.signal` works in the main thread only.
        ctypes.pythonapi.PyOS_setsig(self._handler.number, None)
        os.kill(os.getpid(), self._handler.number)

    def _is_answered(self, timeout_s: float) -> bool:
        """Whether the signal is answered in time, or need not be; a file that is written ends."""
        while not self.is_answered.wait(timeout_s):
            if self._stopped or not self._handler.is_in_place():
                return True
            if not self._handler.is_writing:
                return False
        return True


_in_use: set[int] = set()
"""Descriptors of watchdogs."""


def _forget_in_child() -> None:
    """Signals of a forked process are none of its parent's."""
    current_fd = signal.set_wakeup_fd(-1)
    if current_fd not in _in_use:
        signal.set_wakeup_fd(current_fd)


if hasattr(os, "register_at_fork"):  # Windows forks no processes
    os.register_at_fork(after_in_child=_forget_in_child)
