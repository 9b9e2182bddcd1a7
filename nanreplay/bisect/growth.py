"""The root of a divergence: the first step of the timeline from which values grew without return. Pure numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.findings import Root
from nanreplay.records import Timeline

_FACTOR = 10.0
"""Growth over the median of the earlier steps that counts."""
_STEPS = 3
"""How many steps before the origin it must have lasted."""


def find_root(timeline: Timeline | None, step: int) -> Root:
    """Return the step at which values began to grow, or `step` itself when nothing grew before it.

    Args:
        timeline: What was recorded of all steps.
        step: Step of the origin.
    """
    if timeline is None or not len(np.asarray(timeline.columns.get("step", ()))):
        return Root(step, "Nothing is recorded of earlier steps.")
    steps = np.asarray(timeline.columns["step"])
    found = [growth for name, series in _series(timeline) if (growth := _growth(name, steps, series, step)) is not None]
    if not found:
        return Root(step, "Loss, gradients and weights did not grow in the steps before it.")
    return Root(*min(found, key=lambda pair: pair[0]))


def _series(timeline: Timeline) -> list[tuple[str, NDArray[Any]]]:
    series = []
    for name, text in (("gradient_norm", "the gradient norm"), ("weight_norm", "the norm of the weights")):
        matrix = np.asarray(timeline.matrices.get(name, np.zeros((0, 0))), np.float64)
        if matrix.size:
            with np.errstate(all="ignore"):
                series.append((text, np.sqrt(np.sum(np.square(matrix), axis=1))))
    if "loss" in timeline.columns:
        series.append(("the loss", np.abs(np.asarray(timeline.columns["loss"], np.float64))))
    return series


def _growth(name: str, steps: NDArray[Any], series: NDArray[Any], step: int) -> tuple[int, str] | None:
    """Return where a series began to grow for good, and a sentence; None when it did not."""
    known = (steps <= step) & np.isfinite(series)
    steps, series = steps[known], series[known]
    if len(series) <= _STEPS or series[-1] < _FACTOR * float(np.median(series)) or series[-1] <= 0:
        return None
    start = _first_anomaly(series)
    if start is None or step - int(steps[start]) < _STEPS:
        return None
    while start > 0 and series[start - 1] < series[start]:
        start -= 1
    low, high, began = float(series[start]), float(series[-1]), int(steps[start])
    times = f" ({high / low:.2g} times)" if low > 0 else ""
    return began, f"From step {began} on {name} grew without return, from {low:.3g} to {high:.3g} at step {int(steps[-1])}{times}."


def _first_anomaly(series: NDArray[Any]) -> int | None:
    """Return the first position from which every value is at least `_FACTOR` times the median of those before it."""
    lowest_after = np.minimum.accumulate(series[::-1])[::-1]
    lowest_before = np.minimum.accumulate(series)
    possible = 1 + np.flatnonzero(lowest_after[1:] >= _FACTOR * lowest_before[:-1])
    return next((int(p) for p in possible if lowest_after[p] >= _FACTOR * float(np.median(series[:p])) > 0), None)
