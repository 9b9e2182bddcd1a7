"""Rules about division: by 0, 0 by 0, by the sum of no weights, by a variance of 0."""

from __future__ import annotations

import re

import numpy as np

from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.tensor_stats import words
from nanreplay.diagnose.case import Case, capital, shown
from nanreplay.diagnose.failure_graph import COUNTS, SEGMENTS
from nanreplay.findings import Cause

DIVISIONS = words("RealDiv Div TruncateDiv FloorDiv FloorMod Mod TruncateMod Xdivy")
"""Ops that divide their first input by their second."""
_POLES = words("Reciprocal Inv Rsqrt")
"""Ops of one input that divide by it (or by its root)."""
_REDUCTIONS = words("Sum Mean Max Min Prod")
_TINY = 1e-20
"""Denominators below this make infinities of usual float32 values."""
_NORMALIZATION = words(
    "FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 FusedBatchNormGrad FusedBatchNormGradV2 "
    "FusedBatchNormGradV3 _FusedBatchNormEx"
)
_NORMALIZED = re.compile(r"(batch|layer|group|instance)_?norm", re.IGNORECASE)


def division_by_zero(case: Case) -> Cause | None:
    """A number divided by 0."""
    if case.is_backward and case.forward not in ("", "Atan2", *DIVISIONS, *_POLES, "DivNoNan"):
        return None  # the gradient of another function divides: that function's rule tells it
    if case.op in DIVISIONS:
        return _by_zero_or_tiny(case)
    if case.op in _POLES and (case.operand(0) == 0).any():
        return _divided(case, 0, "1 / sqrt(0)" if case.op == "Rsqrt" else "1 / 0")
    return None


def _by_zero_or_tiny(case: Case) -> Cause | None:
    numerator, denominator = case.operand(0), case.operand(1)
    if not denominator.size:
        return _atan2(case)
    if (denominator == 0).any() and not _is_zero_over_zero(case):
        dividend = shown(float(numerator[0])) if numerator.size else "a number"
        return _divided(case, 1, f"{dividend} / 0")
    is_tiny = np.abs(denominator) < _TINY
    if case.is_infinite and is_tiny.any():
        sentence = (
            f"{capital(case.subject_at(1))} is {float(denominator[is_tiny][0]):.3g}, "
            "so close to 0 that dividing by it overflows."
        )
        return Cause("division_by_zero", 0.75, sentence)
    return None


def _divided(case: Case, i: int, formula: str) -> Cause:
    """The cause of a division by an operand that is 0."""
    atan2 = _atan2(case)
    if atan2 is not None:
        return atan2
    sentence = (
        f"{capital(case.subject_at(i))} is exactly 0.0, and `{case.op}` divides by it ({formula})."
    )
    evidence = f"`{case.op}`{case.where}: {case.count} became non-finite."
    return Cause("division_by_zero", 0.84, sentence, (evidence,))


def _atan2(case: Case) -> Cause | None:
    if not (case.is_backward and case.forward == "Atan2"):
        return None
    sentence = (
        f"The gradient of `Atan2`{case.where} divides by x^2 + y^2, which is 0.0{case.place}."
    )
    return Cause("division_by_zero", 0.9, sentence)


def _is_zero_over_zero(case: Case) -> bool:
    numerator, denominator = case.operand(0), case.operand(1)
    if not numerator.size or numerator.shape != denominator.shape:
        return False
    return bool(((numerator == 0) & (denominator == 0)).any()) and bool(np.isnan(case.value))


def zero_over_zero(case: Case) -> Cause | None:
    """0 divided by 0."""
    if case.op not in DIVISIONS or not _is_zero_over_zero(case) or case.forward == "Atan2":
        return None
    sentence = f"Numerator and denominator are both exactly 0.0{case.place}: 0 / 0 is NaN."
    evidence = (
        f"Numerator: {case.subject(0)}. Denominator: {case.subject(1)}.",
        f"`{case.op}`{case.where}: {case.count} became NaN.",
    )
    return Cause("zero_over_zero", 0.86, sentence, evidence)


