"""Arrays in and out of HDF5, bit for bit; the reader and the writer of captures use it.

Numbers, extension types such as bfloat16, strings, scalars and empty arrays all come back as they
were, and a checksum beside each array tells a damaged one. Needs no TensorFlow.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import json
import math
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import h5py
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


def as_array(value: Any) -> NDArray[Any]:
    """Return a tensor, or what numpy takes, as an array that shares its buffer where it can."""
    # `np.asarray` refuses a bfloat16 or float8 scalar of TensorFlow: its `__array__` gives numpy a
    # scalar where an array is asked for. `numpy()` has no such trouble, but copies.
    is_scalar_tensor = hasattr(value, "numpy") and len(value.shape) == 0
    return np.asarray(value.numpy() if is_scalar_tensor else value)


# Checksums. Those of large arrays are computed by threads while the arrays, and the ones after
# them, are written: a checksum takes as long as writing into the system's cache, and neither
# holds Python's lock.

THREADED_FROM_BYTES = 2**20
"""The checksum of a smaller array is computed at once."""
WAITING_BYTES = 2**26
"""Arrays that wait for their checksums may take this much memory; a larger one is waited for."""


def checksum(array: NDArray[Any]) -> int:
    """CRC-32 of type, shape and bytes: `<f4 (3, 2)` and what `array.tobytes()` gives."""
    head = zlib.crc32(f"{array.dtype.str} {array.shape}".encode())
    return zlib.crc32(np.ascontiguousarray(array).data, head)


class Checksums:
    """Checksums that threads are computing, and the datasets that wait for them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="nanreplay-checksum")
        self._waiting: deque[tuple[Any, int, Future[int]]] = deque()

    def begin(self, array: NDArray[Any]) -> Future[int]:
        """Compute the checksum of an array that is about to be written."""
        return self._pool.submit(checksum, array)

    def go_on(self, piece: NDArray[Any], so_far: int) -> Future[int]:
        """Go on with a checksum over the next piece of an array."""
        return self._pool.submit(zlib.crc32, piece.data, so_far)

    def add(self, dataset: Any, pending: Future[int]) -> None:
        """Give a dataset its checksum, now or later."""
        self._waiting.append((dataset, dataset.nbytes, pending))
        self.settle(WAITING_BYTES)

    def settle(self, left_bytes: int = 0) -> None:
        """Wait until no more than `left_bytes` of arrays are without their checksum."""
        while self._waiting and sum(size for _, size, _ in self._waiting) > left_bytes:
            dataset, _, pending = self._waiting.popleft()
            dataset.attrs["crc32"] = np.uint32(pending.result())

    def close(self) -> None:
        """End the threads."""
        self._waiting.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)


class RunningChecksum:
    """The checksum of an array that comes in pieces; one of them is waited for at most.

    Args:
        checksums: Whose threads compute it; None computes at once.
        head: What comes before the first piece.
    """

    def __init__(self, checksums: Checksums | None, head: bytes) -> None:
        self._checksums = checksums
        self._so_far = zlib.crc32(head)
        self._pending: Future[int] | None = None

    def add(self, piece: NDArray[Any]) -> None:
        """Go on with the bytes of `piece`, which stay as they are until the next call."""
        so_far = self.value()
        if self._checksums is None:
            self._so_far = zlib.crc32(piece.data, so_far)
        else:
            self._pending = self._checksums.go_on(piece, so_far)

    def value(self) -> int:
        """The checksum of all pieces so far."""
        if self._pending is not None:
            self._so_far, self._pending = self._pending.result(), None
        return self._so_far


_checksums: ContextVar[Checksums | None] = ContextVar("checksums", default=None)


@contextlib.contextmanager
def threaded_checksums() -> Iterator[Checksums]:
    """Compute the checksums of large arrays in threads inside a `with` statement.

    At its end all of them are in the file, unless an error ended it.
    """
    checksums = Checksums()
    token = _checksums.set(checksums)
    try:
        yield checksums
        checksums.settle()
    finally:
        _checksums.reset(token)
        checksums.close()


def create_checked(group: Any, name: str, array: NDArray[Any], **options: Any) -> Any:
    """Create a dataset with its checksum; returns it."""
    if not options and array.nbytes < SMALL_BYTES:
        return _create_small(group, name, array)
    checksums = _checksums.get()
    if checksums is None or array.nbytes < THREADED_FROM_BYTES:
        dataset = group.create_dataset(name, data=array, track_times=False, **options)
        dataset.attrs["crc32"] = np.uint32(checksum(array))
        return dataset
    pending = checksums.begin(array)  # before the write, so that both run at the same time
    dataset = group.create_dataset(name, data=array, track_times=False, **options)
    checksums.add(dataset, pending)
    return dataset


