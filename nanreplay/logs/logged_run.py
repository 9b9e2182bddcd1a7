"""The timeline of a training as logs have it: what was logged at which step, and the checkpoints.

A capture has one row a step; logs have as many rows as the program chose to write, in epochs or in
steps, with values missing. `timeline` gives both as the same table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Role: TypeAlias = Literal[
    "loss",
    "validation_loss",
    "learning_rate",
    "loss_scale",
    "gradient_norm",
    "weights",
    "metric",
    "validation_metric",
    "other",
]
Axis: TypeAlias = Literal["step", "epoch", "row"]
"""What a value is logged at; `row` where the log does not say, and rows are counted from 0."""
Numbers: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class ScalarSeries:
    """One tag, in the order in which it was written."""

    tag: str
    """As the log has it, with the folder in front where a run has several: `train/epoch_loss`."""
    role: Role
    axis: Axis
    steps: Numbers
    """Step or epoch of each value, as logged; they go back where a training was resumed."""
    values: Numbers
    times: Numbers
    """Seconds since 1970 of each value; NaN where the log has no time."""
    source: str
    """File or folder that holds it."""
    first_epoch: int = 0
    """What the log calls its first epoch: 0 in `CSVLogger`'s files, 1 on the console."""
    files: NDArray[np.int32] | None = None
    """Which file of the run each value is from; None for one file."""
    epochs: Numbers | None = None
    """Epoch of each value, where the log has it beside the step; None where it has not."""

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def attempts(self) -> NDArray[np.int64]:
        """Which attempt each value belongs to, from 0: a step that goes back begins another."""
        begins = np.zeros(len(self.steps), bool)
        if len(begins) > 1:
            begins[1:] = np.diff(self.steps) < 0
            if self.files is not None:
                begins[1:] |= np.diff(self.files) != 0
        return np.cumsum(begins)

    def chain(self, attempt: int | None = None) -> ScalarSeries:
        """The values that the last attempt stands on: a value that was trained anew is left out.

        With steps 0 10 20 30 and then, resumed, 20 30 40, the first 20 and 30 are left out.

        Args:
            attempt: The attempt to end with; the last one unless given.
        """
        keep = np.ones(len(self), bool) if attempt is None else self.attempts <= attempt
        steps = self.steps[keep]
        if len(steps) > 1:
            later = np.minimum.accumulate(steps[::-1])[::-1]
            kept = np.append(steps[:-1] < later[1:], True)
            keep[np.flatnonzero(keep)[~kept]] = False
        return self.where(keep)

    def where(self, keep: NDArray[np.bool_]) -> ScalarSeries:
        """The values of the rows that `keep` is true for."""
        files = None if self.files is None else self.files[keep]
        epochs = None if self.epochs is None else self.epochs[keep]
        return ScalarSeries(
            self.tag,
            self.role,
            self.axis,
            self.steps[keep],
            self.values[keep],
            self.times[keep],
            self.source,
            self.first_epoch,
            files,
            epochs,
        )

    @cached_property
    def is_finite(self) -> NDArray[np.bool_]:
        """Whether each value is finite."""
        return np.isfinite(self.values)

    @cached_property
    def usual_gap(self) -> float:
        """Steps between two values, as a rule; 1 for a single value."""
        gaps = np.diff(self.steps)
        gaps = gaps[gaps > 0]
        return float(np.median(gaps)) if len(gaps) else 1.0


@dataclass(frozen=True, slots=True)
class VariableHealth:
    """One variable of a checkpoint in numbers, without its values."""

    name: str
    layer: str
    """Path of the layer; of the optimizer for its slots."""
    part: Literal["weight", "optimizer", "counter"]
    dtype: str
    shape: tuple[int, ...]
    nan: int = 0
    """How many elements are NaN."""
    inf: int = 0
    """How many elements are infinite."""
    largest: float = 0.0
    """Largest magnitude of the finite elements."""
    norm: float = 0.0
    """Euclidean norm of the finite elements."""
    error: str | None = None
    """Why it could not be read."""

    @property
    def is_finite(self) -> bool:
        """Whether it was read and holds neither NaN nor infinity."""
        return self.error is None and not self.nan and not self.inf


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint; what its name and its variables say of when it was written."""

    path: str
    kind: str
    """`Keras weights`, `Keras model`, `TensorFlow checkpoint`, ..."""
    variables: tuple[VariableHealth, ...] = ()
    step: int | None = None
    """Updates before it was written, as its optimizer counts them."""
    epoch: int | None = None
    """Epochs before it was written, by its name or by the file beside it."""
    number: int | None = None
    """The number in its name, where that is known to be neither step nor epoch."""
    written_s: float = 0.0
    """When the file was written last, in seconds since 1970."""
    error: str | None = None
    """Why it could not be read; what could be read of it is there all the same."""

    @property
    def broken(self) -> tuple[VariableHealth, ...]:
        """Variables that hold a non-finite value."""
        return tuple(each for each in self.variables if each.nan or each.inf)

    @property
    def is_finite(self) -> bool:
        """Whether all of it was read, and all of it is finite."""
        is_read = self.error is None and bool(self.variables)
        return is_read and all(each.is_finite for each in self.variables)


@dataclass(frozen=True)
class LoggedRun:
    """What was found of one training."""

    name: str
    series: tuple[ScalarSeries, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    """In the order in which they were written, as far as that is known."""
    notes: tuple[str, ...] = ()
    """What could not be read, and what was understood of it otherwise."""
    sources: tuple[str, ...] = field(default=())
    """Files and folders that it was read from."""

    def of_role(self, *roles: Role) -> list[ScalarSeries]:
        """Series of these roles."""
        return [series for series in self.series if series.role in roles]

    def timeline(self, axis: Axis | None = None) -> pd.DataFrame:
        """The logs as the table that `Capture.timeline()` gives of a capture: one row a step.

        A tag is a column of its name; the main loss, the learning rate and the loss scale are
        `loss`, `learning_rate` and `loss_scale`, as in a capture. Of values that were trained anew
        after a restart, the last ones are in the table. Values that were not logged at a step are
        NaN there; so is a logged NaN, and `series` tells the two apart.

        Args:
            axis: Series of this axis; that with the most values unless given.
        """
        import pandas as pd

        if axis is None:
            axis = _longest_axis(self.series)
        columns: dict[str, pd.Series[float]] = {}
        for series, name in zip(self.series, column_names(self.series), strict=True):
            if series.axis == axis and len(series):
                last = series.chain()
                index = pd.Index(last.steps.astype(np.int64), name="step")
                columns[name] = pd.Series(last.values, index=index)
        if not columns:
            return pd.DataFrame({"step": np.zeros(0, np.int64)})
        return pd.DataFrame(columns).sort_index().reset_index(names="step")


def column_names(series: Sequence[ScalarSeries]) -> list[str]:
    """The column of each series in a timeline."""
    taken: set[tuple[str, str]] = set()
    names: list[str] = []
    for each in series:
        name = each.tag
        if each.role in ("loss", "learning_rate", "loss_scale"):
            # the first of its role is the main one: series are sorted so
            if (each.axis, each.role) not in taken:
                name = each.role
            taken.add((each.axis, each.role))
        names.append(name)
    return names


def _longest_axis(series: Iterable[ScalarSeries]) -> Axis:
    counts: dict[Axis, int] = {}
    for each in series:
        counts[each.axis] = max(counts.get(each.axis, 0), len(each))
    return max(counts, key=lambda axis: counts[axis], default="step")
