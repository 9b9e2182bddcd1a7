"""Locks on open files, which end with the process that holds them.

POSIX systems and Windows have calls of their own for this, and a system may have neither.
"""

from __future__ import annotations

import importlib
import os
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
