"""The last steps in numbers, kept as the raw watch vectors and spread into columns when the file is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.program.fingerprint import was_measured
from nanreplay.records import Timeline

MATRICES = {"gradient_sum": "gradient_norm", "gradient_max": "gradient_absmax", "variable_sum": "weight_norm"}

ROW_BYTES = 320
"""What a row takes beside its numbers: Python's objects."""


@dataclass(slots=True)
class TimelineRow:
    """One step."""

    step: int
    layout: Sequence[str]
    values: NDArray[Any]
    elapsed_s: float
    skipped: bool


class TimelineRing:
    """The last `history` steps."""

    def __init__(self, history: int) -> None:
        self.rows: deque[TimelineRow] = deque(maxlen=history)
        self._row_bytes = 0

    def bound(self, width: int, limit_bytes: int) -> str | None:
        """Keep as many rows of `width` numbers as fit; a sentence when these are fewer than was asked for."""
        self._row_bytes = max(self._row_bytes, ROW_BYTES + 8 * width)
        fitting = max(1, limit_bytes // self._row_bytes)
        asked = self.rows.maxlen or 0
        if fitting >= asked:
            return None
        self.rows = deque(self.rows, fitting)
        return f"The timeline holds {fitting} instead of {asked} steps, so that it takes no more than a tenth of memory_limit."

    @property
    def size_bytes(self) -> int:
        """What the rows take once all are there."""
        return self._row_bytes * (self.rows.maxlen or 0)

    def add(self, row: TimelineRow) -> None:
        """Append a step."""
        self.rows.append(row)

    def table(
        self,
        trainable: Sequence[int],
        update_ratios: Mapping[int, Mapping[int, float]],
        weight_norms: Mapping[int, Mapping[int, float]] | None = None,
        last: int | None = None,
    ) -> Timeline:
        """Columns and matrices of all rows. What a step did not measure is NaN, and its `measured` False.

        Args:
            trainable: Indices of the variables that become the columns of the matrices.
            update_ratios: |change| / |weight| by step and variable, where they are known.
            weight_norms: Norms by step and variable that are known from elsewhere; for those that a step did not measure.
            last: The last step that is wanted; all when it is left out.
        """
        rows = [row for row in self.rows if last is None or row.step <= last]
        count = len(rows)
        columns = {
            "step": np.array([row.step for row in rows], np.int64),
            "loss": np.full(count, np.nan, np.float64),
            "learning_rate": np.full(count, np.nan, np.float64),
            "loss_scale": np.full(count, np.nan, np.float64),
            "step_time_s": np.array([row.elapsed_s for row in rows], np.float64),
            "skipped": np.array([row.skipped for row in rows], bool),
            "measured": np.array([all(map(was_measured, row.layout, row.values)) for row in rows], bool),
        }
        position = {variable: column for column, variable in enumerate(trainable)}
        matrices = {name: np.full((count, len(trainable)), np.nan, np.float32) for name in (*MATRICES.values(), "update_ratio")}
        for index, row in enumerate(rows):
            for name, value in zip(row.layout, row.values, strict=True):
                _place(name, float(value), index, columns, matrices, position)
            for variable, norm in (weight_norms or {}).get(row.step, {}).items():
                if variable in position and not columns["measured"][index] and np.isnan(matrices["weight_norm"][index, position[variable]]):
                    matrices["weight_norm"][index, position[variable]] = norm
            for variable, ratio in update_ratios.get(row.step, {}).items():
                if variable in position:
                    with np.errstate(over="ignore"):
                        matrices["update_ratio"][index, position[variable]] = ratio
        return Timeline(columns, matrices, tuple(trainable))


def _place(
    name: str, value: float, row: int, columns: dict[str, NDArray[Any]], matrices: dict[str, NDArray[Any]], position: Mapping[int, int]
) -> None:
    kind, _, subject = name.partition(":")
    if not was_measured(name, value):
        return
    if name == "loss:0" or kind in ("learning_rate", "loss_scale"):
        columns[kind][row] = value
    elif kind in MATRICES and int(subject) in position:
        norm = value if kind == "gradient_max" else np.sqrt(np.float64(2.0) * value)  # tf.nn.l2_loss is sum(x^2) / 2
        with np.errstate(over="ignore"):
            matrices[MATRICES[kind]][row, position[int(subject)]] = norm
