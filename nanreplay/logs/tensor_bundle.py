"""TensorFlow's checkpoints without TensorFlow: a sorted table of entries, and shards of raw bytes.

`NAME.index` is a table of LevelDB's format whose values are `BundleEntryProto` messages; they say
where in `NAME.data-00000-of-00001` the bytes of each variable are. Formats: tensorflow/core/util/
tensor_bundle, tensorflow/core/protobuf/tensor_bundle.proto and trackable_object_graph.proto,
https://github.com/google/leveldb/blob/main/doc/table_format.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np

from nanreplay.errors import FormatError
from nanreplay.logs.wire_format import BYTES, fields_of, signed, text_of, varint

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_LARGEST_INDEX = 2**28
_LARGEST_GRAPH = 2**27
"""Bytes of the text that tells the names of variables; a larger one is not read."""
GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_ENDING = "/.ATTRIBUTES/VARIABLE_VALUE"
DTYPES: dict[int, Any] = {
    1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i4"), 4: np.dtype("u1"),
    5: np.dtype("<i2"), 6: np.dtype("i1"), 8: np.dtype("<c8"), 9: np.dtype("<i8"),
    10: np.dtype("?"), 14: np.dtype(ml_dtypes.bfloat16), 17: np.dtype("<u2"),
    18: np.dtype("<c16"), 19: np.dtype("<f2"), 22: np.dtype("<u4"), 23: np.dtype("<u8"),
    24: np.dtype(ml_dtypes.float8_e5m2), 25: np.dtype(ml_dtypes.float8_e4m3fn),
}  # fmt: skip
"""Types of variables by their numbers in types.proto."""


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """Where one variable is."""

    key: str
    dtype: Any
    """Its NumPy type; None for texts and types that hold no numbers."""
    shape: tuple[int, ...]
    shard: int
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class TensorBundle:
    """The table of a checkpoint."""

    prefix: Path
    """Path without `.index`."""
    n_shards: int
    entries: tuple[BundleEntry, ...]

    def shard_path(self, shard: int) -> Path:
        """The file that holds a shard; its name hangs on the prefix alone."""
        name = f"{self.prefix.name}.data-{shard:05d}-of-{self.n_shards:05d}"
        return self.prefix.with_name(name)

    def names(self) -> dict[str, str]:
        """Name of each variable by its key, from the graph of objects that Keras writes along.

        Empty where the checkpoint has none, or its shard is missing.
        """
        entry = next((each for each in self.entries if each.key == GRAPH_KEY), None)
        if entry is None or entry.size_bytes > _LARGEST_GRAPH:
            return {}
        try:
            with self.shard_path(entry.shard).open("rb") as shard:
                shard.seek(entry.offset)
                data = shard.read(entry.size_bytes)
            length, position = varint(data, 0, len(data))
            position += 4  # the checksum of the lengths
            return dict(_object_names(data[position : position + length]))
        except (OSError, ValueError):
            return {}


def is_table(path: Path) -> bool:
    """Whether a file ends as a table of LevelDB's format does."""
    try:
        with path.open("rb") as file:
            file.seek(-8, 2)
            return int.from_bytes(file.read(8), "little") == _MAGIC
    except OSError:
        return False


