"""Ends a process that SIGTERM does not reach, such as one that waits in TensorFlow for data that never comes.

Without a handler SIGTERM ends a process at once. With one, Python waits for the main thread to return from the call it is in.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from typing import Protocol

GRACE_S = 5.0
"""Seconds that the main thread has to answer; a step that takes longer is not waited for."""


class Watched(Protocol):
    """The handler that should answer."""

    number: int

    @property
    def is_writing(self) -> bool:
        """Whether a file is being written, which ends."""

    def is_in_place(self) -> bool:
        """Whether the signal comes to this handler first."""

    def write(self) -> None:
        """Write what is whole."""


class Watchdog:
    """A thread that learns of signals at once, through `signal.set_wakeup_fd`; another's descriptor there is left alone."""

    def __init__(self, handler: Watched) -> None:
        self.is_answered = threading.Event()
        self._handler = handler
        self._stopped = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        taken = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if taken != -1:
            signal.set_wakeup_fd(taken)
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
            now = signal.set_wakeup_fd(-1)
            if now != self._write:
                signal.set_wakeup_fd(now)
            _in_use.discard(self._write)
            os.write(self._write, b"\0")
            os.close(self._write)

    def _watch(self) -> None:
        while (byte := os.read(self._read, 1)) not in (b"", b"\0"):
            if byte[0] == self._handler.number:
                self._end()
        os.close(self._read)

    def _end(self) -> None:
        if self._is_answered(GRACE_S):
            return
        # The handler has noted the signal, and waits for the end of a step that runs in Python: the second one is answered at once.
        os.kill(os.getpid(), self._handler.number)
        if self._is_answered(GRACE_S / 5):
            return
        self.is_answered.set()
        self._handler.write()
        ctypes.pythonapi.PyOS_setsig(self._handler.number, None)  # `signal.signal` works in the main thread only
        os.kill(os.getpid(), self._handler.number)

    def _is_answered(self, timeout_s: float) -> bool:
        while not self.is_answered.wait(timeout_s):
            if self._stopped or not self._handler.is_in_place():
                return True
            if not self._handler.is_writing:
                return False
        return True


_in_use: set[int] = set()


def _forget_in_child() -> None:
    """Signals of a forked process are none of its parent's."""
    now = signal.set_wakeup_fd(-1)
    if now not in _in_use:
        signal.set_wakeup_fd(now)


os.register_at_fork(after_in_child=_forget_in_child)
