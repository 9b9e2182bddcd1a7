"""One step, run op by op and remembered: small facts of every op, values only where something is not finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from nanreplay.bisect.influence import Execute
from nanreplay.bisect.tensor_stats import dtype_name, words
from nanreplay.capture.arrays import as_array
from nanreplay.records import (
    ArrayLike,
    BatchRecord,
    Frame,
    Incident,
    OpInfo,
    Signature,
    VariableInfo,
)
from nanreplay.replay.provenance import OpEvent

# What bisecting needs of a replay: one step, run op by op, as often as asked. Pure: imports no
# TensorFlow.

Observer: TypeAlias = Callable[[OpEvent], Sequence[Any] | None]
ErrorHandler: TypeAlias = Callable[[OpEvent], Sequence[Any]]
FeedKind: TypeAlias = Literal["batch", "variable", "constant"]
OpKey: TypeAlias = tuple[str, str]
"""(function, op name); function is "" for the main graph."""


class StepRunner(Protocol):
    """Replays steps of a recorded window op by op. State is restored to just before the step at each run."""

    @property
    def steps(self) -> Sequence[int]:
        """Steps that can be run op by op, ascending."""
        ...

    @property
    def incident(self) -> Incident:
        """Why and when the capture was written."""
        ...

    @property
    def variables(self) -> Sequence[VariableInfo]:
        """The capture's table of variables."""
        ...

    def signature(self, step: int) -> Signature:
        """Return how the step's program is called and what its tensors mean."""
        ...

    def ops(self, step: int) -> Mapping[OpKey, OpInfo]:
        """Return what is known of each op of the step's program."""
        ...

    def run(
        self,
        step: int,
        observer: Observer | None,
        *,
        batch: Sequence[ArrayLike] | None = None,
        on_error: ErrorHandler | None = None,
        fetches: Sequence[str] | None = None,
        update: bool = True,
    ) -> Mapping[str, Any]:
        """Run a step and return the fetched tensors by name; what the observer raises passes through.

        Args:
            step: One of `steps`.
            observer: Called after each op.
            batch: Leaves to feed in place of the recorded ones.
            on_error: Called when a kernel raises; returns the op's outputs.
            fetches: Tensor names of the main graph; None for the program's outputs, losses and gradients.
            update: Whether everything runs for its effect; False runs only what `fetches` need.
        """
        ...

    def execute(self, event: OpEvent, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run the kernel of an event again (its type and attributes) on other inputs; arrays are taken as tensors."""
        ...

    def batch(self, step: int) -> BatchRecord:
        """Return the input of a step."""
        ...

    def feed_names(self, step: int) -> Sequence[tuple[FeedKind, int]]:
        """Return what `ValueId(-1 - i, 0)` stands for: a batch leaf, a variable or a constant, and its index."""
        ...

    def state(self, step: int) -> Mapping[int, ArrayLike]:
        """Return the variables just before a step, by index."""
        ...

    def source(self, stack: int) -> Frame | None:
        """Return the innermost frame of user code of a stack."""
        ...

    def probe(self, step: int) -> Mapping[str, tuple[bool, bool]]:
        """Run a step compiled as it was trained; (holds NaN, holds infinity) of each float tensor of the main graph."""
        ...

    def inputs_of(self, step: int) -> Mapping[str, Sequence[str]]:
        """Return the names of the tensors that each op of the step's main graph takes."""
        ...

    def compiled_event(self, step: int, op: str) -> OpEvent | None:
        """Return one op's execution in the step compiled as it was trained; None for one with handles among its tensors."""
        ...


# What stands for the outputs of a kernel that raised: NaN where compiled programs would give it.
# Pure numpy.

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
    identity = dataclasses.replace(
        event, type="Identity", attrs={"T": event.attrs["T"]}, error=None
    )
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
    outputs = [
        np.array(out) for out in execute(event, [event.inputs[0], valid.astype(labels.dtype)])
    ]
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
