"""What of an HDF5 file may be read: this file only, the filters of the format, no more than is stored, no endless texts.

HDF5 is a format with links to other files, numbers kept in other files, plugins that unpack chunks, and texts of variable
length whose damage makes the library loop for ever. A capture has none of these, so none of them is followed.
"""

from __future__ import annotations

import math
from typing import Any

import h5py

from nanreplay.capture.format import FILTERS, FORMAT, LARGEST_DEFLATE_RATIO, VERSION
from nanreplay.errors import FormatError, VersionError
from nanreplay.limits import check_size

_LONGEST_TEXT = 4096


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
    found = holder.attrs.get_id(name)
    if found.dtype.kind != "S" or found.shape != () or found.dtype.itemsize > _LONGEST_TEXT:
        raise FormatError(f"attribute {name!r} of {holder.name} is no text")
    value: bytes = bytes(holder.attrs[name])
    return value.decode()


def number(holder: Any, name: str) -> int:
    """An attribute that holds one integer or boolean.

    Raises:
        FormatError: It is none, or not there.
    """
    found = holder.attrs.get_id(name) if name in holder.attrs else None
    if found is None or found.dtype.kind not in "biu" or found.shape != ():
        raise FormatError(f"attribute {name!r} of {holder.name} is no number")
    return int(holder.attrs[name])


def check_head(file: Any, path: str) -> int:
    """Check the attributes of the root; returns the format's version.

    Raises:
        FormatError: It is no capture, or not a whole one.
        VersionError: A newer nanreplay wrote it.
    """
    if text(file, "format") != FORMAT:
        raise FormatError(f"{path}: an HDF5 file, but not a nanreplay capture.")
    version = number(file, "version")
    if version > VERSION:
        raise VersionError(f"{path}: format version {version}; this nanreplay reads up to {VERSION}. Upgrade nanreplay.")
    if "complete" not in file.attrs or not number(file, "complete"):
        raise FormatError(f"{path}: was not written to its end.")
    return version


def check_dataset(dataset: Any) -> None:
    """Check that a dataset holds numbers itself, and no more of them than its file can.

    Raises:
        FormatError: It does not.
        MemoryLimitError: They take more memory than they may.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise FormatError(f"expected a dataset at {getattr(dataset, 'name', '?')}")
    if dataset.shape is None or dataset.dtype.kind not in "biufc" or dataset.dtype.subdtype is not None:
        raise FormatError(f"unexpected type {dataset.dtype} at {dataset.name}")
    if dataset.is_virtual or dataset.external:
        raise FormatError(f"{dataset.name} takes its numbers from another file")
    made = dataset.id.get_create_plist()
    used = {made.get_filter(index)[0] for index in range(made.get_nfilters())}
    if used - FILTERS:
        raise FormatError(f"{dataset.name} is packed in a way that captures are not (filters {sorted(used - FILTERS)})")
    stored = max(dataset.id.get_storage_size(), 1)
    if stored > h5py.h5i.get_file_id(dataset.id).get_filesize():
        raise FormatError(f"{dataset.name} claims more bytes than the file has")
    chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize if dataset.chunks else 0
    if max(dataset.nbytes, chunk) > LARGEST_DEFLATE_RATIO * stored:
        raise FormatError(f"{dataset.name} is larger than what is stored of it")
    check_size(dataset.name, max(dataset.nbytes, chunk))
