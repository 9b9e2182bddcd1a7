"""The last steps in numbers: one row a step while training runs, columns when a file is written.

`Recording` adds a row of each `RanStep`; `dump` takes the table, with what re-execution told of the
last steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.capture.arrays import as_array
from nanreplay.program.fingerprint import Layout
from nanreplay.recorder.learning_rates import RateReading, StepRates, rates_of
from nanreplay.recorder.thinned_steps import ThinnedSteps
from nanreplay.records import Timeline

if TYPE_CHECKING:
    from nanreplay.recorder.program_slots import ProgramSlot

MATRICES = ("gradient_norm", "gradient_absmax", "weight_norm", "update_ratio")
ROW_BYTES = 560
"""What a row takes beside its norms: Python's objects."""
OLDER = 2_000
"""Steps before the last `history` ones that are kept for their extremes."""
HANDED_ON = 64
"""Steps beyond the last `history` ones after which they are thinned, so many at once."""


@dataclass(slots=True)
class RunningMean:
    """What a mean of losses has added up since it was last reset.

    The loss of a step is told of two in a row.
    """

    total: float
    count: float


@dataclass(frozen=True, slots=True)
class MeasuredNorms:
    """Numbers of some variables after a step, float32."""

    variables: Sequence[int]
    """Whose norms these are; steps that measured the same ones share it."""
    weight_norms: NDArray[np.float32]
    gradient_variables: Sequence[int] = ()
    """Whose gradients were measured as well."""
    gradient_norms: NDArray[np.float32] | None = None
    gradient_maxima: NDArray[np.float32] | None = None


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
    updates: int | None = None
    """How many updates there were before it, where `schedule` tells its learning rate by that."""
    schedule: Callable[[int], float] | None = None
    loss_scale: float = math.nan
    measured: MeasuredNorms | None = None
    """Norms, where the step was measured."""


@dataclass(frozen=True, slots=True)
class RanStep:
    """What is known of a compiled step that has run."""

    step: int
    slot: ProgramSlot | None
    elapsed_s: float
    with_keyframe: bool
    outputs: Mapping[str, Any]
    """Numbers that it returned, by name in the fingerprint."""
    sums: Any
    """Half the sums of squares of the checked variables, a float64 vector; None if not measured."""
    checked: Sequence[int]
    """Which variables these are."""
    scale: tuple[float, bool] | None
    """(loss scale, whether the update was skipped), where the loss is scaled."""
    rate: RateReading | None
    """What was read of the learning rate, where it was read."""
    mean: tuple[Any, Any] | None = None
    """(total, count) of the running mean of the losses, where no loss itself is returned."""

    def timeline_row(self, numbers: Mapping[str, Any], sums: Any) -> TimelineRow:
        """Its row of the timeline, given the numbers that it returned, and `sums` as an array."""
        scale, skipped = self.scale or (math.nan, False)
        # Loss scaling skips updates whose gradients overflow; a number that is not finite is more.
        row = row_of_numbers(self.step, self.elapsed_s, numbers, self.mean)
        row.skipped = skipped and all(map(math.isfinite, numbers.values()))
        row.loss_scale = scale
        if sums is not None:
            row.measured = MeasuredNorms(self.checked, norms_of(sums))
        return row


def row_of_numbers(
    step: int, elapsed_s: float, numbers: Mapping[str, Any], mean: tuple[Any, Any] | None
) -> TimelineRow:
    """The row of a step of which only the numbers that it returned are known.

    Args:
        step: The step.
        elapsed_s: What it took.
        numbers: By name in the fingerprint.
        mean: (total, count) of the running mean of the losses, where no loss itself is returned.
    """
    row = TimelineRow(step, elapsed_s)
    for name, value in numbers.items():
        if name.startswith("loss:"):
            row.loss = float(value)
            return row
    if mean is not None:
        total, count = mean
        row.mean = RunningMean(float(as_number(total)), float(as_number(count)))
    return row


