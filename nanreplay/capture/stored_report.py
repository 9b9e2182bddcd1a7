"""The report that a capture may hold beside its data, and what content it was made of.

`report` decides what such a report is worth; here it is a JSON object like any other table.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import h5py

from nanreplay.capture import format
from nanreplay.capture.arrays import read_json, write_json
from nanreplay.capture.format import item
from nanreplay.capture.reader import Capture
from nanreplay.capture.storage import RemotePath, location
from nanreplay.capture.temporary import replacing
from nanreplay.errors import FormatError, StorageError

REPORT: Final = "report"
"""The dataset."""
CONTENTS: Final = "contents"
_COPY_BYTES: Final = 2**22
"""What is copied at a time."""


def content_digest(file: Any, names: Iterable[str]) -> str:
    """SHA-256 of all that an HDF5 file holds but its report: checksums of arrays, and tables.

    Arrays are not read: each has its checksum beside it.

    Args:
        file: An open capture.
        names: Paths of its groups and datasets.
    """
    digest = hashlib.sha256()
    groups = {"": file}  # each is looked up once, not for everything in it
    for name in sorted(names):
        if name in (REPORT, CONTENTS):
            continue
        parent, _, child = name.rpartition("/")
        if parent not in groups:
            groups[parent] = item(file, parent)
        dataset = item(groups[parent], child)
        if isinstance(dataset, h5py.Group):
            groups[name] = dataset
            continue
        digest.update(f"{name}\0".encode())
        if "crc32" in dataset.attrs:
            digest.update(format.number(dataset, "crc32").to_bytes(4, "little"))
        else:
            format.check_dataset(dataset)
            digest.update(dataset[()].tobytes())
    return digest.hexdigest()


def store_report(path: str | os.PathLike[str], table: Mapping[str, Any], *, content: str) -> None:
    """Put a report into a capture, in place of an older one; nothing else of it changes.

    A copy gets the report, and then the name of the capture: whatever happens meanwhile, the
    capture is whole.

    Args:
        path: A file of this machine.
        table: The JSON object.
        content: What `Capture.content_digest` was when the report was made.

    Raises:
        StorageError: The file is of another machine, or could not be written.
        FormatError: Another capture has taken its place.
        CaptureError: It cannot be read.
    """
    where = location(path)
    if isinstance(where, RemotePath):
        raise StorageError(
            f"{where}: an answer can be stored in a file of this machine. Store it in a copy."
        )
    with Capture(where) as capture:
        if capture.content_digest() != content:
            raise FormatError(f"{where}: was written anew meanwhile; its answer was not stored.")
    try:
        _write(Path(os.path.realpath(where)), table)  # a link stays one
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"{where}: the answer could not be stored: {reason}.") from error


def _write(file: Path, table: Mapping[str, Any]) -> None:
    with replacing(file) as copy:
        with open(file, "rb") as original:
            shutil.copyfileobj(original, copy, _COPY_BYTES)
        copy.seek(0)
        with h5py.File(copy, "r+") as opened:
            names = {*read_json(opened[CONTENTS]), REPORT}
            for name, value in ((REPORT, table), (CONTENTS, sorted(names))):
                if name in opened:
                    del opened[name]
                write_json(opened, name, value)
        mode = file.stat().st_mode
    file.chmod(mode)
