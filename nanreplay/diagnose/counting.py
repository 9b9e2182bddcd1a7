"""Counts that a step divides by: how many elements fulfil a condition, or are kept by dropout.

A count is a sum of what a comparison gave, whole or less something (each element paired with
itself, the 1 of n - 1). Where it is 0, the reader wants to hear what there is none of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.tensor_stats import words
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.failure_graph import FailureGraph, is_count
from nanreplay.replay.provenance import OpEvent, ValueId

_COMPARISONS = words("Equal NotEqual Greater GreaterEqual Less LessEqual IsFinite IsNan IsInf")
_COMBINATIONS = words(
    "LogicalAnd LogicalOr LogicalNot Mul Sub AddV2 Minimum Maximum Select SelectV2 MatrixBandPart "
    "MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3"
)
"""Ops that make a mask of masks and constants."""
_CONSTANT = words("Const OnesLike ZerosLike MatrixDiag MatrixDiagV2 MatrixDiagV3 OneHot Range")
_SUMS = words("Sum CountNonzero DenseBincount Bincount")
_WHOLE = ("int32", "int64")
_DEPTH = 5


@dataclass(frozen=True, slots=True)
class Count:
    """A number of elements."""

    condition: Fact | None
    """The (first) comparison that its elements fulfil; None where all elements are counted."""
    is_reduced: bool
    """Whether something is subtracted, from the count or from what is counted."""
    is_of_pairs: bool = False
    """Whether each element of an axis was compared with each other one."""
    is_combined: bool = False
    """Whether something else than the one comparison decides as well."""


def count_under(graph: FailureGraph, value: ValueId) -> Count | None:
    """Return the count that a value is, None when it is something else."""
    fact = graph.maker(value)
    if fact is None:
        return None
    if fact.type not in ("Sub", "AddV2") or len(fact.input_ids) != 2:
        return _plain_count(graph, fact)
    first, second = fact.input_ids
    if graph.is_zero(second):  # such as an epsilon of 0
        return count_under(graph, first)
    if fact.type == "AddV2" and graph.is_zero(first):
        return count_under(graph, second)
    whole = graph.maker(first)
    count = None if whole is None else _plain_count(graph, whole)
    if count is None and fact.outputs and fact.outputs[0].dtype in _WHOLE:
        return Count(None, is_reduced=True)  # of a shape that is known beforehand
    return None if count is None else replace(count, is_reduced=True)


def _plain_count(graph: FailureGraph, fact: Fact) -> Count | None:
    if is_count(fact):
        return Count(None, is_reduced=False)
    if fact.type not in _SUMS or not fact.input_ids:
        return None
    condition, subtracts = _indicator(graph, fact.input_ids[0], _DEPTH) or (None, False)
    if condition is None:
        return None
    shape = condition.outputs[0].shape if condition.outputs else ()
    is_square = len(shape) >= 2 and shape[-1] == shape[-2] and shape[-1] > 1
    is_combined = graph.maker(fact.input_ids[0]) is not condition
    return Count(condition, subtracts, is_square, is_combined)


def _indicator(graph: FailureGraph, value: ValueId, depth: int) -> tuple[Fact | None, bool] | None:
    """Return the first comparison that a mask is made by, and whether something is subtracted.

    None where it is no mask; no comparison for a constant.
    """
    fact = graph.maker(value)
    if fact is None or not depth:
        return None
    if fact.type in _COMPARISONS:
        return fact, False
    if fact.type in _CONSTANT:
        return None, False
    if fact.type not in _COMBINATIONS:
        return None
    operands = fact.input_ids[:3]
    indicators = []
    for operand in operands:
        indicators.append(_indicator(graph, operand, depth - 1))
    if fact.type.startswith("Matrix"):  # its other inputs say which diagonals
        indicators = indicators[:1]
    masks = [mask for mask in indicators if mask is not None]
    if len(masks) < len(indicators):
        return None
    condition = next((mask[0] for mask in masks if mask[0] is not None), None)
    takes_off = fact.type == "Sub" or fact.type.startswith("Matrix")
    return condition, takes_off or any(mask[1] for mask in masks)


def dropout_under(
    graph: FailureGraph, value: ValueId, kept: Mapping[int, OpEvent], zeros: np.ndarray
) -> Fact | None:
    """Return the random mask that left nothing of what a value was summed over.

    None where there is none, or where the mask kept something.

    Args:
        graph: The failing step.
        value: A sum, or the like.
        kept: Executions upstream with their tensors, by serial.
        zeros: Where the value is 0.
    """
    for fact in graph.upstream(value, 4):
        event = kept.get(fact.serial)
        if fact.type not in ("GreaterEqual", "Less", "Greater", "LessEqual") or event is None:
            continue
        if not any("Random" in maker.type for maker in graph.upstream(fact.input_ids[0], 4)):
            continue
        mask = as_array(event.outputs[0])
        if not mask.any():
            return fact
        row_is_empty = ~mask.any(axis=-1) if mask.ndim else mask
        if zeros.size == row_is_empty.size and bool(
            (zeros.reshape(-1) <= row_is_empty.reshape(-1)).all()
        ):
            return fact
    return None
