"""What bisecting needs of a replay: one step, run op by op, as often as asked. Pure: imports no TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from nanreplay.records import ArrayLike, BatchRecord, Frame, Incident, OpInfo, Signature, VariableInfo
from nanreplay.replay.events import OpEvent

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
