"""Columns of a log as series: which column is the step, which the epoch, which the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nanreplay.logs.logged_run import Axis, Numbers, ScalarSeries
from nanreplay.logs.tag_roles import EPOCH_NAMES, STEP_NAMES, TIME_NAMES, role_of

_MOST_COLUMNS = 5_000
_RESTS = frozenset(("index", "id", "seed", "rank", "unnamed: 0"))
"""Columns that number rows or processes."""


@dataclass
class LogColumn:
    """What a log holds of one name; rows without it are left out."""

    rows: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass
class LogRows:
    """Rows of a log as they are found, kept by column."""

    columns: dict[str, LogColumn] = field(default_factory=dict)
    n_rows: int = 0

    def add(self, row: Mapping[str, float]) -> None:
        """Add one row."""
        for name, value in row.items():
            column = self.columns.get(name)
            if column is None:
                if len(self.columns) >= _MOST_COLUMNS:
                    continue
                column = self.columns[name] = LogColumn()
            column.rows.append(self.n_rows)
            column.values.append(value)
        self.n_rows += 1

    def series(self, source: str, first_epoch: int = 0) -> list[ScalarSeries]:
        """The columns as series."""
        dense: dict[str, Numbers] = {}
        present: dict[str, NDArray[np.bool_]] = {}
        for name, column in self.columns.items():
            rows = np.array(column.rows, np.int64)
            values = np.full(self.n_rows, np.nan)
            values[rows] = column.values
            dense[name] = values
            present[name] = np.zeros(self.n_rows, bool)
            present[name][rows] = True
        return series_of_columns(dense, present, source, first_epoch)


def series_of_columns(
    values: Mapping[str, Numbers],
    present: Mapping[str, NDArray[np.bool_]],
    source: str,
    first_epoch: int = 0,
) -> list[ScalarSeries]:
    """Series of the columns that hold something of a training.

    Args:
        values: Numbers by name, all of one length.
        present: Whether a row has the value; a NaN that is there is a logged NaN.
        source: What they were read from.
        first_epoch: What the log calls its first epoch.
    """
    axis, places, used = _axis(values, present)
    times = _times(values)
    epoch = _named(values, EPOCH_NAMES) if axis == "step" else None
    epochs = values[epoch] if epoch is not None and _covers(present[epoch]) else None
    result = []
    for name, column in values.items():
        if name in used or name.lower() in _RESTS or name.lower() in TIME_NAMES:
            continue
        keep = present[name] & np.isfinite(places)
        if keep.any():
            result.append(
                ScalarSeries(
                    name, role_of(name), axis, places[keep], column[keep], times[keep], source,
                    first_epoch,
                    None,
                    None if epochs is None else epochs[keep],
                )
            )  # fmt: skip
    return result


def _axis(
    values: Mapping[str, Numbers], present: Mapping[str, NDArray[np.bool_]]
) -> tuple[Axis, Numbers, set[str]]:
    """What the rows are logged at, where each row is, and the columns that say so."""
    step, epoch = _named(values, STEP_NAMES), _named(values, EPOCH_NAMES)
    used = set()
    for name in (step, epoch):
        if name is not None:
            used.add(name)
    if step is not None and not _covers(present[step]):
        used.discard(step)
        step = None
    if step is not None:
        steps = values[step]
        if epoch is not None and _covers(present[epoch]) and _begins_anew(steps, values[epoch]):
            first = float(np.nanmin(values[epoch]))
            width = float(np.nanmax(steps)) + (1.0 if np.nanmin(steps) == 0 else 0.0)
            return "step", (np.floor(values[epoch]) - np.floor(first)) * width + steps, used
        return "step", steps, used
    if epoch is not None and _covers(present[epoch]):
        return "epoch", values[epoch], used
    n_rows = len(next(iter(values.values()))) if values else 0
    return "row", np.arange(n_rows, dtype=np.float64), used - {epoch}


def _named(values: Mapping[str, Numbers], names: tuple[str, ...]) -> str | None:
    """The column that has one of the names, with or without what stands before it."""
    by_name = {}
    for name in reversed(list(values)):
        by_name[name.lower().replace(" ", "_")] = name
    for name in names:
        if name in by_name:
            return by_name[name]
    ends = []
    for each in by_name:
        if each.rpartition("/")[2] in names:
            ends.append(each)
    return by_name[ends[0]] if ends else None


def _covers(present: NDArray[np.bool_]) -> bool:
    return bool(len(present)) and float(present.mean()) > 0.5


def _begins_anew(steps: Numbers, epochs: Numbers) -> bool:
    """Whether steps count from the beginning in each epoch."""
    goes_back = np.diff(steps) < 0
    new_epoch = np.diff(np.floor(epochs)) > 0
    return bool(goes_back.any()) and bool((goes_back & new_epoch).sum() >= 0.9 * goes_back.sum())


def _times(values: Mapping[str, Numbers]) -> Numbers:
    """Seconds since 1970 of each row; NaN where the log has none."""
    n_rows = len(next(iter(values.values()))) if values else 0
    for name, column in values.items():
        if name.lower() in TIME_NAMES and np.isfinite(column).any():
            largest = float(np.nanmax(column))
            if 1e9 < largest < 1e11:
                return column
            if 1e12 < largest < 1e14:  # milliseconds
                return column / 1000.0
    return np.full(n_rows, np.nan)
