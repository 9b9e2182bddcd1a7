"""One recording: what is kept of each step, when it is an incident, and the file that is then written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanreplay.program.eager_program import FlatProgram
from nanreplay.program.fingerprint import Layout
from nanreplay.program.op_facts import SourceTable
from nanreplay.program.traced_program import TracedProgram
from nanreplay.recorder.reexecution import Reexecution
from nanreplay.recorder.timeline_ring import TimelineRow
from nanreplay.records import Trigger, loss_name

Found = tuple[Trigger, int]
"""An incident and its step."""


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
    mean: tuple[Any, Any] | None
    """Handles of what the mean of the losses that the step returns has added up, and of how much; None where there is none."""
    fetch: Fetch | None = None
    """What the step fetches by itself; None where it is given its batch."""

    def name_of(self, element: str) -> str:
        """What a number of the fingerprint is called."""
        kind, _, index = element.partition(":")
        return (
            loss_name(int(index), self.loss_of)
            if kind == "loss"
            else self.traced.output_names[int(index)]
        )

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


@dataclass(frozen=True, slots=True)
class Ran:
    """What is known of a step that has run."""

    step: int
    slot: ProgramSlot | None
    elapsed_s: float
    with_keyframe: bool
    outputs: Mapping[str, Any]
    """Numbers that it returned, by name in the fingerprint."""
    sums: Any
    """Half the sums of squares of the watched variables, a float64 vector, where they were measured; else None."""
    watched: Sequence[int]
    """Which variables these are."""
    scale: tuple[float, bool] | None
    """(loss scale, whether the update was skipped), where the loss is scaled."""
    learning_rate: float
    mean: tuple[Any, Any] | None = None
    """What the running mean of the losses has added up, and of how much, where that is all that is known of the loss."""


def eager_row(
    step: int, elapsed_s: float, layout: Layout, values: Any, skipped: bool
) -> TimelineRow:
    named = dict(zip(layout.names, (float(value) for value in values), strict=True))
    row = TimelineRow(step, elapsed_s, skipped=skipped, loss=named.get("loss:0", float("nan")))
    row.learning_rate = named.get("learning_rate", float("nan"))
    row.loss_scale = named.get("loss_scale", float("nan"))
    row.sums = {variable: float(values[element]) for element, variable in layout.variables}
    row.gradient_sums = {
        variable: (float(values[total]), float(values[largest]))
        for total, largest, variable in layout.gradients
    }
    return row
