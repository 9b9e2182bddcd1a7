"""A temporary file beside its target, which takes the target's name once it is whole.

The file is locked while its writer lives. So what a killed writer left behind can be told from a
file that is being written, and the recorder removes it before it writes its own.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_FAR: Final = 2**40
"""Where Windows locks a byte: beyond the end of any capture, as what it locks nobody can read."""


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_POSIX, _WINDOWS = _module("fcntl"), _module("msvcrt")
RENAMES_OPEN_FILES: Final = _POSIX is not None
"""Whether a file may be renamed or removed while somebody holds it open; Windows refuses."""
OPEN_FLAGS: Final = (
    getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_BINARY", 0)
)
"""Bytes as they are, and no child process that inherits the file: each system names its own."""
# File systems take 255 bytes; the rest is the host, the process and the ending.
_LONGEST_NAME: Final = 200
_NAME: Final = re.compile(r"\.(?P<target>.+)\.(?P<host>[0-9a-f]{8})\.\d+\.\d+\.tmp", re.DOTALL)
UNTOUCHED_S: Final = 600.0
"""Seconds without a write after which an unlocked file of another host counts as left behind.

On some network file systems the locks of other hosts do not show.
"""


class DiskFile:
    """A file for HDF5 that keeps the first error and takes all that comes after it for written.

    HDF5 does not survive a failing write everywhere: as it closes a file it leaves it open, or
    crashes. So it is told of none, and `replacing` raises the error afterwards.
    """

    def __init__(self, descriptor: int) -> None:
        # whoever made the descriptor closes it
        self._file = open(descriptor, "r+b", buffering=0, closefd=False)  # noqa: SIM115
        self.error: BaseException | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As for any file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As for any file."""
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """As for any file."""
        return self._file.read(size) or b""

    def readinto(self, buffer: Any) -> int:
        """As for any file."""
        return self._file.readinto(buffer)

    def write(self, data: Any) -> int:
        """Write all of `data`; after an error, nothing."""
        left = memoryview(data).cast("B")
        size = len(left)
        while len(left) and self.error is None:
            try:
                left = left[self._file.write(left) :]
            except BaseException as error:
                self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the size; after an error, nothing."""
        if self.error is None:
            try:
                self._file.truncate(size)
            except BaseException as error:
                self.error = error
        return size or 0

    def flush(self) -> None:
        """Nothing is buffered."""


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a path beside `target` to write to, which takes its name at the end of a `with` block.

    For texts and tables; a capture, which takes long to write, is `replacing`. After an error
    nothing is left behind, and what had the name stays. What is no file, such as `/dev/stdout` or a
    pipe, is written to by itself: nothing may take its place.
    """
    if target.exists() and not target.is_file():
        yield target
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")  # beside: a rename is atomic
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(target: Path, *, hurried: bool = False) -> Iterator[DiskFile]:
    """Give a new file beside `target`, which replaces `target` at the end of a `with` statement.

    It is synced and renamed; after an error it is removed.

    Args:
        target: The file.
        hurried: Rename it first: a slow disk takes long to sync.

    Raises:
        OSError: The file could not be made, written, synced or renamed; nothing is left behind.
    """
    temporary, descriptor = _create(target)
    with _closed_at_end(descriptor) as opened:
        try:
            file = DiskFile(descriptor)
            yield file
            if file.error is not None:
                raise file.error
            opened.close_where_open_files_stay()
            move_into_place(temporary, target, hurried=hurried)
        except BaseException:
            opened.close_where_open_files_stay()
            temporary.unlink(missing_ok=True)
            raise


class _Opened:
    """A descriptor that is closed once."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._is_open = True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self.descriptor)

    def close_where_open_files_stay(self) -> None:
        """Close the file before it is renamed or removed, where an open one may not be.

        Elsewhere it stays open: its lock holds until it has its name.
        """
        if not RENAMES_OPEN_FILES:
            self.close()


@contextlib.contextmanager
def _closed_at_end(descriptor: int) -> Iterator[_Opened]:
    opened = _Opened(descriptor)
    try:
        yield opened
    finally:
        opened.close()


def move_into_place(file: Path, target: Path, *, hurried: bool = False) -> None:
    """Give a finished file the name `target`, on the same file system; what had it is replaced.

    Content, name, folder: synced in this order, so that a crash of the machine leaves the old file
    or the new one. When it is `hurried`, the name comes first: the file is there at once, and
    survives the end of this process, but a crash of the machine may leave a part of it.
    """
    if not hurried:
        _sync(file)
    os.replace(file, target)
    if hurried:
        _sync(target)
    _sync(target.absolute().parent)


def remove_stale(folder: Path, targets: re.Pattern[str]) -> None:
    """Remove what dead writers left in `folder` of targets whose names match in full."""
    for name in os.listdir(folder):
        match = _NAME.fullmatch(name)
        if match and targets.fullmatch(match["target"]):
            with contextlib.suppress(OSError):
                _remove_if_left(folder / name, is_own_host=match["host"] == _host())


def _create(target: Path) -> tuple[Path, int]:
    name = f".{target.name[:_LONGEST_NAME]}.{_host()}.{os.getpid()}"
    for attempt in itertools.count():
        path = target.with_name(f"{name}.{attempt}.tmp")
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | OPEN_FLAGS, 0o666)
        except FileExistsError:  # another thread, or a dead process that had the same number
            continue
        # where a file system has no locks, a file is never taken for left behind
        with contextlib.suppress(OSError):
            lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # `remove_stale` of another process was faster than the lock
    raise AssertionError  # the loop has no end


def _remove_if_left(path: Path, *, is_own_host: bool) -> None:
    with _closed_at_end(os.open(path, os.O_RDWR | OPEN_FLAGS)) as opened:
        # fails while the writer lives; its process number would prove nothing, as they are reused
        lock(opened.descriptor)
        untouched_s = time.time() - os.fstat(opened.descriptor).st_mtime
        if is_own_host or untouched_s > UNTOUCHED_S:
            opened.close_where_open_files_stay()
            path.unlink()


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _sync(path: Path) -> None:
    if path.is_dir() and not RENAMES_OPEN_FILES:
        return  # Windows opens no folders, and writes their entries by itself
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR  # Windows syncs what is open for writing
    descriptor = os.open(path, flags | OPEN_FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Locks on open files, which end with the process that holds them. POSIX systems and Windows have
# calls of their own for this, and a system may have neither.


def lock(descriptor: int) -> None:
    """Lock a file until it is closed or the process ends.

    Raises:
        OSError: Another process holds the lock, or there are no locks here.
    """
    if _POSIX is not None:
        _POSIX.flock(descriptor, _POSIX.LOCK_EX | _POSIX.LOCK_NB)
    elif _WINDOWS is not None:
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            _WINDOWS.locking(descriptor, _WINDOWS.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)
    else:
        raise OSError("This system has no locks on files.")
