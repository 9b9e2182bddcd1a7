"""Which ops overflow by mere size, and the rule of exponentials.

`is_plain` is what the rules of data, initial weights and learning rates ask first: do large values
alone explain the overflow?
"""

from __future__ import annotations

import numpy as np

from nanreplay.bisect.tensor_stats import words
from nanreplay.diagnose.case import HALF, Case, Values, capital, largest_number
from nanreplay.findings import Cause

ARITHMETIC = words(
    "Add AddN AddV2 AccumulateNV2 BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAdd BiasAddGrad "
    "Cast Conv Conv1D Conv2D Conv3D Conv2DBackpropFilter Conv2DBackpropInput "
    "Conv3DBackpropFilterV2 Conv3DBackpropInputV2 Cumprod Cumsum DepthwiseConv2dNative "
    "DepthwiseConv2dNativeBackpropFilter DepthwiseConv2dNativeBackpropInput Einsum EuclideanNorm "
    "L2Loss MatMul Mean Mul Prod Square SquaredDifference Sub Sum _FusedMatMul _FusedConv2D "
    "AvgPool AvgPoolGrad UnsortedSegmentSum SegmentSum ScatterNd TensorScatterAdd "
    "CumulativeLogsumexp MulNoNan Selu Elu Softplus"
)
"""Ops that are infinite only where their operands (or how many there are) are large."""
UPDATES = ("ResourceApply", "ResourceSparseApply", "AssignAdd", "AssignSub", "ResourceScatter")
"""How the types of ops begin that update variables."""
_BESSEL = words("BesselI0 BesselI1")  # by way of exp(x), which half precision takes in float32
_EXPONENTIALS = words("Exp Expm1 Sinh Cosh") | _BESSEL
_LARGE = 1e10
"""Float32 values of this size come of an exponential or of growth, not of usual training."""


def is_plain(case: Case) -> bool:
    """Whether the origin is an op that overflowed by the mere size of its operands."""
    if case.origin is None or case.kind in ("input", "raised", "used", "turned"):
        return False
    if case.op in ("RealDiv", "Div", "Xdivy"):
        denominators = case.operand(1)
        return bool(denominators.size) and not (denominators == 0).any() and is_large(case)
    return (case.op in ARITHMETIC or case.op.startswith(UPDATES)) and is_large(case)


def is_large(case: Case) -> bool:
    """Whether an operand is so large that the op cannot represent its result.

    Of half precision, anything is.
    """
    if case.dtype in HALF:
        return True
    for operand in case.operands:
        for bound in (operand.min, operand.max):
            if bound is not None and abs(bound) > _LARGE:
                return True
    return False


def exp_overflow(case: Case) -> Cause | None:
    """An exponential of a large operand, or what was made of one at once."""
    operand = case.operand(0)
    if case.is_infinite and operand.size:
        if case.op in _EXPONENTIALS and np.isfinite(operand).all():
            return _exponential(case, operand)
        if case.op == "Pow" and (operand != 0).all():
            return _power(case, operand)  # of a base of 0 it is a pole: `pow_domain` tells it
    if case.graph is None or case.fact is None or not is_plain(case):
        return None
    return _gradient_of_exponential(case) if case.is_backward else _of_large_exponential(case)


def _exponential(case: Case, operand: Values) -> Cause:
    first = operand.reshape(-1)[0]  # the element that is told, not the largest one
    sentence = (
        f"{capital(case.subject(0))} is {first:.6g}{case.place}, "
        f"and `{case.op}` of it is beyond {case.dtype}."
    )
    limit = _largest_operand(case)
    evidence = []
    if limit is not None:
        evidence.append(f"The largest operand that {case.dtype} takes is {limit:.4g}.")
    return Cause("exp_overflow", 0.93, sentence, tuple(evidence))


def _largest_operand(case: Case) -> float | None:
    """The largest operand of an exponential that is finite; None where no formula gives it."""
    largest = largest_number(case.dtype)
    if largest is None or (case.op in _BESSEL and case.dtype in HALF):
        return None
    # Sinh and Cosh are half an exponential.
    return float(np.log(largest)) + (float(np.log(2.0)) if case.op in ("Sinh", "Cosh") else 0.0)


def _power(case: Case, base: Values) -> Cause:
    exponent = case.operand(1)
    power = f"a power of {base[0]:.6g}"
    if exponent.size:
        power = f"{base[0]:.6g} to the power {exponent[0]:.6g}"
    return Cause("exp_overflow", 0.85, f"{power}{case.place} is beyond {case.dtype}.", ())


def _gradient_of_exponential(case: Case) -> Cause | None:
    operand = case.forward_input(0) if case.forward in _EXPONENTIALS else None
    if operand is None or not (np.abs(operand) > np.log(_LARGE)).any():
        return None
    with np.errstate(over="ignore"):
        largest = float(np.exp(np.abs(operand.astype(np.float64)).max()))
    sentence = (
        f"The gradient of `{case.forward}`{case.where} is beyond {case.dtype}{case.place}: "
        f"exp({np.log(largest):.6g}), which is {largest:.3g}, is a factor of it."
    )
    return Cause("exp_overflow", 0.8, sentence)


def _of_large_exponential(case: Case) -> Cause | None:
    """A sum or product of values that an exponential made large."""
    assert case.graph is not None
    assert case.fact is not None
    for value in case.fact.input_ids:
        for fact in case.graph.upstream(value, 3):
            told = case.told_of(fact) if fact.type in _EXPONENTIALS else None
            largest = 0.0 if told is None or not told.size else float(np.abs(told).max())
            if largest > _LARGE:
                sentence = (
                    f"`{case.op}`{case.where} overflows on what `{fact.type}` made: {largest:.3g}."
                )
                evidence = f"`{fact.type}` (`{fact.name}`) gives up to {largest:.3g}."
                return Cause("exp_overflow", 0.89, sentence, (evidence,))
    return None
