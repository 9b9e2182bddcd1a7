"""Captures damaged on purpose: bytes that flip, files cut off or spliced, and edits that keep
every checksum right.

`mutate(seed, captures)` gives the same file for the same seed.
"""

from __future__ import annotations

import contextlib
import io
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import h5py
import numpy as np

from nanreplay.capture.arrays import read_json, write_array, write_json
from nanreplay.errors import FormatError

JSON_NAMES = (
    "contents",
    "metadata",
    "incident",
    "variables",
    "signature",
    "ops",
    "frames",
    "stacks",
    "about",
)
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**30), 1.5, float("nan"), float("inf"),
    "", "x", "0", "-1", "nan", "\0",
    "\ud800", "../../x", "a/b", "é" * 300, [], {}, [[]], [None], {"": None}, {"what": "loss"}, [1,
    "a", None], "n" * 100_000,
]  # fmt: skip


def mutate(seed: int, captures: Sequence[bytes], elsewhere: str) -> tuple[str, bytes]:
    """Return the kind of damage and the damaged file.

    Args:
        seed: Which one.
        captures: Files in good order; the first is taken most often.
        elsewhere: A path that nobody may open.
    """
    rng = random.Random(seed)
    data = captures[0] if rng.random() < 0.9 else rng.choice(captures)
    if rng.random() < 0.5:
        change = rng.choice(BYTES)
        return change.__name__, change(rng, data, captures)
    buffer = io.BytesIO(data)
    names = []
    with h5py.File(buffer, "r+") as file:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            edit = rng.choice(EDITS)
            names.append(edit.__name__)
            with contextlib.suppress(
                OSError,
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
                RuntimeError,
                FormatError,
                zlib.error,
            ):
                edit(rng, file, elsewhere)  # an earlier edit may have taken what this one needs
    return "+".join(names), buffer.getvalue()


