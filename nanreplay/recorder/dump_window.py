"""What goes into a capture, gathered from a snapshot: programs, batches, keyframes, notes.

What cannot be described is left out, and named in a note: the rest of the file is worth having.
`dump` writes and re-executes what is gathered here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.capture.arrays import as_array
from nanreplay.program.collectives import collective_keys, unrecorded_ops_of
from nanreplay.program.fingerprint import NOT_MEASURED
from nanreplay.program.nondeterministic_ops import cut_recorded_ops
from nanreplay.program.op_facts import SourceTable
from nanreplay.program.program_record import describe_program
from nanreplay.program.safety import parse_graph
from nanreplay.recorder.reexecution import Reexecution
from nanreplay.recorder.ring import StepEntry
from nanreplay.recorder.snapshot import Snapshot, TakenApart, leaves_of, numbers_of
from nanreplay.records import BatchRecord, ProgramRecord, Trigger

if TYPE_CHECKING:
    from nanreplay.recorder.program_slots import ProgramSlot


@dataclass(slots=True)
class DumpWindow:
    """What goes into a file."""

    step: int
    trigger: Trigger
    programs: dict[str, ProgramRecord]
    keyframes: dict[int, dict[int, Any]]
    batches: dict[int, BatchRecord]
    notes: list[str]
    sources: SourceTable
    proof: Reexecution | None
    """What a failing eager step gave when it was run once more."""
    prove: bool
    """Whether there is time to re-execute."""
    full_steps: int
    """Last steps whose weights and gradients are written."""

    @property
    def is_replayable(self) -> bool:
        """Whether all its steps can be re-executed."""
        if not self.batches or not self.keyframes:
            return False
        return all(batch.program for batch in self.batches.values())

    @property
    def full(self) -> list[int]:
        """Steps whose weights and gradients re-execution can give."""
        if not self.prove or not self.is_replayable or self.trigger.what == "exception":
            return []
        steps = []
        for step in sorted(self.batches)[-self.full_steps :]:
            if step >= min(self.keyframes):
                steps.append(step)
        return steps


def gather(snapshot: Snapshot, *, prove: bool = True, with_ops: bool = True) -> DumpWindow:
    """What goes into the file; what cannot be described is left out, and named.

    Args:
        snapshot: The recording.
        prove: Whether there is time to re-execute it.
        with_ops: Whether the ops of programs are described, as a file needs them.
    """
    sources = SourceTable(snapshot.settings.sources)
    state_bytes = sum(snapshot.variables.sizes)
    entries = list(snapshot.entries)
    notes: list[str] = []
    programs = _describe_programs(snapshot, entries, sources, notes, with_ops)
    if snapshot.eager is not None:
        entries = _add_eager_program(snapshot, entries, sources, programs)
    slots = {}
    for slot in snapshot.programs:
        if slot.id in programs:
            slots[slot.id] = slot
    batches, taken = {}, TakenApart()
    for entry in entries:
        leaves = leaves_of(entry, slots, taken)
        batches[entry.step] = _batch_record(entry, leaves, programs, slots, notes)
    return DumpWindow(
        snapshot.step,
        snapshot.trigger,
        programs,
        dict(snapshot.keyframes),
        batches,
        [
            *snapshot.notes,
            *notes,
            *_program_notes(programs.values()),
            *_undrawn_notes(batches, programs),
        ],
        sources,
        snapshot.proof,
        prove,
        snapshot.room.full_steps(state_bytes),
    )


# Programs


def _describe_programs(
    snapshot: Snapshot,
    entries: Sequence[StepEntry],
    sources: SourceTable,
    notes: list[str],
    with_ops: bool,
) -> dict[str, ProgramRecord]:
    """The programs that the window uses; all of them where it holds no step."""
    used = {entry.program for entry in entries}
    programs = {}
    for slot in snapshot.programs:
        if used and slot.id not in used:
            continue
        try:
            record = describe_program(
                slot.traced,
                slot.id,
                variable_index=snapshot.variables.index,
                metrics=snapshot.variables.of_role("metric"),
                sources=sources,
                layout=_layout_of(slot, snapshot),
                with_ops=with_ops,
            )
            signature = replace(record.signature, splits_batches=snapshot.splits_batches)
            programs[slot.id] = replace(record, signature=signature)
        except Exception as error:  # the rest of the file is worth having
            notes.append(
                f"The program {slot.id} could not be written ({type(error).__name__}: {error}); "
                "its steps cannot be replayed."
            )
    return programs


def _add_eager_program(
    snapshot: Snapshot,
    entries: Sequence[StepEntry],
    sources: SourceTable,
    programs: dict[str, ProgramRecord],
) -> list[StepEntry]:
    """Add the program of the eager step that failed; returns the entries, that step's with it."""
    assert snapshot.eager is not None
    program_id = f"p{len(snapshot.programs)}"
    flat = snapshot.eager.describe(program_id, sources)
    programs[program_id] = flat.record
    named = []
    for entry in entries:
        if entry.step == snapshot.step:
            named.append(replace(entry, program=program_id, leaves=flat.leaves, paths=flat.paths))
        else:
            named.append(entry)
    return named


