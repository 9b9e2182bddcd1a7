"""TensorBoard's event files: records of TensorFlow's TFRecord format that hold `Event` messages.

Files of a million scalars are read by blocks. Records of one length that differ only in time, step
and value are decoded together; all others one by one. Formats: tensorflow/core/lib/io/
record_writer.h, tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto and
tensor.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import google_crc32c
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nanreplay.logs.wire_format import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    WireField,
    fields_of,
    number_of,
    signed,
    text_of,
    varint,
)

_BLOCK_BYTES = 2**22
_LARGEST_RECORD = 2**26
"""A longer record holds a graph or pictures, no scalar; it is passed over."""
_LARGEST_TENSOR = 2**18
"""Bytes of a histogram that is still looked at."""
_FEWEST = 8
"""Records that are decoded together; fewer are quicker one by one."""
_TENSOR_DTYPES: dict[int, Any] = {
    1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i4"), 4: np.dtype("u1"),
    5: np.dtype("<i2"), 6: np.dtype("i1"), 9: np.dtype("<i8"), 10: np.dtype("?"),
    14: np.dtype(ml_dtypes.bfloat16), 19: np.dtype("<f2"), 22: np.dtype("<u4"),
    23: np.dtype("<u8"),
}  # fmt: skip
"""Types of tensors by their numbers in types.proto."""
_DTYPE, _SHAPE, _CONTENT = 1, 2, 4
_LISTS = {5: "<f4", 6: "<f8"}
"""Fields of a tensor that list floats and doubles."""
_INTEGERS = (7, 10, 11, 17)
"""Fields of a tensor that list integers as varints."""


@dataclass
class TagRows:
    """What an event file holds of one tag, in parts as they were read."""

    is_histogram: bool = False
    """Whether the values are the largest magnitudes of histograms."""
    steps: list[Any] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    times: list[Any] = field(default_factory=list)

    def add(self, steps: Any, values: Any, times: Any) -> None:
        """Add rows."""
        self.steps.append(np.atleast_1d(np.asarray(steps, np.float64)))
        self.values.append(np.atleast_1d(np.asarray(values, np.float64)))
        self.times.append(np.atleast_1d(np.asarray(times, np.float64)))

    def columns(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Steps, values and times, in the order of their times."""
        steps, values, times = map(np.concatenate, (self.steps, self.values, self.times))
        order = np.lexsort((steps, times))
        return steps[order], values[order], times[order]


@dataclass
class EventFile:
    """What one event file holds."""

    tags: dict[str, TagRows] = field(default_factory=dict)
    note: str | None = None
    """Why it was not read to its end."""


def is_event_file(head: bytes) -> bool:
    """Whether the first bytes of a file, at least 12, are those of a TFRecord file."""
    if len(head) < 12:
        return False
    return _masked(head[:8]) == int.from_bytes(head[8:12], "little")


def read_event_file(stream: BinaryIO, progress: Callable[[int], None] | None = None) -> EventFile:
    """Read all scalars and small histograms of an event file.

    A file that is being written, or was cut, is read up to its last whole record; a damaged one up
    to the damage. `note` says so.

    Args:
        stream: The file, at its beginning.
        progress: Called with the number of bytes that were read since the last call.
    """
    events = EventFile()
    rest = b""
    position = 0  # of `rest` in the file
    while True:
        block = stream.read(_BLOCK_BYTES)
        if progress is not None:
            progress(len(block))
        data = rest + block
        records, used, damage = _records(data)
        _decode(data, records, events)
        if damage:
            events.note = f"damaged at byte {position + used}; what follows is left out"
            return events
        rest = data[used:]
        position += used
        if not block:
            break
        if len(rest) > _LARGEST_RECORD:
            skipped = _skip(stream, rest)
            if skipped is None:
                break
            position, rest = position + skipped, b""
            if progress is not None:
                progress(skipped)
    if rest:
        events.note = "its last record is not complete: it is being written, or was cut"
    return events


def _skip(stream: BinaryIO, rest: bytes) -> int | None:
    """Pass over a record that is too large to hold a scalar; None when the file ends before it."""
    (length,) = struct.unpack_from("<Q", rest)
    size = 16 + length
    target = stream.tell() - len(rest) + size
    end = stream.seek(0, 2)
    if target > end:
        return None
    stream.seek(target)
    return int(size)