def numbers_of(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that a step returned, by name in the fingerprint, read."""
    numbers = {}
    for name, value in outputs.items():
        numbers[name] = as_number(value)
    return numbers


def as_number(value: Any) -> Any:
    """A scalar as a numpy number, float32 at least."""
    if isinstance(value, tf.Tensor) and value.dtype in (tf.float32, tf.float64):
        return value.numpy()
    array = as_array(value)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    return array[()]


def norms_of(half_squares: Any) -> NDArray[np.float32]:
    """Norms, given half the sums of squares, which is what `tf.nn.l2_loss` gives."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(2.0 * np.asarray(half_squares, np.float64)).astype(np.float32)


def eager_row(
    step: int, elapsed_s: float, layout: Layout, values: Any, skipped: bool
) -> TimelineRow:
    """The row of an eager step, from its fingerprint."""
    value_of = dict(zip(layout.names, map(float, values), strict=True))
    totals, maxima = ([triple[place] for triple in layout.gradients] for place in (0, 1))
    vector = np.asarray(values, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        largest = vector[maxima].astype(np.float32)
    return TimelineRow(
        step,
        elapsed_s,
        loss=value_of.get("loss:0", math.nan),
        skipped=skipped,
        learning_rate=value_of.get("learning_rate", math.nan),
        loss_scale=value_of.get("loss_scale", math.nan),
        measured=MeasuredNorms(
            tuple(variable for _, variable in layout.variables),
            norms_of(vector[[element for element, _ in layout.variables]]),
            tuple(variable for _, _, variable in layout.gradients),
            norms_of(vector[totals]),
            largest,
        ),
    )


@dataclass(slots=True)
class StepNumbers:
    """What re-executing a step told of it."""

    losses: Sequence[float] = ()
    gradient_norms: Mapping[int, float] = field(default_factory=dict)
    gradient_maxima: Mapping[int, float] = field(default_factory=dict)
    weight_norms: Mapping[int, float] = field(default_factory=dict)
    update_ratios: Mapping[int, float] = field(default_factory=dict)


class TimelineRing:
    """The last `history` steps, and those before them by their extremes."""

    def __init__(self, history: int) -> None:
        self.rows: deque[TimelineRow] = deque()
        """The last steps, none left out."""
        self.older = ThinnedSteps(OLDER)
        self._history = history
        self._row_bytes = 0
        self._rates = StepRates()
        self._shared: dict[tuple[int, ...], Sequence[int]] = {}
        """Sequences of variables, so that equal ones are one object."""
        self._shared_variables: Sequence[int] = ()

    def bound(self, width: int, limit_bytes: int) -> str | None:
        """Keep as many rows as fit; a sentence when these are fewer than was asked for.

        Args:
            width: Numbers of a row: one for each variable.
            limit_bytes: What all rows may take, the tables of a file included.
        """
        # A norm of each variable is kept, and a file has a number of it in each matrix.
        self._row_bytes = max(self._row_bytes, ROW_BYTES + 4 * (1 + len(MATRICES)) * width)
        fitting = max(1, limit_bytes // self._row_bytes)
        wanted = self._history
        self._history = min(wanted, fitting)
        self.older.fit(min(OLDER, fitting - self._history))
        self._hand_on(self._history)
        if self._history == wanted:
            return None
        return (
            f"The timeline holds {self._history} instead of {wanted} steps, so that it takes no "
            "more than a tenth of memory_limit."
        )

    @property
    def size_bytes(self) -> int:
        """What the rows take once all are there."""
        return self._row_bytes * (self._history + self.older.most)

    def written_bytes(self, n_columns: int, n_rows: int | None = None) -> int:
        """What the rows take in a file.

        Args:
            n_columns: Variables in the matrices.
            n_rows: Rows; as many as there will be once all are there, when it is left out.
        """
        if n_rows is None:
            n_rows = self._history + self.older.most
        return n_rows * 16 * (3 + n_columns)

    def __len__(self) -> int:
        return len(self.older) + len(self.rows)

    def add(self, row: TimelineRow, reading: RateReading | None = None) -> None:
        """Append a step, and what was read of its learning rate, where it was read."""
        if row.mean is not None:
            row.loss = _loss_of_mean(row.mean, row, self.rows[-1] if self.rows else None)
        if row.measured is not None:
            row.measured = self._with_shared(row.measured)
        if math.isnan(row.learning_rate):  # an eager step tells its own
            self._rates.open.append(row)
        if reading is not None:
            self._rates.settle(row.step, reading)
        self.rows.append(row)
        if len(self.rows) >= self._history + HANDED_ON:
            self._hand_on(self._history)

    def _with_shared(self, measured: MeasuredNorms) -> MeasuredNorms:
        if measured.variables is self._shared_variables and not measured.gradient_variables:
            return measured  # as in nearly every compiled step that is measured
        variables, of_gradients = measured.variables, tuple(measured.gradient_variables)
        shared = self._shared.setdefault(tuple(variables), variables)
        self._shared_variables = shared
        return replace(
            measured,
            variables=shared,
            gradient_variables=self._shared.setdefault(of_gradients, of_gradients),
        )

    def _hand_on(self, kept: int) -> None:
        """Thin all but the last `kept` steps."""
        while len(self.rows) > kept:
            row = self.rows.popleft()
            if self.older.most:
                self.older.add(row)

    def drop_from(self, step: int) -> None:
        """Forget `step` and all after it."""
        self._rates.drop_from(step)
        while self.rows and self.rows[-1].step >= step:
            self.rows.pop()

    def read_rate(self, step: int, reading: RateReading) -> None:
        """Take what is read of the learning rate after `step`, where that is the last one."""
        if self.rows and self.rows[-1].step == step:
            self._rates.settle(step, reading)

    def table(
        self,
        trainable: Sequence[int],
        numbers: Mapping[int, StepNumbers] | None = None,
        last: int | None = None,
    ) -> Timeline:
        """Columns and matrices of all rows; where older steps were thinned, steps are left out.

        What a step did not measure is NaN, and its `measured` False.

        Args:
            trainable: Indices of the variables that become the columns of the matrices.
            numbers: What re-executing told, by step; it stands before what was read while the
                training ran.
            last: The last step that is wanted; all when it is left out.
        """
        self._hand_on(self._history)
        rows = []
        for row in (*self.older, *self.rows):
            if last is None or row.step <= last:
                rows.append(row)
        columns = _columns(rows)
        matrices = {}
        for name in MATRICES:
            matrices[name] = np.full((len(rows), len(trainable)), np.nan, np.float32)
        filler = _Filler(matrices, {variable: column for column, variable in enumerate(trainable)})
        filler.put_measured(rows)
        with np.errstate(over="ignore", invalid="ignore"):
            for index, row in enumerate(rows):
                reexecuted = (numbers or {}).get(row.step)
                if reexecuted is not None:
                    filler.put_reexecuted(index, reexecuted)
                    if reexecuted.losses:
                        columns["loss"][index] = reexecuted.losses[0]
        return Timeline(columns, matrices, tuple(trainable))


@dataclass(frozen=True, slots=True)
class _Filler:
    """Puts the numbers of steps into the matrices."""

    matrices: Mapping[str, NDArray[Any]]
    column_of: Mapping[int, int]
    """Column by variable, of those that have one."""

    def put_measured(self, rows: Sequence[TimelineRow]) -> None:
        """Put in what steps measured: whole blocks, for one element at a time takes minutes."""
        indices, weights, norms, maxima = [], [], [], []
        for index, row in enumerate(rows):
            if row.measured is not None:
                each = row.measured
                indices.append(index)
                weights.append((each.variables, each.weight_norms))
                norms.append((each.gradient_variables, each.gradient_norms))
                maxima.append((each.gradient_variables, each.gradient_maxima))
        self._put_blocks("weight_norm", indices, weights)
        self._put_blocks("gradient_norm", indices, norms)
        self._put_blocks("gradient_absmax", indices, maxima)

    def _put_blocks(
        self,
        name: str,
        indices: Sequence[int],
        found: Sequence[tuple[Sequence[int], NDArray[Any] | None]],
    ) -> None:
        """Put in the vectors of steps; those of the same variables make one block."""
        blocks: dict[int, list[int]] = {}
        for place, (variables, _) in enumerate(found):
            blocks.setdefault(id(variables), []).append(place)  # `TimelineRing.add` shares them
        for places in blocks.values():
            variables = found[places[0]][0]
            kept = []
            for place, variable in enumerate(variables):
                if variable in self.column_of:
                    kept.append(place)
            if not kept:
                continue
            columns = [self.column_of[variables[place]] for place in kept]
            vectors = [np.asarray(found[place][1]) for place in places]
            block = np.concatenate(vectors).reshape(len(places), len(variables))
            if len(kept) < len(variables):
                block = block[:, kept]
            rows = [indices[place] for place in places]
            matrix = self.matrices[name]
            if columns == list(range(matrix.shape[1])):  # all of them, in order: whole rows
                matrix[rows] = block
            else:
                matrix[np.ix_(rows, columns)] = block

    def put_reexecuted(self, row: int, numbers: StepNumbers) -> None:
        self._put(row, "gradient_norm", numbers.gradient_norms)
        self._put(row, "gradient_absmax", numbers.gradient_maxima)
        self._put(row, "weight_norm", numbers.weight_norms)
        self._put(row, "update_ratio", numbers.update_ratios)

    def _put(self, row: int, name: str, values: Mapping[int, float]) -> None:
        for variable, value in values.items():
            column = self.column_of.get(variable)
            if column is not None:
                self.matrices[name][row, column] = value


def _columns(rows: Sequence[TimelineRow]) -> dict[str, NDArray[Any]]:
    return {
        "step": np.array([row.step for row in rows], np.int64),
        "loss": np.array([row.loss for row in rows], np.float64),
        "learning_rate": rates_of(rows),
        "loss_scale": np.array([row.loss_scale for row in rows], np.float64),
        "step_time_s": np.array([row.elapsed_s for row in rows], np.float64),
        "skipped": np.array([row.skipped for row in rows], bool),
        "measured": np.array([row.measured is not None for row in rows], bool),
    }


def _loss_of_mean(mean: RunningMean, row: TimelineRow, previous: TimelineRow | None) -> float:
    """The loss of a step, told of a running mean of the losses where that is all that is known.

    What one step added to the total, by what it added to the count, is its loss: after (total 6,
    count 2) and (total 9, count 3) it is 3. The rounding of a float32 total grows with the number
    of steps since the last reset; the steps of the window are told exactly, by re-execution.
    """
    total, count = mean.total, mean.count
    before = None
    if previous is not None and previous.step == row.step - 1:
        before = previous.mean
    # A smaller count says that the mean was reset between the two.
    if before is not None and before.count < count and math.isfinite(before.total):
        total, count = total - before.total, count - before.count
    return total / count if count else math.nan
