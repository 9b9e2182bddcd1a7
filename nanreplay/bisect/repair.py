"""What stands for the outputs of a kernel that raised: NaN where compiled programs would give it. Pure numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nanreplay.bisect.arrays import dtype_name, words
from nanreplay.bisect.rules import Execute
from nanreplay.replay.events import OpEvent
from nanreplay.tensors import as_array

PASSIVE = words("Assert CheckNumerics CheckNumericsV2")
"""Ops that raise because of what they got: they are never the origin."""


def repaired(event: OpEvent, execute: Execute) -> Sequence[Any] | None:
    """Return outputs with which a run can go on after a kernel raised, None when nothing fitting is known."""
    repair = _REPAIRS.get(event.type)
    try:
        made = repair(event, execute) if repair is not None else None
    except Exception:  # the kernel raised for another reason than the repair expects
        return None
    return made


def _as_tensor(event: OpEvent, execute: Execute, array: Any) -> Any:
    identity = dataclasses.replace(event, type="Identity", attrs={"T": event.attrs["T"]}, error=None)
    return execute(identity, [array])[0]


def _pass_on(event: OpEvent, execute: Execute) -> Sequence[Any]:
    return event.inputs[:1]


def _nothing(event: OpEvent, execute: Execute) -> Sequence[Any]:
    return ()


def _cross_entropy(event: OpEvent, execute: Execute) -> Sequence[Any]:
    """XLA gives NaN for rows whose label is out of range; the others are as they would be."""
    logits, labels = as_array(event.inputs[0]), as_array(event.inputs[1])
    valid = np.clip(labels, 0, logits.shape[-1] - 1)
    wrong = valid != labels
    outputs = [np.array(out) for out in execute(event, [event.inputs[0], valid.astype(labels.dtype)])]
    for out in outputs:
        out[wrong] = np.nan
    return [_as_tensor(event, execute, out) for out in outputs]


def _clipped_gather(event: OpEvent, execute: Execute) -> Sequence[Any]:
    """XLA clips indices."""
    axis = int(as_array(event.inputs[2])) if len(event.inputs) > 2 else 0
    indices = as_array(event.inputs[1])
    valid = np.clip(indices, 0, int(event.inputs[0].shape[axis]) - 1).astype(indices.dtype)
    return execute(event, [event.inputs[0], valid, *event.inputs[2:]])


def _matrices(result: int) -> Callable[[OpEvent, Execute], Sequence[Any]]:
    """Matrices one by one: NaN for those that raise."""

    def repair(event: OpEvent, execute: Execute) -> Sequence[Any]:
        arrays = [as_array(value) for value in event.inputs]
        out = np.full(arrays[result].shape, np.nan, arrays[result].dtype)
        for place in np.ndindex(*arrays[0].shape[:-2]):
            try:
                out[place] = as_array(execute(event, [array[place] for array in arrays])[0])
            except Exception:  # this matrix is one of those that made the kernel raise
                continue
        return [_as_tensor(event, execute, out)]

    return repair


def is_singular(event: OpEvent) -> bool:
    """Return whether an op works on whole matrices."""
    return event.type in _MATRIX_OPS and dtype_name(event.inputs[0]) != "variant"


_MATRIX_OPS = {
    "MatrixInverse": 0,
    "Cholesky": 0,
    "MatrixSquareRoot": 0,
    "MatrixSolve": 1,
    "MatrixTriangularSolve": 1,
}
_REPAIRS: dict[str, Callable[[OpEvent, Execute], Sequence[Any] | None]] = {
    **{name: _matrices(result) for name, result in _MATRIX_OPS.items()},
    **dict.fromkeys(("CheckNumerics", "CheckNumericsV2"), _pass_on),
    **dict.fromkeys(("Gather", "GatherV2"), _clipped_gather),
    "Assert": _nothing,
    "SparseSoftmaxCrossEntropyWithLogits": _cross_entropy,
}
