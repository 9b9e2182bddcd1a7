"""What the interpreter tells of each op it runs. Pure data: imports no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

FeedKind: TypeAlias = Literal["batch", "variable", "constant"]
"""What a placeholder of a program is fed with."""


class ValueId(NamedTuple):
    """Identity of one tensor of one run: which op instance made it, and as which of its outputs.

    Values that are fed from outside have a negative serial.
    """

    serial: int
    output: int


class Call(NamedTuple):
    """One enclosing call of an op instance: a loop, a branch or a function."""

    function: str
    """Library function that holds the calling op; "" for the main graph."""
    op: str
    """Name of the calling op."""
    op_type: str
    """`While`, `StatelessWhile`, `If`, `StatelessIf`, `Case`, `PartitionedCall`, ..."""
    callee: str
    """Library function that was called."""
    iteration: int | None
    """Iteration from 0 for a loop (body and condition), None otherwise."""


@dataclass(frozen=True, slots=True)
class OpEvent:
    """One execution of one leaf op. Call-like ops (While, If, PartitionedCall) have no event of their own."""

    serial: int
    """Order of execution, from 0."""
    function: str
    """Library function that holds the op; "" for the main graph."""
    name: str
    """Name of the op in its function."""
    type: str
    """Op type, e.g. `MatMul`."""
    calls: tuple[Call, ...]
    """Enclosing calls, outermost first."""
    inputs: tuple[Any, ...]
    """Input tensors (EagerTensors)."""
    input_ids: tuple[ValueId, ...]
    """Where each input came from."""
    outputs: tuple[Any, ...]
    """Output tensors (EagerTensors); empty when the op raised."""
    attrs: Mapping[str, Any]
    """The node's attributes by name (AttrValue protos)."""
    via: tuple[ValueId, ...] = ()
    """For an op that reads storage (ReadVariableOp, TensorListGetItem/Stack/..., OptionalGetValue, StackPopV2):
    the values that had been stored there and that its outputs hold. Empty for a variable not yet written in this run."""
    error: Exception | None = None
    """What the kernel raised, or None."""
