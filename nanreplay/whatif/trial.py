"""Trying fixes on a recording, for `nanreplay explain`, `nanreplay whatif` and the what-if pane.

Each fix is made of the failure, replayed from the window's first keyframe, and judged: does it
prevent the failure, and at which price for the loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import tensorflow as tf

from nanreplay.bisect import Bisection
from nanreplay.errors import NanreplayError, first_line
from nanreplay.findings import Cause, FixResult
from nanreplay.records import Trigger
from nanreplay.replay import Replay
from nanreplay.whatif.edits import LAST_RESORT, BadValueError, Edit, Fix, candidates
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fix_names import FixError, check_fix
from nanreplay.whatif.fixes import FIXES
from nanreplay.whatif.fixes.operand_fixes import epsilon
from nanreplay.whatif.trial_window import TrialOutcome, TrialWindow

_CANNOT = (NanreplayError, tf.errors.OpError, ValueError, TypeError, KeyError, IndexError)
"""What is raised where a fix does not fit a program.

TensorFlow refuses the changed graph with errors of its own or of Python's, depending on the op.
"""
_UNHEALTHY_GROWTH = 1e3
"""A loss that grew this many times is not healthy."""
MOST_PLACES = 3
"""At how many operands near the origin an epsilon is tried."""


@dataclass(frozen=True, slots=True)
class TriedFixes:
    """What trying fixes gave."""

    results: tuple[FixResult, ...]
    """In the order in which they were tried."""
    left_out: tuple[str, ...] = ()
    """Fixes for which there was no time."""


def what_if(
    replay: Replay,
    bisection: Bisection,
    causes: Sequence[Cause],
    fixes: Sequence[str] | None = None,
    *,
    budget_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TriedFixes:
    """Try fixes on a recording, one after another.

    Args:
        replay: The capture's replay.
        bisection: Where the first non-finite value was born.
        causes: Why, the likeliest first.
        fixes: What to try, such as `clipnorm=1.0`; several are tried together as well. Unless
            given, those that fit the causes: of each kind the mildest that helps, and none that
            does not apply.
        budget_s: Seconds in which all should be done; a fix is begun only when it is likely to fit.
            No limit unless given.
        progress: Called with (fixes tried, fixes in all).

    Raises:
        FixError: There is no such fix.
        ReplayError: The incident cannot be replayed.
    """
    wanted = [check_fix(text) for text in (candidates(causes) if fixes is None else fixes)]
    failure = Failure(TrialWindow(replay), bisection, causes)
    trials = _FixTrials(failure, keeps_all=fixes is not None)
    ends = math.inf if budget_s is None else time.perf_counter() + budget_s
    for done, (name, value) in enumerate(wanted):
        if time.perf_counter() + trials.longest_s > ends:
            left_out = tuple(_spelled(*fix) for fix in wanted[done:])
            return TriedFixes(tuple(trials.results), left_out)
        trials.take(name, value)
        if progress is not None:
            progress(done + 1, len(wanted))
    if fixes is not None and len(trials.fixes) > 1:
        trials.results.append(_replayed(failure, _joined(trials.fixes)))
    return TriedFixes(tuple(trials.results))


def _spelled(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value}"


@dataclass(slots=True)
class _FixTrials:
    """Fixes that were tried so far."""

    failure: Failure
    keeps_all: bool
    """Whether each fix was asked for.

    Then none is left out, and one that does not apply says so.
    """
    results: list[FixResult] = field(default_factory=list)
    fixes: list[Fix] = field(default_factory=list)
    """Those that apply."""
    longest_s: float = 0.0

    def take(self, name: str, value: str | None) -> None:
        """Try one more."""
        if not self.keeps_all and self._is_needless(name):
            return
        began = time.perf_counter()
        result, fix = _try_places(self.failure, name, value)
        self.longest_s = max(self.longest_s, time.perf_counter() - began)
        if fix is not None:
            self.fixes.append(fix)
        if fix is not None or self.keeps_all:
            self.results.append(result)

    def _is_needless(self, name: str) -> bool:
        """Whether a milder fix of the same name helps, or any where this is the last resort.

        The ways of `clean_data` are no degrees of one another, so both are tried.
        """
        helpful = {result.name for result in self.results if result.prevents}
        if name == LAST_RESORT:
            return bool(helpful)
        return name in helpful and name != "clean_data"


def _joined(fixes: Sequence[Fix]) -> Fix:
    """All fixes at once."""
    edit = Edit()
    for fix in fixes:
        edit |= fix.edit
    return Fix(
        name="+".join(fix.name for fix in fixes),
        params={f"{fix.name}.{key}": value for fix in fixes for key, value in fix.params.items()},
        edit=edit,
        code="\n".join(fix.code for fix in fixes if fix.code),
    )


def _try_places(failure: Failure, name: str, value: str | None) -> tuple[FixResult, Fix | None]:
    """Try a fix; an epsilon at each operand near the origin until one helps."""
    result, fix = _try_one(failure, name, value, lambda: FIXES[name](failure, value))
    if name != "epsilon" or result.prevents is not False:
        return result, fix
    for place in list(failure.places())[1 : MOST_PLACES + 1]:
        make = partial(epsilon, failure, value, place)
        other_result, other_fix = _try_one(failure, name, value, make)
        if other_result.prevents:
            return other_result, other_fix
    return result, fix


def _try_one(
    failure: Failure, name: str, value: str | None, make: Callable[[], Fix]
) -> tuple[FixResult, Fix | None]:
    try:
        fix = make()
    except BadValueError as error:
        raise FixError(f"{name}: {error}") from error
    except _CANNOT as error:
        params = {} if value is None else {"value": value}
        return FixResult(name, params, None, None, note=_reason(error)), None
    return _replayed(failure, fix), fix


def _replayed(failure: Failure, fix: Fix) -> FixResult:
    try:
        outcome = failure.window.run(fix.edit)
    except _CANNOT as error:
        note = _reason(error)
        return FixResult(
            fix.name, fix.params, None, None, code=fix.code, source=fix.source, note=note
        )
    return _result(failure, fix, outcome)


def _reason(error: Exception) -> str:
    line = first_line(error)
    if isinstance(error, NanreplayError):
        return line
    return f"It does not fit this program. {type(error).__name__}: {line}"


def _result(failure: Failure, fix: Fix, outcome: TrialOutcome) -> FixResult:
    nonfinite: Trigger | None = None
    final_loss: float | None = None
    if outcome.raised is not None:
        last = failure.window.failing
        nonfinite = Trigger("exception", "", outcome.raised)
    else:
        last, final_loss = outcome.results[-1].step, outcome.results[-1].loss
        if outcome.failed is not None:
            nonfinite = outcome.failed.nonfinite
    prevents = nonfinite is None
    return FixResult(
        fix.name,
        fix.params,
        prevents=prevents,
        steps_checked=(failure.window.steps[0], last),
        nonfinite=nonfinite,
        nonfinite_step=None if prevents else last,
        loss_change=_loss_change(outcome, failure.step),
        final_loss=final_loss,
        code=fix.code,
        source=fix.source,
        places=failure.count_runs(fix.ops) if fix.ops else None,
        note=fix.note or (_growth_note(outcome, final_loss) if prevents else None),
    )


def _growth_note(outcome: TrialOutcome, final_loss: float | None) -> str | None:
    """A run that ends finite may be on its way to a failure all the same."""
    first = outcome.results[0].loss if outcome.results else None
    if final_loss is None or first is None:
        return None
    if abs(final_loss) <= _UNHEALTHY_GROWTH * max(abs(first), 1.0):
        return None
    return f"The loss is finite, but grew from {first:.3g} to {final_loss:.3g}."


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
