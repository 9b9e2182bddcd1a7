"""The capture file, format version 1: its constants, and what of an HDF5 file may be read at all.

HDF5 has links to other files, numbers kept in other files, plugins that unpack chunks, and texts
of variable length whose damage makes the library loop for ever. A capture has none of these, so
the checks here follow none of them. `docs/capture-format.md` is the specification.
"""

from __future__ import annotations

import math
from typing import Any, Final

import h5py
import numpy as np

from nanreplay.errors import FormatError, VersionError
from nanreplay.limits import check_size

FORMAT: Final = "nanreplay-capture"
VERSION: Final = 1
COMPRESS_FROM_BYTES: Final = 4096
"""Smaller datasets are stored contiguous: a chunk index would cost more than deflate saves."""
DEFLATE_TO: Final = 0.125
"""Larger ones, of whole numbers, are deflated when a sample shrinks to this share.

`benchmarks/dump.py` shows what it costs to deflate all of them.
"""
SAMPLES: Final = 4
"""Pieces of an array that make the sample."""
SAMPLE_BYTES: Final = 4096
"""Bytes of the pieces together."""
JSON_LIMIT_BYTES: Final = 2**28
"""A larger table is taken for an attack."""
LARGEST_DEFLATE_RATIO: Final = 1040
"""No dataset unpacks to more than this many times its bytes."""
FILTERS: Final = frozenset({1, 2})
"""HDF5's numbers of deflate and shuffle.

A reader unpacks nothing else: a filter may be a plugin, which is code.
"""
TIMELINE_COLUMNS: Final = (
    "step",
    "loss",
    "learning_rate",
    "loss_scale",
    "step_time_s",
    "skipped",
    "measured",
)
TIMELINE_MATRICES: Final = ("gradient_norm", "gradient_absmax", "weight_norm", "update_ratio")
EXTENSION_DTYPES: Final = (
    "bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3b11fnuz", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "int4", "uint4",
)  # fmt: skip
"""Types that HDF5 and numpy do not know.

They are stored as unsigned integers of their size with the attribute `dtype`.
"""
_OTHER_DTYPES: Final = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 "
    "complex64 complex128 string resource variant "
    "qint8 qint16 qint32 quint8 quint16 int2 uint2 float4_e2m1fn"
)
DTYPES: Final = frozenset(_OTHER_DTYPES.split()).union(EXTENSION_DTYPES)
"""TensorFlow's names of types of variables and inputs."""
_LONGEST_TEXT: Final = 4096  # bytes


def item(group: Any, path: str) -> Any:
    """The group or dataset at a path below a group, by hard links only.

    Raises:
        FormatError: A link on the way leads elsewhere.
        KeyError: There is nothing.
    """
    for name in path.split("/"):
        if not isinstance(group, h5py.Group):
            raise FormatError(f"expected a group at {getattr(group, 'name', '?')}")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise FormatError(f"{path} is a link to somewhere else")
        group = group[name]
    return group


def text(holder: Any, name: str) -> str | None:
    """A short attribute of fixed length; None when it is not there.

    Raises:
        FormatError: It is no such text.
    """
    if name not in holder.attrs:
        return None
    # `get_id` opens the attribute without reading it: reading one of variable length may not end
    attribute = holder.attrs.get_id(name)
    is_short = attribute.dtype.itemsize <= _LONGEST_TEXT
    if attribute.dtype.kind != "S" or attribute.shape != () or not is_short:
        raise FormatError(f"attribute {name!r} of {holder.name} is no text")
    value: bytes = bytes(holder.attrs[name])
    return value.decode()


def number(holder: Any, name: str) -> int:
    """An attribute that holds one integer or boolean.

    Raises:
        FormatError: It is none, or not there.
    """
    attribute = holder.attrs.get_id(name) if name in holder.attrs else None
    if attribute is None or attribute.dtype.kind not in "biu" or attribute.shape != ():
        raise FormatError(f"attribute {name!r} of {holder.name} is no number")
    value = np.empty((), attribute.dtype)
    attribute.read(value)
    return int(value)


def check_head(file: Any, path: str) -> int:
    """Check the attributes of the root; returns the format's version.

    Raises:
        FormatError: It is no capture, or not a whole one.
        VersionError: A newer nanreplay wrote it.
    """
    if text(file, "format") != FORMAT:
        raise FormatError(
            f"{path}: an HDF5 file, but not a nanreplay capture.",
            hint="nanreplay logs reads Keras's weights and checkpoints",
        )
    version = number(file, "version")
    if version > VERSION:
        raise VersionError(
            f"{path}: format version {version}; this nanreplay reads up to {VERSION}. "
            "Upgrade nanreplay."
        )
    if "complete" not in file.attrs or not number(file, "complete"):
        raise FormatError(f"{path}: was not written to its end.")
    return version


def check_dataset(dataset: Any) -> None:
    """Check that a dataset holds numbers itself, and no more of them than its file can.

    Raises:
        FormatError: It does not.
        MemoryLimitError: They take more memory than they may.
    """
    check_stored(dataset)
    check_size(dataset.name, dataset.nbytes)


def check_stored(dataset: Any, kinds: str = "biufc") -> None:
    """Check what `check_dataset` does for a reader that takes a part of the dataset at a time.

    Args:
        dataset: What is to be read.
        kinds: Kinds of NumPy's types that are taken for numbers.

    Raises:
        FormatError: It does not hold numbers itself, or is larger than what is stored of it.
        MemoryLimitError: One chunk of it takes more memory than it may.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise FormatError(f"expected a dataset at {getattr(dataset, 'name', '?')}")
    kind = dataset.dtype  # asked for once: each question to HDF5 takes 10 microseconds
    is_plain = kind.kind in kinds and kind.subdtype is None
    if dataset.shape is None or not is_plain:
        raise FormatError(f"unexpected type {kind} at {dataset.name}")
    creation = dataset.id.get_create_plist()
    layout = creation.get_layout()
    if layout == h5py.h5d.VIRTUAL or creation.get_external_count():
        raise FormatError(f"{dataset.name} takes its numbers from another file")
    _check_filters(dataset, creation)
    stored_bytes = max(dataset.id.get_storage_size(), 1)
    if stored_bytes > h5py.h5i.get_file_id(dataset.id).get_filesize():
        raise FormatError(f"{dataset.name} claims more bytes than the file has")
    # HDF5 unpacks whole chunks, and a chunk may be declared far larger than its dataset.
    chunk_bytes = 0
    if layout == h5py.h5d.CHUNKED:
        chunk_bytes = math.prod(dataset.chunks) * kind.itemsize
    if max(dataset.nbytes, chunk_bytes) > LARGEST_DEFLATE_RATIO * stored_bytes:
        raise FormatError(f"{dataset.name} is larger than what is stored of it")
    check_size(dataset.name, chunk_bytes)


def _check_filters(dataset: Any, creation: Any) -> None:
    used = set()
    for index in range(creation.get_nfilters()):
        used.add(creation.get_filter(index)[0])
    unknown = used - FILTERS
    if unknown:
        raise FormatError(
            f"{dataset.name} is packed in a way that captures are not (filters {sorted(unknown)})"
        )
