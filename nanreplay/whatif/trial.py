"""Trying fixes on a recording, for `nanreplay explain`, `nanreplay whatif` and the what-if pane.

Each fix is made of the failure, replayed from the window's first keyframe, and judged: does it
prevent the failure, and at which price for the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import tensorflow as tf

from nanreplay.bisect import Bisection
from nanreplay.bisect.influence import MOVEMENTS
from nanreplay.errors import NanreplayError, ReplayError, first_line
from nanreplay.findings import Cause, FixResult
from nanreplay.program.graph_editor import SCOPE, ProgramEditor
from nanreplay.replay import Replay
from nanreplay.whatif.edits import LAST_RESORT, BadValueError, Edit, Fix, candidates
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fix_names import FixError, check_fix
from nanreplay.whatif.fix_results import fix_result
from nanreplay.whatif.fixes import FIXES
from nanreplay.whatif.fixes.operand_fixes import epsilon, raised_epsilon
from nanreplay.whatif.fixes.update_fixes import usual_factors
from nanreplay.whatif.line_gradients import maker_of
from nanreplay.whatif.trial_window import TrialWindow
from nanreplay.whatif.window_run import SUMS

_CANNOT = (NanreplayError, tf.errors.OpError, ValueError, TypeError, KeyError, IndexError)
"""What is raised where a fix does not fit a program.