def flip(rng: random.Random, data: bytes, captures: Sequence[bytes]) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        damaged[_position(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncate(rng: random.Random, data: bytes, captures: Sequence[bytes]) -> bytes:
    return data[: _position(rng, data)]


def splice(rng: random.Random, data: bytes, captures: Sequence[bytes]) -> bytes:
    other = rng.choice(captures)
    start, length = rng.randrange(len(other)), rng.choice((8, 64, 512, 4096))
    at = _position(rng, data)
    return data[:at] + other[start : start + length] + data[at + length * rng.choice((0, 1)) :]


def junk(rng: random.Random, data: bytes, captures: Sequence[bytes]) -> bytes:
    at, length = _position(rng, data), rng.choice((1, 8, 8, 100))
    filler = rng.choice((rng.randbytes(length), b"\xff" * length, b"\0" * length))
    return data[:at] + filler + data[at + length :]


def _position(rng: random.Random, data: bytes) -> int:
    """Anywhere, and more often at the start, where the structure of the file is."""
    return rng.randrange(rng.choice((100, 3000, len(data), len(data))))


def delete(rng: random.Random, file: Any, elsewhere: str) -> None:
    if name := _any(rng, file):
        del file[name]


def rename(rng: random.Random, file: Any, elsewhere: str) -> None:
    name, new = _any(rng, file), _any(rng, file) + rng.choice(("x", "0", "/a", "1"))
    if (
        name
        and new not in file
        and not new.startswith(name + "/")
        and isinstance(file.get(new.rpartition("/")[0] or "/"), h5py.Group)
    ):
        file.move(name, new)


def swap(rng: random.Random, file: Any, elsewhere: str) -> None:
    one, two = _any(rng, file), _any(rng, file)
    if (
        one
        and two
        and not (one + "/").startswith(two + "/")
        and not (two + "/").startswith(one + "/")
    ):
        file.move(one, "swapped")
        file.move(two, one)
        file.move("swapped", two)


def retype(rng: random.Random, file: Any, elsewhere: str) -> None:
    """Another dataset, or a group, where one was expected, with the checksum of its own numbers."""
    name = _any(rng, file)
    if not name:
        return
    del file[name]
    shape = rng.choice(((), (0,), (1,), (3,), (2, 2), (5000,), (0, 4), (1,) * 12))
    kind = rng.choice(("f4", "f8", "i1", "i8", "u1", "u8", "?", "c8", "<f2"))
    parent, _, leaf = name.rpartition("/")
    if rng.random() < 0.2:
        file.create_group(name)
    else:
        write_array(file[parent or "/"], leaf, np.full(shape, rng.choice((0, 1, 100, 7)), kind))


def claim(rng: random.Random, file: Any, elsewhere: str) -> None:
    """Datasets that claim more than they hold, or hold it elsewhere, or in ways that captures do
    not use."""
    name = _any(rng, file)
    if not name:
        return
    del file[name]
    kind = rng.randrange(9)
    if kind == 0:
        file.create_dataset(name, shape=(10**12,), dtype="f4", chunks=(10**6,), compression="gzip")
    elif kind == 1:
        file.create_dataset(name, shape=(1000, 1000, 1000), dtype="f8", fillvalue=1.0)
    elif kind == 2:
        file.create_dataset(name, shape=(3,), maxshape=(None,), dtype="f8", chunks=(2**28,))
    elif kind == 3:
        file.create_dataset(name, shape=(4,), dtype="u1", external=[(elsewhere, 0, 4)])
    elif kind == 4:
        layout = h5py.VirtualLayout(shape=(4,), dtype="u1")
        layout[:] = h5py.VirtualSource(elsewhere, "it", shape=(4,))
        file.create_virtual_dataset(name, layout)
    elif kind == 5:
        file[name] = h5py.ExternalLink(elsewhere, "/it")
    elif kind == 6:
        file[name] = h5py.SoftLink(rng.choice(("/incident", "/nowhere", f"/{name}", "/")))
    elif kind == 7:
        file.create_dataset(name, data=np.array(["a", "b"], dtype=h5py.string_dtype()))
    else:
        kinds = (
            np.dtype([("a", "i4")]),
            np.dtype("(2,)f4"),
            np.dtype("V8"),
            np.dtype("S5"),
            h5py.ref_dtype,
            h5py.regionref_dtype,
        )
        file.create_dataset(name, shape=(4,), dtype=rng.choice(kinds))


def attribute(rng: random.Random, file: Any, elsewhere: str) -> None:
    name = _any(rng, file)
    holder = file[name] if name and rng.random() < 0.7 else file
    key = rng.choice(("dtype", "crc32", "format", "version", "complete"))
    value = rng.choice((1, -5, 2**63, 1.5, "string", "bfloat16", "int4", np.bytes_(b"string"),
    np.bytes_(b"bfloat16"),
                        np.bytes_(b"\xff\xfe"),                         np.zeros(3), np.zeros((2,
                        2), "S3"), True,
                        h5py.Empty("f4"), "x" * 5000))  # fmt: skip
    if rng.random() < 0.2:
        holder.attrs.pop(key, None)
    else:
        holder.attrs[key] = value


def table(rng: random.Random, file: Any, elsewhere: str) -> None:
    """A JSON table with something else in one place."""
    names = [
        name
        for name in _names(file)
        if name.rpartition("/")[2] in JSON_NAMES and isinstance(file[name], h5py.Dataset)
    ]
    if not names:
        return
    name = rng.choice(names)
    value = _changed(rng, read_json(file[name]))
    del file[name]
    parent, _, leaf = name.rpartition("/")
    write_json(file[parent or "/"], leaf, value)


def deep(rng: random.Random, file: Any, elsewhere: str) -> None:
    """JSON that nests deeper than any stack."""
    names = [name for name in _names(file) if name.rpartition("/")[2] in JSON_NAMES]
    if names:
        name = rng.choice(names)
        del file[name]
        opening = rng.choice((b"[", b'{"a":'))
        file.create_dataset(name, data=np.frombuffer(zlib.compress(opening * 200_000), np.uint8))


BYTES: list[Callable[[random.Random, bytes, Sequence[bytes]], bytes]] = [
    flip, truncate, splice, junk,
]  # fmt: skip
EDITS: list[Callable[[random.Random, Any, str], None]] = [
    delete, rename, swap, retype, claim, attribute, table, table, table, table, deep,
]  # fmt: skip


def _changed(rng: random.Random, value: Any) -> Any:
    if isinstance(value, (list, dict)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        act = rng.random()
        if act < 0.1:
            del value[key]
        elif act < 0.15 and isinstance(value, dict):
            value[rng.choice(("new", "", "step"))] = rng.choice(ODD)
        elif act < 0.2 and isinstance(value, list):
            value.append(rng.choice(ODD))
        else:
            value[key] = _changed(rng, value[key])
        return value
    if isinstance(value, int) and rng.random() < 0.4:
        return value + rng.choice((-1, 1, 1000, -1000))
    return rng.choice(ODD)


def _names(file: Any) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return sorted(names)


def _any(rng: random.Random, file: Any) -> str:
    names = _names(file)
    return rng.choice(names) if names else ""
