"""Writing the capture: the window, the programs, the state, the timeline, and proof that they replay."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.capture.storage import Location, RemotePath, local_copy, publish
from nanreplay.capture.writer import CaptureWriter, writing
from nanreplay.errors import MissingWorkersError, StorageError
from nanreplay.program.collectives import collective_keys, local_program
from nanreplay.program.fingerprint import NOT_MEASURED
from nanreplay.program.nondeterministic_ops import cut, unrecorded_ops
from nanreplay.program.op_facts import SourceTable
from nanreplay.program.program_record import describe_program
from nanreplay.program.safety import parse_graph
from nanreplay.recorder.environment import DumpProgress, describe_environment
from nanreplay.recorder.reexecution import Kind, Reexecution, Reexecutor, Wanted
from nanreplay.recorder.ring import StepEntry, size_of
from nanreplay.recorder.settings import free_name
from nanreplay.recorder.snapshot import Share, Sizes, Snapshot, fit_disk, leaves_of, numbers_of
from nanreplay.recorder.timeline_ring import StepNumbers
from nanreplay.records import BatchRecord, Incident, ProgramRecord, Trigger

if TYPE_CHECKING:
    from nanreplay.recorder.program_slots import Found, ProgramSlot

FULL_STEPS = 3
"""Steps, the failing one included, whose weights and gradients are written."""
QUICK_S = 10.0
"""A window whose steps took no longer is re-executed as a whole, for the losses and norms of all its steps."""


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

    @property
    def is_replayable(self) -> bool:
        """Whether all its steps can be re-executed."""
        return (
            bool(self.batches)
            and bool(self.keyframes)
            and all(batch.program for batch in self.batches.values())
        )

    @property
    def full(self) -> list[int]:
        """Steps whose weights and gradients re-execution can give."""
        if not self.prove or not self.is_replayable or self.trigger.what == "exception":
            return []
        return [step for step in sorted(self.batches)[-FULL_STEPS:] if step >= min(self.keyframes)]


def write_dump(snapshot: Snapshot, *, prove: bool = True) -> tuple[Location, Found]:
    """Write everything that a snapshot holds; returns where it is, and the incident as the file has it.

    It is in a local file when the place that was asked for fails. The incident has an earlier step when re-execution shows that an
    earlier one failed first.

    The window is written first. An incident ends it, so its keyframes are then let go of, one by one, to the variables of
    the re-execution, whose results are written as they come: a dump takes no more memory than the recording did.

    Args:
        snapshot: The recording.
        prove: Re-execute the window. That takes a while, which a process that was told to end may not have.
    """
    where = free_name(snapshot.settings.path, step=snapshot.step, written=snapshot.written)
    if not isinstance(where, RemotePath):
        return where, _write(where, snapshot, prove=prove)
    local = local_copy(where)
    try:
        found = _write(local, snapshot, prove=prove)
    except BaseException:
        local.unlink(missing_ok=True)
        raise
    try:
        publish(local, where)
    except StorageError as error:
        warnings.warn(f"nanreplay: {error}. The capture is kept in {local}", stacklevel=2)
        return local, found
    local.unlink()
    return where, found


def _write(path: Path, snapshot: Snapshot, *, prove: bool) -> Found:
    with DumpProgress(path.name) as progress:
        window = gather(snapshot, prove=prove)
        share = fit_disk(_sizes(snapshot, window), snapshot.settings.disk_limit)
        window.notes += share.left_out
        with writing(path, progress.advance) as out:
            _write_window(out, snapshot, window, share, progress)
            if snapshot.trigger.what in ("loss", "gradient", "variable"):
                snapshot.keyframes.clear()
            found = window.proof or _reexecute(snapshot, window, share, out, progress)
            if isinstance(found, Reexecution) and found.incident is not None:
                window.step, window.trigger = found.incident
                out.forget_after(window.step)
            _finish(out, snapshot, window, found)
            progress.stage("syncing", 1)
    return window.trigger, window.step


def confirm(snapshot: Snapshot) -> bool | None:
    """Whether re-executing the window shows a non-finite loss, gradient or variable; None where it cannot be re-executed."""
    window = gather(snapshot)
    if not window.is_replayable:
        return None
    clean = last_clean(snapshot)
    base = max(
        (step for step in window.keyframes if step <= clean + 1), default=min(window.keyframes)
    )
    batches = {step: batch for step, batch in window.batches.items() if step >= base}
    wanted = Wanted((), clean + 1, clean + 1, snapshot.variables.born_nonfinite)
    try:
        local = {name: local_program(program) for name, program in window.programs.items()}
        keyframes = {step: dict(values) for step, values in window.keyframes.items()}
        found = Reexecutor(local, snapshot.variables.infos).run(keyframes, batches, wanted)
    except Exception:  # then it is better to have a file than none
        return None
    return found.incident is not None


def gather(snapshot: Snapshot, *, prove: bool = True) -> DumpWindow:
    """What goes into the file; what cannot be described is left out, and named."""
    sources = SourceTable(snapshot.settings.sources)
    entries = list(snapshot.entries)
    notes: list[str] = []
    programs = _describe_programs(snapshot, entries, sources, notes)
    if snapshot.eager is not None:
        program_id = f"p{len(snapshot.programs)}"
        flat = snapshot.eager.describe(program_id, sources)
        programs[program_id] = flat.record
        entries = [
            replace(entry, program=program_id, leaves=flat.leaves, paths=flat.paths)
            if entry.step == snapshot.step
            else entry
            for entry in entries
        ]
    slots = {slot.id: slot for slot in snapshot.programs if slot.id in programs}
    batches = {}
    for entry in entries:
        program = entry.program if entry.program in programs else ""
        leaves = leaves_of(entry, slots)
        paths = slots[program].traced.leaf_paths if program in slots else entry.paths
        if program in slots and len(leaves) != len(paths):
            program, paths = "", [str(number) for number in range(len(leaves))]
            notes.append(
                f"The batch of step {entry.step} could not be kept; the step cannot be replayed."
            )
        layout = programs[program].signature.watch_layout if program in programs else ()
        numbers = numbers_of(entry, slots)
        if (
            program not in programs
        ):  # an eager step before the failing one: its program may be that of the failing step
            layout = tuple(numbers or ())
        values = fingerprint_values(numbers, layout) if layout else None
        batches[entry.step] = BatchRecord(
            program, leaves, paths, values, dict(entry.overrides), entry.fed
        )
    notes = [
        *snapshot.notes,
        *notes,
        *_program_notes(programs.values()),
        *_undrawn_notes(batches, programs),
    ]
    return DumpWindow(
        snapshot.step,
        snapshot.trigger,
        programs,
        dict(snapshot.keyframes),
        batches,
        notes,
        sources,
        snapshot.proof,
        prove,
    )


def _describe_programs(
    snapshot: Snapshot, entries: Sequence[StepEntry], sources: SourceTable, notes: list[str]
) -> dict[str, ProgramRecord]:
    used = {entry.program for entry in entries}
    programs = {}
    for slot in snapshot.programs:
        if slot.id in used or not used:
            try:
                programs[slot.id] = describe_program(
                    slot.traced, slot.id, variable_index=snapshot.variables.index, metrics=snapshot.variables.of_role("metric"),
                    sources=sources, layout=layout_of(slot, snapshot),
                )  # fmt: skip
            except Exception as error:  # the rest of the file is worth having
                notes.append(
                    f"The program {slot.id} could not be written ({type(error).__name__}: {error}); its steps cannot be replayed."
                )
    return programs


def layout_of(slot: ProgramSlot, snapshot: Snapshot) -> list[str]:
    """Names of the elements of the fingerprints of a program's steps."""
    return [
        *(name for name, _ in slot.outputs),
        *(f"variable_sum:{index}" for index in snapshot.watched),
    ]