def empty_reduction(case: Case) -> Cause | None:
    """A mean over nothing.

    Of an empty tensor, or a weighted sum divided by weights that are all 0.
    """
    if case.op in _REDUCTIONS and case.event is not None:
        return _of_empty_tensor(case)
    weights = _zero_weights(case)
    if weights is None or not _is_reduced(case):
        return None
    divisor = "count" if weights.type in COUNTS else "sum of weights (or of a mask)"
    sentence = (
        f"The {divisor} that `{case.op}` divides by{case.where} is 0{case.place}: "
        "nothing is left to average."
    )
    evidence = [
        f"Denominator: `{weights.type}` (`{weights.name}`) is 0.0.",
        f"Numerator: {case.subject(0)}.",
    ]
    if case.origin is not None and case.origin.rows_reason:
        evidence.append(case.origin.rows_reason)
    return Cause("empty_reduction", 0.92, sentence, tuple(evidence))


def _of_empty_tensor(case: Case) -> Cause | None:
    assert case.event is not None
    sizes = [int(size) for size in case.event.inputs[0].shape]
    if 0 not in sizes:
        return None
    sentence = f"`{case.op}`{case.where} reduces an empty tensor of shape {sizes}."
    return Cause("empty_reduction", 0.97, sentence, _kept_nothing(case))


def _kept_nothing(case: Case) -> tuple[str, ...]:
    """Say so where a boolean mask made the tensor: TensorFlow writes it as Where and a gather."""
    value = case.input_id(0)
    if case.graph is None or value is None:
        return ()
    types = {fact.type for fact in case.graph.upstream(value, 3)}
    return ("A mask kept no element.",) if types & {"Where", "Squeeze"} else ()


def _zero_weights(case: Case) -> Fact | None:
    """Return the sum of weights that is 0 and that the origin divides by."""
    if case.op not in DIVISIONS or case.graph is None:
        return None
    numerator, denominator = case.input_id(0), case.input_id(1)
    if numerator is None or denominator is None or not (case.operand(1) == 0).any():
        return None
    return case.graph.weights_under(denominator)


def _is_reduced(case: Case) -> bool:
    """Whether the numerator is a sum as well, not the very weights that are normalized."""
    value = case.input_id(0)
    if case.graph is None or value is None:
        return False
    for fact in case.graph.upstream(value, 2):
        if fact.type in _REDUCTIONS or fact.type in SEGMENTS:
            return True
        if fact.type not in ("Neg", "Mul", "AddV2", "Sub"):
            return False
    return False


def variance_zero(case: Case) -> Cause | None:
    """A variance (or standard deviation) of exactly 0.

    It is divided by, or its root's gradient is taken.
    """
    if case.op in _NORMALIZATION:
        sentence = (
            f"`{case.op}`{case.where}: a channel is constant over the batch, "
            "its variance is 0.0 and epsilon too small."
        )
        return Cause("variance_zero", 0.85, sentence)
    name = _name_of_variance(case)
    if name is None:
        return None
    consequence = "dividing by its root is not finite"
    if case.is_backward:
        consequence = "its root's gradient is infinite"
    sentence = (
        f"The variance{case.where} is exactly 0.0{case.place}: "
        f"the values that it is taken over are all the same, and {consequence}."
    )
    evidence = f"`{name}` is a mean of squared deviations, and `{case.op}` got 0.0."
    return Cause("variance_zero", 0.95, sentence, (evidence,))


def _name_of_variance(case: Case) -> str | None:
    """Name of the variance that is 0 at the origin."""
    if case.graph is None or case.fact is None:
        # Only the compiled step fails: a name scope of a normalization must do.
        if case.op != "Rsqrt" or case.info is None or not _NORMALIZED.search(case.info.name):
            return None
        return case.info.name
    if case.op in DIVISIONS and (case.operand(1) == 0).any():
        value = case.input_id(1)
    elif case.op in _POLES and (case.operand(0) == 0).any():
        value = case.input_id(0)
    elif case.is_backward and case.forward in ("Sqrt", "Rsqrt"):
        roots = case.graph.forward_of(case.fact)
        value = roots[0].input_ids[0] if roots else None
    else:
        return None
    variance = case.graph.variance(value) if value is not None else None
    if variance is None and case.op in DIVISIONS:
        variance = _sum_of_deviations(case)
    return variance.name if variance is not None else None


def _sum_of_deviations(case: Case) -> Fact | None:
    """A sum of squared deviations that the origin divides, by an n - 1 that is 0."""
    value = case.input_id(0)
    if case.graph is None or value is None:
        return None
    total = case.graph.maker(value)
    if total is None or total.type != "Sum" or not case.graph.is_mean_of_deviations(total):
        return None
    return total
