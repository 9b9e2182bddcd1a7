"""What a program is given with its code: constants, and tensors that a function closes over."""

from __future__ import annotations

import numpy as np

from nanreplay.bisect.op_trace import StepTrace
from nanreplay.bisect.tensor_stats import Mask, words
from nanreplay.capture.arrays import as_array
from nanreplay.replay.provenance import ValueId

SHAPES = words("Shape ShapeN Size Rank ZerosLike OnesLike VariableShape")
"""Ops whose outputs do not depend on the values of their inputs."""


def constant_ops(trace: StepTrace) -> set[int]:
    """Return the serials of the ops that neither the batch nor a variable nor a draw influences."""
    constant: set[int] = set()

    def is_constant(value: ValueId) -> bool:
        if value.serial >= 0:
            return value.serial in constant
        return trace.feed(value)[0] == "constant"

    # Facts are in the order in which ops ran, so an op's sources are decided before it.
    for fact in trace.facts.values():
        is_computed = (
            bool(fact.sources) and "Random" not in fact.type and all(map(is_constant, fact.sources))
        )
        if is_computed or fact.type in SHAPES or fact.type in ("Const", "HostConst"):
            constant.add(fact.serial)
    return constant


def holds_nan(trace: StepTrace, value: ValueId, mask: Mask) -> bool:
    """Whether a tensor that the program closes over holds NaN at the elements of a mask."""
    held = trace.value(value)
    return held is not None and bool(np.isnan(as_array(held)[mask]).any())
