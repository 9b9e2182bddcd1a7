"""Checksums of large arrays, computed by threads while the arrays, and those after them, are written."""

from __future__ import annotations

import contextlib
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

BESIDE_BYTES = 2**20
"""The checksum of a smaller array is computed at once."""
WAITING_BYTES = 2**26
"""Arrays that wait for their checksums may take this much memory; a larger one is waited for."""


def checksum(array: NDArray[Any]) -> int:
    """CRC-32 of type, shape and bytes: `<f4 (3, 2)` and what `array.tobytes()` gives."""
    return zlib.crc32(np.ascontiguousarray(array).data, zlib.crc32(f"{array.dtype.str} {array.shape}".encode()))


class Checksums:
    """Checksums that are on their way. A checksum takes as long as writing into the system's cache; neither holds Python's lock."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="nanreplay-checksum")
        self._waiting: deque[tuple[Any, int, Future[int]]] = deque()

    def begin(self, array: NDArray[Any]) -> Future[int]:
        """Compute the checksum of an array that is about to be written."""
        return self._pool.submit(checksum, array)

    def add(self, dataset: Any, found: Future[int]) -> None:
        """Give a dataset its checksum, now or later."""
        self._waiting.append((dataset, dataset.nbytes, found))
        self.settle(WAITING_BYTES)

    def settle(self, left_bytes: int = 0) -> None:
        """Wait until no more than `left_bytes` of arrays are without their checksum."""
        while self._waiting and sum(size for _, size, _ in self._waiting) > left_bytes:
            dataset, _, found = self._waiting.popleft()
            dataset.attrs["crc32"] = np.uint32(found.result())

    def close(self) -> None:
        """End the threads."""
        self._waiting.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)


_beside: ContextVar[Checksums | None] = ContextVar("checksums", default=None)


@contextlib.contextmanager
def computed_beside() -> Iterator[Checksums]:
    """Compute the checksums of large arrays in threads for a while; all are in the file at the end, but after an error."""
    sums = Checksums()
    token = _beside.set(sums)
    try:
        yield sums
        sums.settle()
    finally:
        _beside.reset(token)
        sums.close()


def create_checked(group: Any, name: str, array: NDArray[Any], **options: Any) -> Any:
    """Create a dataset with its checksum; returns it."""
    sums = _beside.get()
    if sums is None or array.nbytes < BESIDE_BYTES:
        dataset = group.create_dataset(name, data=array, track_times=False, **options)
        dataset.attrs["crc32"] = np.uint32(checksum(array))
        return dataset
    found = sums.begin(array)
    dataset = group.create_dataset(name, data=array, track_times=False, **options)
    sums.add(dataset, found)
    return dataset
