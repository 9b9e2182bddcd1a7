"""Calls of compiled functions, seen from outside: each one that trains is a step, whoever makes it.

What trains is the very function that would train without a recorder; where it fetches its batch by itself, a variant of it that
tells what it fetched (see `program/fetching`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from nanreplay.program.fetching import TAKEN_TOGETHER, Variant, components_of
from nanreplay.program.fingerprint import nonfinite_kind
from nanreplay.program.traced_program import TracedProgram, source_of
from nanreplay.program.training_functions import TrainingFunction
from nanreplay.recorder.lifecycle import Suspicion
from nanreplay.recorder.program_slots import ProgramSlot
from nanreplay.recorder.recording import Recording
from nanreplay.recorder.ring import StepEntry
from nanreplay.records import Trigger

SMALL_BYTES = 2**20
"""Larger batches are taken one by one, so that no more of them are held than the plan says."""


@dataclass(slots=True)
class RecordedFunction:
    """A compiled function that trains, ready to be recorded."""

    function: Any
    """A weak reference to the ConcreteFunction."""
    slot: ProgramSlot
    variant: Variant | None
    """What is run in its place, where it fetches its batch or draws what another run would not."""
    outputs: Sequence[tuple[str, int]]
    """(name in the fingerprint, position among the flat outputs of the call) of the numbers that it returns."""
    optional_kinds: Sequence[Any] = ()
    """DTypes of the program's outputs, where the function returns them in an Optional."""
    steps_in_call: bool = False
    """Whether one call runs as many steps as it fetches elements."""
    steps_per_call: int = 0
    """How many steps a call runs, where that is known: all of them, unless the data ends."""
    calls: int = 0
    """How many calls ran several steps."""
    is_stacked: bool = False
    """Whether one call is one step that fetches several elements, one in each iteration of a loop."""
    batch_bytes: int = 0
    """Size of a batch that it fetched."""
    waiting: deque[StepEntry] = field(default_factory=deque)
    """Steps whose batch has been fetched, and is to be taken from the staging area."""

    def runs_steps(self, count: int) -> None:
        """Each call runs `count` steps, unless the data ends; as many calls as hold no more than single steps do are taken together."""
        self.steps_per_call = count
        if self.variant is not None and self.variant.batches is not None:
            calls = TAKEN_TOGETHER * SMALL_BYTES // max(1, count * self.batch_bytes)
            self.variant.batches.together = count * max(1, min(calls, TAKEN_TOGETHER))

    @property
    def together(self) -> int:
        """Steps whose small batches are taken at once."""
        return (
            TAKEN_TOGETHER
            if self.variant is None or self.variant.batches is None
            else self.variant.batches.together
        )

    def outputs_of(self, flat: list[Any]) -> list[Any] | None:
        """What the program returned, in its last step of a call; None where the data ended before that.

        Args:
            flat: Flat outputs of the call.
        """
        if self.steps_in_call:
            return components_of(flat[0], self.optional_kinds) if len(flat) == 1 else None
        assert self.variant is not None
        return flat[self.variant.n_original : self.variant.n_original + self.variant.n_returned]

    def take(self) -> Any:
        """What steps have fetched: a vector of Optionals; None for nothing."""
        return (
            None
            if self.variant is None or self.variant.batches is None
            else self.variant.batches.take()
        )


def output_positions(
    training: TrainingFunction, program: TracedProgram, variant: Variant | None
) -> list[tuple[str, int]]:
    """Where the numbers that the program returns are among the flat outputs of a call."""
    named = program.layout_of_outputs()
    if program.graph is training.graph:
        return named
    if variant is not None and variant.n_returned:
        return [(name, variant.n_original + index) for name, index in named]
    caller = training.innermost[1]
    if caller is None or caller.graph is not training.graph:
        return []
    outputs = [source_of(tensor) for tensor in training.graph.outputs]
    wanted = {index: name for name, index in named}
    found: dict[str, int] = {}
    for position, tensor in enumerate(outputs):
        if tensor.op is caller.op and tensor.value_index in wanted:
            found.setdefault(wanted[tensor.value_index], position)
    return list(found.items())


def look_after_failure(session: Recording, result: Any) -> Suspicion | None:
    """What is not finite after a step that is not recorded any more: a number that it returned, or a variable."""
    try:
        for leaf in tf.nest.flatten(result, expand_composites=True):
            if (
                tf.is_tensor(leaf)
                and leaf.dtype.is_floating
                and leaf.shape.rank == 0
                and (kind := nonfinite_kind(leaf))
            ):
                return Suspicion(Trigger("loss", "loss", kind), session.step, is_certain=True)
        return session.bad_now()
    except Exception:  # the recorder has failed already; the training goes on
        return None
