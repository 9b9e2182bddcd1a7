"""Local files of MLflow and Weights & Biases, read without either."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nanreplay.errors import FormatError
from nanreplay.logs.log_columns import LogRows
from nanreplay.logs.logged_run import ScalarSeries
from nanreplay.logs.tabular_logs import number_of_json, number_of_text
from nanreplay.logs.tag_roles import role_of
from nanreplay.logs.wire_format import BYTES, VARINT, fields_of, signed, text_of

_MLFLOW_LINE = re.compile(r"^(\d{10,16}) (\S+)(?: (-?\d+))?$")
_WANDB_HEAD = b":W&B"
_WANDB_HEAD_BYTES = 7
_BLOCK_BYTES = 32_768
_RECORD_HEAD_BYTES = 7
_FULL, _FIRST, _LAST = 1, 2, 4
_LARGEST_RECORD = 2**26


def is_mlflow_line(line: str) -> bool:
    """Whether a line is one of MLflow's metric files: time in ms, value, step."""
    return _MLFLOW_LINE.match(line.strip()) is not None


def read_mlflow(path: Path) -> list[ScalarSeries]:
    """Read one metric of a run; its name is the path below the folder `metrics`.

    Raises:
        FormatError: A line of it is not MLflow's.
    """
    times, values, steps = [], [], []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            match = _MLFLOW_LINE.match(line.strip())
            value = None if match is None else number_of_text(match[2])
            if match is None or value is None:
                if line.endswith("\n"):
                    raise FormatError(f"{path}: is no metric file of MLflow.")
                continue  # the line is being written
            times.append(int(match[1]) / 1000.0)
            values.append(value)
            steps.append(float(match[3] or 0))
    parts = path.parts
    at = (
        len(parts) - 1 - parts[::-1].index("metrics") if "metrics" in parts[:-1] else len(parts) - 2
    )
    tag = "/".join(parts[at + 1 :])
    if not values:
        raise FormatError(f"{path}: is empty: nothing was logged yet.")
    at_steps, numbers, moments = np.array((steps, values, times), np.float64)
    return [ScalarSeries(tag, role_of(tag), "step", at_steps, numbers, moments, str(path))]


def is_wandb(head: bytes) -> bool:
    """Whether a file begins as W&B's local history does."""
    return head.startswith(_WANDB_HEAD)


def read_wandb(path: Path) -> tuple[list[ScalarSeries], str | None]:
    """Read the history in a `.wandb` file; returns its series, and a note where it was cut.

    The file is LevelDB's log format with a head of W&B's own, and holds messages of
    wandb/proto/wandb_internal.proto.

    Raises:
        FormatError: It holds no history.
    """
    rows = LogRows()
    note = None
    for record in _wandb_records(path):
        try:
            row = _history_row(record)
        except ValueError:
            note = "a record of it is damaged"
            continue
        if row:
            rows.add(row)
    if not rows.n_rows:
        raise FormatError(f"{path}: holds no history: nothing was logged yet.")
    return rows.series(str(path)), note


def _wandb_records(path: Path) -> Iterator[bytes]:
    whole = b""
    with path.open("rb") as file:
        head = _WANDB_HEAD_BYTES
        while block := file.read(_BLOCK_BYTES):
            position, head = head, 0
            while position + _RECORD_HEAD_BYTES <= len(block):
                length = int.from_bytes(block[position + 4 : position + 6], "little")
                kind = block[position + 6]
                start = position + _RECORD_HEAD_BYTES
                position = start + length
                if not kind or position > len(block):
                    break
                whole = b"" if kind in (_FULL, _FIRST) else whole
                if len(whole) < _LARGEST_RECORD:
                    whole += block[start:position]
                if kind in (_FULL, _LAST):
                    yield whole


def _history_row(record: bytes) -> dict[str, float]:
    """The numbers of a record of the history; {} for another record."""
    row: dict[str, float] = {}
    for each in fields_of(record):
        if each.number != 2 or each.wire_type != BYTES:  # Record.history
            continue
        for part in fields_of(record, each.start, each.end):
            if part.number == 1 and part.wire_type == BYTES:  # HistoryRecord.item
                name, value = _history_item(record, part.start, part.end)
                number = number_of_json(value)
                if name and number is not None:
                    row[name] = number
            elif part.number == 2 and part.wire_type == BYTES:  # HistoryRecord.step
                for inner in fields_of(record, part.start, part.end):
                    if inner.number == 1 and inner.wire_type == VARINT:
                        row["_step"] = float(signed(inner.value))
    return row


def _history_item(record: bytes, start: int, end: int) -> tuple[str, Any]:
    key, nested, text = "", [], ""
    for each in fields_of(record, start, end):
        if each.number == 1:
            key = text_of(record, each)
        elif each.number == 2:
            nested.append(text_of(record, each))
        elif each.number == 16:
            text = text_of(record, each)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return key or "/".join(nested), value