def _layout_of(slot: ProgramSlot, snapshot: Snapshot) -> list[str]:
    """Names of the elements of the fingerprints of a program's steps."""
    returned = [name for name, _ in slot.outputs]
    return [*returned, *(f"variable_sum:{index}" for index in snapshot.checked)]


# Batches


def _batch_record(
    entry: StepEntry,
    leaves: Sequence[Any],
    programs: Mapping[str, ProgramRecord],
    slots: Mapping[str, ProgramSlot],
    notes: list[str],
) -> BatchRecord:
    program = entry.program if entry.program in programs else ""
    paths = slots[program].traced.leaf_paths if program in slots else entry.paths
    if program in slots and len(leaves) != len(paths):
        program, paths = "", list(map(str, range(len(leaves))))
        notes.append(
            f"The batch of step {entry.step} could not be kept; the step cannot be replayed."
        )
    numbers = numbers_of(entry, slots)
    if program in programs:
        layout = programs[program].signature.watch_layout
    else:  # an eager step before the failing one: its program may be that of the failing step
        layout = tuple(numbers or ())
    values = fingerprint_values(numbers, layout) if layout else None
    return BatchRecord(program, leaves, paths, values, dict(entry.overrides), entry.fed)


def fingerprint_values(
    numbers: Mapping[str, Any] | None, layout: Sequence[str]
) -> NDArray[Any] | None:
    """What was read of a step, laid out; None where nothing was, or not all that it returned."""
    if numbers is None:
        return None
    values, is_wide = [], False
    for name in layout:
        value = numbers.get(name)
        # Sums of variables are float64 in any case, and say nothing of the precision of the step.
        if not name.startswith("variable_sum:"):
            if value is None:
                return None
            is_wide = is_wide or as_array(value).dtype == np.float64
        values.append(NOT_MEASURED if value is None else value)
    with np.errstate(over="ignore"):
        return np.array(values, np.float64 if is_wide else np.float32)


# Notes: what a replay will not do as the training did


def _undrawn_notes(
    batches: Mapping[int, BatchRecord], programs: Mapping[str, ProgramRecord]
) -> list[str]:
    notes = []
    for step, batch in batches.items():
        if not batch.fed and batch.program in programs and programs[batch.program].signature.fed:
            notes.append(
                f"Step {step} raised before the outputs of its random and Python ops could be "
                "recorded; a replay draws others."
            )
    return notes


def _program_notes(programs: Iterable[ProgramRecord]) -> list[str]:
    notes = []
    for program in programs:
        op_types = unrecorded_ops_of(program)
        if op_types:
            notes.append(
                f"Program {program.id} runs ops inside loops, branches or functions that another "
                f"run does not repeat ({', '.join(op_types)}); their outputs are not in the "
                "capture, and a replay may draw others."
            )
        unknown = _unknown_resources(program)
        if unknown:
            notes.append(
                f"Program {program.id} uses resources that are no variables of a fixed shape "
                f"({', '.join(unknown)}); they cannot be replayed."
            )
    return notes


def _unknown_resources(program: ProgramRecord) -> list[str]:
    """Captured inputs that are neither variables nor constants, and that a replay would read."""
    cut = cut_recorded_ops(parse_graph(program.graph), program.signature)
    unread = cut.idle | cut.unused | collective_keys(program)
    captures = program.signature.captures
    unheld = []
    for spec in captures:
        if spec.variable is None and spec.constant is None:
            unheld.append(spec.tensor)
    return [tensor for tensor in unheld if tensor not in unread]
