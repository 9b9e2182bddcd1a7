"""What every front end shares: exit codes, how TensorFlow is loaded, a stdout for results alone.

The command line, the interface and the pytest plugin use it; none imports another.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
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
        load_tensorflow()
    with redirected(1, 2), limits.limited_process():
        yield


# TensorFlow without Keras, which takes a third of the time of both and 80 MiB. A replay needs no
# Keras. TensorFlow loads it at the end of its own import, and goes on where that fails; who imports
# Keras later gets it as usual, also as `tensorflow.keras`.


def load_tensorflow() -> None:
    """Import TensorFlow; Keras is loaded once somebody asks for it.

    Raises:
        ModuleNotFoundError: TensorFlow is not installed.
    """
    if "tensorflow" not in sys.modules:
        with limits.no_collections(), _without_keras():
            import_module("tensorflow")


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    finder = _KerasFinder(threading.get_ident())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _KerasFinder(MetaPathFinder):
    """Tells where Keras is, which TensorFlow notes, and lets one thread not load it."""

    def __init__(self, thread: int) -> None:
        self._thread = thread

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in ("keras", "tf_keras") or threading.get_ident() != self._thread:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _Refusing()
        return spec


class _Refusing(Loader):
    """Loads nothing."""

    def exec_module(self, module: ModuleType) -> None:
        raise ImportError(f"{module.__name__} is not loaded together with TensorFlow")


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