def read_bundle(index: Path) -> TensorBundle:
    """Read the table of a checkpoint.

    Args:
        index: The file whose name ends in `.index`.

    Raises:
        FormatError: It is none, is damaged, or names sizes that do not fit its shapes.
    """
    try:
        if index.stat().st_size > _LARGEST_INDEX:
            raise FormatError(f"{index}: is too large for the table of a checkpoint.")
        data = index.read_bytes()
    except OSError as error:
        raise FormatError(f"{index}: cannot be read ({error.strerror}).") from error
    n_shards = 1
    entries = []
    try:
        for key, value in _table(data):
            if not key:
                n_shards = _shards(value)
            elif not key.startswith(b"\0"):  # a slice: its variable has an entry of its own
                entries.append(_entry(key.decode("utf-8", "replace"), value))
    except (ValueError, IndexError) as error:
        raise FormatError(
            f"{index}: is no table of a checkpoint, or is damaged ({error})."
        ) from error
    if not 0 < n_shards < 100_000:
        raise FormatError(f"{index}: says that it has {n_shards} shards.")
    return TensorBundle(index.with_suffix(""), n_shards, tuple(entries))


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a table."""
    if len(data) < _FOOTER_BYTES or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise ValueError("its end is missing")
    footer = data[-_FOOTER_BYTES:]
    _, position = varint(footer, 0, 40)  # offset and size of a block that TensorFlow leaves empty
    _, position = varint(footer, position, 40)
    offset, position = varint(footer, position, 40)
    size, position = varint(footer, position, 40)
    for _, handle in _block(data, offset, size):
        at, after = varint(handle, 0, len(handle))
        length, _ = varint(handle, after, len(handle))
        yield from _block(data, at, length)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    end = offset + size
    if end + 5 > len(data) or size < 4:
        raise ValueError("a block reaches beyond its end")
    value = google_crc32c.value(data[offset : end + 1])
    masked = (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    if masked != int.from_bytes(data[end + 1 : end + 5], "little"):
        raise ValueError("a checksum is wrong")
    if data[end] != 0:
        raise ValueError("it is compressed, which TensorFlow's checkpoints are not")
    n_restarts = int.from_bytes(data[end - 4 : end], "little")
    stop = end - 4 - 4 * n_restarts
    if stop < offset:
        raise ValueError("a block without entries")
    position, key = offset, b""
    while position < stop:
        # a key shares its first bytes with the one before it
        shared, position = varint(data, position, stop)
        own, position = varint(data, position, stop)
        length, position = varint(data, position, stop)
        if shared > len(key) or position + own + length > stop:
            raise ValueError("an entry reaches beyond its block")
        key = key[:shared] + data[position : position + own]
        position += own
        yield key, data[position : position + length]
        position += length


def _shards(header: bytes) -> int:
    for each in fields_of(header):
        if each.number == 1:
            return each.value
    return 0


def _entry(key: str, value: bytes) -> BundleEntry:
    numbers = dict.fromkeys((1, 3, 4, 5), 0)
    shape: tuple[int, ...] = ()
    for each in fields_of(value):
        if each.number in numbers:
            numbers[each.number] = each.value
        elif each.number == 2 and each.wire_type == BYTES:
            shape = tuple(_sizes(value, each.start, each.end))
    dtype = DTYPES.get(numbers[1])
    if any(size < 0 for size in shape):
        raise ValueError(f"{key} has a negative size")
    return BundleEntry(key, dtype, shape, numbers[3], numbers[4], numbers[5])


def _sizes(data: bytes, start: int, end: int) -> Iterator[int]:
    for dimension in fields_of(data, start, end):
        if dimension.number == 2 and dimension.wire_type == BYTES:
            inner = fields_of(data, dimension.start, dimension.end)
            yield next((signed(each.value) for each in inner if each.number == 1), 0)


def _object_names(graph: bytes) -> Iterator[tuple[str, str]]:
    """Yield the key and the full name of each saved variable of an object graph."""
    for node in fields_of(graph):
        if node.number != 1 or node.wire_type != BYTES:
            continue
        for part in fields_of(graph, node.start, node.end):
            if part.number == 2 and part.wire_type == BYTES:
                texts = {}
                for each in fields_of(graph, part.start, part.end):
                    if each.wire_type == BYTES:
                        texts[each.number] = text_of(graph, each)
                if texts.get(2) and texts.get(3):
                    yield texts[3], texts[2]


def short_key(key: str) -> str:
    """A key without what TensorFlow adds to the path of the object."""
    return key.removesuffix(_ENDING)
