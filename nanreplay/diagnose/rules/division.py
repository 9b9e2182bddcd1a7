"""Rules about division: by 0, 0 by 0, by the sum of no weights, by a variance of 0."""

from __future__ import annotations

import re

import numpy as np

from nanreplay.bisect.tensor_stats import words
from nanreplay.diagnose.case import Case, capital, shown
from nanreplay.diagnose.failure_graph import SEGMENTS
from nanreplay.findings import Cause

DIVISIONS = words("RealDiv Div TruncateDiv FloorDiv FloorMod Mod TruncateMod Xdivy")
_POLES = words("Reciprocal Inv Rsqrt")
_REDUCTIONS = words("Sum Mean Max Min Prod")
_TINY = 1e-20
"""Denominators below this make infinities of usual float32 values."""
_NORMALIZATION = words(
    "FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3 _FusedBatchNormEx"
)
_NORMALIZED = re.compile(r"(batch|layer|group|instance)_?norm", re.IGNORECASE)


def division_by_zero(case: Case) -> Cause | None:
    """A number divided by 0."""
    if case.is_backward and case.forward not in ("", "Atan2", *DIVISIONS, *_POLES, "DivNoNan"):
        return None  # a division that the gradient of another function makes: that function's rule tells it
    if case.op in DIVISIONS:
        numerator, denominator = case.operand(0), case.operand(1)
        if not denominator.size:
            return _atan2(case)
        if (denominator == 0).any() and not _is_zero_over_zero(case):
            return _divided(
                case, 1, f"{shown(float(numerator[0])) if numerator.size else 'a number'} / 0"
            )
        if case.is_infinite and (np.abs(denominator) < _TINY).any():
            tiny = float(denominator[np.abs(denominator) < _TINY][0])
            return Cause(
                "division_by_zero",
                0.75,
                f"{capital(case.subject(1))}{case.place} is {tiny:.3g}, so close to 0 that dividing by it overflows.",
            )
        return None
    if case.op in _POLES and (case.operand(0) == 0).any():
        return _divided(case, 0, "1 / sqrt(0)" if case.op == "Rsqrt" else "1 / 0")
    return None


def _divided(case: Case, i: int, what: str) -> Cause:
    atan2 = _atan2(case)
    if atan2 is not None:
        return atan2
    sentence = f"{capital(case.subject(i))}{case.place} is exactly 0.0, and `{case.op}` divides by it ({what})."
    return Cause(
        "division_by_zero",
        0.84,
        sentence,
        (f"`{case.op}`{case.where}: {case.count} became non-finite.",),
    )


def _atan2(case: Case) -> Cause | None:
    if not (case.is_backward and case.forward == "Atan2"):
        return None
    return Cause(
        "division_by_zero",
        0.9,
        f"The gradient of `Atan2`{case.where} divides by x^2 + y^2, which is 0.0{case.place}.",
    )


def _is_zero_over_zero(case: Case) -> bool:
    numerator, denominator = case.operand(0), case.operand(1)
    return (
        bool(numerator.size and denominator.size)
        and bool(
            ((numerator == 0) & (denominator == 0)).any()
            if numerator.shape == denominator.shape
            else False
        )
        and bool(np.isnan(case.value))
    )


def zero_over_zero(case: Case) -> Cause | None:
    """0 divided by 0."""
    if case.op not in DIVISIONS or not _is_zero_over_zero(case) or case.forward == "Atan2":
        return None
    evidence = [
        f"Numerator: {case.subject(0)}. Denominator: {case.subject(1)}.",
        f"`{case.op}`{case.where}: {case.count} became NaN.",
    ]
    return Cause(
        "zero_over_zero",
        0.86,
        f"Numerator and denominator are both exactly 0.0{case.place}: 0 / 0 is NaN.",
        tuple(evidence),
    )