SMALL_BYTES = 2**16
"""A smaller array is written by calls of HDF5 itself, which take a third of the time of h5py's
`create_dataset`: a state may have ten thousand of them, and so may a window of short steps."""


def _create_small(group: Any, name: str, array: NDArray[Any]) -> Any:
    """What `create_dataset` does for an array that is stored as it is, and its checksum."""
    contiguous = np.asarray(array, order="C")
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_obj_track_times(False)
    if contiguous.shape:
        space = h5py.h5s.create_simple(contiguous.shape)
    else:
        space = h5py.h5s.create(h5py.h5s.SCALAR)
    kind = h5py.h5t.py_create(contiguous.dtype, logical=True)
    stored = h5py.h5d.create(group.id, name.encode(), kind, space, dcpl=creation)
    if contiguous.size:
        stored.write(h5py.h5s.ALL, h5py.h5s.ALL, contiguous)
    scalar = h5py.h5s.create(h5py.h5s.SCALAR)
    sum_attribute = h5py.h5a.create(stored, b"crc32", h5py.h5t.NATIVE_UINT32, scalar)
    sum_attribute.write(np.array(checksum(contiguous), np.uint32))
    return h5py.Dataset(stored)


# How arrays become datasets and come back.

PIECE_BYTES = 2**22
"""How much of an array that is not in memory is read at once."""


