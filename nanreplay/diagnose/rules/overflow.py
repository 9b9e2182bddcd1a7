"""Which ops overflow by mere size, and the rule of exponentials."""

from __future__ import annotations

import numpy as np

from nanreplay.bisect.tensor_stats import words
from nanreplay.diagnose.case import Case, capital
from nanreplay.findings import Cause

ARITHMETIC = words(
    "Add AddN AddV2 AccumulateNV2 BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAdd BiasAddGrad Cast Conv Conv1D Conv2D Conv3D "
    "Conv2DBackpropFilter Conv2DBackpropInput Conv3DBackpropFilterV2 Conv3DBackpropInputV2 Cumprod Cumsum DepthwiseConv2dNative "
    "DepthwiseConv2dNativeBackpropFilter DepthwiseConv2dNativeBackpropInput Einsum EuclideanNorm L2Loss MatMul Mean Mul Prod "
    "Square SquaredDifference Sub Sum _FusedMatMul _FusedConv2D AvgPool AvgPoolGrad UnsortedSegmentSum SegmentSum ScatterNd "
    "TensorScatterAdd CumulativeLogsumexp MulNoNan Selu Elu Softplus"
)
"""Ops that are infinite only where their operands (or how many there are) are large."""
UPDATES = ("ResourceApply", "ResourceSparseApply", "AssignAdd", "AssignSub", "ResourceScatter")
_EXPONENTIALS = words("Exp Expm1 Sinh Cosh")
_LARGE = 1e10
"""Float32 values of this size come of an exponential or of growth, not of usual training."""


def is_plain(case: Case) -> bool:
    """Whether the origin is an op that overflowed by the mere size of its operands."""
    if case.origin is None or case.kind in ("input", "raised", "used", "turned"):
        return False
    op = case.op
    if op in ("RealDiv", "Div", "Xdivy"):
        denominators = case.operand(1)
        return bool(denominators.size) and not (denominators == 0).any() and is_large(case)
    return (op in ARITHMETIC or op.startswith(UPDATES)) and is_large(case)


def is_large(case: Case) -> bool:
    """Whether an operand is so large that the op cannot represent its result; of half precision, anything is."""
    if case.dtype in ("float16", "half"):
        return True
    sizes = [
        abs(bound)
        for operand in (case.origin.operands if case.origin else ())
        for bound in (operand.min, operand.max)
        if bound is not None
    ]
    return bool(sizes) and max(sizes) > _LARGE


def exp_overflow(case: Case) -> Cause | None:
    """An exponential of a large operand, or what was made of one at once."""
    found = case.operand(0)
    if case.op in _EXPONENTIALS and case.is_infinite and found.size and np.isfinite(found).all():
        extreme = found[np.argmax(np.abs(found))]
        limit = np.log(
            float(np.finfo(np.float16 if case.dtype in ("float16", "half") else np.float32).max)
        )
        sentence = f"{capital(case.subject(0))} is {extreme:.6g}{case.place}, and `{case.op}` of it is beyond {case.dtype}."
        return Cause(
            "exp_overflow",
            0.93,
            sentence,
            (f"The largest operand that {case.dtype} takes is {limit:.4g}.",),
        )
    if case.op == "Pow" and case.is_infinite and found.size and (found != 0).all():
        exponent = case.operand(1)
        shown = (
            f"{found[0]:.6g} to the power {exponent[0]:.6g}"
            if exponent.size
            else f"a power of {found[0]:.6g}"
        )
        return Cause("exp_overflow", 0.85, f"{shown}{case.place} is beyond {case.dtype}.", ())
    return _of_exponential(case)


def _of_exponential(case: Case) -> Cause | None:
    """A sum or product of values that an exponential made large."""
    if case.graph is None or case.fact is None or not is_plain(case):
        return None
    if case.is_backward:
        if case.forward not in _EXPONENTIALS:
            return None
        return Cause(
            "exp_overflow",
            0.8,
            f"The gradient of `{case.forward}`{case.where} is beyond {case.dtype}: the exponential itself is that large.",
        )
    for value in case.fact.input_ids:
        for fact in case.graph.upstream(value, 3):
            largest = fact.outputs[0].absmax if fact.outputs else None
            if fact.type in _EXPONENTIALS and largest is not None and largest > _LARGE:
                evidence = (f"`{fact.type}` (`{fact.name}`) gives up to {largest:.3g}.",)
                return Cause(
                    "exp_overflow",
                    0.89,
                    f"`{case.op}`{case.where} overflows on what `{fact.type}` made: {largest:.3g}.",
                    evidence,
                )
    return None
