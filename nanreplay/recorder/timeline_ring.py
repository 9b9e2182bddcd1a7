"""The last steps in numbers, kept as they were read and spread into columns when the file is written."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.program.fingerprint import read_variable
from nanreplay.records import Timeline, Trigger
from nanreplay.tensorflow_internals import tf_variables

# Loss scaling: whether an update was skipped, which is normal, until it does not end.

WHOLE = 1.0
"""A loss that is scaled up no more: a gradient that overflows then does so by itself."""


class LossScales:
    """Reads the loss scale before a step, and after it whether the update was made.

    An optimizer that scales the loss leaves everything as it is when a gradient is not finite: the number of its updates too.
    That of Keras 2 counts the update all the same. Its scale falls, and the steps since it last changed are none.
    """

    def __init__(self) -> None:
        self._optimizers: list[Any] = []
        self._before: list[tuple[float, int]] = []

    def learn(self, optimizer: Any) -> None:
        """Read this one too, if it scales the loss."""
        if hasattr(optimizer, "initial_scale") and hasattr(optimizer, "inner_optimizer"):
            self._optimizers.append(optimizer)

    def before(self) -> None:
        """A step begins."""
        if self._optimizers:
            self._before = [_scale_and_count(optimizer) for optimizer in self._optimizers]

    def after(self) -> tuple[float, bool] | None:
        """(loss scale of the step, whether its update was skipped); None where nothing scales the loss."""
        if not self._optimizers or len(self._before) != len(self._optimizers):
            return None
        after = [_scale_and_count(optimizer) for optimizer in self._optimizers]
        skipped = all(map(_is_skipped, self._optimizers, self._before, after))
        return self._before[0][0], skipped


def _is_of_keras_2(optimizer: Any) -> bool:
    return hasattr(optimizer, "dynamic_counter")


def _scale_and_count(optimizer: Any) -> tuple[float, int]:
    """(loss scale, how many updates were made); with Keras 2 (loss scale, steps since it last changed)."""
    if _is_of_keras_2(optimizer):
        counter = optimizer.dynamic_counter
        return float(optimizer.loss_scale), -1 if counter is None else int(counter)
    scale = (
        tf_variables.handle_of(getattr(optimizer, "dynamic_scale", None))
        if getattr(optimizer, "built", True)
        else None
    )
    updates = tf_variables.handle_of(optimizer.inner_optimizer.iterations)
    value = float(optimizer.initial_scale) if scale is None else float(read_variable(scale).numpy())
    return value, 0 if updates is None else int(read_variable(updates).numpy())


def _is_skipped(optimizer: Any, before: tuple[float, int], after: tuple[float, int]) -> bool:
    if not _is_of_keras_2(optimizer):
        return after[1] == before[1]
    return after[0] < before[0] or (after[0] == before[0] <= WHOLE and after[1] == 0)


class Skips:
    """Counts skipped updates in a row.

    Args:
        limit: How many are an incident.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._scale: float | None = None

    def note(self, scale: float | None, *, skipped: bool) -> Trigger | None:
        """Note a step; an incident when skipping goes on, or the scale falls no further.

        Keras 3 halves the scale without end. Where an optimizer has a floor, two updates that are skipped at the same scale
        show it.
        """
        before, self._scale = self._scale, None
        self._count = self._count + 1 if skipped else 0
        if not skipped:
            return None
        self._scale = scale
        if self._count >= self._limit:
            return Trigger("gradient", "loss scale", f"{self._count} updates in a row were skipped")
        if self._scale is not None and self._scale == before and self._scale <= WHOLE:
            return Trigger(
                "gradient", "loss scale", f"an update was skipped at the floor of {self._scale:g}"
            )
        return None


# --- recorder.timeline

MATRICES = ("gradient_norm", "gradient_absmax", "weight_norm", "update_ratio")
ROW_BYTES = 480
"""What a row takes beside its sums: Python's objects."""


@dataclass(slots=True)
class RunningMean:
    """What a mean of losses has added up since it was last reset; the loss of a step is told of two in a row."""

    total: float
    count: float


@dataclass(slots=True)
class TimelineRow:
    """One step."""

    step: int
    elapsed_s: float
    loss: float = math.nan
    """NaN where it is not known."""
    mean: RunningMean | None = None
    """Stands for the loss where the step told only this."""
    skipped: bool = False
    learning_rate: float = math.nan
    loss_scale: float = math.nan
    sums: Mapping[int, float] | None = None
    """Half the sum of squares by variable, where the step was measured."""
    gradient_sums: Mapping[int, tuple[float, float]] | None = None
    """(half the sum of squares, largest absolute value) of the gradient by variable, where they are known."""


