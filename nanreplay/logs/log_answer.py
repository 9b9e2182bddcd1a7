"""The answer of a run's logs and checkpoints: when it went wrong, how, and what is still healthy.

`answer` decides; `log_sentence` puts it into words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from nanreplay.logs.log_checkpoints import CheckpointFindings, look_at_checkpoints
from nanreplay.logs.log_kinds import (
    KindFound,
    half_precision_weights,
    kind_of_training,
    plateau,
    scale_anomaly,
)
from nanreplay.logs.log_places import LoggedValue, step_text, value_at
from nanreplay.logs.logged_run import Axis, LoggedRun, Role, ScalarSeries
from nanreplay.logs.tag_roles import loss_rank

LogStatus: TypeAlias = Literal["finite", "nonfinite", "undecided"]
_TELL_EARLIER = ("validation_loss", "gradient_norm", "weights", "loss")
"""Roles of series that may show a failure before the loss does."""
_SHARE_FINE = 0.5
"""Share of finite values after a non-finite one from which on it was passed over."""


_Beside: TypeAlias = Literal["validation", "metric", "weights", "cannot_tell"]
"""Kinds of what may be non-finite while the training's losses are not."""


@dataclass(frozen=True)
class LogAnswer:
    """What the logs and checkpoints of one run tell."""

    run: LoggedRun
    status: LogStatus
    found: KindFound | None = None
    """The kind and its evidence; None while all is finite."""
    first: LoggedValue | None = None
    """The first non-finite value of a log; None where none was logged."""
    series: ScalarSeries | None = None
    """The series that the kind was told from."""
    position: int = 0
    """Where in it the first non-finite value is."""
    others: tuple[LoggedValue, ...] = ()
    """The first non-finite value of each other tag, in order."""
    is_passing: bool = False
    """Whether the values were finite again afterwards."""
    resumed_at: float | None = None
    """The step from which a failed attempt was trained anew and stayed finite."""
    weights: CheckpointFindings = field(default_factory=CheckpointFindings)
    restarts: tuple[float, ...] = ()
    """Steps at which the training was resumed, as `series` counts them."""
    notes: tuple[str, ...] = ()
    n_values: int = 0
    """Logged values that were looked at."""


@dataclass(frozen=True, slots=True)
class _Bad:
    """Non-finite values of one series."""

    series: ScalarSeries
    position: int
    lasts: bool
    """Whether most of what follows is non-finite too, or nothing follows."""
    count: int

    @property
    def step(self) -> float:
        return float(self.series.steps[self.position])


def answer(run: LoggedRun) -> LogAnswer:
    """Say what the logs and checkpoints of a run tell."""
    last = replace(run, series=tuple(series.chain() for series in run.series))
    result = _answer_of(run, last)
    if result.status == "finite":
        failed = _failed_attempt(run)
        if failed is not None:
            result = failed
    constants = []
    for name in result.weights.meant:
        constants.append(
            f"`{name}` is infinite in every checkpoint: it is taken for a constant, such as a mask"
        )
    notes = (*run.notes, *result.notes, *constants, *_restart_notes(run, result))
    n_values = sum(map(len, run.series))
    return replace(result, run=run, notes=notes, n_values=n_values)


def _answer_of(run: LoggedRun, last: LoggedRun) -> LogAnswer:
    axis = main_axis(last)
    bad = list(_non_finite(last))
    lasting = []
    for each in bad:
        if each.lasts and each.series.role == "loss":
            lasting.append(each)
    notes = tuple(_notes(last, bad, lasting))
    if lasting:
        failing = _first_of(lasting, axis)
        return _training_failed(run, last, failing, bad, notes)
    passing = []
    for each in bad:
        if each.series.role == "loss":
            passing.append(each)
    if passing and not _is_scaled(last, passing):
        failing = _first_of(passing, axis)
        result = _training_failed(run, last, failing, bad, notes)
        return replace(result, is_passing=True)
    for roles, kind in _OTHERS:
        hit = []
        for each in bad:
            if each.series.role in roles and _counts(each):
                hit.append(each)
        if hit:
            failing = _first_of(hit, axis)
            return _other_failed(last, failing, bad, kind, notes)
    return _nothing_logged(last, notes)


_OTHERS: tuple[tuple[tuple[Role, ...], _Beside], ...] = (
    (("validation_loss",), "validation"),
    (("weights",), "weights"),
    (("gradient_norm",), "cannot_tell"),
    (("metric", "validation_metric"), "metric"),
)
"""What may be non-finite while the training's losses are not, and what that is called."""


