"""What kind of failure a run looks like, with its evidence in numbers.

A kind is said of what the log shows; where the log is too coarse to tell two kinds apart, `doubt`
says which, and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from nanreplay.bisect.anomalies import (
    Departure,
    departure,
    falling_scale,
    frozen_from,
    rate_steps,
)
from nanreplay.logs.log_places import LoggedValue, step_text, value_at
from nanreplay.logs.logged_run import LoggedRun, ScalarSeries

LogKind: TypeAlias = Literal[
    "divergence",
    "sudden",
    "from_start",
    "half_precision",
    "loss_scale",
    "validation",
    "metric",
    "weights",
    "cannot_tell",
]
AnomalyKind: TypeAlias = Literal[
    "growth", "jump", "plateau", "loss_scale", "learning_rate", "restart"
]
_HALF_MAX = 65504.0
_COARSE_GAP = 5.0
"""Steps between two values from which on what happened between them is not known."""


@dataclass(frozen=True, slots=True)
class LogAnomaly:
    """Something out of the ordinary before the first non-finite value."""

    kind: AnomalyKind
    value: LoggedValue
    """The first value of it."""
    sentence: str


@dataclass(frozen=True, slots=True)
class KindFound:
    """A kind, and what speaks for it."""

    kind: LogKind
    evidence: tuple[str, ...] = ()
    doubt: str | None = None
    """What else it could be, and why the log cannot tell; None where it can."""
    anomaly: LogAnomaly | None = None
    """The first anomaly before the first non-finite value."""
    triggers: tuple[LogAnomaly, ...] = ()
    """What happened at that very point: a step of the learning rate, a restart."""


def kind_of_training(
    run: LoggedRun, failing: ScalarSeries, position: int, restarts: Sequence[float]
) -> KindFound:
    """The kind of a failure whose first non-finite training loss is at a position of a series.

    Args:
        run: The run, without values that were trained anew.
        failing: The series of the loss.
        position: Where in it the first non-finite value is.
        restarts: Steps at which the training was resumed, as this series counts them.
    """
    before = failing.where(np.arange(len(failing)) < position)
    if not before.is_finite.any():
        return _from_start(run, failing, position)
    at = value_at(failing, position, run)
    growth = _growth(run, failing, position)
    triggers = tuple(_triggers(run, failing, position, growth, restarts))
    scale = _scale_falls(run, at)
    half = _half_range(before, at)
    if half is not None or scale is not None:
        return _precision(growth, triggers, scale, half)
    if growth is None:
        return KindFound(
            "sudden", (_calm(before),), _doubt(before, failing, position), None, triggers
        )
    anomaly, found, series = growth
    is_gradual = found.rises and (
        found.count >= 3 or (found.count == 2 and (_is_coarse(series) or bool(triggers)))
    )
    is_started = bool(triggers) and triggers[0].kind == "learning_rate"
    if is_gradual or (is_started and found.rises):
        return KindFound("divergence", (anomaly.sentence,), None, anomaly, triggers)
    unsure: str | None = None
    if not found.rises:  # a level that was reached long before and kept
        unsure = _doubt(before, failing, position)
    elif found.count == 2:
        unsure = (
            "two values rose before it: a divergence within two steps, and one bad batch that "
            "spoiled the weights, look the same"
        )
    elif _is_coarse(series):
        unsure = (
            f"one value stands between the usual ones and the first that is not finite, and "
            f"values are {_gap_text(series)} apart: a divergence would look the same"
        )
    return KindFound("sudden", (anomaly.sentence,), unsure, anomaly, triggers)


def _from_start(run: LoggedRun, failing: ScalarSeries, position: int) -> KindFound:
    first = value_at(failing, position, run)
    begin = failing.first_epoch if failing.axis == "epoch" else 0
    distance = first.step - begin
    text = f"`{failing.tag}` was never finite: its first value, at {first.place}, is not"
    is_first_epoch = failing.epochs is not None and failing.epochs[0] <= failing.first_epoch
    is_late = distance > max(1.0, 1.5 * failing.usual_gap)
    if failing.axis != "row" and is_late and not is_first_epoch:
        unknown = f"the log begins at {first.place}: what was before is not in it"
        return KindFound("cannot_tell", (text,), unknown)
    doubt = None
    if failing.axis == "epoch" or distance > 1:
        doubt = (
            f"its first value stands for all before {first.place}: "
            "whether the very first step was finite is not in the log"
        )
    return KindFound("from_start", (text,), doubt)


def _precision(
    growth: tuple[LogAnomaly, Departure, ScalarSeries] | None,
    triggers: tuple[LogAnomaly, ...],
    scale: LogAnomaly | None,
    half: str | None,
) -> KindFound:
    anomalies = []
    for each in (scale, growth[0] if growth else None):
        if each is not None:
            anomalies.append(each)
    first = min(anomalies, key=lambda each: each.value.step, default=None)
    evidence = tuple(each.sentence for each in anomalies)
    if half is not None:
        return KindFound("half_precision", (half, *evidence), None, first, triggers)
    doubt = (
        "whether the values left the range of float16 or the gradients were NaN at any scale "
        "is not in the log"
    )
    return KindFound("loss_scale", evidence, doubt, first, triggers)


def _is_coarse(series: ScalarSeries) -> bool:
    return series.axis == "epoch" or series.usual_gap >= _COARSE_GAP


def _gap_text(series: ScalarSeries) -> str:
    gap = series.usual_gap
    unit = {"step": "step", "epoch": "epoch", "row": "row"}[series.axis]
    return f"{step_text(gap)} {unit}{'' if gap == 1 else 's'}"


def _doubt(before: ScalarSeries, failing: ScalarSeries, position: int) -> str | None:
    known = np.flatnonzero(before.is_finite)
    if len(known) < 3:
        return f"only {len(known)} finite value{'' if len(known) == 1 else 's'} came before it"
    if not _is_coarse(failing):
        return None
    last = before.steps[known[-1]]
    here = failing.steps[position]
    return (
        f"nothing is logged between {failing.axis} {step_text(last)} and {step_text(here)}: "
        "a divergence within that time would look the same"
    )


def _calm(before: ScalarSeries) -> str:
    finite = before.values[before.is_finite]
    steps = before.steps[before.is_finite]
    usual = float(np.median(finite[-20:]))
    return (
        f"`{before.tag}` was calm to the last finite value, {finite[-1]:.4g} at {before.axis} "
        f"{step_text(float(steps[-1]))} (median of the values before: {usual:.4g})"
    )


# Growth of the loss, of gradients, of weights.


def _growth(
    run: LoggedRun, failing: ScalarSeries, position: int
) -> tuple[LogAnomaly, Departure, ScalarSeries] | None:
    """The growth before a non-finite value that tells most: the loss's, else that of a norm."""
    at = failing.steps[position]
    candidates = [failing, *run.of_role("loss", "gradient_norm", "weights")]
    grown: list[tuple[LogAnomaly, Departure, ScalarSeries]] = []
    for series in candidates:
        if series.axis != failing.axis:
            continue
        known = series.where((series.steps <= at) & series.is_finite)
        left = departure(known.values)
        if left is None or any(each[2] is series for each in grown):
            continue
        if not _is_near(known, left, at, failing):
            continue
        grown.append((_growth_anomaly(run, known, left), left, series))
    gradual = []
    for each in grown:
        if each[1].count >= 3 and each[1].rises:
            gradual.append(each)
    return min(gradual or grown, key=lambda each: each[0].value.step, default=None)