def _masked(data: bytes) -> int:
    """Masked CRC-32C, as record_writer.h has it."""
    value: int = google_crc32c.value(data)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _records(data: bytes) -> tuple[list[tuple[int, int]], int, bool]:
    """Whole records of a block, as start and length; bytes that they take; whether one is damaged.

    A length is checked before anything relies on it, and so is what it measures.
    """
    records: list[tuple[int, int]] = []
    position, end = 0, len(data)
    unpack, crc_of = struct.Struct("<QI").unpack_from, google_crc32c.value
    read_crc = struct.Struct("<I").unpack_from
    while position + 16 <= end:
        length, crc = unpack(data, position)
        value = crc_of(data[position : position + 8])
        if (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF != crc:
            return records, position, True
        start = position + 12
        stop = start + length
        if stop + 4 > end:
            break
        value = crc_of(data[start:stop])
        if (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF != read_crc(data, stop)[0]:
            return records, position, True
        records.append((start, length))
        position = stop + 4
    return records, position, False


def _decode(data: bytes, records: list[tuple[int, int]], events: EventFile) -> None:
    by_length: dict[int, list[int]] = {}
    for start, length in records:
        by_length.setdefault(length, []).append(start)
    buffer = np.frombuffer(data, np.uint8)
    for length, starts in by_length.items():
        if len(starts) < _FEWEST or length < 16 or length > 4096:
            for start in starts:
                _decode_one(data, start, start + length, events)
            continue
        rows = buffer[np.array(starts)[:, None] + np.arange(length)]
        _decode_alike(data, np.array(starts), rows, events)


def _decode_alike(
    data: bytes, starts: NDArray[Any], rows: NDArray[np.uint8], events: EventFile
) -> None:
    """Decode records of one length: those whose steps take equally many bytes, tag by tag."""
    step_bytes = _step_bytes(rows)
    for n_bytes in np.unique(step_bytes):
        of_width = np.flatnonzero(step_bytes == n_bytes)
        body = 9 + int(n_bytes)  # where the summary begins
        pattern = _layout(data, int(starts[of_width[0]]), rows.shape[1])
        blank = rows[of_width, body:]
        if pattern is not None and pattern.step_end <= body:
            blank[:, pattern.value_start - body : pattern.value_end - body] = 0
        for group in _equal_rows(blank):
            _decode_group(data, starts[of_width[group]], rows[of_width[group]], events)


def _decode_group(
    data: bytes, starts: NDArray[Any], rows: NDArray[np.uint8], events: EventFile
) -> None:
    """Decode records that are alike but for time, step and value; others one by one."""
    length = rows.shape[1]
    pattern = _layout(data, int(starts[0]), length)
    alike = np.zeros(len(rows), bool)
    if pattern is not None and len(rows) >= _FEWEST:
        fixed = np.ones(length, bool)
        fixed[1:9] = False
        fixed[pattern.step_start : pattern.step_end] = False
        fixed[pattern.value_start : pattern.value_end] = False
        alike = (rows[:, fixed] == rows[0, fixed]).all(axis=1)
        steps = _varints(rows[alike, pattern.step_start : pattern.step_end])
        times = np.ascontiguousarray(rows[alike, 1:9]).view("<f8")[:, 0]
        raw = np.ascontiguousarray(rows[alike, pattern.value_start : pattern.value_end])
        values = raw.view(pattern.dtype)[:, 0].astype(np.float64)
        events.tags.setdefault(pattern.tag, TagRows()).add(steps, values, times)
    for start in starts[~alike]:
        _decode_one(data, int(start), int(start) + length, events)


def _step_bytes(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Bytes that the step takes in each record, its key included; 0 for a step of 0."""
    has_step = rows[:, 9] == 0x10
    goes_on = rows[:, 10 : min(20, rows.shape[1])] >= 0x80
    # bytes of a varint but the last have their highest bit set
    width = 1 + np.cumprod(goes_on, axis=1).sum(axis=1)
    return np.where(has_step, 1 + width, 0)


def _varints(columns: NDArray[np.uint8]) -> NDArray[np.float64]:
    value = np.zeros(len(columns), np.uint64)
    for place in range(columns.shape[1]):
        value |= (columns[:, place].astype(np.uint64) & np.uint64(0x7F)) << np.uint64(7 * place)
    return value.view(np.int64).astype(np.float64)


def _equal_rows(rows: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """Positions of rows with the same bytes, a group each."""
    digest = np.zeros(len(rows), np.uint64)
    for place in range(rows.shape[1]):
        digest = digest * np.uint64(1099511628211) + rows[:, place]
    order = np.argsort(digest, kind="stable")
    ends = np.flatnonzero(np.diff(digest[order])) + 1
    return np.split(order, ends)


@dataclass(frozen=True, slots=True)
class _ScalarLayout:
    """Where the numbers of a record stand that holds one scalar; counted from its start."""

    tag: str
    dtype: Any
    step_start: int
    step_end: int
    value_start: int
    value_end: int


def _layout(data: bytes, start: int, length: int) -> _ScalarLayout | None:
    """The layout of a record with a time, a step and one scalar; None for another."""
    try:
        step = summary = None
        for each in fields_of(data, start, start + length):
            if each.number == 2 and each.wire_type == VARINT:
                step = each
            elif each.number == 5 and each.wire_type == BYTES and summary is None:
                summary = each
            elif each.number != 1 or each.start != start + 1:
                return None
        values = list(fields_of(data, summary.start, summary.end)) if summary else []
        if len(values) != 1 or summary is None or summary.end != start + length:
            return None
        field = _scalar_field(data, values[0])
    except ValueError:
        return None
    if field is None:
        return None
    tag, at, dtype = field
    step_at = (step.start - start, step.end - start) if step else (9, 9)
    return _ScalarLayout(tag, dtype, *step_at, at.start - start, at.end - start)


def _scalar_field(data: bytes, value: WireField) -> tuple[str, WireField, Any] | None:
    """Tag, place and type of a scalar whose bytes stand in the record as they are."""
    tag, at, dtype = "", None, None
    for each in fields_of(data, value.start, value.end):
        if each.number == 1:
            tag = text_of(data, each)
        elif each.number == 2 and each.wire_type == FIXED32:
            at, dtype = each, np.dtype("<f4")
        elif each.number == 8 and each.wire_type == BYTES:
            content, dtype = _tensor_content(data, each)
            if content is None or dtype is None:
                return None
            at = content
    if at is None or dtype is None or at.end - at.start != dtype.itemsize:
        return None
    return tag, at, dtype


def _tensor_content(data: bytes, tensor: WireField) -> tuple[WireField | None, Any]:
    content, dtype = None, None
    for each in fields_of(data, tensor.start, tensor.end):
        if each.number == _DTYPE:
            dtype = _TENSOR_DTYPES.get(each.value)
        elif each.number == _CONTENT or (
            each.number in _LISTS
            and each.end - each.start == np.dtype(_LISTS[each.number]).itemsize
        ):
            content = each
        elif each.number == _SHAPE and each.end - each.start > 4:
            return None, None
    return content, dtype


# Records one by one: several values in a record, histograms, integers.


def _decode_one(data: bytes, start: int, end: int, events: EventFile) -> None:
    time_s, step = 0.0, 0
    summary = None
    try:
        for each in fields_of(data, start, end):
            if each.number == 1 and each.wire_type == FIXED64:
                time_s = number_of(data, each)
            elif each.number == 2 and each.wire_type == VARINT:
                step = signed(each.value)
            elif each.number == 5 and each.wire_type == BYTES:
                summary = each
        if summary is None:
            return
        for each in fields_of(data, summary.start, summary.end):
            if each.number == 1 and each.wire_type == BYTES:
                _decode_value(data, each, step, time_s, events)
    except ValueError:
        events.note = "a record in it is no event"


def _decode_value(
    data: bytes, message: WireField, step: int, time_s: float, events: EventFile
) -> None:
    tag, value = "", None
    is_histogram = False
    for each in fields_of(data, message.start, message.end):
        if each.number == 1:
            tag = text_of(data, each)
        elif each.number == 2 and each.wire_type == FIXED32:
            value = number_of(data, each)
        elif each.number == 5 and each.wire_type == BYTES:
            value, is_histogram = _histogram_proto(data, each), True
        elif each.number == 8 and each.end - each.start <= _LARGEST_TENSOR:
            value, is_histogram = _tensor_value(data, each)
    if value is not None:
        rows = events.tags.setdefault(tag, TagRows(is_histogram))
        rows.add(step, value, time_s)


def _histogram_proto(data: bytes, message: WireField) -> float:
    """Largest magnitude of a histogram of the first summary version; NaN where its sums are."""
    numbers = [0.0]
    for each in fields_of(data, message.start, message.end):
        if each.wire_type == FIXED64 and each.number in (1, 2, 4, 5):  # min, max, sum, squares
            number = number_of(data, each)
            is_sum = each.number in (4, 5)
            numbers.append(number if not is_sum or not np.isfinite(number) else 0.0)
    return float(np.abs(numbers).max())


def _tensor_value(data: bytes, tensor: WireField) -> tuple[float | None, bool]:
    """A tensor as one number, and whether it is a histogram; None when it is neither."""
    shape: list[int] = []
    values: NDArray[Any] | None = None
    dtype = None
    for each in fields_of(data, tensor.start, tensor.end):
        if each.number == _DTYPE:
            dtype = _TENSOR_DTYPES.get(each.value)
        elif each.number == _SHAPE:
            shape = _tensor_shape(data, each)
        elif each.number == _CONTENT and dtype is not None:
            size = (each.end - each.start) // dtype.itemsize
            values = np.frombuffer(data, dtype, size, each.start)
        elif each.number in _LISTS:
            kind = np.dtype(_LISTS[each.number])
            values = np.frombuffer(data, kind, (each.end - each.start) // kind.itemsize, each.start)
        elif each.number in _INTEGERS:
            number = (
                each.value if each.wire_type == VARINT else varint(data, each.start, each.end)[0]
            )
            values = np.array([signed(number)])
    if dtype is None:
        return None, False
    if values is None:  # a list of zeros is left out
        values = np.zeros(1)
    if np.prod(shape, dtype=np.float64) == 1 and len(values) == 1:
        return float(values[0]), False
    if len(shape) == 2 and shape[1] == 3 and len(values) == 3 * shape[0] and shape[0]:
        edges = values.reshape(shape)[:, :2].astype(np.float64)
        return float(np.abs(edges).max()), True
    return None, False


def _tensor_shape(data: bytes, message: WireField) -> list[int]:
    sizes = []
    for each in fields_of(data, message.start, message.end):
        if each.number == 2 and each.wire_type == BYTES:
            inner = list(fields_of(data, each.start, each.end))
            sizes.append(next((signed(item.value) for item in inner if item.number == 1), 0))
    return sizes
