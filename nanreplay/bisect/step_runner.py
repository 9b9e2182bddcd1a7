"""What bisecting needs of a replay: one step, run op by op, as often as asked.

`StepRunner` is the interface, which `nanreplay.replay.Replay` and the tests' small graphs fulfil.
`repaired` lets such a run go on after a kernel raised. Imports no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from nanreplay.bisect.influence import Execute
from nanreplay.bisect.tensor_stats import words
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
from nanreplay.replay.matrix_changes import MatrixChange
from nanreplay.replay.provenance import FeedKind, OpEvent

Observer: TypeAlias = Callable[[OpEvent], Sequence[Any] | None]
ErrorHandler: TypeAlias = Callable[[OpEvent], Sequence[Any]]
OpKey: TypeAlias = tuple[str, str]
"""(function, op name); function is "" for the main graph."""


class StepRunner(Protocol):
    """Replays steps of a recorded window op by op; each run begins in the state before its step."""

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
        """Run a step and return the fetched tensors by name.

        What the observer raises passes through, and ends the run.

        Args:
            step: One of `steps`.
            observer: Called after each op.
            batch: Leaves to feed in place of the recorded ones.
            on_error: Called when a kernel raises; returns the op's outputs.
            fetches: Tensor names of the main graph.
                None stands for the program's outputs, losses and gradients.
            update: Whether everything runs for its effect; False runs only what `fetches` need.
        """
        ...

    def execute(self, event: OpEvent, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run an event's kernel (its type and attributes) on other inputs, tensors or arrays."""
        ...

    def batch(self, step: int) -> BatchRecord:
        """Return the input of a step."""
        ...

    def constants(self, step: int) -> Sequence[ArrayLike]:
        """Return what the step's program takes from outside that is no variable, by index."""
        ...

    def feed_names(self, step: int) -> Sequence[tuple[FeedKind, int]]:
        """Return what `ValueId(-1 - i, 0)` stands for, by i: (kind of the feed, its index)."""
        ...

    def state(self, step: int) -> Mapping[int, ArrayLike]:
        """Return the variables just before a step, by index."""
        ...

    def change(self, step: int) -> MatrixChange:
        """Return how far a step moved the trainable matrices."""
        ...

    def source(self, stack: int) -> Frame | None:
        """Return the innermost frame of user code of a stack."""
        ...

    def probe(self, step: int) -> Mapping[str, tuple[bool, bool]]:
        """Run a step compiled as it was trained, and look at the float tensors of the main graph.

        Returns (holds NaN, holds infinity) by tensor name.
        """
        ...

    def inputs_of(self, step: int) -> Mapping[str, Sequence[str]]:
        """Return the names of the tensors that each op of the step's main graph takes."""
        ...

    def compiled_event(self, step: int, op: str, *, one_by_one: bool = False) -> OpEvent | None:
        """Return one op's execution in the step compiled as it was trained.

        None for an op with handles among its tensors. `one_by_one` compiles the step once for each
        of its tensors, so that the compiler sees no other reader of what leads to it.
        """
        ...


# Repairs. TensorFlow's kernels raise in some places where a program compiled with XLA goes on.
# To see what such a program does with the value, an op-by-op run goes on with the outputs that
# the compiled program would have.

PASSIVE = words("Assert CheckNumerics CheckNumericsV2")
"""Ops that raise because of what they got: they are never the origin."""


def repaired(event: OpEvent, execute: Execute) -> Sequence[Any] | None:
    """Return outputs with which a run can go on after a kernel raised.

    None when nothing fitting is known.

    Args:
        event: The execution that raised.
        execute: Runs the event's kernel on other inputs.
    """
    repair = _REPAIRS.get(event.type)
    if repair is None:
        return None
    try:
        return repair(event, execute)
    except Exception:  # the kernel raised for another reason than the repair expects
        return None


def _pass_on(event: OpEvent, execute: Execute) -> Sequence[Any]:
    return event.inputs[:1]


def _no_outputs(event: OpEvent, execute: Execute) -> Sequence[Any]:
    return ()


def _cross_entropy(event: OpEvent, execute: Execute) -> Sequence[Any]:
    """Give NaN in rows whose label is out of range, as XLA does, and the usual in the others."""
    logits, labels = as_array(event.inputs[0]), as_array(event.inputs[1])
    valid_labels = np.clip(labels, 0, logits.shape[-1] - 1)
    is_out_of_range = valid_labels != labels
    kernel_outputs = execute(event, [event.inputs[0], valid_labels.astype(labels.dtype)])
    outputs = list(map(np.array, kernel_outputs))  # copies: tensors are read-only
    for output in outputs:
        output[is_out_of_range] = np.nan
    return [_as_tensor(event, execute, output) for output in outputs]


_INDEX_RANGE = re.compile(r"is not in \[0, (\d+)\)")


def _clipped_gather(event: OpEvent, execute: Execute) -> Sequence[Any]:
    """Clip indices that are out of range, as XLA does."""
    axis = int(as_array(event.inputs[2])) if len(event.inputs) > 2 else 0
    indices = as_array(event.inputs[1])
    if event.type == "ResourceGather":  # of a variable, whose rows only the message tells
        told = _INDEX_RANGE.search(str(event.error))
        if told is None:
            raise ValueError(f"no range of rows in {event.error}")
        last = int(told[1]) - 1
    else:
        last = int(event.inputs[0].shape[axis]) - 1
    valid_indices = np.clip(indices, 0, last).astype(indices.dtype)
    return execute(event, [event.inputs[0], valid_indices, *event.inputs[2:]])


def _matrices(like: int) -> Callable[[OpEvent, Execute], Sequence[Any]]:
    """Return a repair that runs matrices one by one and gives NaN for those that raise.

    Args:
        like: Which input has the output's shape.
    """

    def repair(event: OpEvent, execute: Execute) -> Sequence[Any]:
        arrays = list(map(as_array, event.inputs))
        output = np.full(arrays[like].shape, np.nan, arrays[like].dtype)
        for index in np.ndindex(*arrays[0].shape[:-2]):
            try:
                output[index] = as_array(execute(event, [array[index] for array in arrays])[0])
            except Exception:  # this matrix is one of those that made the kernel raise
                continue
        return [_as_tensor(event, execute, output)]

    return repair


def _as_tensor(event: OpEvent, execute: Execute, array: Any) -> Any:
    """Turn an array into a tensor, by the one way to TensorFlow that there is here: a kernel."""
    dtype = {"T": event.attrs["T"]}
    identity = dataclasses.replace(event, type="Identity", attrs=dtype, error=None)
    return execute(identity, [array])[0]


_REPAIRS: dict[str, Callable[[OpEvent, Execute], Sequence[Any] | None]] = {
    **dict.fromkeys(("MatrixInverse", "Cholesky", "MatrixSquareRoot"), _matrices(like=0)),
    **dict.fromkeys(("MatrixSolve", "MatrixTriangularSolve"), _matrices(like=1)),
    **dict.fromkeys(("CheckNumerics", "CheckNumericsV2"), _pass_on),
    **dict.fromkeys(("Gather", "GatherV2", "ResourceGather"), _clipped_gather),
    "Assert": _no_outputs,
    "SparseSoftmaxCrossEntropyWithLogits": _cross_entropy,
}
