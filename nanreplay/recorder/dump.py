"""Writing the capture: the window, the state, the timeline, and proof that they replay.

`Recording.write` calls `write_dump` with a snapshot; `Recording.confirm` calls `confirm` where only
a re-execution can tell whether a step is an incident.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanreplay import limits
from nanreplay.capture.storage import Location, RemotePath, local_copy, publish
from nanreplay.capture.writer import CaptureWriter, writing
from nanreplay.errors import MissingWorkersError, StorageError, first_line, reason_line
from nanreplay.program.collectives import local_program
from nanreplay.program.nondeterministic_ops import unrecorded_ops
from nanreplay.recorder.dump_window import DumpWindow, gather
from nanreplay.recorder.environment import DumpProgress, describe_environment
from nanreplay.recorder.reexecution import Reexecution, Reexecutor, ValueKind, Wanted
from nanreplay.recorder.ring import size_of
from nanreplay.recorder.room import FULL_STEPS
from nanreplay.recorder.settings import free_name
from nanreplay.recorder.snapshot import Share, Sizes, Snapshot, fit_disk
from nanreplay.recorder.spool import SpooledValue
from nanreplay.recorder.timeline_ring import StepNumbers
from nanreplay.records import BatchRecord, Incident

if TYPE_CHECKING:
    from nanreplay.recorder.lifecycle import DatedIncident

QUICK_S = 5.0
"""A window whose steps took no longer is re-executed as a whole: all its steps get numbers."""
NUMBERED_SHARE = 5
"""Of a slower one, at most one step in so many is run a second time for its gradients."""


def write_dump(snapshot: Snapshot, *, prove: bool = True) -> tuple[Location, DatedIncident]:
    """Write everything that a snapshot holds.

    The window is written first. An incident ends it, so its keyframes are then let go of, one by
    one, to the variables of the re-execution, whose results are written as they come: a dump takes
    no more memory than the recording did.

    Args:
        snapshot: The recording.
        prove: Re-execute the window. That takes a while, which a process that was told to end may
            not have.

    Returns:
        Where it is, and the incident as the file has it. It is in a local file when the place that
        was asked for fails. The incident has an earlier step when re-execution shows that an
        earlier one failed first.
    """
    where = free_name(snapshot.settings.path, step=snapshot.step, written=snapshot.written)
    if not isinstance(where, RemotePath):
        return where, _write(where, snapshot, prove=prove)
    local = local_copy(where)
    try:
        incident = _write(local, snapshot, prove=prove)
    except BaseException:
        local.unlink(missing_ok=True)
        raise
    try:
        publish(local, where)
    except StorageError as error:
        warnings.warn(f"nanreplay: {error}. The capture is kept in {local}", stacklevel=2)
        return local, incident
    local.unlink()
    return where, incident


def _write(path: Path, snapshot: Snapshot, *, prove: bool) -> DatedIncident:
    with DumpProgress(path.name) as progress:
        window = gather(snapshot, prove=prove)
        share = _fitting_share(snapshot, window)
        window.notes += [*share.left_out, *_only_last_full(snapshot, window)]
        with writing(path, progress.advance, hurried=not prove) as out:
            _write_window(out, snapshot, window, share, progress)
            if snapshot.trigger.what in ("loss", "gradient", "variable"):
                snapshot.keyframes.clear()  # the window alone holds them from here on
            proof = window.proof or _reexecute(snapshot, window, share, out, progress)
            if isinstance(proof, Reexecution) and proof.incident is not None:
                window.step, window.trigger = proof.incident
                out.forget_after(window.step)
            _finish(out, snapshot, window, proof)
            progress.stage("syncing", 1)
    return window.trigger, window.step


def _fitting_share(snapshot: Snapshot, window: DumpWindow) -> Share:
    sizes = _sizes(snapshot, window)
    state_bytes = sum(snapshot.variables.sizes)
    limit = snapshot.room.disk_bytes(state_bytes, max(sizes.batches.values(), default=0))
    is_given = snapshot.room.is_disk_given
    return fit_disk(sizes, limit, "disk_limit" if is_given else 'disk_limit="auto"')


def _only_last_full(snapshot: Snapshot, window: DumpWindow) -> list[str]:
    """Say that a large state's weights and gradients are those of the failing step alone."""
    if not window.full or window.full_steps >= FULL_STEPS or snapshot.settings.full_steps:
        return []
    size = limits.readable_size(sum(snapshot.variables.sizes))
    return [
        f"The state has {size}, so the gradients of the failing step and the weights "
        f"before it alone are in the file; full_steps={FULL_STEPS} writes those of the two before "
        "as well."
    ]


