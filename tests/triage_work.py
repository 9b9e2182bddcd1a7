"""What workers of `nanreplay triage` do in tests, in processes that import this module."""

from __future__ import annotations

import os
import signal
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
