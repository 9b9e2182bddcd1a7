"""From a window that ran with a fix to what is said of the fix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from nanreplay.findings import FixOutcome, FixResult, Origin
from nanreplay.records import Trigger
from nanreplay.replay import StepResult
from nanreplay.whatif.edits import Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.moved_origin import moved_origin
from nanreplay.whatif.source_operands import DIVISIONS
from nanreplay.whatif.window_run import TrialOutcome

_OF_THE_UPDATE = frozenset({"lr", "clipnorm", "clipvalue", "global_clipnorm"})
"""Fixes that change the update alone."""
_FRACTIONS = DIVISIONS | {"Reciprocal", "Inv"}
"""Ops that are as large as one divided by the epsilon in their operand."""
_SLIGHT, _ANOTHER_LINE = 0.03, 0.5
"""By how much an edit of a line may change healthy losses unsaid, and at all."""
_LEAST_LOSS = 1e-3
"""Changes of losses below this are not measured relative to them."""
_FAILS_ANYWAY = (
    "A step after the window fails with the weights from before it, too: that is another fault."
)
_SKIPS = "The update of step {} is left out; nothing is learned from its batch."


def fix_result(failure: Failure, fix: Fix, outcome: TrialOutcome) -> FixResult:
    """Say what replaying the window with a fix gave.

    Args:
        failure: The capture.
        fix: What was tried.
        outcome: What the window gave.
    """
    nonfinite: Trigger | None = None
    final_loss: float | None = None
    if outcome.raised is not None:
        last = failure.window.failing
        nonfinite = outcome.raised
    else:
        last, final_loss = outcome.results[-1].step, outcome.results[-1].loss
        if outcome.failed is not None:
            nonfinite = outcome.failed.nonfinite
    moved_to = _moved_to(failure, fix, outcome) if nonfinite is not None else None
    kind, remark = _outcome(failure, fix, outcome, nonfinite, moved_to)
    rise = _rise(failure, fix, outcome) if kind == "prevents" else None
    if kind == "prevents" and outcome.fails_anyway:
        remark = " ".join(filter(None, (remark, _FAILS_ANYWAY)))
    if rise is not None:
        told = f"The loss of step {failure.step} is {rise[0]:.3g} with it, usually at most"
        remark = " ".join(filter(None, (remark, f"{told} {rise[1]:.3g}.")))
    return FixResult(
        fix.name,
        fix.params,
        prevents=kind == "prevents",
        steps_checked=(failure.window.steps[0], last),
        nonfinite=nonfinite,
        nonfinite_step=None if nonfinite is None else last,
        loss_change=_loss_change(outcome, failure.step),
        final_loss=final_loss,
        code=fix.code,
        source=fix.source,
        edits=tuple(fix.edits),
        places=failure.count_runs(fix.ops) if fix.ops else None,
        note=" ".join(filter(None, (remark, fix.note))) or None,
        outcome=kind,
        loss_rise=None if rise is None else rise[0] / max(rise[1], _LEAST_LOSS),
        moved_to=moved_to,
    )


def _rise(failure: Failure, fix: Fix, outcome: TrialOutcome) -> tuple[float, float] | None:
    """How far an epsilon below a fraction leaves the loss of the failing step above the usual ones.

    What is divided by a small number is large: the sample outweighs all others of the batch.
    """
    types = {failure.editor.node(op).op for op in fix.ops}
    if fix.name != "epsilon" or not types & _FRACTIONS:
        return None
    return failure.health.rise(outcome, failure.step)


def _moved_to(failure: Failure, fix: Fix, outcome: TrialOutcome) -> Origin | None:
    """Where a fix of a line moves the failure to."""
    if not fix.ops:
        return None
    return moved_origin(failure.window, fix.edit, outcome, failure.origin)


def _outcome(
    failure: Failure,
    fix: Fix,
    outcome: TrialOutcome,
    nonfinite: Trigger | None,
    moved_to: Origin | None,
) -> tuple[FixOutcome, str | None]:
    """What a fix does, and a remark on it."""
    if nonfinite is not None:
        return ("fails", None) if moved_to is None else ("moves", None)
    skipped = set(outcome.skipped) | (set(outcome.idle) & {failure.step, failure.window.failing})
    if skipped:
        return "skips", _SKIPS.format(min(skipped))
    changes_update = set(fix.name.split("+")) <= _OF_THE_UPDATE
    ruin = failure.health.ruin(outcome, changes_update=changes_update)
    if ruin is not None:
        return (
            "unhealthy",
            f"All values are finite, but {ruin}{_what_fails(failure, fix, outcome)}.",
        )
    change = _healthy_change(failure, outcome) if fix.ops else 0.0
    if change > _ANOTHER_LINE:
        return "unhealthy", (
            "All values are finite, but the line computes something else: the losses of healthy "
            f"steps change by up to {change:.0%}."
        )
    if change > _SLIGHT:
        return "prevents", f"The losses of healthy steps change by up to {change:.0%}."
    return "prevents", None


def _what_fails(failure: Failure, fix: Fix, outcome: TrialOutcome) -> str:
    """The op that fails after the window, as another logarithm of the line that was edited."""
    origin = _moved_to(failure, fix, outcome) if outcome.fails_later else None
    return "" if origin is None else f": there {origin.place} fails"


def _healthy_change(failure: Failure, outcome: TrialOutcome) -> float:
    """Largest change of a loss before the failing step, relative to it or to the usual loss."""
    healthy = [result for result in outcome.results if result.step < failure.step]
    recorded = {result.step: result.recorded_loss for result in healthy}
    change = _largest_change(healthy, recorded)
    if change <= _SLIGHT:
        return change
    # What is recorded as the loss may be another value that a tape differentiated.
    return _largest_change(healthy, failure.window.unchanged_losses)


def _largest_change(
    results: Sequence[StepResult], usual_losses: Mapping[int, float | None]
) -> float:
    known = []
    for result in results:
        new, old = result.loss, usual_losses.get(result.step)
        if new is not None and old is not None and math.isfinite(new) and math.isfinite(old):
            known.append((new, old))
    if not known:
        return 0.0
    usual = max(median(abs(old) for _, old in known), _LEAST_LOSS)
    return max(abs(new - old) / max(abs(old), usual) for new, old in known)


def _loss_change(outcome: TrialOutcome, failing: int) -> float | None:
    """Largest relative change of the loss in the steps before the failing one.

    None when there are none.
    """
    changes = []
    for result in outcome.results:
        new, old = result.loss, result.recorded_loss
        if result.step >= failing or new is None or old is None:
            continue
        if math.isfinite(new) and math.isfinite(old):
            changes.append(abs(new - old) / max(abs(old), 1e-30))
    return max(changes, default=None)
