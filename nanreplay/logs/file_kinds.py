"""What a file is, by what it holds: its first bytes, and its name only where those do not tell."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Final, Literal, TypeAlias

import h5py

from nanreplay.capture.format import FORMAT
from nanreplay.capture.storage import cut_off
from nanreplay.errors import FormatError
from nanreplay.logs.event_files import is_event_file
from nanreplay.logs.tabular_logs import number_of_text
from nanreplay.logs.tensor_bundle import is_table
from nanreplay.logs.tracker_files import is_mlflow_line, is_wandb
from nanreplay.logs.weight_files import WEIGHTS_NAME, is_keras_hdf5

FileKind: TypeAlias = Literal[
    "events", "csv", "json", "json_lines", "console", "mlflow", "wandb", "hdf5", "keras", "bundle",
    "capture",
]  # fmt: skip
CHECKPOINTS: Final[frozenset[FileKind]] = frozenset(("hdf5", "keras", "bundle"))
_HEAD_BYTES = 4096
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_EVENT_NAME = re.compile(r"tfevents")
_SHARD_NAME = re.compile(r"^(.*)\.data-\d{5}-of-\d{5}$")
_TEXT_ENDINGS = frozenset((".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".log", ".txt", ".out"))
_LOG_WORD = re.compile(r"loss|\bnan\b", re.IGNORECASE)


def kind_of(path: Path, *, is_named: bool) -> FileKind | None:
    """What a file is; None for one that is no log and no checkpoint.

    Args:
        path: The file.
        is_named: Whether the user named this very file. Then text is taken for a console log
            whatever its name, and what is no log is an error.

    Raises:
        FormatError: It should be a log or a checkpoint, by its name or since it is named, and is
            not.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}).") from error
    kind = _binary_kind(path, head, is_named)
    if kind is not None:
        return kind
    if _is_text(head) and (is_named or path.suffix.lower() in _TEXT_ENDINGS or _is_metric(path)):
        kind = _text_kind(path, head, is_named)
    if kind is None and is_named:
        raise FormatError(f"{path}: {_what_it_is(head)}; expected a log or a checkpoint.")
    return kind


def _binary_kind(path: Path, head: bytes, is_named: bool) -> FileKind | None:
    if head.startswith(_HDF5):
        return _hdf5_kind(path, is_named)
    if head.startswith(_ZIP) or path.suffix == ".keras":
        return _zip_kind(path, is_named)
    if is_wandb(head):
        return "wandb"
    if path.suffix == ".index" and (is_table(path) or path.stem.startswith(("ckpt", "variables"))):
        return "bundle"
    if _SHARD_NAME.match(path.name):
        return _shard_kind(path, is_named)
    if _EVENT_NAME.search(path.name):
        return _event_kind(path, head)
    if path.suffix in (".h5", ".hdf5"):
        raise FormatError(f"{path}: not an HDF5 file, or damaged at its start.")
    if is_event_file(head) and b"brain.Event:" in head[:64]:
        return "events"
    return None


def _event_kind(path: Path, head: bytes) -> FileKind:
    if not head:
        raise FormatError(f"{path}: is empty: nothing was written to it yet.")
    if len(head) < 12:
        raise FormatError(f"{path}: ends within its first record: it is being written, or was cut.")
    if not is_event_file(head):
        raise FormatError(f"{path}: is no event file, or is damaged at its start.")
    return "events"


def _shard_kind(path: Path, is_named: bool) -> FileKind | None:
    match = _SHARD_NAME.match(path.name)
    index = path.with_name(f"{match[1]}.index") if match else path
    if not index.is_file():
        raise FormatError(f"{path}: a checkpoint without its table: {index.name} is not there.")
    return "bundle" if is_named else None  # the folder has the table too


def _hdf5_kind(path: Path, is_named: bool) -> FileKind | None:
    try:
        with h5py.File(path, "r") as file:
            if _is_capture(file):
                return "capture"
            if is_keras_hdf5(file) or is_named or path.name.endswith(".weights.h5"):
                return "hdf5"
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise cut_off(path, error) or FormatError(f"{path}: a damaged HDF5 file.") from error
    return None


def _is_capture(file: h5py.File) -> bool:
    if "format" not in file.attrs:
        return False
    attribute = file.attrs.get_id("format")
    # reading a damaged text of variable length may not end
    is_fixed = attribute.dtype.kind == "S" and attribute.shape == ()
    return is_fixed and bytes(file.attrs["format"]) == FORMAT.encode()


def _zip_kind(path: Path, is_named: bool) -> FileKind | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        if path.suffix == ".keras" or is_named:
            raise FormatError(f"{path}: a damaged archive, or one that was cut.") from error
        return None
    if WEIGHTS_NAME in names or path.suffix == ".keras":
        return "keras"
    if is_named and any(name.endswith(".pkl") for name in names):
        raise FormatError(f"{path}: holds a pickle, which would run code; it is not read.")
    return None


def _is_metric(path: Path) -> bool:
    """Whether a file without an ending lies where MLflow keeps its metrics."""
    return "metrics" in path.parts[:-1] and not path.suffix


def _is_text(head: bytes) -> bool:
    if not head:
        return False
    printable = sum(byte >= 32 or byte in (8, 9, 10, 13, 27) for byte in head)
    return printable >= 0.97 * len(head)


def _text_kind(path: Path, head: bytes, is_named: bool) -> FileKind | None:
    text = head.decode("utf-8-sig", "replace")
    lines = []
    for line in text.splitlines():
        if line.strip():
            lines.append(line)
    if not lines:
        return None
    first = lines[0].strip()
    if is_mlflow_line(first):
        return "mlflow"
    if first.startswith("{") and _is_json_object(first):
        return "json_lines" if len(lines) > 1 or path.suffix != ".json" else "json"
    if path.suffix == ".json" or (is_named and first[0] in "{[" and path.suffix not in (".log",)):
        return "json"
    if path.suffix in (".jsonl", ".ndjson"):
        return "json_lines"
    if path.suffix in (".csv", ".tsv") or _is_table(lines):
        return "csv"
    return "console" if is_named or _LOG_WORD.search(_sample(path, text)) else None


def _sample(path: Path, head: str) -> str:
    """The beginning and the end of a text: banners may fill the beginning."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - 16 * _HEAD_BYTES, 0))
            return head + file.read(16 * _HEAD_BYTES).decode("utf-8", "replace")
    except OSError:
        return head


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_table(lines: list[str]) -> bool:
    """Whether a header with names stands above rows of as many numbers."""
    delimiter = max(",;\t", key=lines[0].count)
    names = lines[0].split(delimiter)
    if len(names) < 2 or len(lines) < 2 or any(number_of_text(name) is not None for name in names):
        return False
    cells = lines[1].split(delimiter)
    numbers = sum(number_of_text(cell) is not None for cell in cells)
    return len(cells) == len(names) and numbers >= 0.5 * len(cells)


def _what_it_is(head: bytes) -> str:
    if not head:
        return "is empty"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "is a pickle, which would run code"
    if head.startswith(b"\x93NUMPY"):
        return "is a NumPy array"
    if is_event_file(head):
        return "is a TFRecord file without events"
    return "tells nothing of a training"
