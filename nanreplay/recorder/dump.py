"""Writing the capture: the window, the programs, the state, the timeline, and proof that they replay."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanreplay.capture.storage import Location, RemotePath, local_copy, publish
from nanreplay.capture.writer import CaptureWriter, writing
from nanreplay.errors import MissingWorkersError, StorageError
from nanreplay.program.collectives import collective_keys, local_program
from nanreplay.program.describe import describe_program
from nanreplay.program.outside import cut, unrecorded_ops
from nanreplay.program.safety import parse_graph
from nanreplay.program.sources import SourceTable
from nanreplay.recorder.disk import Share, Sizes, fit_disk
from nanreplay.recorder.environment import describe_environment
from nanreplay.recorder.names import free_name
from nanreplay.recorder.progress import DumpProgress
from nanreplay.recorder.reexecute import Kind, Reexecution, Reexecutor
from nanreplay.recorder.ring import size_of
from nanreplay.recorder.unmeasured import unmeasured_before
from nanreplay.records import BatchRecord, Incident, ProgramRecord, Trigger

if TYPE_CHECKING:
    from nanreplay.recorder.ring import StepEntry
    from nanreplay.recorder.session import Found, Session
    from nanreplay.recorder.variables import VariableTable

FULL_STEPS = 3
"""Steps, the failing one included, whose weights and gradients are written."""


@dataclass(slots=True)
class Window:
    """What a recording holds of a step and those before it."""

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
    def full(self) -> list[int]:
        """Steps whose weights and gradients re-execution can give."""
        steps = sorted(self.batches)
        if not self.prove or not steps or not self.keyframes or self.trigger.what == "exception":
            return []
        if any(not batch.program for batch in self.batches.values()):
            return []
        return [step for step in steps[-FULL_STEPS:] if step >= min(self.keyframes)]


def write_dump(session: Session, trigger: Trigger, step: int, *, prove: bool = True) -> tuple[Location, Found]:
    """Write everything that `session` holds up to `step`; returns where it is, and the incident as the file has it.

    It is in a local file when the place that was asked for fails. The incident has an earlier step when a variable that was
    not measured in each step turns out to have been non-finite before.

    The window is written first. An incident ends it, so its keyframes are then let go of, one by one, to the variables of
    the re-execution, whose results are written as they come: a dump takes no more memory than the recording did.

    Args:
        session: The recording.
        trigger: Why.
        step: The failing step, else the last whole one.
        prove: Re-execute the window. That takes a while, which a process that was told to end may not have.
    """
    where = free_name(session.settings.path, step=step, written=session.written)
    if not isinstance(where, RemotePath):
        return where, _write(where, session, trigger, step, prove=prove)
    local = local_copy(where)
    try:
        found = _write(local, session, trigger, step, prove=prove)
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


def _write(path: Path, session: Session, trigger: Trigger, step: int, *, prove: bool) -> Found:
    with DumpProgress(path.name) as progress:
        window = gather(session, trigger, step, prove=prove)
        share = fit_disk(_sizes(session, window), session.settings.disk_limit)
        window.notes += share.left_out
        with writing(path, progress.advance) as out:
            _write_window(out, session, window, share, progress)
            if trigger.what in ("loss", "gradient", "variable") and session.ring is not None:
                session.ring.keyframes.clear()
            found = window.proof or _reexecute(session, window, share, out, progress)
            if isinstance(found, Reexecution) and found.earlier is not None:
                window.step, variable, kind = found.earlier
                window.trigger = Trigger("variable", session.variables.path(variable), kind)
                out.forget_after(window.step)
            _finish(out, session, window, found)
            progress.stage("syncing", 1)
    return window.trigger, window.step


def gather(session: Session, trigger: Trigger, step: int, *, prove: bool = True) -> Window:
    """What goes into the file."""
    sources = SourceTable(session.settings.sources)
    entries = session.ring.held(step) if session.ring else []
    used = {entry.program for entry in entries}
    programs = {
        slot.id: describe_program(
            slot.traced, slot.id, variable_index=session.variables.index, metrics=session.variables.of_role("metric"),
            leaf_paths=slot.paths, sources=sources,
        )
        for slot in session.programs
        if slot.id in used or not used
    }  # fmt: skip
    eager = session.eager if session.eager is not None and session.eager.step == step else None
    if eager is not None:
        program_id = f"p{len(session.programs)}"
        flat = eager.describe(program_id, sources)
        programs[program_id] = flat.record
        entries = [
            replace(entry, program=program_id, leaves=flat.leaves, paths=flat.paths) if entry.step == step else entry for entry in entries
        ]
    pairs = zip(entries, [None, *entries[:-1]], strict=False)
    batches = {entry.step: _batch(entry, programs, previous, session.variables) for entry, previous in pairs}
    keyframes = {number: dict(values) for number, values in session.ring.keyframes.items() if number <= step} if session.ring else {}
    given = [*_program_notes(programs.values()), *_undrawn_notes(batches, programs)]
    notes = [*session.notes, *filter(None, [session.keeper.shrunk]), *given]
    return Window(step, trigger, programs, keyframes, batches, notes, sources, None if eager is None else eager.proof, prove)


def _sizes(session: Session, window: Window) -> Sizes:
    sizes = session.variables.sizes
    indices = session.variables.of_role("trainable")
    trainable = sum(sizes[index] for index in indices)
    full = window.full if window.proof is None else [*window.proof.weights]
    return Sizes(
        other=sum(len(program.graph) for program in window.programs.values()) + len(session.timeline.rows) * 16 * (3 + len(indices)),
        keyframes={step: sum(sizes[index] for index in values) for step, values in window.keyframes.items()},
        batches={step: size_of([*batch.arrays, *batch.overrides.values()]) for step, batch in window.batches.items()},
        full=dict.fromkeys(full, 2 * trainable),
    )


def _write_window(out: CaptureWriter, session: Session, window: Window, share: Share, progress: DumpProgress) -> None:
    out.head(describe_environment(), session.variables.infos, [*window.programs.values()], window.sources.frames, window.sources.stacks)
    sizes = _sizes(session, window)
    total = sum(sizes.keyframes[step] for step in share.keyframes) + sum(sizes.batches[step] for step in share.batches)
    progress.stage("writing", total)
    for step in sorted(share.keyframes):
        out.values("keyframes", step, window.keyframes[step])
    for step in sorted(share.batches):
        out.batch(step, window.batches[step])
    if window.proof is not None:
        for step in sorted(share.full):
            out.values("weights", step, window.proof.weights[step])
            out.values("gradients", step, window.proof.gradients.get(step, {}))


def _finish(out: CaptureWriter, session: Session, window: Window, found: Reexecution | str | None) -> None:
    incident = Incident(window.step, window.trigger, tuple(window.notes))
    ratios: dict[int, dict[int, float]] = {}
    norms: dict[int, dict[int, float]] = {}
    if isinstance(found, str):
        incident = replace(incident, notes=(*window.notes, found))
    elif found is not None:
        incident = replace(incident, reproduced=found.reproduced, bit_exact=found.max_ulp == 0, max_ulp=found.max_ulp)
        if found.departs is not None and not any(unrecorded_ops(each.graph, each.signature) for each in window.programs.values()):
            incident = replace(incident, notes=(*window.notes, _departure(found)))
        ratios, norms = found.update_ratios, found.weight_norms
    out.finish(incident, session.timeline.table(sorted(session.variables.of_role("trainable")), ratios, norms, window.step))


def _batch(entry: StepEntry, programs: dict[str, ProgramRecord], previous: StepEntry | None, variables: VariableTable) -> BatchRecord:
    overrides = dict(entry.overrides)
    if entry.program in programs:
        signature = programs[entry.program].signature
        rate = _watched(signature.watch_layout, entry.fingerprint, "learning_rate")
        before = None if previous is None else _watched(signature.watch_layout, previous.fingerprint, "learning_rate")
        if signature.learning_rate is not None and rate is not None and (before is None or rate.tobytes() != before.tobytes()):
            overrides |= dict.fromkeys(variables.replicas_of(signature.learning_rate), rate)
    return BatchRecord(entry.program, entry.leaves, entry.paths, entry.fingerprint, overrides, entry.fed)


def _departure(found: Reexecution) -> str:
    return (
        f"Run once more when the file was written, step {found.departs} differs from what was recorded of it: something changed the "
        "state outside of the recorded steps, or the machine computed otherwise."
    )


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
        idle = cut(parse_graph(program.graph), program.signature).idle | collective_keys(program)
        unheld = [spec.tensor for spec in program.signature.captures if spec.variable is None and spec.constant is None]
        unknown = [tensor for tensor in unheld if tensor not in idle]
        if unknown:
            notes.append(f"Program {program.id} uses resources that are no variables ({', '.join(unknown)}); they cannot be replayed.")
    return notes


def _reexecute(session: Session, window: Window, share: Share, out: CaptureWriter, progress: DumpProgress) -> Reexecution | str | None:
    """Re-execute from the last keyframe that reaches the steps written in full; a sentence when that failed."""
    full = window.full
    if not full:
        return None
    unmeasured: dict[int, list[int]] = {}
    if window.trigger.what in ("loss", "gradient", "variable"):
        unmeasured = unmeasured_before(window.step, window.batches, window.programs, session.variables.born_nonfinite)
    first = min(full[0], *unmeasured) if unmeasured else full[0]
    base = max((step for step in window.keyframes if step <= first), default=min(window.keyframes))
    keyframes = {step: window.keyframes.pop(step) for step in sorted(window.keyframes) if step >= base}
    window.keyframes.clear()
    batches = {step: batch for step, batch in window.batches.items() if step >= base}
    full = [step for step in full if step in share.full]
    progress.stage("replaying the steps for", len(batches))

    def on_full(kind: Kind, step: int, values: Mapping[int, Any]) -> None:
        out.values(kind, step, values)

    try:
        local = {name: local_program(program) for name, program in window.programs.items()}
        return Reexecutor(local, session.variables.infos).run(keyframes, batches, full, on_full, lambda: progress.advance(1), unmeasured)
    except OSError:  # the disk, not the proof
        raise
    except MissingWorkersError as error:
        return f"The window cannot be replayed. {error}"
    except Exception as error:  # the file is worth more than the proof, whatever TensorFlow raises here
        return (
            f"The window could not be re-executed at the dump: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