def _is_near(known: ScalarSeries, left: Departure, at: float, failing: ScalarSeries) -> bool:
    """Whether a series was logged up to the failure: one that ended long before tells nothing."""
    gap = max(known.usual_gap, failing.usual_gap)
    return bool(at - known.steps[-1] <= 3 * gap + 1)


def _growth_anomaly(run: LoggedRun, known: ScalarSeries, left: Departure) -> LogAnomaly:
    value = value_at(known, left.start, run)
    last = value_at(known, len(known) - 1, run)
    numbers = f"from about {left.usual:.3g} to {left.last:.3g}"
    factor = f" ({left.last / left.usual:.2g} times)" if left.usual > 0 and left.last > 0 else ""
    if left.count == 1:
        text = f"`{known.tag}` jumped {numbers} at {value.place}{factor}"
        return LogAnomaly("jump", value, text)
    verb = "grew without return" if left.rises else "left its usual range and stayed outside"
    text = (
        f"from {value.place} on `{known.tag}` {verb}, {numbers} at {last.place}{factor}, "
        f"in {left.count} values"
    )
    return LogAnomaly("growth", value, text)


# What happened at that very point.


def _triggers(
    run: LoggedRun,
    failing: ScalarSeries,
    position: int,
    growth: tuple[LogAnomaly, Departure, ScalarSeries] | None,
    restarts: Sequence[float],
) -> Iterator[LogAnomaly]:
    at = float(failing.steps[position])
    gap = failing.usual_gap
    start = growth[0].value.step if growth else at
    # a rise shows some values after what caused it, the more the longer it takes
    reach = max(5 * gap, min(at - start, 50 * gap)) if growth else 3 * gap
    for series in run.of_role("learning_rate"):
        if series.axis != failing.axis:
            continue
        for place, warms_up in reversed(rate_steps(series.values)):
            step = float(series.steps[place])
            if start - reach <= step <= start and step <= at:
                yield _rate_anomaly(run, series, place, warms_up)
                break
    # a training that was begun anew is another one, and no cause
    begin = float(failing.steps.min(initial=at))
    near = [step for step in restarts if start - reach <= step <= start and step > begin]
    if near:
        place = int(np.searchsorted(failing.steps, near[-1]))
        text = f"the training was resumed at {failing.axis} {step_text(near[-1])}"
        yield LogAnomaly("restart", value_at(failing, min(place, position), run), text)