def _counts(bad: _Bad) -> bool:
    """Whether non-finite values beside a finite loss are more than a note.

    A metric that is no number now and then, or never was one (the mean over no samples), says
    nothing about the training. A loss of the validation that was not finite once does.
    """
    if bad.series.role == "validation_loss":
        return True
    return bad.lasts and bool(bad.series.is_finite[: bad.position].any())


def main_axis(run: LoggedRun) -> Axis:
    """The axis on which the training's loss has the most values."""
    losses = run.of_role("loss") or list(run.series)
    longest = max(losses, key=len, default=None)
    return longest.axis if longest is not None else "step"


def _non_finite(run: LoggedRun) -> Iterator[_Bad]:
    for series in run.series:
        if series.role == "other" or series.is_finite.all():
            continue
        position = int(np.flatnonzero(~series.is_finite)[0])
        after = series.is_finite[position + 1 :]
        lasts = not len(after) or not after[-1] or float(after.mean()) < _SHARE_FINE
        yield _Bad(series, position, lasts, int((~series.is_finite).sum()))


def _first_of(bad: Sequence[_Bad], axis: Axis) -> _Bad:
    """The first one; of several at one step, the loss of the whole model."""
    on_axis = [each for each in bad if each.series.axis == axis] or list(bad)
    return min(on_axis, key=lambda each: (each.step, loss_rank(each.series.tag)))


def _is_scaled(run: LoggedRun, passing: Sequence[_Bad]) -> bool:
    """Whether a loss scale tells that single non-finite losses were skipped updates."""
    return bool(run.of_role("loss_scale")) and all(not each.lasts for each in passing)


def restarts_of(run: LoggedRun, like: ScalarSeries) -> tuple[float, ...]:
    """Steps at which a training was resumed, as a series counts them, ascending."""
    for series in run.series:
        if series.tag == like.tag and series.source == like.source:
            begins = np.flatnonzero(np.diff(series.attempts)) + 1
            return tuple(sorted(map(float, series.steps[begins])))
    return ()


def _training_failed(
    run: LoggedRun, last: LoggedRun, failing: _Bad, bad: Sequence[_Bad], notes: tuple[str, ...]
) -> LogAnswer:
    series, position = failing.series, failing.position
    restarts = restarts_of(run, series)
    found = kind_of_training(last, series, position, restarts)
    first = value_at(series, position, last)
    others = _others(last, failing, bad)
    if others and found.kind not in ("from_start",):
        first = _earlier(last, failing, bad) or first
    weights = look_at_checkpoints(last, series, first, found.anomaly, found.triggers)
    if found.kind in ("sudden", "divergence") and half_precision_weights(last, ()):
        text = half_precision_weights(last, ()) or ""
        found = replace(found, kind="half_precision", evidence=(text, *found.evidence), doubt=None)
    return LogAnswer(
        run=last,
        status="nonfinite",
        found=found,
        first=first,
        series=series,
        position=position,
        others=others,
        weights=weights,
        restarts=restarts,
        notes=notes,
    )


def _earlier(run: LoggedRun, failing: _Bad, bad: Sequence[_Bad]) -> LoggedValue | None:
    """A loss of the validation or a norm that was not finite a little before the loss."""
    first = None
    for other in bad:
        # Of its own series of steps or epochs, for the two cannot be put in order.
        if other.series.axis != failing.series.axis or other.series.role not in _TELL_EARLIER:
            continue
        # One that never was finite, or soon is again, says nothing of this training.
        if not other.lasts or not other.series.is_finite[: other.position].any():
            continue
        reach = max(3 * failing.series.usual_gap, other.series.usual_gap)
        is_just_before = failing.step - reach <= other.step < failing.step
        if is_just_before and (first is None or other.step < first.step):
            first = other
    return None if first is None else value_at(first.series, first.position, run)


def _others(run: LoggedRun, failing: _Bad, bad: Sequence[_Bad]) -> tuple[LoggedValue, ...]:
    """What else was not finite from about that step on, in order."""
    earliest = failing.step - 3 * failing.series.usual_gap
    values = []
    for other in bad:
        series = other.series
        if series is failing.series or series.axis != failing.series.axis:
            continue
        if (other.lasts or series.role == "loss") and other.step >= earliest:
            values.append(value_at(series, other.position, run))
    return tuple(sorted(values, key=lambda value: value.step))


