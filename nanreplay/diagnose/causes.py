"""Why it happened: every rule is asked, the causes with evidence are put in order.

`causes_of` is what reports call; `RULES` is the table of all rules. Imports no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from nanreplay.bisect import Bisection
from nanreplay.bisect.step_runner import StepRunner
from nanreplay.diagnose.case import Case
from nanreplay.diagnose.rules import (
    data,
    division,
    domain,
    dynamics,
    matrices,
    outside,
    overflow,
    precision,
    selection,
    special_functions,
    variances,
)
from nanreplay.errors import first_line, own_error, without_node_names
from nanreplay.findings import Cause, CauseKind, Verdict
from nanreplay.records import Timeline

Rule: TypeAlias = Callable[[Case], Cause | None]
_LEAST = 0.3
"""Causes with less confidence are not told."""
_MOST = 4
"""How many causes are told at most."""


def other(case: Case) -> Cause | None:
    """None of the kinds: what is known all the same, of a special function what is wrong."""
    if case.origin is None:
        return None
    known = (
        outside.set_from_outside(case)
        or special_functions.special_function(case)
        or selection.zero_times_infinity(case)
        or dynamics.growth_by_itself(case)
    )
    if known is not None:
        return known
    error = case.event.error if case.event is not None else None
    if error is not None:
        raised = without_node_names(first_line(error)).rstrip(".")
        return Cause("other", 0.1, f"`{case.op}`{case.where} raised: {raised}.")
    made = f"gave {case.value}" if case.origin.outputs else "gave a non-finite value"
    sentence = (
        f"`{case.op or 'the batch'}`{case.where} {made}{case.place}; "
        "no known cause fits its operands."
    )
    return Cause("other", 0.1, sentence)


RULES: Mapping[CauseKind, Rule] = {
    "data_nan": data.data_nan,
    "data_inf": data.data_inf,
    "label_out_of_range": data.label_out_of_range,
    "loss_scale_stuck": precision.loss_scale_stuck,
    "hardware_like": precision.hardware_like,
    "where_gradient": selection.where_gradient,
    "mask_all": selection.mask_all,
    "fp16_underflow": precision.fp16_underflow,
    "fp16_overflow": precision.fp16_overflow,
    "variance_zero": variances.variance_zero,
    "norm_grad_at_zero": domain.norm_grad_at_zero,
    "sqrt_grad_at_zero": domain.sqrt_grad_at_zero,
    "empty_reduction": division.empty_reduction,
    "linalg_singular": matrices.linalg_singular,
    "log_of_zero": domain.log_of_zero,
    "log_of_negative": domain.log_of_negative,
    "sqrt_of_negative": domain.sqrt_of_negative,
    "pow_domain": domain.pow_domain,
    "acos_domain": domain.acos_domain,
    "zero_over_zero": division.zero_over_zero,
    "division_by_zero": division.division_by_zero,
    "exp_overflow": overflow.exp_overflow,
    "bad_init": dynamics.bad_init,
    "high_learning_rate": dynamics.high_learning_rate,
    "exploding_gradient": dynamics.exploding_gradient,
    "data_outlier": data.data_outlier,
    "other": other,
}
"""The rule of each kind; among equals the first is likelier."""


def causes_of(
    replay: StepRunner,
    bisection: Bisection,
    verdict: Verdict,
    timeline: Timeline,
    notes: list[str] | None = None,
) -> tuple[Cause, ...]:
    """Return why a value turned non-finite, the likeliest first; empty when nothing was.

    `other` without evidence of its own stands alone: it is an answer only where no rule found any.
    The failing step runs at most once more.

    ```python
    bisection = bisect(replay, timeline)
    for cause in causes_of(replay, bisection, judge(replay), timeline):
        print(cause.kind, cause.confidence, cause.sentence)
    ```

    Args:
        replay: Replays the window's steps.
        bisection: What bisecting found, and the run that it was found in.
        verdict: What replaying says of the incident.
        timeline: What was recorded of all steps.
        notes: Takes a line for each rule that failed, whose answer is missing then. Without it, an
            error of a rule is raised.
    """
    if verdict.kind == "healthy":
        return ()
    case = Case(replay, bisection, verdict, timeline)
    causes: list[Cause] = []
    for kind, rule in RULES.items():
        cause = _asked(kind, rule, case, notes)
        if cause is not None and (cause.confidence >= _LEAST or (kind == "other" and not causes)):
            causes.append(cause)
    causes.sort(key=lambda cause: -cause.confidence)  # stable: among equals, as in `RULES`
    return tuple(causes[:_MOST])


def _asked(kind: CauseKind, rule: Rule, case: Case, notes: list[str] | None) -> Cause | None:
    """Ask a rule; where it fails, the answers of the others are worth telling all the same."""
    try:
        return rule(case)
    except Exception as error:
        if notes is None:
            raise
        notes.append(own_error(f"Whether it is {kind} could not be told", error))
        return None
