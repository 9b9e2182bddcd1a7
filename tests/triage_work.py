"""What workers of `nanreplay triage` do in tests, in processes that import this module."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from nanreplay.triage.capture_answer import CaptureAnswer


def work_or_die(path: str, trust: bool) -> CaptureAnswer:
    """Answers, unless the file is named after what happens to the process."""
    name = Path(path).stem
    if name in ("killed", "crashed", "left"):
        time.sleep(0.5)  # they are at work when it happens
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "crashed":
        os.abort()
    elif name == "left":
        os._exit(3)
    elif name == "hangs":
        time.sleep(600)
    elif name == "prints":
        os.write(1, b"from C\n")
        print("from Python")
    memory = os.environ.get("NANREPLAY_MAX_MEMORY")
    return CaptureAnswer(path, "finite", f"finite in {memory}")


def tell_and_hang(path: str, trust: bool) -> CaptureAnswer:
    """Tells a reader of a FIFO that it is at work, for as long as it lives."""
    with Path(path).open("w") as told:
        told.write("at work\n")
        told.flush()
        time.sleep(600)
    return CaptureAnswer(path, "finite", "nobody ended it")


TASK_BEGAN, TASK_MAY_END = threading.Event(), threading.Event()


def begin_and_wait(paths: list[str], options: dict[str, Any]) -> list[dict[str, Any]]:
    """A task of a Dask worker in this process that ends when it is told to."""
    TASK_BEGAN.set()
    TASK_MAY_END.wait()
    return []


class Line:
    """A TCP line to a scheduler that can fall silent: it stays open, and nothing comes any more.

    So a scheduler looks whose process is stopped, or whose machine sleeps.
    """

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("tcp://").split(":")
        self._target = (host, int(port))
        self._is_silent = threading.Event()
        self._open: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def fall_silent(self) -> None:
        """Hand nothing on from now."""
        self._is_silent.set()

    def close(self) -> None:
        """Cut the line."""
        for one in (self._listening, *self._open):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listening.accept()
                there = socket.create_connection(self._target)
            except OSError:  # it was closed
                return
            self._open += [here, there]
            for source, target in ((here, there), (there, here)):
                threading.Thread(target=self._hand_on, args=(source, target), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while received := source.recv(1 << 16):
                if not self._is_silent.is_set():
                    target.sendall(received)
            target.shutdown(socket.SHUT_WR)
        except OSError:  # one of the two was closed
            return