def _other_failed(
    run: LoggedRun,
    failing: _Bad,
    bad: Sequence[_Bad],
    kind: _Beside,
    notes: tuple[str, ...],
) -> LogAnswer:
    series = failing.series
    first = value_at(series, failing.position, run)
    # the training goes on, so its last checkpoint is as good as those before
    weights = look_at_checkpoints(run, None, None, None, ())
    losses = run.of_role("loss")
    evidence = [f"{sum(map(len, losses))} values of the training's loss are finite"]
    doubt = None
    if not losses:
        evidence, doubt = [], "the training's own loss is not in the log"
    if weights.first_broken is not None:
        found = KindFound("weights", tuple(evidence), doubt)
    else:
        found = KindFound(kind, tuple(evidence), doubt)
    return LogAnswer(
        run=run,
        status="nonfinite",
        found=found,
        first=first,
        series=series,
        position=failing.position,
        others=_others(run, failing, bad),
        is_passing=not failing.lasts,
        weights=weights,
        notes=notes,
    )


def _nothing_logged(run: LoggedRun, notes: tuple[str, ...]) -> LogAnswer:
    """The answer where no logged value speaks against the training."""
    weights = look_at_checkpoints(run, None, None, None, ())
    if weights.first_broken is not None:
        found = KindFound("weights", weights.growth)
        if not run.of_role("loss"):
            kind: Literal["divergence", "cannot_tell"] = (
                "divergence" if weights.growth else "cannot_tell"
            )
            doubt = None if weights.growth else "checkpoints alone do not tell how it came"
            found = KindFound(kind, weights.growth, doubt)
        return LogAnswer(run, "nonfinite", found, weights=weights, notes=notes)
    for series in run.of_role("loss_scale"):
        anomaly = scale_anomaly(run, series.where(series.is_finite))
        if anomaly is not None:
            found = KindFound("loss_scale", (anomaly.sentence,), None, anomaly)
            weights = look_at_checkpoints(run, series, anomaly.value, None, ())
            return LogAnswer(run, "nonfinite", found, series=series, weights=weights, notes=notes)
    is_known = any(map(len, run.series)) or any(each.is_finite for each in run.checkpoints)
    return LogAnswer(run, "finite" if is_known else "undecided", weights=weights, notes=notes)


def _failed_attempt(run: LoggedRun) -> LogAnswer | None:
    """The answer of an earlier attempt that failed and was trained anew; None without one."""
    n_attempts = max((int(each.attempts[-1]) for each in run.series if len(each)), default=0)
    for attempt in range(min(n_attempts, 100)):
        chain = replace(run, series=tuple(each.chain(attempt) for each in run.series))
        result = _answer_of(run, replace(chain, checkpoints=()))
        if result.found is None or result.series is None or result.is_passing:
            continue
        if result.found.kind in ("metric",):
            continue
        later = restarts_of(run, result.series)
        at = later[attempt] if attempt < len(later) else None
        return replace(result, resumed_at=at)
    return None


# Notes: true, and no alarm.


def _notes(run: LoggedRun, bad: Sequence[_Bad], lasting: Sequence[_Bad]) -> Iterator[str]:
    for each in bad:
        series = each.series
        of = f"{each.count} of {len(series)} values of `{series.tag}`"
        if series.role in ("metric", "validation_metric") and not lasting and not _counts(each):
            always = each.count == len(series)
            what = "no value" if always else of
            verb = "is" if always or each.count == 1 else "are"
            name = f" of `{series.tag}`" if always else ""
            yield f"{what}{name} {verb} {'finite' if always else 'not finite'}; the loss is finite"
        elif series.role in ("loss", "gradient_norm") and not each.lasts:
            if _is_scaled(run, [each]):
                yield f"{of} are not finite: updates that the loss scale skipped"
            elif series.role == "gradient_norm" and not lasting:
                yield f"{of} are not finite; the loss is finite"
    for series in run.of_role("loss"):
        level = plateau(run, series)
        if level is not None:
            yield level.sentence


def _restart_notes(run: LoggedRun, result: LogAnswer) -> Iterator[str]:
    if result.series is None:
        losses = run.of_role("loss")
        series = max(losses, key=len, default=None)
    else:
        series = result.series
    if series is None:
        return
    steps = restarts_of(run, series)
    if steps and math.isfinite(steps[0]):
        places = ", ".join(map(step_text, steps[:5]))
        more = f" and {len(steps) - 5} times more" if len(steps) > 5 else ""
        is_anew = steps[0] <= series.steps.min()
        yield f"{'begun anew' if is_anew else 'resumed'} at {series.axis} {places}{more}"
