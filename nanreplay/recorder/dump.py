"""Writing the capture: the window, the programs, the state, the timeline, and proof that they replay."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nanreplay.capture.storage import Location, RemotePath, local_copy, publish
from nanreplay.capture.writer import write_capture
from nanreplay.errors import StorageError
from nanreplay.program.describe import describe_program
from nanreplay.program.outside import cut, unrecorded_ops
from nanreplay.program.safety import parse_graph
from nanreplay.program.sources import SourceTable
from nanreplay.recorder.environment import describe_environment
from nanreplay.recorder.names import free_name
from nanreplay.recorder.reexecute import Reexecution, Reexecutor
from nanreplay.records import BatchRecord, CaptureContents, Incident, ProgramRecord, Trigger

if TYPE_CHECKING:
    from nanreplay.recorder.ring import StepEntry
    from nanreplay.recorder.session import Session


def write_dump(session: Session, trigger: Trigger, step: int, *, prove: bool = True) -> Location:
    """Write everything that `session` holds up to `step`; returns where it is: a local file when the place that was asked for fails.

    Args:
        session: The recording.
        trigger: Why.
        step: The failing step, else the last whole one.
        prove: Re-execute the window. That takes a while, which a process that was told to end may not have.
    """
    where = free_name(session.settings.path, step=step, written=session.written)
    contents = gather(session, trigger, step, prove=prove)
    if not isinstance(where, RemotePath):
        write_capture(where, contents)
        return where
    local = local_copy(where)
    try:
        write_capture(local, contents)
    except BaseException:
        local.unlink(missing_ok=True)
        raise
    try:
        publish(local, where)
    except StorageError as error:
        warnings.warn(f"nanreplay: {error}. The capture is kept in {local}", stacklevel=2)
        return local
    local.unlink()
    return where


def gather(session: Session, trigger: Trigger, step: int, *, prove: bool = True) -> CaptureContents:
    """What goes into the file."""
    sources = SourceTable(session.settings.sources)
    programs = {
        slot.id: describe_program(
            slot.traced, slot.id, variable_index=session.variables.index, metrics=session.variables.of_role("metric"),
            leaf_paths=slot.paths, sources=sources,
        )
        for slot in session.programs
    }  # fmt: skip
    eager = session.eager if session.eager is not None and session.eager.step == step else None
    entries = session.ring.held(step) if session.ring else []
    if eager is not None:
        program_id = f"p{len(programs)}"
        flat = eager.describe(program_id, sources)
        programs[program_id] = flat.record
        entries = [
            replace(entry, program=program_id, leaves=flat.leaves, paths=flat.paths) if entry.step == step else entry for entry in entries
        ]
    batches = {entry.step: _batch(entry, programs, previous) for entry, previous in zip(entries, [None, *entries[:-1]], strict=False)}
    given = [*_program_notes(programs.values()), *_undrawn_notes(batches, programs)]
    notes = [*session.notes, *filter(None, [session.keeper.shrunk]), *given]
    incident = Incident(step, trigger, tuple(notes))
    keyframes = {number: values for number, values in session.ring.keyframes.items() if number <= step} if session.ring else {}
    found: Reexecution | str | None = eager.proof if eager is not None else None
    if prove and eager is None:
        found = _reexecute(session, programs, keyframes, batches, incident)
    if isinstance(found, str):
        incident, found = replace(incident, notes=(*notes, found)), Reexecution()
    elif found is not None:
        incident = replace(incident, reproduced=found.reproduced, bit_exact=found.max_ulp == 0, max_ulp=found.max_ulp)
    found = found or Reexecution()
    trainable = sorted(session.variables.of_role("trainable"))
    return CaptureContents(
        metadata=describe_environment(),
        variables=tuple(session.variables.infos),
        programs=tuple(programs.values()),
        keyframes=keyframes,
        batches=batches,
        timeline=session.timeline.table(trainable, found.update_ratios),
        incident=incident,
        weights=found.weights,
        gradients=found.gradients,
        frames=tuple(sources.frames),
        stacks=tuple(sources.stacks),
    )


def _batch(entry: StepEntry, programs: dict[str, ProgramRecord], previous: StepEntry | None) -> BatchRecord:
    overrides = {}
    if entry.program in programs:
        signature = programs[entry.program].signature
        rate = _watched(signature.watch_layout, entry.fingerprint, "learning_rate")
        before = None if previous is None else _watched(signature.watch_layout, previous.fingerprint, "learning_rate")
        if signature.learning_rate is not None and rate is not None and (before is None or rate.tobytes() != before.tobytes()):
            overrides[signature.learning_rate] = rate
    return BatchRecord(entry.program, entry.leaves, entry.paths, entry.fingerprint, overrides, entry.fed)


def _undrawn_notes(batches: Mapping[int, BatchRecord], programs: Mapping[str, ProgramRecord]) -> list[str]:
    return [
        f"Step {step} raised before the outputs of its random and Python ops could be recorded; a replay draws others."
        for step, batch in batches.items()
        if not batch.fed and batch.program in programs and programs[batch.program].signature.fed
    ]


def _watched(layout: Sequence[str], values: Any, name: str) -> Any:
    if values is None or name not in layout or len(values) != len(layout):
        return None
    return np.asarray(values[layout.index(name)], np.float32)


def _program_notes(programs: Any) -> list[str]:
    notes = []
    for program in programs:
        names = unrecorded_ops(program.graph, program.signature)
        if names:
            notes.append(
                f"Program {program.id} runs ops inside loops, branches or functions that another run does not repeat "
                f"({', '.join(names)}); their outputs are not in the capture, and a replay may draw others."
            )
        idle = cut(parse_graph(program.graph), program.signature).idle
        unheld = [spec.tensor for spec in program.signature.captures if spec.variable is None and spec.constant is None]
        unknown = [tensor for tensor in unheld if tensor not in idle]
        if unknown:
            notes.append(f"Program {program.id} uses resources that are no variables ({', '.join(unknown)}); they cannot be replayed.")
    return notes


def _reexecute(
    session: Session, programs: dict[str, ProgramRecord], keyframes: dict[int, Any], batches: dict[int, BatchRecord], incident: Incident
) -> Reexecution | str | None:
    """Re-execute from the last keyframe that reaches the steps written in full; a sentence when that failed."""
    steps = [step for step in sorted(batches) if step <= incident.step]
    if not steps or not keyframes or incident.trigger.what == "exception" or any(not batches[step].program for step in steps):
        return None
    full = steps[-session.settings.full_steps :]
    base = max((step for step in keyframes if step <= full[0]), default=min(keyframes))
    window = {step: batches[step] for step in steps if step >= base}
    try:
        return Reexecutor(programs, session.variables.infos).run(keyframes, window, full)
    except Exception as error:  # the file is worth more than the proof, whatever TensorFlow raises here
        return (
            f"The window could not be re-executed at the dump: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
