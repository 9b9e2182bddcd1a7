"""Running the window again for its file: numbers of each step, the very step that failed first.

`dump` calls `reexecute`. `confirmation` runs a window with the same means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nanreplay import limits
from nanreplay.capture.writer import CaptureWriter
from nanreplay.errors import MissingWorkersError, first_line, reason_line
from nanreplay.program.collectives import local_program
from nanreplay.recorder.dump_sizes import holds_weights_before, sizes_of, written_before
from nanreplay.recorder.dump_window import DumpWindow
from nanreplay.recorder.environment import DumpProgress
from nanreplay.recorder.one_run import FirstState
from nanreplay.recorder.reexecution import Reexecution, Reexecutor, ValueKind, Wanted
from nanreplay.recorder.snapshot import Share, Snapshot
from nanreplay.recorder.spool import SpooledValue
from nanreplay.records import BatchRecord

QUICK_S = 5.0
"""A window whose steps took no longer is re-executed as a whole: all its steps get numbers, which
takes them twice."""
VARIABLE_S = 5e-5
"""What one variable adds to a step that gets numbers: it is read, and its gradient is measured."""
NUMBERED_SHARE = 5
"""Of a slower one, at most one step in so many is run a second time for its gradients."""
MEASURED_BYTES_S = 1e9
"""How much of the weights is measured a second, about; that is most of a quick step's cost where
its gradients are sparse."""


def reexecute(
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
    measuring_s = _measuring_s(snapshot)
    numbering_s = 2 * (snapshot.step_s or 0.0) + measuring_s
    is_quick = numbering_s * len(window.batches) <= 2 * QUICK_S
    if is_quick:
        first = min(window.keyframes)
    base, batches = from_keyframe(window, first)
    keyframes = {
        step: window.keyframes.pop(step) for step in sorted(window.keyframes) if step >= base
    }
    window.keyframes.clear()
    problem = _too_large(snapshot, keyframes[base])
    if problem is not None:
        return problem
    progress.stage("replaying the steps for", len(batches))
    if not is_quick:
        affordable = min(len(batches) // NUMBERED_SHARE, int(2 * QUICK_S / measuring_s))
        numbered = max(len(full), affordable)
        first = max(first, full[-1] - numbered + 1)
    wanted = Wanted(
        full=[step for step in full if step in share.full],
        numbers_from=first,
        dated_from=clean + 1 if dates else window.step + 1,
        ignored=snapshot.variables.born_nonfinite,
        before=written_before(snapshot) if share.full else (),
        weights=not holds_weights_before(snapshot, window),
        first_state=_first_state(snapshot, keyframes[base], base, share, out),
    )

    def write(kind: ValueKind, step: int, values: Mapping[int, Any]) -> None:
        if kind != "states":
            out.values(kind, step, values)
        elif step not in share.keyframes:
            out.state(step, values)

    def run(keyframes: dict[int, dict[int, Any]], wanted: Wanted) -> Reexecution:
        base = min(keyframes)
        return reexecutor_of(snapshot, window).run(
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


def _first_state(
    snapshot: Snapshot, keyframe: Mapping[int, Any], base: int, share: Share, out: CaptureWriter
) -> FirstState | None:
    """The keyframe that the window begins with, as the file has it."""
    if base not in share.keyframes or len(keyframe) < len(snapshot.variables.infos):
        return None
    return FirstState(lambda: out.written_values(base), snapshot.step_s or 0.0)


def _measuring_s(snapshot: Snapshot) -> float:
    """Seconds that numbers of a step take beside running it twice, however quick it is."""
    sizes = snapshot.variables.sizes
    weight_bytes = sum(sizes[index] for index in snapshot.variables.of_role("trainable"))
    return 2 * VARIABLE_S * max(1, len(sizes)) + weight_bytes / MEASURED_BYTES_S


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
    base, batches = from_keyframe(window, step)
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
        reexecutor = reexecutor_of(snapshot, window)
        values = reexecutor.state_before(step, keyframes, batches, written_before(snapshot))
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
    sizes = sizes_of(snapshot, window)
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
    kept = {*trainable, *written_before(snapshot)}
    return sum(sizes[index] for index in (*spooled, *trainable, *kept))


def reexecutor_of(snapshot: Snapshot, window: DumpWindow) -> Reexecutor:
    """Runs the steps of a window; compiled programs are kept with the recording."""
    programs = {name: local_program(program) for name, program in window.programs.items()}
    return Reexecutor(programs, snapshot.variables.infos, snapshot.compiled)


def from_keyframe(window: DumpWindow, first: int) -> tuple[int, dict[int, BatchRecord]]:
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