def _sizes(snapshot: Snapshot, window: DumpWindow) -> Sizes:
    sizes = snapshot.variables.sizes
    trainable = snapshot.variables.of_role("trainable")
    trainable_bytes = sum(sizes[index] for index in trainable)
    full = window.full if window.proof is None else [*window.proof.weights]
    full_bytes = dict.fromkeys(full, 2 * trainable_bytes)
    if full and window.proof is None:
        # The weights before the last step are those after the one before it.
        written = [*(trainable if len(full) > 1 or _weights_before_alone(snapshot, window) else ())]
        others = set(_before(snapshot)).difference(written)
        full_bytes[max(full)] += sum(sizes[index] for index in others)
    timeline_bytes = snapshot.timeline.written_bytes(len(trainable), len(snapshot.timeline))
    return Sizes(
        other=sum(len(program.graph) for program in window.programs.values()) + timeline_bytes,
        keyframes={
            step: sum(sizes[index] for index in values) for step, values in window.keyframes.items()
        },
        batches={
            step: size_of([*batch.arrays, *batch.overrides.values()])
            for step, batch in window.batches.items()
        },
        full=full_bytes,
    )


def _before(snapshot: Snapshot) -> tuple[int, ...]:
    """The variables that are written as they were just before the failing step.

    All of them; of a large state, those that the forward and the backward pass can read. Its
    optimizer's slots, which would double the file, are left to the replay from a keyframe.
    """
    infos = snapshot.variables.infos
    if not snapshot.room.is_large(sum(snapshot.variables.sizes)):
        return tuple(range(len(infos)))
    return tuple(
        index for index, info in enumerate(infos) if info.role != "optimizer" or not info.shape
    )


def _weights_before_alone(snapshot: Snapshot, window: DumpWindow) -> bool:
    """Whether the weights before the failing step are written in place of those after it."""
    return window.full_steps == 1 and snapshot.room.is_large(sum(snapshot.variables.sizes))


def _write_window(
    out: CaptureWriter, snapshot: Snapshot, window: DumpWindow, share: Share, progress: DumpProgress
) -> None:
    out.head(
        describe_environment(),
        snapshot.variables.infos,
        [*window.programs.values()],
        window.sources.frames,
        window.sources.stacks,
    )
    sizes = _sizes(snapshot, window)
    keyframe_bytes = sum(sizes.keyframes[step] for step in share.keyframes)
    batch_bytes = sum(sizes.batches[step] for step in share.batches)
    progress.stage("writing", keyframe_bytes + batch_bytes)
    for step in sorted(share.keyframes):
        out.values("keyframes", step, window.keyframes[step])
    for step in sorted(share.batches):
        out.batch(step, window.batches[step])
    if window.proof is not None:
        for step in sorted(share.full):
            out.values("weights", step, window.proof.weights[step])
            out.values("gradients", step, window.proof.gradients.get(step, {}))


def _finish(
    out: CaptureWriter, snapshot: Snapshot, window: DumpWindow, proof: Reexecution | str | None
) -> None:
    """Write the incident, with the proof or the sentence that says why there is none."""
    incident = Incident(window.step, window.trigger, tuple(window.notes))
    numbers: Mapping[int, StepNumbers] = {}
    if isinstance(proof, str):
        incident = replace(incident, notes=(*window.notes, proof))
    elif proof is not None:
        incident = replace(
            incident,
            reproduced=proof.reproduced,
            bit_exact=proof.max_ulp == 0,
            max_ulp=proof.max_ulp,
        )
        # With ops that draw otherwise in each run, a step that differs says nothing.
        if proof.departs is not None and not _has_unrecorded_ops(window):
            incident = replace(incident, notes=(*window.notes, _departure(proof.departs)))
        numbers = proof.numbers
    trainable = sorted(snapshot.variables.of_role("trainable"))
    out.finish(incident, snapshot.timeline.table(trainable, numbers, window.step))


def _has_unrecorded_ops(window: DumpWindow) -> bool:
    programs = window.programs.values()
    return any(unrecorded_ops(program.graph, program.signature) for program in programs)


def _departure(step: int) -> str:
    return (
        f"Run once more when the file was written, step {step} differs from what was recorded of "
        "it: something changed the state outside of the recorded steps, or the machine computed "
        "otherwise."
    )


