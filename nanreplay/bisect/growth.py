"""The root of a divergence: the first step of the timeline from which values grew without return.

Two shapes of growth count: a gradual one over several steps, and a jump within the last one or two
steps before the origin. Reports tell the root; the rules of learning rate, initial weights and
gradients ask for the `Growth` itself. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.anomalies import FACTOR, STEPS, gradual_start, jump_start
from nanreplay.capture.arrays import as_array
from nanreplay.findings import Root
from nanreplay.records import Timeline

_SHARE = 1e-3
"""A variable whose series ends below this share of the largest one led nothing."""
_FEWEST = 2
"""A jump shows against at least so many steps."""
_UPDATES = 3
"""How many updates in a row tell that a share of the weights is added."""
_SAME_SHARE = 1e-2
"""How far such shares may differ."""
_LEAST_ADDED = 0.02
"""Smaller shares make no weights overflow within a training."""
_FAR_BELOW = 1e6
"""How many times its first value a loss must lie below 0."""
_LATELY = 4
"""So many steps before the lowest loss tell how its batches differ."""
_WEIGHTS = "norm of the weights"
_MATRICES = (("gradient_norm", "gradient norm"), ("weight_norm", _WEIGHTS))
"""Matrices of the timeline that are looked at, and what sentences call them."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How one series of the timeline left its usual range for good."""

    step: int
    """The first step of the growth: the last one with a usual value, or that of a jump."""
    what: str
    """`gradient norm`, `norm of the weights` or `loss`."""
    variable: str | None
    """Path of the variable; None for the loss and for the norm over all variables."""
    low: float
    """Value before it grew."""
    high: float
    """Last finite value."""
    last_step: int
    """Step of the last finite value."""
    is_jump: bool
    """Whether it came within one or two steps, after steps of usual values."""
    learning_rate: float | None = None
    """Learning rate at `step`, None where it is not recorded."""
    last_learning_rate: float | None = None
    """Learning rate of the last step that may have led to the growth."""
    is_thinned: bool = False
    """Whether steps around `step` were left out of the timeline: it is near the first one."""

    @property
    def factor(self) -> float:
        """How many times the value grew; infinite from 0."""
        return self.high / self.low if self.low > 0 else float("inf")

    @property
    def steps(self) -> int:
        """In how many steps it grew, at least 1."""
        return max(self.last_step - self.step, 1)

    @property
    def subject(self) -> str:
        """What grew, as a sentence names it: "the gradient norm of `dense/kernel`"."""
        return f"the {self.what}" + (f" of `{self.variable}`" if self.variable else "")

    @property
    def numbers(self) -> str:
        """Growth in numbers: "9e+08 times in 14 steps"."""
        return f"{self.factor:.2g} times in {self.steps} step{'s' if self.steps > 1 else ''}"

    @property
    def rate(self) -> str:
        """The learning rate meanwhile, "" where it is not recorded."""
        first, last = self.learning_rate, self.last_learning_rate
        if first is None:
            return ""
        if last is None or np.isclose(first, last, rtol=0.1, atol=0):
            return f"learning rate {first:.6g}"
        return f"learning rate {first:.6g} at first and {last:.6g} at last"

    @property
    def sentence(self) -> str:
        """The whole in one sentence."""
        rate = f", {self.rate}" if self.rate else ""
        values = f"from {self.low:.3g} to {self.high:.3g}"
        if self.is_jump:
            return f"At step {self.step} {self.subject} jumped {values} ({self.numbers}){rate}."
        about = "about " if self.is_thinned else ""
        return (
            f"From {about}step {self.step} on {self.subject} grew without return, "
            f"{values} at step {self.last_step} ({self.numbers}){rate}."
        )


def find_root(timeline: Timeline | None, step: int, paths: Sequence[str] = ()) -> Root:
    """Return the step at which values began to grow, or `step` itself when nothing grew before it.

    Args:
        timeline: What was recorded of all steps.
        step: Step of the origin.
        paths: Path of each variable, by index; tells which one led.
    """
    if not _has_steps(timeline):
        return Root(step, "Nothing is recorded of earlier steps.")
    growth = find_growth(timeline, step, paths)
    if growth is None:
        earlier = np.asarray(timeline.columns["step"]) < step if timeline is not None else ()
        if np.count_nonzero(earlier) < _FEWEST:
            return Root(step, "Too few steps are recorded before it to tell what grew.")
        return Root(
            step,
            _late_rise(timeline, step)
            or "Loss, gradients and weights did not grow in the steps before it.",
        )
    return Root(growth.step, growth.sentence)


