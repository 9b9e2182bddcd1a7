"""`nanreplay open`: the terminal interface. Files are checked before any screen opens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanreplay.commands.console import max_memory, trust
from nanreplay.errors import CaptureError, CaptureNotFoundError
from nanreplay.terminal import FINITE

if TYPE_CHECKING:
    from nanreplay.capture.storage import Location


@click.command("open")
@click.argument("paths", metavar="FILE... | FOLDER", nargs=-1, required=True, type=str)
@trust
@max_memory
def command(paths: Sequence[str], trust: bool) -> int:
    """Read the answer for FILE, see how the run got there, walk back from the NaN, try fixes, copy the result.

    Several files, or a folder, open a list of captures to choose from. Needs a terminal; `nanreplay bisect` prints the same answer.
    """
    from nanreplay.tui import show

    captures = _readable(paths)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            "open needs a terminal; `nanreplay bisect FILE` prints the answer, with --json for programs"
        )
    show(captures, trust=trust)
    return FINITE


def _readable(paths: Sequence[str]) -> list[Location]:
    """The capture files that are named, and those of the folders.

    Raises:
        CaptureError: A named file cannot be read, or a folder holds no capture.
    """
    from nanreplay.capture.storage import location

    found: dict[Location, None] = {}
    for path in map(location, paths):
        if isinstance(path, Path) and path.is_dir():
            found.update(dict.fromkeys(_in_folder(path)))
        else:
            _check(path)
            found[path] = None
    return list(found)


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(
        path for pattern in ("*.h5", "*.hdf5") for path in folder.glob(pattern) if path.is_file()
    )
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
