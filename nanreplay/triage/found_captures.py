"""Which captures lie where: files, folders with all below them, patterns and URLs."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py

from nanreplay.capture import Capture
from nanreplay.capture.format import FORMAT
from nanreplay.capture.storage import (
    Location,
    RemotePath,
    filesystem,
    location,
    open_hdf5,
    size_bytes,
)
from nanreplay.errors import CaptureNotFoundError, NanreplayError, StorageError

_ENDINGS = (".h5", ".hdf5")
_SKIPPED = frozenset((
    ".git", ".hg", ".svn", "__pycache__", "node_modules", "site-packages", ".venv", "venv",
    ".ipynb_checkpoints", ".trash", ".mypy_cache", ".ruff_cache", ".pytest_cache",
))  # fmt: skip


@dataclass(frozen=True)
class FoundCapture:
    """A capture, or a file that should be one."""

    where: Location
    size_bytes: int
    error: NanreplayError | None = None
    """Why it cannot be read; None where its head is in order."""

    @property
    def name(self) -> str:
        """As the user knows it."""
        return str(self.where)


def find_captures(
    paths: Sequence[str], is_known: Callable[[Location], bool] = lambda where: False
) -> list[FoundCapture]:
    """Find the captures under the paths.

    In a folder, files that end in .h5 or .hdf5 are looked at. HDF5 files of others, such as Keras's
    weights, are left out there; a damaged file is not, nor a folder that cannot be listed. Links to
    folders are not followed, for they may lead in a circle.

    Args:
        paths: Files, folders, patterns such as `runs/**/*.h5`, URLs.
        is_known: Whether a file was found in order before, so that it need not be opened.

    Raises:
        CaptureNotFoundError: There is no such path, or no capture under all of them.
        StorageError: The place of a URL cannot be reached.
    """
    captures: dict[Location, FoundCapture] = {}
    unlisted: list[OSError] = []
    for text in paths:
        for where, is_named in _expanded(text, unlisted):
            # `Path.resolve` raises for a link to itself
            key = where if isinstance(where, RemotePath) else Path(os.path.realpath(where))
            if key not in captures:
                looked_at = _looked_at(where, is_named, is_known)
                if looked_at is not None:
                    captures[key] = looked_at
    for error in unlisted:
        folder = Path(error.filename)
        reason = StorageError(f"{folder}: cannot be listed: {error.strerror}.")
        captures[folder] = FoundCapture(folder, 0, reason)
    if not captures:
        raise CaptureNotFoundError(f"{' '.join(paths)}: holds no captures (*.h5).")
    return list(captures.values())


def _expanded(text: str, unlisted: list[OSError]) -> Iterator[tuple[Location, bool]]:
    """The files that one argument names, and whether it names this very file.

    `unlisted` takes why folders below it cannot be listed.
    """
    if not text:
        raise CaptureNotFoundError("A path is empty; `.` is the folder that you are in.")
    where = location(text)
    if isinstance(where, RemotePath):
        yield from _remote(where)
        return
    roots = [where] if where.exists() else _matching(where)
    if not roots:
        raise CaptureNotFoundError(f"{text}: no such file or folder.")
    for root in roots:
        if root.is_dir():
            for path in _walk(root, unlisted):
                yield (path, False)
        else:
            yield root, len(roots) == 1


def _matching(pattern: Path) -> list[Path]:
    """What is there by a pattern; names that begin with a dot are only what says so.

    `Path.glob` goes into no link to a folder for `**`, as `glob.glob` does until a circle of two
    links has led to 2^40 paths.
    """
    parts = pattern.parts
    fixed = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    if fixed == len(parts):
        return []
    # beside other characters, ** is a star like another
    wanted = [part if part == "**" else part.replace("**", "*") for part in parts[fixed:]]
    base = Path(*parts[:fixed])
    shows_hidden = any(part.startswith(".") for part in wanted)
    # Python 3.13 gives files as well for a pattern that ends in **, older ones the folders alone
    folders_only = wanted[-1] == "**"
    found = []
    for path in base.glob(os.path.join(*wanted)):
        below = path.parts[len(base.parts) :]
        if folders_only and not path.is_dir():
            continue
        if shows_hidden or not any(part.startswith(".") for part in below):
            found.append(path)
    return sorted(found)


def _walk(folder: Path, unlisted: list[OSError]) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, onerror=unlisted.append):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            path = Path(place) / name
            # names of files that are being written begin with a dot
            if name.endswith(_ENDINGS) and not name.startswith(".") and path.is_file():
                yield path


def _remote(where: RemotePath) -> Iterator[tuple[Location, bool]]:
    system, inner = filesystem(where)
    try:
        if glob.has_magic(inner):
            names = sorted(system.glob(inner))
        # of an HTTP server, what is there is a file, a folder too; a slash at the end tells
        elif system.isdir(inner) and (where.url.endswith("/") or not system.isfile(inner)):
            names = sorted(system.find(inner))
        else:
            yield where, True
            return
        urls = [str(system.unstrip_protocol(name)) for name in names]
    except Exception as error:  # each file system has errors of its own
        text = " ".join(str(error).split())[:200]
        raise StorageError(f"{where}: cannot be read ({type(error).__name__}: {text}).") from error
    for url in urls:
        if url.endswith(_ENDINGS):
            yield (RemotePath(url), False)


def _looked_at(
    where: Location, is_named: bool, is_known: Callable[[Location], bool]
) -> FoundCapture | None:
    """A capture with what is wrong with it; None for an HDF5 file of something else."""
    size = 0
    with contextlib.suppress(Exception):  # each file system has errors of its own; opening says why
        size = size_bytes(where)
    if is_known(where):
        return FoundCapture(where, size)
    try:
        Capture(where).close()
    except NanreplayError as error:  # damaged, hostile, or more than may be taken of memory
        if not is_named and _is_of_others(where):
            return None
        return FoundCapture(where, size, error)
    return FoundCapture(where, size)


def _is_of_others(where: Location) -> bool:
    """Whether it is a whole HDF5 file that does not call itself a capture."""
    try:
        file, stream = open_hdf5(where)
    except (NanreplayError, OSError):
        return False
    try:
        return _format_of(file) != FORMAT
    except (OSError, RuntimeError, KeyError):
        return False
    finally:
        file.close()
        if stream is not None:
            stream.close()


def _format_of(file: h5py.File) -> str:
    value = file.attrs.get("format", "")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