def empty_reduction(case: Case) -> Cause | None:
    """A mean over nothing: of an empty tensor, or a weighted sum divided by weights that are all 0."""
    if case.op in _REDUCTIONS and case.event is not None:
        sizes = tuple(int(size) for size in case.event.inputs[0].shape)
        if 0 in sizes:
            return Cause(
                "empty_reduction",
                0.97,
                f"`{case.op}`{case.where} reduces an empty tensor of shape {list(sizes)}.",
                _kept_nothing(case),
            )
        return None
    value, numerator = case.input_id(1), case.input_id(0)
    if (
        case.op not in DIVISIONS
        or case.graph is None
        or value is None
        or numerator is None
        or not (case.operand(1) == 0).any()
    ):
        return None
    weights = case.graph.weights_under(value)
    if weights is None or not _is_reduced(case):
        return None
    what = "count" if weights.type in ("Size", "Prod", "Shape") else "sum of weights (or of a mask)"
    sentence = f"The {what} that `{case.op}` divides by{case.where} is 0{case.place}: nothing is left to average."
    evidence = [
        f"Denominator: `{weights.type}` (`{weights.name}`) is 0.0.",
        f"Numerator: {case.subject(0)}.",
    ]
    if case.origin is not None and case.origin.rows_reason:
        evidence.append(case.origin.rows_reason)
    return Cause("empty_reduction", 0.92, sentence, tuple(evidence))


def _is_reduced(case: Case) -> bool:
    """Whether the numerator is a sum as well, not the very weights that are normalized."""
    assert case.graph is not None
    value = case.input_id(0)
    if value is None:
        return False
    for fact in case.graph.upstream(value, 2):
        if fact.type in _REDUCTIONS or fact.type in SEGMENTS:
            return True
        if fact.type not in ("Neg", "Mul", "AddV2", "Sub"):
            return False
    return False


def _kept_nothing(case: Case) -> tuple[str, ...]:
    value = case.input_id(0)
    if case.graph is None or value is None:
        return ()
    names = {fact.type for fact in case.graph.upstream(value, 3)}
    return ("A mask kept no element.",) if names & {"Where", "Squeeze"} else ()


def variance_zero(case: Case) -> Cause | None:
    """A variance (or standard deviation) of exactly 0 that is divided by, or whose root's gradient is taken."""
    if case.op in _NORMALIZATION:
        return Cause(
            "variance_zero",
            0.85,
            f"`{case.op}`{case.where}: a channel is constant over the batch, its variance is 0.0 and epsilon too small.",
        )
    name = _variance_of(case)
    if name is None:
        return None
    what = (
        "its root's gradient is infinite"
        if case.is_backward
        else "dividing by its root is not finite"
    )
    sentence = f"The variance{case.where} is exactly 0.0{case.place}: the values that it is taken over are all the same, and {what}."
    return Cause(
        "variance_zero",
        0.95,
        sentence,
        (f"`{name}` is a mean of squared deviations, and `{case.op}` got 0.0.",),
    )


def _variance_of(case: Case) -> str | None:
    """Name of the variance that is 0 at the origin."""
    if case.graph is None or case.fact is None:
        return (
            case.info.name
            if case.op == "Rsqrt" and case.info is not None and _NORMALIZED.search(case.info.name)
            else None
        )
    if case.op in DIVISIONS and (case.operand(1) == 0).any():
        value = case.input_id(1)
    elif case.op in _POLES and (case.operand(0) == 0).any():
        value = case.input_id(0)
    elif case.is_backward and case.forward in ("Sqrt", "Rsqrt"):
        forward = case.graph.forward_of(case.fact)
        value = forward[0].input_ids[0] if forward else None
    else:
        return None
    found = case.graph.variance(value) if value is not None else None
    if (
        found is None and case.op in DIVISIONS and case.input_id(0) is not None
    ):  # the deviations are summed, then divided by n - 1 = 0
        total = case.graph.maker(case.input_id(0))  # type: ignore[arg-type]
        found = (
            total
            if total is not None and total.type == "Sum" and case.graph.is_mean_of_deviations(total)
            else None
        )
    return found.name if found is not None else None
