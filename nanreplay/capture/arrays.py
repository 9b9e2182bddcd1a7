"""Arrays in and out of HDF5, bit for bit: numbers, half-precision extension types, strings, scalars, empty arrays."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.capture import format
from nanreplay.capture.format import (
    COMPRESS_FROM_BYTES,
    DEFLATE_TO,
    EXTENSION_DTYPES,
    JSON_LIMIT_BYTES,
    SAMPLE_BYTES,
    SAMPLES,
)
from nanreplay.capture.tables import typed
from nanreplay.errors import FormatError, MemoryLimitError
from nanreplay.limits import readable_size

# Tensors as numpy arrays. Imports no TensorFlow.


def as_array(value: Any) -> NDArray[Any]:
    """Return a tensor, or anything that numpy takes, as an array that shares its buffer where it can.

    A bfloat16 or float8 scalar of TensorFlow gives numpy a scalar where it asks for an array, which `np.asarray` refuses.
    """
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


# Checksums of large arrays, computed by threads while the arrays, and those after them, are
# written.

BESIDE_BYTES = 2**20
"""The checksum of a smaller array is computed at once."""
WAITING_BYTES = 2**26
"""Arrays that wait for their checksums may take this much memory; a larger one is waited for."""


def checksum(array: NDArray[Any]) -> int:
    """CRC-32 of type, shape and bytes: `<f4 (3, 2)` and what `array.tobytes()` gives."""
    return zlib.crc32(
        np.ascontiguousarray(array).data, zlib.crc32(f"{array.dtype.str} {array.shape}".encode())
    )


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


# --- capture.values


@dataclass(frozen=True, slots=True)
class Packing:
    """How hard the bytes of a file are pressed."""

    from_bytes: int
    """Arrays of at least this size are deflated."""
    level: int
    """Level of zlib."""
    samples: bool
    """Whether arrays that hardly get smaller are left as they are."""


FAST = Packing(COMPRESS_FROM_BYTES, 1, samples=True)
"""While a training waits for its file."""
SMALL = Packing(512, 9, samples=False)
"""For a file that is sent around."""
_packing: ContextVar[Packing] = ContextVar("packing", default=FAST)


@contextlib.contextmanager
def packing(how: Packing) -> Iterator[None]:
    """Write arrays this way for a while."""
    token = _packing.set(how)
    try:
        yield
    finally:
        _packing.reset(token)


def write_array(group: Any, name: str, value: Any) -> int:
    """Write one array as the dataset `name` of `group`; returns its size in bytes.

    Raises:
        TypeError: Its type has no place in the format.
    """
    array = np.asarray(value)
    kind = array.dtype.name
    if kind in EXTENSION_DTYPES:
        dataset = _create(
            group, name, np.atleast_1d(array).view(f"u{array.dtype.itemsize}").reshape(array.shape)
        )
        write_text(dataset, "dtype", kind)
    elif array.dtype.kind in "OSU":
        texts = [
            _as_bytes(item).hex() for item in array.reshape(-1)
        ]  # tensors of strings may hold any byte
        write_text(write_json(group, name, {"shape": array.shape, "hex": texts}), "dtype", "string")
    elif array.dtype.kind in "biufc":
        _create(group, name, array.astype(array.dtype.newbyteorder("<"), copy=False))
    else:
        raise TypeError(f"Expected numbers or strings. Received an array of {array.dtype}")
    return array.nbytes


def _create(group: Any, name: str, array: NDArray[Any]) -> Any:
    options: dict[str, Any] = {}
    how = _packing.get()
    if array.ndim and array.nbytes >= how.from_bytes and (not how.samples or _shrinks(array)):
        options = {"compression": "gzip", "compression_opts": how.level, "shuffle": True}
    return create_checked(group, name, array, **options)


def _shrinks(array: NDArray[Any]) -> bool:
    """Whether deflate is worth its time, told from a sample. Not for floats: weights get 14 % smaller, ten times as slowly."""
    if array.dtype.kind in "fc":
        return False
    flat = array.reshape(-1)
    length = min(len(flat), SAMPLE_BYTES // SAMPLES // array.itemsize)
    starts = [(len(flat) - length) * piece // (SAMPLES - 1) for piece in range(SAMPLES)]
    sample = np.concatenate([flat[start : start + length] for start in starts])
    shuffled = sample.view(np.uint8).reshape(-1, array.itemsize).T.tobytes()
    return len(zlib.compress(shuffled, 1)) <= DEFLATE_TO * len(shuffled)


def _as_bytes(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def write_json(group: Any, name: str, value: Sequence[Any] | Mapping[str, Any]) -> Any:
    """Write a table as deflated JSON: one small dataset in place of many. Returns the dataset."""
    packed = zlib.compress(json.dumps(value).encode(), max(6, _packing.get().level))
    return group.create_dataset(name, data=np.frombuffer(packed, np.uint8), track_times=False)


def write_text(item: Any, name: str, text: str) -> None:
    """Write a short attribute, of fixed length: damaged texts of variable length make the HDF5 library loop for ever."""
    item.attrs[name] = np.bytes_(text.encode())


def read_json(dataset: Any) -> Any:
    """Read what `write_json` wrote."""
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(_plain(dataset).astype(np.uint8).tobytes(), JSON_LIMIT_BYTES)
    if not unpacker.eof:
        raise FormatError(f"{dataset.name} is cut off or too large")
    return json.loads(text)


def read_array(dataset: Any) -> NDArray[Any]:
    """Read one array that `write_array` wrote.

    Raises:
        FormatError: It is no dataset, or of a type that the format does not know.
    """
    array = _plain(dataset)
    kind = format.text(dataset, "dtype")
    if kind != "string" and format.number(dataset, "crc32") != checksum(array):
        raise FormatError(f"{dataset.name} is not as it was written (checksum)")
    if kind is None:
        return array
    if kind == "string":
        table = read_json(dataset)
        strings = np.empty(len(table["hex"]), dtype=object)
        strings[:] = [bytes.fromhex(text) for text in table["hex"]]
        return strings.reshape(typed(tuple[int, ...], table["shape"], "the shape of texts"))
    if kind not in EXTENSION_DTYPES:
        raise FormatError(f"unexpected type {kind!r} at {dataset.name}")
    import ml_dtypes

    extension: np.dtype[Any] = np.dtype(getattr(ml_dtypes, kind))
    if extension.itemsize != array.dtype.itemsize:
        raise FormatError(f"{kind} of the wrong size at {dataset.name}")
    return np.atleast_1d(array).view(extension).reshape(array.shape)


def _plain(dataset: Any) -> NDArray[Any]:
    format.check_dataset(dataset)
    try:
        array: NDArray[Any] = np.asarray(dataset[()])
    except MemoryError as error:
        raise MemoryLimitError(
            f"no memory for {dataset.name}, {readable_size(dataset.nbytes)}."
        ) from error
    return array
