"""Keyframes on local disk, where memory does not hold them.

`Keeper` writes here one variable after the other: each is read without a copy, written and let go
of before the next step runs, so that a keyframe takes no memory. How often that is done follows the
time that it takes, as with keyframes in memory.

The file has no name: it is gone when the recording lets go of it, and when the process dies, in
whatever way.
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay import limits
from nanreplay.capture.arrays import StoredElsewhere

SMALL_BYTES = 4096
"""A smaller value stays in memory."""
_NO_NUMBERS = (tf.string, tf.variant, tf.resource)
_LONGEST_WRITE = 2**30
"""Linux writes at most 2 GiB at once."""


def spool_folder(beside: Path, needed_bytes: int) -> Path | None:
    """Where keyframes can be spooled: a folder on a disk of this machine, with room for them.

    Beside the capture, else where temporary files go; never in memory, and never over a network.

    Args:
        beside: The folder of the capture.
        needed_bytes: What is to be written there.
    """
    for folder in (beside, Path(tempfile.gettempdir()), Path("/var/tmp")):
        is_usable = folder.is_dir() and os.access(folder, os.W_OK)
        if not is_usable or not limits.is_local_disk(folder):
            continue
        if limits.free_disk(folder) >= needed_bytes:
            return folder
    return None


class Spool:
    """A file without a name that holds the values of some keyframes.

    Args:
        folder: Where it is.
        most: How many keyframes it may hold at once.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.most = most
        self._file: _NamelessFile | None = _NamelessFile(folder)
        self._free = list(range(most))
        """Places of keyframes that hold none; the place of one is free once it is let go of."""

    def write(self, values: Iterable[tuple[int, Any]], place_bytes: int) -> dict[int, Any]:
        """Write a keyframe; returns what stands for its values.

        Args:
            values: Index and value of each variable, each made as it is asked for.
            place_bytes: Size of all values; the same in each call.

        Raises:
            OSError: The disk is full, or fails.
        """
        if self._file is None or not self._free:
            raise OSError("no place for a keyframe in the spool")
        place = _Place(self._file, self._free.pop())
        weakref.finalize(place, self._free.append, place.number).atexit = False
        offset = place.number * place_bytes
        kept: dict[int, Any] = {}
        for index, value in values:
            size = value.shape.num_elements() * value.dtype.size
            if size < SMALL_BYTES or value.dtype in _NO_NUMBERS:
                kept[index] = value
                continue
            array = np.asarray(value)
            _write(self._file.descriptor, array, offset)
            kept[index] = SpooledValue(place, offset, value.shape, value.dtype, array.dtype)
            offset += size
        return kept

    def close(self) -> None:
        """Let go of the file; it is gone once no keyframe of it is held."""
        self._file = None


def _write(descriptor: int, array: NDArray[Any], offset: int) -> None:
    left = _bytes_of(np.ascontiguousarray(array))
    while left:
        written = os.pwrite(descriptor, left[:_LONGEST_WRITE], offset)
        left, offset = left[written:], offset + written


def _bytes_of(array: NDArray[Any]) -> memoryview:
    whole: Any = array.reshape(-1).view(np.uint8)
    return memoryview(whole)


class _NamelessFile:
    """A file in a folder that has no name, open as long as this object is there."""

    def __init__(self, folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor).atexit = False


class _Place:
    """One keyframe's part of the file; holds the file."""

    def __init__(self, file: _NamelessFile, number: int) -> None:
        self.file = file
        self.number = number


@dataclass(frozen=True, slots=True)
class SpooledValue(StoredElsewhere):
    """A value on disk. TensorFlow and numpy take it for a tensor, and read it when they need it."""

    place: _Place
    offset: int
    shape: Any
    """A TensorShape."""
    dtype: Any
    """TensorFlow's."""
    stored: np.dtype[Any]
    """numpy's."""

    def numpy(self) -> NDArray[Any]:
        """Read the value."""
        return self._read(self.shape.as_list(), self.offset)

    def read_rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read some entries along the first axis."""
        rows, *others = self.shape.as_list()
        row_bytes = math.prod(others) * self.stored.itemsize
        return self._read([min(stop, rows) - start, *others], self.offset + start * row_bytes)

    def _read(self, shape: list[int], offset: int) -> NDArray[Any]:
        array = np.empty(shape, self.stored)
        left = _bytes_of(array)
        while left:
            count = os.preadv(self.place.file.descriptor, [left[:_LONGEST_WRITE]], offset)
            if not count:
                raise OSError("a keyframe in the spool is cut off")
            left, offset = left[count:], offset + count
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read the value, for numpy."""
        return self.numpy() if dtype is None else self.numpy().astype(dtype)


def _to_tensor(value: SpooledValue, dtype: Any = None, name: Any = None, as_ref: Any = None) -> Any:
    return tf.convert_to_tensor(value.numpy(), dtype=dtype or value.dtype)


tf.register_tensor_conversion_function(SpooledValue, _to_tensor)