def fingerprint_values(
    numbers: Mapping[str, Any] | None, layout: Sequence[str]
) -> NDArray[Any] | None:
    """What was read of a step, laid out; None where nothing was, or not all that the step returned."""
    if numbers is None:
        return None
    values = []
    for name in layout:
        value = numbers.get(name, NOT_MEASURED if name.startswith("variable_sum:") else None)
        if value is None:
            return None
        values.append(value)
    is_wide = any(
        np.asarray(value).dtype == np.float64
        for name, value in numbers.items()
        if not name.startswith("variable_sum:")
    )
    with np.errstate(over="ignore"):
        return np.array(values, np.float64 if is_wide else np.float32)


def _sizes(snapshot: Snapshot, window: DumpWindow) -> Sizes:
    sizes = snapshot.variables.sizes
    indices = snapshot.variables.of_role("trainable")
    trainable = sum(sizes[index] for index in indices)
    full = window.full if window.proof is None else [*window.proof.weights]
    return Sizes(
        other=sum(len(program.graph) for program in window.programs.values())
        + len(snapshot.timeline.rows) * 16 * (3 + len(indices)),
        keyframes={
            step: sum(sizes[index] for index in values) for step, values in window.keyframes.items()
        },
        batches={
            step: size_of([*batch.arrays, *batch.overrides.values()])
            for step, batch in window.batches.items()
        },
        full=dict.fromkeys(full, 2 * trainable),
    )


def _write_window(
    out: CaptureWriter, snapshot: Snapshot, window: DumpWindow, share: Share, progress: DumpProgress
) -> None:
    infos = snapshot.variables.infos
    out.head(
        describe_environment(),
        infos,
        [*window.programs.values()],
        window.sources.frames,
        window.sources.stacks,
    )
    sizes = _sizes(snapshot, window)
    total = sum(sizes.keyframes[step] for step in share.keyframes) + sum(
        sizes.batches[step] for step in share.batches
    )
    progress.stage("writing", total)
    for step in sorted(share.keyframes):
        out.values("keyframes", step, window.keyframes[step])
    for step in sorted(share.batches):
        out.batch(step, window.batches[step])
    if window.proof is not None:
        for step in sorted(share.full):
            out.values("weights", step, window.proof.weights[step])
            out.values("gradients", step, window.proof.gradients.get(step, {}))


