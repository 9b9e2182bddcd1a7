"""What every front end shares: exit codes, and a stdout that holds nothing but results.

The command line and the pytest plugin use it; neither imports the other.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Literal, TextIO

from nanreplay import limits
from nanreplay.errors import MissingPartError, NanreplayError, ReplayError, UnsupportedOpError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

Status = Literal["finite", "nonfinite", "unreadable", "undecided"]
FINITE, NONFINITE, UNREADABLE, UNDECIDED = 0, 1, 2, 3
"""What a command returns and the process exits with; `docs/commands.md` lists them."""
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
    """Load TensorFlow, and send to stderr what a recorded program prints: stdout is for results."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with redirected(2, os.devnull):  # the log level holds only once TensorFlow is loaded
        import_module("tensorflow")
    with redirected(1, 2), limits.limited_process():
        yield


def own_stdout() -> TextIO | None:
    """Return a stream to what stdout is now, for results that are printed inside of `quiet_work`.

    None where stdout is no file of the system, or closed; whoever reads it is not redirected.
    """
    try:
        descriptor = os.dup(sys.stdout.fileno())
    except (OSError, AttributeError, ValueError):
        return None
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def redirected(descriptor: int, target: int | str) -> Iterator[None]:
    """Send what is written to stdout (1) or stderr (2) to another descriptor or file.

    Replacing `sys.stdout` is not enough: TensorFlow's kernels write to the file descriptor itself.
    """
    stream = sys.stdout if descriptor == 1 else sys.stderr
    try:
        stream.flush()
        original = os.dup(descriptor)
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
        os.dup2(original, descriptor)
        os.close(original)


def new_bar(*, shows_counts: bool) -> RichProgress:
    """A progress bar on stderr, which goes away at its end.

    Args:
        shows_counts: Whether it says "3/20" and the time since it began, or per cent and the time
            that is left.
    """
    # Imported when a bar is shown: most work is quicker than this import.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    counts = (MofNCompleteColumn(), TimeElapsedColumn())
    share = (TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *(counts if shows_counts else share),
        console=Console(stderr=True),
        transient=True,
    )