# Re-execution


def _reexecute(
    snapshot: Snapshot, window: DumpWindow, share: Share, out: CaptureWriter, progress: DumpProgress
) -> Reexecution | str | None:
    """Re-execute the window: all of it where that is quick, else what dates the incident.

    Returns:
        What that gave; a sentence when it failed, and None when there was nothing to prove.
    """
    full = window.full
    if window.trigger.what == "exception":
        _write_state_before(snapshot, window, share, out, progress)
    if not full:
        return None
    clean = last_clean(snapshot)
    dates = window.trigger.what in ("loss", "gradient", "variable")
    if window.trigger.name == "loss scale":  # nothing became non-finite
        dates = False
    first = min(full[0], clean + 1) if dates else full[0]
    is_quick = (snapshot.step_s or 0.0) * len(window.batches) <= QUICK_S
    if is_quick:
        first = min(window.keyframes)
    base, batches = _from_keyframe(window, first)
    keyframes = {
        step: window.keyframes.pop(step) for step in sorted(window.keyframes) if step >= base
    }
    window.keyframes.clear()
    problem = _too_large(snapshot, keyframes[base])
    if problem is not None:
        return problem
    progress.stage("replaying the steps for", len(batches))
    if not is_quick:
        numbered = max(len(full), len(batches) // NUMBERED_SHARE)
        first = max(first, full[-1] - numbered + 1)
    wanted = Wanted(
        full=[step for step in full if step in share.full],
        numbers_from=first,
        dated_from=clean + 1 if dates else window.step + 1,
        ignored=snapshot.variables.born_nonfinite,
        before=_before(snapshot) if share.full else (),
        weights=not _weights_before_alone(snapshot, window),
    )

    def write(kind: ValueKind, step: int, values: Mapping[int, Any]) -> None:
        if kind != "states":
            out.values(kind, step, values)
        elif step not in share.keyframes:
            out.state(step, values)

    def run(keyframes: dict[int, dict[int, Any]], wanted: Wanted) -> Reexecution:
        base = min(keyframes)
        return _reexecutor(snapshot, window).run(
            keyframes,
            {step: batch for step, batch in batches.items() if step >= base},
            wanted,
            write,
            lambda: progress.advance(1),
        )

    try:
        proof = run(keyframes, wanted)
        if proof.incident is not None and wanted.full and proof.incident[0] < wanted.numbers_from:
            # The step that failed was not known to be of interest: to it once more.
            failed = proof.incident[0]
            keyframe = out.written_keyframe(base)
            if keyframe:
                again = run({base: keyframe}, replace(wanted, full=[failed], numbers_from=failed))
                proof.incident = again.incident or proof.incident
                proof.numbers |= again.numbers
        return proof
    except OSError:  # the disk, not the proof
        raise
    except MissingWorkersError as error:
        return f"The window cannot be replayed. {error}"
    except Exception as error:  # the file is worth more than the proof, whatever TensorFlow raises
        reason = first_line(error)
        return f"The window could not be re-executed at the dump: {type(error).__name__}: {reason}"


def _write_state_before(
    snapshot: Snapshot, window: DumpWindow, share: Share, out: CaptureWriter, progress: DumpProgress
) -> None:
    """Write the state before a step that raised, where the steps to it are quick to run again.

    What keeps it out of the file is noted. Of a large state nothing is written: the training still
    holds it, and its keyframe.
    """
    step = window.step
    is_reached = window.prove and window.is_replayable and step >= min(window.keyframes)
    if not is_reached or step in share.keyframes or step not in window.batches or share.left_out:
        return  # nothing to run again, or it is in the file, or the disk limit has been named
    base, batches = _from_keyframe(window, step)
    reason = _no_room_for_state(snapshot, window, len(batches))
    if reason is not None:
        window.notes.append(
            f"The state before step {step} was left out: {reason}. A replay computes it from the "
            f"keyframe at step {base}."
        )
        return
    progress.stage("replaying the steps for", len(batches))
    keyframes = {base: dict(window.keyframes[base])}
    try:
        reexecutor = _reexecutor(snapshot, window)
        values = reexecutor.state_before(step, keyframes, batches, _before(snapshot))
    except Exception as error:  # the file is worth more than this part, whatever TensorFlow raises
        window.notes.append(
            f"The state before step {step} was left out: the steps from {base} to it could not be "
            f"run again ({type(error).__name__}: {reason_line(error)})."
        )
        return
    out.state(step, values)


def _no_room_for_state(snapshot: Snapshot, window: DumpWindow, step_count: int) -> str | None:
    """Why the state before a step that raised is not computed; None where it is."""
    state_bytes = sum(snapshot.variables.sizes)
    if snapshot.room.is_large(state_bytes):
        return f"it has {limits.readable_size(state_bytes)}"
    if (snapshot.step_s or 0.0) * step_count > QUICK_S:
        return f"running the {step_count} steps to it again takes more than {QUICK_S:.0f} s"
    sizes = _sizes(snapshot, window)
    file_bytes = sizes.other + sum(sizes.keyframes.values()) + sum(sizes.batches.values())
    limit = snapshot.room.disk_bytes(state_bytes, max(sizes.batches.values()))
    if state_bytes > limit - file_bytes:
        return f"the file may have {limits.readable_size(limit)}"
    return None


def _too_large(snapshot: Snapshot, keyframe: Mapping[int, Any]) -> str | None:
    """Why there is no memory to re-execute the window; None where there is."""
    needed = _rerun_bytes(snapshot, keyframe)
    is_spooled = any(isinstance(value, SpooledValue) for value in keyframe.values())
    free = snapshot.room.rerun_bytes() if is_spooled else limits.free_memory()
    if needed <= free:
        return None
    return (
        f"The window was not run once more as the file was written, which takes "
        f"{limits.readable_size(needed)} of memory, and {limits.readable_size(free)} may be taken: "
        "the weights and gradients of single steps were left out, and the incident is the step "
        "that was seen."
    )


def _rerun_bytes(snapshot: Snapshot, keyframe: Mapping[int, Any]) -> int:
    """What re-executing takes of memory.

    A keyframe in memory becomes the state of the re-execution. One on disk is read for it; and a
    step keeps the state before it as far as it is written, the weights in any case, and its
    gradients.
    """
    sizes = snapshot.variables.sizes
    spooled = [index for index, value in keyframe.items() if isinstance(value, SpooledValue)]
    trainable = snapshot.variables.of_role("trainable")
    kept = {*trainable, *_before(snapshot)}
    return sum(sizes[index] for index in (*spooled, *trainable, *kept))


def confirm(snapshot: Snapshot) -> bool | None:
    """Whether re-executing the window shows a non-finite loss, gradient or variable.

    None where it cannot be re-executed.
    """
    window = gather(snapshot)
    if not window.is_replayable:
        return None
    first = last_clean(snapshot) + 1
    base, batches = _from_keyframe(window, first)
    if _rerun_bytes(snapshot, window.keyframes[base]) > limits.free_memory():
        return None
    wanted = Wanted((), first, first, snapshot.variables.born_nonfinite)
    try:
        keyframes = {step: dict(values) for step, values in window.keyframes.items()}
        proof = _reexecutor(snapshot, window).run(keyframes, batches, wanted)
    except Exception:  # then it is better to have a file than none
        return None
    return proof.incident is not None


def _reexecutor(snapshot: Snapshot, window: DumpWindow) -> Reexecutor:
    programs = {name: local_program(program) for name, program in window.programs.items()}
    return Reexecutor(programs, snapshot.variables.infos)


def _from_keyframe(window: DumpWindow, first: int) -> tuple[int, dict[int, BatchRecord]]:
    """(newest keyframe that reaches step `first`, else the oldest; the batches from there on)."""
    reaching = [step for step in window.keyframes if step <= first]
    base = max(reaching, default=min(window.keyframes))
    return base, {step: batch for step, batch in window.batches.items() if step >= base}


def last_clean(snapshot: Snapshot) -> int:
    """The last step of which it is known that all was finite after it; -1 for none.

    That is before the step that was seen to fail. Variables were measured after some steps, but
    slots of the optimizer are looked at less often, and one may have turned infinite before.
    Keyframes are taken of slots that were looked at, so the step before the newest keyframe up to
    the last measured step is the answer: a re-execution should begin there.
    """
    measured = _measured_before(snapshot, snapshot.step)
    last_measured = max(measured, default=-1)
    return max((step for step in snapshot.keyframes if step <= last_measured + 1), default=0) - 1


def _measured_before(snapshot: Snapshot, step: int) -> Sequence[int]:
    rows = snapshot.timeline.rows
    return [row.step for row in rows if row.measured is not None and row.step < step]
