"""Where values and checkpoints of a run are: steps, epochs and times made comparable.

A value that is logged at epoch 4 and a checkpoint that was written after 1,200 updates can be put
in order only where the run tells how many updates an epoch has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanreplay.logs.logged_run import Axis, Checkpoint, LoggedRun, ScalarSeries


@dataclass(frozen=True, slots=True)
class LoggedValue:
    """One logged value, and where it is."""

    tag: str
    axis: Axis
    step: float
    """Step or epoch, as logged."""
    value: float
    time_s: float | None
    """Seconds since 1970, None where the log has no time."""
    epoch: int | None
    """The epoch it is in, as the log counts them; None where that is not known."""

    @property
    def place(self) -> str:
        """Where, as a sentence has it: `step 1200`, `epoch 3`, `row 12`."""
        return f"{self.axis} {step_text(self.step)}"


def step_text(step: float) -> str:
    """A step without a decimal point unless it has a fraction."""
    return str(int(step)) if float(step).is_integer() else f"{step:.6g}"


def value_at(series: ScalarSeries, position: int, run: LoggedRun) -> LoggedValue:
    """The value of a series at a position."""
    step = float(series.steps[position])
    time_s = float(series.times[position])
    if series.axis == "epoch":
        epoch: int | None = int(step)
    elif series.epochs is not None and math.isfinite(series.epochs[position]):
        epoch = int(series.epochs[position])
    else:
        epoch = epoch_of(run, series, step)
    return LoggedValue(
        series.tag,
        series.axis,
        step,
        float(series.values[position]),
        time_s if math.isfinite(time_s) else None,
        epoch,
    )


def epoch_of(run: LoggedRun, series: ScalarSeries, step: float) -> int | None:
    """The epoch of a step; None where the run does not tell how long an epoch is."""
    length = steps_per_epoch(run)
    if length is None or series.axis != "step":
        return None
    begins_at_0 = series.steps.min(initial=1) == 0
    done = step if begins_at_0 else step - 1
    return int(done // length) + series.first_epoch


def steps_per_epoch(run: LoggedRun) -> float | None:
    """Updates of an epoch, from what Keras logs after each, or from names of checkpoints."""
    for series in run.series:
        if series.tag.endswith("_vs_iterations") and len(series) > 1:
            gaps = np.diff(series.chain().steps)
            if len(gaps) and gaps.min() == gaps.max() > 0:
                return float(gaps[0])
    lengths = set()
    for each in run.checkpoints:
        epochs = each.epoch if each.epoch is not None else _keras_number(each)
        if each.step and epochs:
            lengths.add(each.step / epochs)
    # one checkpoint alone may have another number in its name
    is_told = len(lengths) == 1 and sum(bool(each.step) for each in run.checkpoints) > 1
    length = lengths.pop() if is_told else 0.0
    return length if length >= 1 and length.is_integer() else None


def _keras_number(checkpoint: Checkpoint) -> int | None:
    return checkpoint.number if checkpoint.kind.startswith("Keras") else None


def in_order(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Checkpoints in the order in which they were written, by the best that all of them tell."""

    def key(name: str) -> list[float] | None:
        values = []
        for each in checkpoints:
            if each.variables or name != "step":
                values.append(getattr(each, name))
        return None if any(value is None for value in values) else values

    for name in ("step", "epoch", "number"):
        values = key(name)
        if values and len(values) > 1 and len(set(values)) > 1:
            return sorted(
                checkpoints,
                key=lambda each: (
                    getattr(each, name) if getattr(each, name) is not None else math.inf,
                    each.written_s,
                ),
            )
    return sorted(checkpoints, key=lambda each: each.written_s)


def is_before(
    checkpoint: Checkpoint, value: LoggedValue, series: ScalarSeries, run: LoggedRun
) -> bool | None:
    """Whether a checkpoint was written before a value was computed; None where nothing tells.

    Args:
        checkpoint: The checkpoint.
        value: A value of `series`.
        series: The series; says how epochs are counted.
        run: The run; says how long an epoch is.
    """
    length = steps_per_epoch(run)
    if value.axis == "step":
        done = checkpoint.step
        if done is None and checkpoint.epoch is not None and length is not None:
            done = int(checkpoint.epoch * length)
        if done is not None:
            return done <= value.step
    elif value.axis == "epoch":
        epochs: float | None = checkpoint.epoch
        if epochs is None and checkpoint.step is not None and length is not None:
            epochs = checkpoint.step / length
        if epochs is None:
            epochs = _keras_number(checkpoint)
        if epochs is not None:
            return epochs <= math.floor(value.step) - series.first_epoch
    if value.time_s is not None and _is_plausible(checkpoint, series):
        return checkpoint.written_s <= value.time_s
    return None


def _is_plausible(checkpoint: Checkpoint, series: ScalarSeries) -> bool:
    """Whether a file's time can be that of its writing: copies have the time of the copy."""
    known = series.times[np.isfinite(series.times)]
    if not len(known):
        return False
    return bool(known.min() - 60 <= checkpoint.written_s <= known.max() + 60)
