"""CSV, JSON and JSON lines: `CSVLogger`'s files, `History.history`, a dict a line."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nanreplay.errors import FormatError
from nanreplay.logs.log_columns import LogRows
from nanreplay.logs.logged_run import ScalarSeries

_LARGEST_JSON = 2**28
_LONGEST_LINE = 2**20
_NAN = frozenset(("nan", "+nan", "-nan"))
_INFINITE = {
    "inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "infinity": math.inf,
    "+infinity": math.inf, "-infinity": -math.inf,
}  # fmt: skip


def number_of_text(text: str) -> float | None:
    """A number as logs write it; None for what is none.

    `NA`, `None` and nothing at all are values that are missing: Keras's `CSVLogger` writes `NA` for
    what an epoch did not get to. `nan` is a value.
    """
    word = text.strip().strip("'\"").lower()
    if word in _NAN:
        return math.nan
    if word in _INFINITE:
        return _INFINITE[word]
    try:
        return float(word) if word and word[0] in "+-.0123456789" else None
    except ValueError:
        return None


def number_of_json(value: Any) -> float | None:
    """A number of a JSON document; None for what is none. A boolean is none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return number_of_text(value) if isinstance(value, str) and len(value) < 40 else None


# CSV.


def read_csv(path: Path) -> tuple[list[ScalarSeries], str | None]:
    """Read a CSV file; returns its series, and a note where its last row is not complete.

    Raises:
        FormatError: It has no header with names, or no numbers.
    """
    rows = LogRows()
    note = None
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        head = file.readline(_LONGEST_LINE)
        delimiter = max(",;\t", key=head.count)
        names = list(map(str.strip, next(csv.reader([head], delimiter=delimiter), [])))
        if len(names) < 2 or all(number_of_text(name) is not None for name in names):
            raise FormatError(f"{path}: has no header that names its columns.")
        try:
            for cells in csv.reader(_whole_lines(file), delimiter=delimiter):
                if len(cells) == len(names):
                    if cells != names:  # a header that was written once more
                        rows.add(_numbers(names, cells))
                elif cells:
                    note = "a row is not complete: it is being written, or was cut"
        except csv.Error as error:
            note = f"damaged after {rows.n_rows} rows ({error})"
    if not rows.n_rows:
        raise FormatError(f"{path}: has a header and no rows yet.")
    return rows.series(str(path)), note


def _whole_lines(file: Any) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE):
        if "\0" in line:  # blocks that were allocated and not written before a crash
            continue
        yield line


def _numbers(names: list[str], cells: list[str]) -> dict[str, float]:
    row = {}
    for name, cell in zip(names, cells, strict=True):
        value = number_of_text(cell)
        if value is not None:
            row[name] = value
    return row


# JSON.


def read_json(path: Path) -> list[ScalarSeries]:
    """Read a JSON document: `History.history`, a list of rows, or an object that holds either.

    Raises:
        FormatError: It is no JSON, or holds no values of a training.
    """
    if path.stat().st_size > _LARGEST_JSON:
        raise FormatError(f"{path}: is too large for one JSON document.")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is no whole JSON document ({_first(error)}).") from error
    rows = _rows_within(value, depth=0)
    if rows is None:
        raise FormatError(f"{path}: holds no values of a training.")
    return rows.series(str(path))


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:100]


def _rows_within(value: Any, depth: int) -> LogRows | None:
    """The first table of numbers in a document, at most three levels deep."""
    if depth > 3:
        return None
    if isinstance(value, list):
        return _rows_of_list(value)
    if not isinstance(value, dict):
        return None
    columns = _history_columns(value)
    if columns is not None:
        return columns
    for inner in value.values():
        inner_rows = _rows_within(inner, depth + 1)
        if inner_rows is not None:
            return inner_rows
    return None


def _rows_of_list(value: list[Any]) -> LogRows | None:
    objects = []
    for each in value:
        if isinstance(each, dict):
            objects.append(each)
    if not objects or len(objects) < 0.5 * len(value):
        return None
    rows = LogRows()
    for each in objects:
        row = flat_numbers(each)
        if row:
            rows.add(row)
    return rows if rows.n_rows else None


def _history_columns(value: Mapping[str, Any]) -> LogRows | None:
    """Lists of numbers by name, or by name objects of row and number as pandas writes them."""
    lists: dict[str, list[Any]] = {}
    for name, entry in value.items():
        column = entry
        if isinstance(entry, dict) and entry and all(str(key).isdigit() for key in entry):
            column = list(entry.values())
        if isinstance(column, list) and column and not isinstance(column[0], (dict, list)):
            lists[str(name)] = column
    length = max(map(len, lists.values()), default=0)
    lists = {name: column for name, column in lists.items() if _is_numbers(column)}
    if not lists:
        return None
    rows = LogRows()
    names_of_axes = {"epoch", "step", "iteration", "batch", "iter", "global_step"}
    has_axis = bool({name.lower() for name in lists} & names_of_axes)
    for place in range(length):
        row = {} if has_axis else {"epoch": float(place)}
        for name, column in lists.items():
            number = number_of_json(column[place]) if place < len(column) else None
            if number is not None:
                row[name] = number
        rows.add(row)
    return rows


def _is_numbers(column: list[Any]) -> bool:
    known = sum(number_of_json(each) is not None for each in column)
    return known > 0 and known >= 0.5 * sum(each is not None for each in column)


def flat_numbers(value: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, float]:
    """Numbers of an object by name, those of objects within it as `outer/inner`."""
    row: dict[str, float] = {}
    for name, inner in value.items():
        full = f"{prefix}{name}"[:200]
        if isinstance(inner, dict) and depth < 2:
            row.update(flat_numbers(inner, f"{full}/", depth + 1))
            continue
        number = number_of_json(inner)
        if number is not None:
            row[full] = number
    return row


def read_json_lines(path: Path) -> tuple[list[ScalarSeries], str | None]:
    """Read an object a line; returns its series, and a note on lines that are none.

    Raises:
        FormatError: No line is an object with numbers.
    """
    rows = LogRows()
    bad = 0
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for line in _whole_lines(file):
            text = line.strip()
            if not text:
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                bad += 1
                continue
            row = flat_numbers(value) if isinstance(value, dict) else {}
            if row:
                rows.add(row)
    if not rows.n_rows:
        raise FormatError(f"{path}: no line of it is an object with numbers.")
    note = f"{bad} line{'s' if bad > 1 else ''} of it are no JSON" if bad else None
    if bad == 1:
        note = "a line of it is no JSON: it is being written, or was cut"
    return rows.series(str(path)), note