class StoredElsewhere(abc.ABC):
    """An array that is not in memory, and is written without being there as a whole."""

    __slots__ = ()
    shape: Any
    stored: np.dtype[Any]

    @abc.abstractmethod
    def read_rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read some of its entries along the first axis."""


def _write_in_pieces(group: Any, name: str, value: StoredElsewhere) -> int:
    """Write an array of floats piece by piece, as `create_checked` writes it at once.

    The checksum of a piece is computed while the piece is written and the next one is read.
    """
    shape, dtype = tuple(map(int, value.shape)), value.stored
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    rows = max(1, PIECE_BYTES // row_bytes)
    dataset = group.create_dataset(name, shape, dtype, track_times=False)
    sum_so_far = RunningChecksum(_checksums.get(), f"{dtype.str} {shape}".encode())
    for start in range(0, shape[0], rows):
        piece = value.read_rows(start, min(start + rows, shape[0]))
        sum_so_far.add(piece)
        dataset[start : start + len(piece)] = piece
    dataset.attrs["crc32"] = np.uint32(sum_so_far.value())
    return shape[0] * row_bytes


def _is_written_in_pieces(value: Any) -> bool:
    """Whether an array is large, elsewhere, and of a type that is stored as it is."""
    if not isinstance(value, StoredElsewhere) or not _packing.get().samples:
        return False
    size_bytes = math.prod(value.shape) * value.stored.itemsize
    return value.stored.str[:2] == "<f" and len(value.shape) > 0 and size_bytes > PIECE_BYTES


@dataclass(frozen=True, slots=True)
class Packing:
    """How hard a file is compressed."""

    from_bytes: int
    """Arrays of at least this size are deflated."""
    level: int
    """Level of zlib."""
    samples: bool
    """Whether a sample decides that arrays which hardly get smaller stay as they are."""


FAST = Packing(COMPRESS_FROM_BYTES, 1, samples=True)
"""While a training waits for its file."""
SMALL = Packing(512, 9, samples=False)
"""For a file that is sent to somebody."""
_packing: ContextVar[Packing] = ContextVar("packing", default=FAST)


@contextlib.contextmanager
def packing(how: Packing) -> Iterator[None]:
    """Write arrays with this packing inside a `with` statement."""
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
    if _is_written_in_pieces(value):
        return _write_in_pieces(group, name, value)
    array = np.asarray(value)
    kind = array.dtype.name
    if kind in EXTENSION_DTYPES:
        # numpy cannot view a scalar as another type, hence the detour over one dimension
        unsigned = np.atleast_1d(array).view(f"u{array.dtype.itemsize}").reshape(array.shape)
        write_text(_create_packed(group, name, unsigned), "dtype", kind)
    elif array.dtype.kind in "OSU":
        # as hexadecimal digits, since tensors of strings may hold any byte and JSON may not
        texts = [_as_bytes(element).hex() for element in array.reshape(-1)]
        dataset = write_json(group, name, {"shape": array.shape, "hex": texts})
        write_text(dataset, "dtype", "string")
    elif array.dtype.kind in "biufc":
        _create_packed(group, name, array.astype(array.dtype.newbyteorder("<"), copy=False))
    else:
        raise TypeError(f"Expected numbers or strings. Received an array of {array.dtype}")
    return array.nbytes


def _create_packed(group: Any, name: str, array: NDArray[Any]) -> Any:
    options: dict[str, Any] = {}
    how = _packing.get()
    if array.ndim and array.nbytes >= how.from_bytes and (not how.samples or _shrinks(array)):
        options = {"compression": "gzip", "compression_opts": how.level, "shuffle": True}
    return create_checked(group, name, array, **options)


def _shrinks(array: NDArray[Any]) -> bool:
    """Whether deflate is worth its time, told from a sample.

    Never for floats: weights get 14 % smaller, and writing takes ten times as long.
    """
    if array.dtype.kind in "fc":
        return False
    # Pieces at equal distances, the first at the start and the last at the end: an array of
    # 1,000 bytes and pieces of 100 gives those that begin at 0, 300, 600 and 900.
    flat = array.reshape(-1)
    length = min(len(flat), SAMPLE_BYTES // SAMPLES // array.itemsize)
    starts = []
    for piece in range(SAMPLES):
        starts.append((len(flat) - length) * piece // (SAMPLES - 1))
    sample = np.concatenate([flat[start : start + length] for start in starts])
    # what HDF5's shuffle filter does: all first bytes, then all second bytes, ...
    shuffled = sample.view(np.uint8).reshape(-1, array.itemsize).T.tobytes()
    return len(zlib.compress(shuffled, 1)) <= DEFLATE_TO * len(shuffled)


def _as_bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()


def write_json(group: Any, name: str, value: Sequence[Any] | Mapping[str, Any]) -> Any:
    """Write a table as deflated JSON: one small dataset in place of many. Returns the dataset."""
    text, level = json.dumps(value), max(6, _packing.get().level)
    packed = _deflated_again(text, level) if len(text) < SHORT_TEXT else _deflated(text, level)
    return group.create_dataset(name, data=np.frombuffer(packed, np.uint8), track_times=False)


SHORT_TEXT = 1024
"""Characters of a table that is not deflated again where the one before was the same."""


def _deflated(text: str, level: int) -> bytes:
    return zlib.compress(text.encode(), level)


# What thousands of steps say of their batches is mostly one text.
_deflated_again = functools.lru_cache(maxsize=4)(_deflated)


def write_text(holder: Any, name: str, text: str) -> None:
    """Write a short attribute of fixed length on a group or dataset.

    Damaged texts of variable length make the HDF5 library loop for ever.
    """
    holder.attrs[name] = np.bytes_(text.encode())


def read_json(dataset: Any) -> Any:
    """Read what `write_json` wrote."""
    packed = _stored_array(dataset).astype(np.uint8).tobytes()
    unpacker = zlib.decompressobj()  # unlike `zlib.decompress` it stops at a limit
    text = unpacker.decompress(packed, JSON_LIMIT_BYTES)
    if not unpacker.eof:
        raise FormatError(f"{dataset.name} is cut off or too large")
    return json.loads(text)


def read_array(dataset: Any) -> NDArray[Any]:
    """Read one array that `write_array` wrote.

    Raises:
        FormatError: It is no dataset, or of a type that the format does not know.
    """
    array = _stored_array(dataset)
    kind = format.text(dataset, "dtype")
    # a table of strings has zlib's own checksum inside
    if kind != "string" and format.number(dataset, "crc32") != checksum(array):
        raise FormatError(f"{dataset.name} is not as it was written (checksum)")
    if kind is None:
        return array
    if kind == "string":
        return _strings(read_json(dataset))
    if kind not in EXTENSION_DTYPES:
        raise FormatError(f"unexpected type {kind!r} at {dataset.name}")
    import ml_dtypes  # registers bfloat16 and float8 with numpy, without TensorFlow

    extension: np.dtype[Any] = np.dtype(getattr(ml_dtypes, kind))
    if extension.itemsize != array.dtype.itemsize:
        raise FormatError(f"{kind} of the wrong size at {dataset.name}")
    return np.atleast_1d(array).view(extension).reshape(array.shape)


def _strings(table: Any) -> NDArray[Any]:
    strings = np.empty(len(table["hex"]), dtype=object)
    strings[:] = [bytes.fromhex(text) for text in table["hex"]]
    return strings.reshape(typed(tuple[int, ...], table["shape"], "the shape of texts"))


def _stored_array(dataset: Any) -> NDArray[Any]:
    format.check_dataset(dataset)
    try:
        array: NDArray[Any] = np.asarray(dataset[()])
    except MemoryError as error:
        raise MemoryLimitError(
            f"no memory for {dataset.name}, {readable_size(dataset.nbytes)}."
        ) from error
    return array