def _rate_anomaly(run: LoggedRun, series: ScalarSeries, place: int, warms_up: bool) -> LogAnomaly:
    old, new = float(series.values[place - 1]), float(series.values[place])
    value = value_at(series, place, run)
    if warms_up:
        text = f"the learning rate was rising ({new:.4g} at {value.place}, a warm-up)"
    else:
        text = f"the learning rate stepped up from {old:.4g} to {new:.4g} at {value.place}"
    return LogAnomaly("learning_rate", value, text)


# Half precision.


def _scale_falls(run: LoggedRun, at: LoggedValue) -> LogAnomaly | None:
    for series in run.of_role("loss_scale"):
        if series.axis == at.axis:
            known = series.where((series.steps <= at.step) & series.is_finite)
            anomaly = scale_anomaly(run, known)
            if anomaly is not None:
                return anomaly
    return None


def scale_anomaly(run: LoggedRun, known: ScalarSeries) -> LogAnomaly | None:
    """A loss scale that falls and does not rise again; None when it holds."""
    start = falling_scale(known.values)
    if start is None:
        return None
    value = value_at(known, start, run)
    high, low = float(known.values[max(start - 1, 0)]), float(known.values[-1])
    text = (
        f"the loss scale fell from {high:.6g} to {low:.6g} from {value.place} on: "
        "gradients were not finite again and again"
    )
    return LogAnomaly("loss_scale", value, text)


def _half_range(before: ScalarSeries, at: LoggedValue) -> str | None:
    """Evidence that the range of float16 was reached; None where there is none.

    An infinity that follows values which grew to the last tenth of that range, by factors that
    lead to nothing near float32's, is one of float16.
    """
    finite = before.values[before.is_finite]
    if not np.isinf(at.value) or len(finite) < 2:
        return None
    last, earlier = abs(float(finite[-1])), abs(float(finite[-2]))
    if not 0.1 * _HALF_MAX <= last <= _HALF_MAX or earlier <= 0:
        return None
    next_value = last * max(last / earlier, 1.0)
    if next_value > 1e30:
        return None
    return (
        f"`{before.tag}` was {last:.6g} just before it became infinite: float16 ends at 65504, "
        "float32 at 3.4e+38"
    )


def half_precision_weights(run: LoggedRun, names: Sequence[str]) -> str | None:
    """Evidence of float16 variables that reached the end of their range."""
    for checkpoint in run.checkpoints:
        for variable in checkpoint.variables:
            is_at_end = variable.largest > 0.5 * _HALF_MAX or variable.inf
            if variable.dtype == "float16" and is_at_end and variable.name not in names:
                return (
                    f"`{variable.name}` in {checkpoint.path} is float16 and reaches "
                    f"{variable.largest:.6g} of 65504"
                )
    return None


def plateau(run: LoggedRun, series: ScalarSeries) -> LogAnomaly | None:
    """A loss that has one and the same value to its end; None when it moves."""
    known = series.where(series.is_finite)
    start = frozen_from(known.values)
    if start is None:
        return None
    value = value_at(known, start, run)
    text = f"`{series.tag}` is {value.value:.6g} at every value from {value.place} on"
    return LogAnomaly("plateau", value, text)
