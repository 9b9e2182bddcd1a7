"""What workers of `nanreplay triage` do in tests, in processes that import this module."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

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