def _finish(
    out: CaptureWriter, snapshot: Snapshot, window: DumpWindow, found: Reexecution | str | None
) -> None:
    incident = Incident(window.step, window.trigger, tuple(window.notes))
    numbers: Mapping[int, StepNumbers] = {}
    if isinstance(found, str):
        incident = replace(incident, notes=(*window.notes, found))
    elif found is not None:
        incident = replace(
            incident,
            reproduced=found.reproduced,
            bit_exact=found.max_ulp == 0,
            max_ulp=found.max_ulp,
        )
        if found.departs is not None and not any(
            unrecorded_ops(each.graph, each.signature) for each in window.programs.values()
        ):
            incident = replace(incident, notes=(*window.notes, _departure(found)))
        numbers = found.numbers
    out.finish(
        incident,
        snapshot.timeline.table(
            sorted(snapshot.variables.of_role("trainable")), numbers, window.step
        ),
    )


def _departure(found: Reexecution) -> str:
    return (
        f"Run once more when the file was written, step {found.departs} differs from what was recorded of it: something changed the "
        "state outside of the recorded steps, or the machine computed otherwise."
    )


def _undrawn_notes(
    batches: Mapping[int, BatchRecord], programs: Mapping[str, ProgramRecord]
) -> list[str]:
    return [
        f"Step {step} raised before the outputs of its random and Python ops could be recorded; a replay draws others."
        for step, batch in batches.items()
        if not batch.fed and batch.program in programs and programs[batch.program].signature.fed
    ]


def _program_notes(programs: Any) -> list[str]:
    notes = []
    for program in programs:
        names = unrecorded_ops(program.graph, program.signature)
        if names:
            notes.append(
                f"Program {program.id} runs ops inside loops, branches or functions that another run does not repeat "
                f"({', '.join(names)}); their outputs are not in the capture, and a replay may draw others."
            )
        found = cut(parse_graph(program.graph), program.signature)
        idle = found.idle | found.unused | collective_keys(program)
        unheld = [
            spec.tensor
            for spec in program.signature.captures
            if spec.variable is None and spec.constant is None
        ]
        unknown = [tensor for tensor in unheld if tensor not in idle]
        if unknown:
            notes.append(
                f"Program {program.id} uses resources that are no variables ({', '.join(unknown)}); they cannot be replayed."
            )
    return notes


def _reexecute(
    snapshot: Snapshot, window: DumpWindow, share: Share, out: CaptureWriter, progress: DumpProgress
) -> Reexecution | str | None:
    """Re-execute the window: all of it where that is quick, else what dates the incident; a sentence when that failed."""
    full = window.full
    if not full:
        return None
    dates = (
        window.trigger.what in ("loss", "gradient", "variable")
        and window.trigger.name != "loss scale"
    )
    clean = last_clean(snapshot)
    first = min(full[0], clean + 1) if dates else full[0]
    if (snapshot.step_s or 0.0) * len(window.batches) <= QUICK_S:
        first = min(window.keyframes)
    base = max((step for step in window.keyframes if step <= first), default=min(window.keyframes))
    keyframes = {
        step: window.keyframes.pop(step) for step in sorted(window.keyframes) if step >= base
    }
    window.keyframes.clear()
    batches = {step: batch for step, batch in window.batches.items() if step >= base}
    full = [step for step in full if step in share.full]
    progress.stage("replaying the steps for", len(batches))
    wanted = Wanted(
        full, first, clean + 1 if dates else window.step + 1, snapshot.variables.born_nonfinite
    )

    def on_full(kind: Kind, step: int, values: Mapping[int, Any]) -> None:
        out.values(kind, step, values)

    try:
        local = {name: local_program(program) for name, program in window.programs.items()}
        return Reexecutor(local, snapshot.variables.infos).run(
            keyframes, batches, wanted, on_full, lambda: progress.advance(1)
        )
    except OSError:  # the disk, not the proof
        raise
    except MissingWorkersError as error:
        return f"The window cannot be replayed. {error}"
    except (
        Exception
    ) as error:  # the file is worth more than the proof, whatever TensorFlow raises here
        return f"The window could not be re-executed at the dump: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def last_clean(snapshot: Snapshot) -> int:
    """The last step, before the one that was seen to fail, after which all watched variables were looked at; -1 for none.

    Slots of the optimizer are looked at less often, and one may have turned infinite before. So the keyframe before that step is what
    a re-execution should begin at: keyframes are taken of slots that were looked at.
    """
    measured = [
        row.step
        for row in snapshot.timeline.rows
        if row.sums is not None and row.step < snapshot.step
    ]
    before = max(measured, default=-1)
    return max((step for step in snapshot.keyframes if step <= before + 1), default=0) - 1