def _late_rise(timeline: Timeline | None, step: int) -> str | None:
    """Say what was far above its usual value at last, although it was no growth that counts.

    None when nothing was: only then may it be said that nothing grew.
    """
    if timeline is None:
        return None
    steps = as_array(timeline.columns["step"])
    for series in _all_series(timeline, ()):
        is_known = (steps <= step) & np.isfinite(series.total)
        known = series.total[is_known]
        usual = float(np.median(known[:-1])) if len(known) > 1 else 0.0
        if usual > 0 and known[-1] >= FACTOR * usual:
            return (
                f"At step {steps[is_known][-1]} the {series.what} was {known[-1]:.3g}, "
                f"{known[-1] / usual:.2g} times its usual {usual:.3g}. "
                "The steps after it are too few to tell whether it grew without return."
            )
    return None


def find_growth(timeline: Timeline | None, step: int, paths: Sequence[str] = ()) -> Growth | None:
    """Return the growth of the series that left its usual range first, None when none did.

    The norm over all variables (or the loss) must have grown. The variable whose own norm left
    its usual range first led, among equals the one that grew most.

    Args:
        timeline: What was recorded of all steps.
        step: Step of the origin.
        paths: Path of each variable, by index.
    """
    if timeline is None or not _has_steps(timeline):
        return None
    growths: list[Growth] = []
    turn = _turn_of_loss(timeline, step)
    for series in _all_series(timeline, paths):
        growth = _leading(timeline, series, step, turn if series.what == _WEIGHTS else None)
        if growth is not None:
            growths.append(growth)
    return min(growths, key=lambda growth: (growth.is_jump, growth.step), default=None)


def _turn_of_loss(timeline: Timeline, step: int) -> int | None:
    """Return the last step of a loss as low as it got, where it grew after it; None where not.

    Weights that grow while the loss falls learn: those that begin at 0 have to.
    """
    losses = np.asarray(timeline.columns.get("loss", ()), np.float64)
    if not len(losses):
        return None
    steps = as_array(timeline.columns["step"])
    is_known = (steps < step) & np.isfinite(losses)
    steps, losses = steps[is_known], losses[is_known]
    if not len(losses):
        return None
    lowest = int(np.argmin(losses))
    if losses[-1] < FACTOR * max(float(np.median(losses[: lowest + 1])), losses[lowest], 0):
        return None
    low = losses[max(lowest - _LATELY, 0) : lowest + 1].max()  # batches differ
    return int(steps[np.flatnonzero(losses <= low)[-1]])


def _has_steps(timeline: Timeline | None) -> bool:
    return timeline is not None and len(np.asarray(timeline.columns.get("step", ()))) > 0


@dataclass(frozen=True, slots=True)
class _Series:
    what: str
    total: NDArray[Any]
    """Over all variables, one value a step."""
    parts: tuple[tuple[str, NDArray[Any]], ...] = ()
    """By variable path."""


def _all_series(timeline: Timeline, paths: Sequence[str]) -> Iterator[_Series]:
    for name, what in _MATRICES:
        matrix = timeline.matrix(name)
        if matrix.size:
            with np.errstate(all="ignore"):
                total = np.sqrt(np.sum(np.square(matrix), axis=1))
            parts = []
            for column, index in enumerate(timeline.variables):
                if index < len(paths):
                    parts.append((paths[index], matrix[:, column]))
            yield _Series(what, total, tuple(parts))
    if "loss" in timeline.columns:
        yield _Series("loss", np.abs(np.asarray(timeline.columns["loss"], np.float64)))


def _leading(timeline: Timeline, series: _Series, step: int, turn: int | None) -> Growth | None:
    """Return the growth of the part that led, else that of the total; none begins before a turn."""
    whole = _growth(timeline, series.what, None, series.total, step, turn)
    if whole is None:
        return None
    parts: list[Growth] = []
    for path, values in series.parts:
        growth = _growth(timeline, series.what, path, values, step, turn)
        if growth is not None:
            parts.append(growth)
    # A tiny variable may grow by a large factor and move nothing; it does not count as leading.
    large = _SHARE * max((growth.high for growth in parts), default=0.0)
    leaders = []
    for part in parts:
        if part.high >= large and part.is_jump == whole.is_jump:
            leaders.append(part)
    return min(leaders, key=lambda growth: (growth.step, -growth.factor), default=whole)


