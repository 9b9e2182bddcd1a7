"""Fields of protocol buffer messages, read from bytes; no message is described beforehand.

Event files, TensorFlow's checkpoints and W&B's files hold such messages. Their format is in
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireField(NamedTuple):
    """One field of a message."""

    number: int
    """Its number in the definition of the message."""
    wire_type: int
    """How it is written: `VARINT`, `FIXED64`, `BYTES` or `FIXED32`."""
    start: int
    """Position of the first byte of its value."""
    end: int
    """Position after the last byte of its value."""
    value: int
    """Value of a varint; 0 for other types."""


def fields_of(data: bytes, start: int = 0, end: int | None = None) -> Iterator[WireField]:
    """Yield the fields of the message that stands in `data[start:end]`.

    Raises:
        ValueError: The bytes are no message.
    """
    stop = len(data) if end is None else end
    position = start
    while position < stop:
        key, position = varint(data, position, stop)
        number, wire_type = key >> 3, key & 7
        value = 0
        begin = position
        if wire_type == VARINT:
            value, position = varint(data, position, stop)
        elif wire_type == BYTES:
            length, begin = varint(data, position, stop)
            position = begin + length
        elif wire_type in (FIXED64, FIXED32):
            position += 8 if wire_type == FIXED64 else 4
        else:
            raise ValueError(f"a field of the unknown type {wire_type}")
        if position > stop or number == 0:
            raise ValueError("a field that reaches beyond its message")
        yield WireField(number, wire_type, begin, position, value)


def varint(data: bytes, position: int, stop: int) -> tuple[int, int]:
    """Read an integer of variable length; returns it and the position after it.

    Raises:
        ValueError: It does not end before `stop`, or has more than ten bytes.
    """
    value = shift = 0
    while position < stop and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("an integer that does not end")


def signed(value: int) -> int:
    """An int64 that was read as an unsigned varint."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def text_of(data: bytes, field: WireField) -> str:
    """The text of a field of bytes."""
    return data[field.start : field.end].decode("utf-8", "replace")


def number_of(data: bytes, field: WireField) -> float:
    """The float or double of a field of fixed width."""
    code = "<d" if field.wire_type == FIXED64 else "<f"
    result: Any = struct.unpack_from(code, data, field.start)
    return float(result[0])
