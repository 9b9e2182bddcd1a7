"""The programs of a recording, and the ops of an eager step that failed.

Each traced program that steps run has a `ProgramSlot`. `Recording` keeps them, and `dump` writes
those that the window needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanreplay.program.eager_program import FlatProgram
from nanreplay.program.op_facts import SourceTable
from nanreplay.program.traced_program import TracedProgram
from nanreplay.recorder.reexecution import Reexecution
from nanreplay.records import loss_name


@dataclass(frozen=True, slots=True)
class Fetch:
    """What a step fetches from an iterator by itself."""

    kinds: Sequence[Any]
    """DTypes of the flat components of an element."""
    spec: Any
    """Spec of an element; None where it is not known, or where the step takes several."""


@dataclass(slots=True)
class ProgramSlot:
    """A program of the recording."""

    id: str
    traced: TracedProgram
    outputs: Sequence[tuple[str, int]]
    """(name in the fingerprint, index of the output) of each number that a step returns."""
    loss_of: Sequence[str]
    """Whose each loss is, where a strategy runs several replicas."""
    loss_keys: Sequence[str]
    """The key under which each loss is returned (see `Signature`)."""
    mean: tuple[Any, Any] | None
    """Handles of (total, count) of the mean of losses that the step returns, if it returns one."""
    fetch: Fetch | None = None
    """What the step fetches by itself; None where it is given its batch."""

    @classmethod
    def of(cls, traced: TracedProgram, number: int, fetch: Fetch | None) -> ProgramSlot:
        """The slot of a traced program, the `number`-th of the recording."""
        seen = traced.seen
        replicas = seen.loss_replicas() if len(traced.losses) == len(seen.losses()) else ()
        loss_of = tuple(f"replica {replica}" for replica in replicas)
        outputs = traced.layout_of_outputs()
        keys = () if loss_of else traced.loss_keys
        return cls(f"p{number}", traced, outputs, loss_of, keys, traced.mean_of_losses(), fetch)

    def name_of(self, element: str) -> str:
        """What a number of the fingerprint is called."""
        kind, _, index = element.partition(":")
        if kind == "loss":
            return loss_name(int(index), self.loss_of, self.loss_keys)
        return self.traced.output_names[int(index)]

    def is_loss(self, element: str) -> bool:
        """Whether a number of the fingerprint stands for a loss: its own, or one of that name."""
        return element.startswith("loss:") or "loss" in self.name_of(element)


@dataclass(frozen=True, slots=True)
class EagerIncident:
    """The failing step of an eager loop, run once more with every op noted."""

    step: int
    describe: Callable[[str, SourceTable], FlatProgram]
    """Makes the flat program, given its id and the table of sources."""
    proof: Reexecution
    """What the second run gave."""