@dataclass(slots=True)
class StepNumbers:
    """What re-executing a step told of it."""

    losses: Sequence[float] = ()
    gradient_norms: Mapping[int, float] = field(default_factory=dict)
    gradient_maxima: Mapping[int, float] = field(default_factory=dict)
    weight_norms: Mapping[int, float] = field(default_factory=dict)
    update_ratios: Mapping[int, float] = field(default_factory=dict)


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
        numbers: Mapping[int, StepNumbers] | None = None,
        last: int | None = None,
    ) -> Timeline:
        """Columns and matrices of all rows. What a step did not measure is NaN, and its `measured` False.

        Args:
            trainable: Indices of the variables that become the columns of the matrices.
            numbers: What re-executing told, by step; it stands before what was read while the training ran.
            last: The last step that is wanted; all when it is left out.
        """
        rows = [row for row in self.rows if last is None or row.step <= last]
        numbers = numbers or {}
        columns = {
            "step": np.array([row.step for row in rows], np.int64),
            "loss": _losses(rows),
            "learning_rate": _filled(np.array([row.learning_rate for row in rows], np.float64)),
            "loss_scale": np.array([row.loss_scale for row in rows], np.float64),
            "step_time_s": np.array([row.elapsed_s for row in rows], np.float64),
            "skipped": np.array([row.skipped for row in rows], bool),
            "measured": np.array([row.sums is not None for row in rows], bool),
        }
        matrices = {
            name: np.full((len(rows), len(trainable)), np.nan, np.float32) for name in MATRICES
        }
        position = {variable: column for column, variable in enumerate(trainable)}
        with np.errstate(over="ignore", invalid="ignore"):
            for index, row in enumerate(rows):
                if row.sums is not None:
                    _put(
                        matrices["weight_norm"],
                        index,
                        position,
                        {key: _norm(value) for key, value in row.sums.items()},
                    )
                if row.gradient_sums is not None:
                    sums = {key: _norm(total) for key, (total, _) in row.gradient_sums.items()}
                    _put(matrices["gradient_norm"], index, position, sums)
                    maxima = {key: largest for key, (_, largest) in row.gradient_sums.items()}
                    _put(matrices["gradient_absmax"], index, position, maxima)
                found = numbers.get(row.step)
                if found is not None:
                    _put(matrices["gradient_norm"], index, position, found.gradient_norms)
                    _put(matrices["gradient_absmax"], index, position, found.gradient_maxima)
                    _put(matrices["weight_norm"], index, position, found.weight_norms)
                    _put(matrices["update_ratio"], index, position, found.update_ratios)
                    if found.losses:
                        columns["loss"][index] = found.losses[0]
        return Timeline(columns, matrices, tuple(trainable))


def _norm(half_of_squares: float) -> float:
    return float(np.sqrt(2.0 * half_of_squares))  # tf.nn.l2_loss is sum(x^2) / 2


def _put(
    matrix: NDArray[Any], row: int, position: Mapping[int, int], values: Mapping[int, float]
) -> None:
    for variable, value in values.items():
        column = position.get(variable)
        if column is not None:
            matrix[row, column] = value


def _losses(rows: Sequence[TimelineRow]) -> NDArray[np.float64]:
    """The loss of each step; told of a running mean of the losses where that is all that is known.

    What one step added to the total, by what it added to the count, is its loss. The rounding of a float32 total grows with the
    number of steps since the last reset; the steps of the window are told exactly, by re-execution.
    """
    losses = np.full(len(rows), np.nan, np.float64)
    previous: TimelineRow | None = None
    for index, row in enumerate(rows):
        losses[index] = row.loss if row.mean is None else _told_of(row, previous)
        previous = row
    return losses


def _told_of(row: TimelineRow, previous: TimelineRow | None) -> float:
    assert row.mean is not None
    total, count = row.mean.total, row.mean.count
    before = previous.mean if previous is not None and previous.step == row.step - 1 else None
    if before is not None and before.count < count and math.isfinite(before.total):
        total, count = total - before.total, count - before.count
    return total / count if count else math.nan


def _filled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What was not read is as it was read last (first, before that)."""
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        return values
    before = np.searchsorted(known, np.arange(len(values)), side="right") - 1
    return values[known[np.maximum(before, 0)]]
