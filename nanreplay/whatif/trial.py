"""Trying fixes on a recording: each is replayed from the window's first keyframe, and what came out is told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import tensorflow as tf

from nanreplay.bisect import Bisection
from nanreplay.errors import NanreplayError
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
"""What is raised where a fix does not fit a program: TensorFlow refuses the changed graph in many ways."""
_GROWN = 1e3
"""A loss that grew this many times is not healthy."""
MOST_PLACES = 3
"""At how many operands near the origin an epsilon is tried."""


@dataclass(frozen=True, slots=True)
class Tried:
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
) -> Tried:
    """Try fixes on a recording, one after another.

    Args:
        replay: The capture's replay.
        bisection: Where the first non-finite value was born.
        causes: Why, the likeliest first.
        fixes: What to try, such as `clipnorm=1.0`; several are tried together as well. Unless given, those that fit the
            causes: of each kind the mildest that helps, and none that does not apply.
        budget_s: Seconds in which all should be done; a fix is begun only when it is likely to fit. No limit unless given.
        progress: Called with (fixes tried, fixes in all).

    Raises:
        FixError: There is no such fix.
        ReplayError: The incident cannot be replayed.
    """
    asked = [check_fix(text) for text in (candidates(causes) if fixes is None else fixes)]
    bench = _Bench(Failure(TrialWindow(replay), bisection, causes), keeps_all=fixes is not None)
    ends = math.inf if budget_s is None else time.perf_counter() + budget_s
    for done, (name, value) in enumerate(asked):
        if time.perf_counter() + bench.longest_s > ends:
            left = [each if text is None else f"{each}={text}" for each, text in asked[done:]]
            return Tried(tuple(bench.results), tuple(left))
        bench.take(name, value)
        if progress is not None:
            progress(done + 1, len(asked))
    if fixes is not None and len(bench.made) > 1:
        bench.results.append(_tried(bench.failure, _joined(bench.made)))
    return Tried(tuple(bench.results))


@dataclass(slots=True)
class _Bench:
    """Fixes that were tried so far."""

    failure: Failure
    keeps_all: bool
    """Whether each fix was asked for: then none is left out, and one that does not apply says so."""
    results: list[FixResult] = field(default_factory=list)
    made: list[Fix] = field(default_factory=list)
    longest_s: float = 0.0

    def take(self, name: str, value: str | None) -> None:
        """Try one more."""
        helped = {result.name for result in self.results if result.prevents}
        milder = name in helped and name != "clean_data"
        if not self.keeps_all and (milder or (name == LAST_RESORT and helped)):
            return
        began = time.perf_counter()
        result, fix = _try_places(self.failure, name, value)
        self.longest_s = max(self.longest_s, time.perf_counter() - began)
        if fix is not None:
            self.made.append(fix)
        if fix is not None or self.keeps_all:
            self.results.append(result)


def _joined(fixes: Sequence[Fix]) -> Fix:
    edit = Edit()
    for fix in fixes:
        edit |= fix.edit
    params = {f"{fix.name}.{key}": value for fix in fixes for key, value in fix.params.items()}
    return Fix(
        "+".join(fix.name for fix in fixes),
        params,
        edit,
        "\n".join(fix.code for fix in fixes if fix.code),
    )


def _try_places(failure: Failure, name: str, value: str | None) -> tuple[FixResult, Fix | None]:
    """Try a fix; an epsilon at each operand near the origin until one helps."""
    result, fix = _try_one(failure, name, value, lambda: FIXES[name](failure, value))
    if name != "epsilon" or result.prevents is not False:
        return result, fix
    for place in list(failure.places())[1 : MOST_PLACES + 1]:
        other, made = _try_one(failure, name, value, partial(epsilon, failure, value, place))
        if other.prevents:
            return other, made
    return result, fix


def _try_one(
    failure: Failure, name: str, value: str | None, make: Callable[[], Fix]
) -> tuple[FixResult, Fix | None]:
    params = {} if value is None else {"value": value}
    try:
        fix = make()
    except BadValueError as error:
        raise FixError(f"{name}: {error}") from error
    except _CANNOT as error:
        return FixResult(name, params, None, None, note=_said(error)), None
    return _tried(failure, fix), fix


def _tried(failure: Failure, fix: Fix) -> FixResult:
    try:
        outcome = failure.window.run(fix.edit)
    except _CANNOT as error:
        return FixResult(
            fix.name, fix.params, None, None, code=fix.code, source=fix.source, note=_said(error)
        )
    return _result(failure, fix, outcome)


def _said(error: Exception) -> str:
    line = (str(error).splitlines() or [""])[0]
    return (
        line
        if isinstance(error, NanreplayError)
        else f"It does not fit this program. {type(error).__name__}: {line}"
    )


def _result(failure: Failure, fix: Fix, outcome: TrialOutcome) -> FixResult:
    results, failed = outcome.results, outcome.failed
    last = failure.window.failing if outcome.raised is not None else results[-1].step
    final_loss = results[-1].loss if results and outcome.raised is None else None
    bad = (
        Trigger("exception", "", outcome.raised)
        if outcome.raised is not None
        else failed.nonfinite
        if failed is not None
        else None
    )
    return FixResult(
        fix.name,
        fix.params,
        prevents=bad is None,
        steps_checked=(failure.window.steps[0], last),
        nonfinite=bad,
        nonfinite_step=None if bad is None else last,
        loss_change=_loss_change(outcome, failure.step),
        final_loss=final_loss,
        code=fix.code,
        source=fix.source,
        note=fix.note or _still_growing(outcome, bad is None, final_loss),
    )


def _still_growing(outcome: TrialOutcome, prevents: bool, final_loss: float | None) -> str | None:
    """A run that ends finite may be on its way all the same."""
    first = outcome.results[0].loss if outcome.results else None
    if (
        not prevents
        or final_loss is None
        or first is None
        or abs(final_loss) <= _GROWN * max(abs(first), 1.0)
    ):
        return None
    return f"The loss is finite, but grew from {first:.3g} to {final_loss:.3g}."


def _loss_change(outcome: TrialOutcome, failing: int) -> float | None:
    """Largest relative change of the loss in the steps before the failing one; None when there are none."""
    pairs = [(each.loss, each.recorded_loss) for each in outcome.results if each.step < failing]
    known = [
        (new, old)
        for new, old in pairs
        if new is not None and old is not None and math.isfinite(new) and math.isfinite(old)
    ]
    return max(
        (abs(new - old) / max(abs(old), 1e-30) if new != old else 0.0 for new, old in known),
        default=None,
    )