def _growth(
    timeline: Timeline,
    what: str,
    variable: str | None,
    series: NDArray[Any],
    step: int,
    turn: int | None,
) -> Growth | None:
    """Return how a series grew until the origin; None when it did not."""
    steps = as_array(timeline.columns["step"])
    # Of older steps only extremes are kept, each of which stands for the steps before it.
    stands_for = np.diff(steps, prepend=steps[0] - 1)
    is_known = (steps <= step) & np.isfinite(series)
    steps, series, stands_for = steps[is_known], series[is_known], stands_for[is_known]
    # A gradual growth begins at its last usual value, a jump at the first value after one.
    start = _gradual_start(steps, series, stands_for, step)
    if start is not None and turn is not None and steps[start] < turn:
        start = _start_at(steps, series, step, turn)
    last_usual = start
    if start is None:
        start = jump_start(series[steps < step])
        if start is None:
            return None
        last_usual = start - 1
    began = int(steps[start])
    return Growth(
        step=began,
        what=what,
        variable=variable,
        low=float(series[last_usual]),
        high=float(series[-1]),
        last_step=int(steps[-1]),
        is_jump=last_usual != start,
        learning_rate=learning_rate_at(timeline, began),
        # Those at and after the origin led to nothing of it.
        last_learning_rate=learning_rate_at(timeline, max(began, step - 1)),
        is_thinned=bool((stands_for[start : start + 2] > 1).any()),
    )


def _start_at(steps: NDArray[Any], series: NDArray[Any], step: int, turn: int) -> int | None:
    """Return the position of a step, where a series grew enough from there on; None where not."""
    start = int(np.searchsorted(steps, turn))
    if start >= len(series) or step - turn < STEPS or series[-1] < FACTOR * series[start]:
        return None
    return start


def share_added(timeline: Timeline, step: int) -> tuple[int, float] | None:
    """Return which variable the last updates made longer, and by which share of itself.

    None unless each added the same share, in the direction of the weights themselves. A step that
    is too large overshoots to the other side instead.

    Args:
        timeline: What was recorded of all steps.
        step: Step of the origin.
    """
    norms, ratios = timeline.matrix("weight_norm"), timeline.matrix("update_ratio")
    if not norms.size or norms.shape != ratios.shape:
        return None
    steps = as_array(timeline.columns["step"])
    # the failing step may have made them infinite
    last = np.flatnonzero((steps <= step) & np.isfinite(norms).all(axis=1))[-_UPDATES - 1 :]
    if len(last) <= _UPDATES or (np.diff(steps[last]) != 1).any():
        return None
    column = int(np.argmax(norms[last[-1]]))
    with np.errstate(all="ignore"):
        grew = norms[last[1:], column] / norms[last[:-1], column] - 1
    shares = ratios[last[1:], column]
    usual = float(shares[-1])
    is_same = np.isclose(shares, usual, rtol=_SAME_SHARE) & np.isclose(
        grew, usual, rtol=_SAME_SHARE
    )
    return (timeline.variables[column], usual) if usual > _LEAST_ADDED and is_same.all() else None


def falls_without_bound(timeline: Timeline, step: int) -> tuple[float, float] | None:
    """Return the first loss and the last one before a step, where they fall far below 0 for good.

    Then the updates do what they are asked to, at any learning rate; None elsewhere.

    Args:
        timeline: What was recorded of all steps.
        step: Step of the origin.
    """
    losses = np.asarray(timeline.columns.get("loss", ()), np.float64)
    if not len(losses):
        return None
    losses = losses[(as_array(timeline.columns["step"]) < step) & np.isfinite(losses)]
    if len(losses) <= 2 * _UPDATES or losses[-1] > -_FAR_BELOW * max(np.abs(losses[0]), 1.0):
        return None
    halves = len(losses) // 2
    return (float(losses[0]), float(losses[-1])) if losses[:halves].min() > losses[-1] / 2 else None


def learning_rate_at(timeline: Timeline, step: int) -> float | None:
    """Return the recorded learning rate of a step, None where it is not recorded."""
    rates = np.asarray(timeline.columns.get("learning_rate", ()), np.float64)
    if not len(rates):
        return None
    of_step = rates[as_array(timeline.columns["step"]) == step]
    return float(of_step[0]) if len(of_step) and np.isfinite(of_step[0]) else None


def _gradual_start(
    steps: NDArray[Any], series: NDArray[Any], stands_for: NDArray[Any], step: int
) -> int | None:
    """Return the last position of a usual value before a series grew for good.

    None when it did not grow, or not for long.
    """
    start = gradual_start(series, stands_for)
    if start is None or step - int(steps[start]) < STEPS:
        return None
    # The growth began before it was ten-fold: back down the slope.
    while start > 0 and series[start - 1] < series[start]:
        start -= 1
    return start