TensorFlow refuses the changed graph with errors of its own or of Python's, depending on the op.
"""
LEAST_TRIED = 3
"""How many fixes are tried however large the program is."""
QUICK_STEPS = 20
"""Where trying a fix takes no longer than these eager steps, all that fit are tried."""
_LARGER_EPSILONS = ("1e-5", "1e-3", "1e-2")
_MOVED_OR_SCALED = MOVEMENTS | {"Mul", "RealDiv", "Pow"}
"""Ops that TensorFlow takes out where they leave a tensor as it is, between two sums too."""
MOST_PLACES = 3
"""At how many operands near the origin an epsilon is tried."""


@dataclass(frozen=True, slots=True)
class TriedFixes:
    """What trying fixes gave."""

    results: tuple[FixResult, ...]
    """In the order in which they were tried."""
    left_out: tuple[str, ...] = ()
    """Fixes that did not fit the budget."""


def what_if(
    replay: Replay,
    bisection: Bisection,
    causes: Sequence[Cause],
    fixes: Sequence[str] | None = None,
    *,
    budget: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    each: Callable[[FixResult], None] | None = None,
    pause: Callable[[], None] | None = None,
) -> TriedFixes:
    """Try fixes on a recording, one after another.

    Args:
        replay: The capture's replay.
        bisection: Where the first non-finite value was born.
        causes: Why, the likeliest first.
        fixes: What to try, such as `clipnorm=1.0`; several are tried together as well. Unless
            given, those that fit the causes: of each kind the mildest that helps, and none that
            does not apply.
        budget: Seconds of work that all may take together, counted by ops, steps and the recorded
            time of a step, so that the same fixes are tried however busy the machine is. The first
            `LEAST_TRIED` that apply are tried in any case, and all of them where each takes no
            longer than `QUICK_STEPS` eager steps. No limit unless given.
        progress: Called with (fixes tried, fixes in all).
        each: Called with each result as soon as it is there.
        pause: Called before each step; it may use the replay, since a trial has a state of its own.

    Raises:
        FixError: There is no such fix.
        ReplayError: The incident cannot be replayed.
    """
    wanted = [check_fix(text) for text in (candidates(causes) if fixes is None else fixes)]
    origin = bisection.findings.origin
    if fixes is None and origin is not None and origin.is_given:
        return TriedFixes(())  # no change of the training keeps what gives it from doing so
    origin_step = None if origin is None else origin.step
    _check_not_carried(bisection)
    window = TrialWindow(replay, origin_step, pause=pause)
    failure = Failure(window, bisection, causes)
    if fixes is None:
        wanted = _with_usual_rates(failure, wanted)
    trials = _FixTrials(failure, keeps_all=fixes is not None)
    most_replays = math.inf
    if budget is not None and window.work_s() > QUICK_STEPS * window.eager_step_s():
        most_replays = max(budget / window.work_s(), LEAST_TRIED)
    for done, (name, value) in enumerate(wanted):
        if trials.replays >= most_replays and not trials.is_needless(name):
            left_out = tuple(
                _spelled(*fix) for fix in wanted[done:] if not trials.is_needless(fix[0])
            )
            return TriedFixes(tuple(trials.results), left_out)
        known = len(trials.results)
        trials.take(name, value)
        if each is not None and len(trials.results) > known:
            each(trials.results[-1])
        if progress is not None:
            progress(done + 1, len(wanted))
    if fixes is not None and len(trials.fixes) > 1:
        trials.results.append(_replayed(failure, _joined(trials.fixes)))
    return TriedFixes(tuple(trials.results))


def _check_not_carried(bisection: Bisection) -> None:
    """Fail where what the origin made reached the incident through the batch of a later step."""
    scenes = [] if bisection.search is None else bisection.search.scenes
    for scene in scenes[:-1]:
        if scene.judgement.carried:
            raise ReplayError(
                f"Step {scene.step} is given what an earlier step returned, as it was recorded: "
                "what a fix makes of that step does not reach it."
            )


def _with_usual_rates(
    failure: Failure, wanted: Sequence[tuple[str, str | None]]
) -> list[tuple[str, str | None]]:
    """Try usual rates in the place of decades below one that is far too high."""
    places = [place for place, (name, _) in enumerate(wanted) if name == "lr"]
    factors = usual_factors(failure) if len(places) > 1 else []
    if not factors:
        return list(wanted)
    others = [fix for fix in wanted[places[0] :] if fix[0] != "lr"]
    return [*wanted[: places[0]], *(("lr", factor) for factor in factors), *others]


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
    replays: int = 0
    """How often the window was replayed."""

    def take(self, name: str, value: str | None) -> None:
        """Try one more."""
        if self.is_needless(name):
            return
        result, fix = _try_places(self.failure, name, value)
        if fix is not None:
            self.replays += 1
            self.fixes.append(fix)
        if fix is not None or self.keeps_all:
            self.results.append(result)

    def is_needless(self, name: str) -> bool:
        """Whether a fix that nobody asked for says nothing new.

        That is so where a milder one of the same name helps, or any where this is the last resort.
        The ways of `clean_data` are no degrees of one another, so both are tried.
        """
        if self.keeps_all:
            return False
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
    """Try a fix; an epsilon at each operand near the origin until one helps.

    Where the usual epsilon keeps the values finite but so large that the training is ruined, larger
    ones are tried.
    """
    result, fix = _try_one(failure, name, value, lambda: FIXES[name](failure, value))
    if name != "epsilon" or (result.prevents is not False and result.loss_rise is None):
        return result, fix
    if value is None and (result.outcome == "unhealthy" or result.loss_rise is not None):
        result, fix = _try_larger(failure, result, fix)
    if result.prevents:
        return result, fix
    if value is None and fix is not None and _is_added_to_sum(failure, fix):
        raised = _try_one(failure, name, value, partial(raised_epsilon, failure))
        if raised[0].prevents:
            return raised
    for place in list(failure.places())[1 : MOST_PLACES + 1]:
        make = partial(epsilon, failure, value, place)
        other_result, other_fix = _try_one(failure, name, value, make)
        if other_result.prevents:
            return other_result, other_fix
    return result, fix


def _is_added_to_sum(failure: Failure, fix: Fix) -> bool:
    """Whether a fix adds to a sum or a difference, which may have been moved or scaled since."""
    editor = ProgramEditor(failure.window.replay.program(failure.step).record)
    for change in fix.edit.programs:
        change(editor)
    pending = [key for key in editor.ops(SUMS) if key[1].startswith(SCOPE)]
    seen = set(pending)
    while pending:
        key = pending.pop()
        for maker in (maker_of(key[0], tensor) for tensor in editor.data_inputs(key)):
            if maker in seen or not editor.holds(maker):
                continue
            if editor.node(maker).op in SUMS:
                return True
            if editor.node(maker).op in _MOVED_OR_SCALED:
                seen.add(maker)
                pending.append(maker)
    return False


def _try_larger(
    failure: Failure, result: FixResult, fix: Fix | None
) -> tuple[FixResult, Fix | None]:
    """Try larger epsilons than one that leaves the training unhealthy or the loss far above.

    Returns the first one with which the loss stays near the usual ones, else the largest that
    prevents the failure.
    """
    for larger in _LARGER_EPSILONS:
        make = partial(epsilon, failure, larger)
        other_result, other_fix = _try_one(failure, "epsilon", larger, make)
        if other_result.prevents:
            result, fix = other_result, other_fix
            if result.loss_rise is None:
                break
    return result, fix


def _try_one(
    failure: Failure, name: str, value: str | None, make: Callable[[], Fix]
) -> tuple[FixResult, Fix | None]:
    try:
        if name != LAST_RESORT:
            failure.check_not_recorded()
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
    return fix_result(failure, fix, outcome)


def _reason(error: Exception) -> str:
    line = first_line(error)
    if isinstance(error, NanreplayError):
        return line
    return f"It does not fit this program. {type(error).__name__}: {line}"
