"""`nanreplay open`: the terminal interface. Files are checked before any screen opens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanreplay.commands.console import CapturePath, max_memory, trust
from nanreplay.errors import CaptureError, CaptureNotFoundError
from nanreplay.terminal import FINITE

if TYPE_CHECKING:
    from nanreplay.capture.storage import Location


@click.command("open")
@click.argument("paths", metavar="FILE... | FOLDER", nargs=-1, required=True, type=CapturePath())
@trust
@max_memory
def command(paths: Sequence[str], trust: bool) -> int:
    """Read the answer for FILE, see how the run got there, walk back from the NaN, try fixes.

    The result can be copied. Several files, or a folder, open a list of captures to choose from.
    Needs a terminal; `nanreplay bisect` prints the same answer.
    """
    from nanreplay.tui import show

    captures = _readable(paths)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            "open needs a terminal; `nanreplay bisect FILE` prints the answer, "
            "with --json for programs"
        )
    show(captures, trust=trust)
    return FINITE


def _readable(paths: Sequence[str]) -> list[Location]:
    """The capture files that are named, and those of the folders.

    Raises:
        CaptureError: A named file cannot be read, or a folder holds no capture.
    """
    from nanreplay.capture.storage import location

    captures: dict[Location, None] = {}  # a set that keeps the order
    for path in map(location, paths):
        if isinstance(path, Path) and path.is_dir():
            captures.update(dict.fromkeys(_in_folder(path)))
        else:
            _check(path)
            captures[path] = None
    return list(captures)


def _in_folder(folder: Path) -> list[Path]:
    """The captures of a folder; damaged ones are listed too, unless all are."""
    paths = (*folder.glob("*.h5"), *folder.glob("*.hdf5"))
    files = sorted(path for path in paths if path.is_file())
    if not files:
        raise CaptureNotFoundError(f"{folder}: holds no captures (*.h5).")
    errors: list[CaptureError] = []
    for path in files:
        try:
            _check(path)
        except CaptureError as error:
            errors.append(error)
    if len(errors) == len(files):
        raise errors[0]
    return files


def _check(path: Location) -> None:
    from nanreplay.capture import Capture

    Capture(path).close()
