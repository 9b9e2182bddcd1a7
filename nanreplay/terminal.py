"""What every front end shares: exit codes, and stdout that holds results alone.

The command line and the pytest plugin use it; neither imports the other.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Literal

from nanreplay import limits
from nanreplay.errors import MissingPartError, NanreplayError, ReplayError, UnsupportedOpError

Status = Literal["finite", "nonfinite", "unreadable", "undecided"]
FINITE, NONFINITE, UNREADABLE, UNDECIDED = 0, 1, 2, 3
"""What a command returns, and the process exits with."""
INTERRUPTED = 130
"""What shells expect of a process that Ctrl-C ended."""
CODES: Mapping[str, int] = {
    "healthy": FINITE,
    "reproduced": NONFINITE,
    "xla_only": NONFINITE,
    "precision_only": NONFINITE,
}
"""Exit code by kind of verdict; `transient` and `inconclusive` could not be decided."""
STATUS: Mapping[int, Status] = {
    FINITE: "finite",
    NONFINITE: "nonfinite",
    UNREADABLE: "unreadable",
    UNDECIDED: "undecided",
}
"""An exit code in a word."""


def code_of(error: NanreplayError) -> int:
    """The exit code of an error that nanreplay raised on purpose."""
    is_undecided = isinstance(error, (UnsupportedOpError, ReplayError, MissingPartError))
    return UNDECIDED if is_undecided else UNREADABLE


@contextlib.contextmanager
def quiet_work() -> Iterator[None]:
    """Load TensorFlow and keep stdout for results while it works: what a recorded program prints goes to stderr."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with redirected(2, os.devnull):  # the log level holds only once TensorFlow is loaded
        import_module("tensorflow")
    with redirected(1, 2), limits.limited_process():
        yield


@contextlib.contextmanager
def redirected(descriptor: int, target: int | str) -> Iterator[None]:
    """Send what native code writes to a file descriptor somewhere else."""
    stream = sys.stdout if descriptor == 1 else sys.stderr
    try:
        stream.flush()
        kept = os.dup(descriptor)
    except (OSError, AttributeError):  # closed or missing: nobody reads it
        yield
        return
    opened = os.open(target, os.O_WRONLY) if isinstance(target, str) else os.dup(target)
    os.dup2(opened, descriptor)
    os.close(opened)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            stream.flush()
        os.dup2(kept, descriptor)
        os.close(kept)
