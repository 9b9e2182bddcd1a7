"""Writing the capture: the window, the state, the timeline, and proof that they replay.

`Recording.write` calls `write_dump` with a snapshot. What a replay needs is written first.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanreplay.capture.storage import Location, RemotePath, local_copy, publish
from nanreplay.capture.writer import CaptureWriter, writing
from nanreplay.errors import StorageError
from nanreplay.limits import readable_size
from nanreplay.program.collectives import unrecorded_ops_of
from nanreplay.recorder import notices
from nanreplay.recorder.dump_proof import reexecute
from nanreplay.recorder.dump_sizes import fitting_share, sizes_before_description, sizes_of
from nanreplay.recorder.dump_window import DumpWindow, gather
from nanreplay.recorder.environment import DumpProgress, describe_environment
from nanreplay.recorder.reexecution import Reexecution
from nanreplay.recorder.room import FULL_STEPS
from nanreplay.recorder.settings import free_name
from nanreplay.recorder.snapshot import Share, Sizes, Snapshot
from nanreplay.recorder.timeline_ring import StepNumbers
from nanreplay.records import Incident

if TYPE_CHECKING:
    from nanreplay.recorder.lifecycle import DatedIncident


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
        notices.say(f"{error}. The capture is kept in {local}")
        return local, incident
    local.unlink()
    return where, incident


def _write(path: Path, snapshot: Snapshot, *, prove: bool) -> DatedIncident:
    with (
        DumpProgress(path.name) as progress,
        writing(path, progress.advance, hurried=not prove) as out,
    ):
        if prove or snapshot.eager is not None:
            window = gather(snapshot, prove=prove)
            sizes = sizes_of(snapshot, window)
            share = fitting_share(snapshot, sizes)
            _write_keyframes(out, window.keyframes, sizes, share, progress)
        else:
            sizes = sizes_before_description(snapshot)
            share = fitting_share(snapshot, sizes)
            # Most of the file is written while Python describes the programs.
            with beside(
                lambda: _write_keyframes(out, snapshot.keyframes, sizes, share, progress),
                out.abandon,
            ):
                window = gather(snapshot, prove=False)
        window.notes += [*share.left_out, *_only_last_full(snapshot, window)]
        _write_window(out, snapshot, window, share)
        if snapshot.trigger.what in ("loss", "gradient", "variable"):
            snapshot.keyframes.clear()  # the window alone holds them from here on
        proof = window.proof or reexecute(snapshot, window, share, out, progress)
        if isinstance(proof, Reexecution) and proof.incident is not None:
            window.step, window.trigger = proof.incident
            out.forget_after(window.step)
        if isinstance(proof, Reexecution) and proof.max_ulp == 0:
            _write_optimized(out, snapshot, window)
        _finish(out, snapshot, window, proof)
        progress.stage("syncing", 1)
    return window.trigger, window.step


def _write_optimized(out: CaptureWriter, snapshot: Snapshot, window: DumpWindow) -> None:
    """Write what the graph optimizers made of the programs that were run as they were trained."""
    for (program_id, purpose), compiled in (snapshot.compiled or {}).items():
        if purpose == "step" and program_id in window.programs and compiled.optimized is not None:
            out.optimized_graph(program_id, compiled.optimized)


@contextlib.contextmanager
def beside(work: Callable[[], None], abandon: Callable[[], None]) -> Iterator[None]:
    """Do `work` in a thread inside a `with` statement, at whose end its error is raised.

    Args:
        work: Writes; it does not hold Python's lock for most of the time.
        abandon: Makes `work` end soon, where an error or Ctrl-C ends the statement.
    """
    context = contextvars.copy_context()  # how arrays are packed, and who computes checksums
    with ThreadPoolExecutor(1, thread_name_prefix="nanreplay-writer") as pool:
        done = pool.submit(context.run, work)
        try:
            yield
            done.result()
        except BaseException:
            abandon()
            raise


def _only_last_full(snapshot: Snapshot, window: DumpWindow) -> list[str]:
    """Say that a large state's weights and gradients are those of the failing step alone."""
    if not window.full or window.full_steps >= FULL_STEPS or snapshot.settings.full_steps:
        return []
    size = readable_size(sum(snapshot.variables.sizes))
    return [
        f"The state has {size}, so the gradients of the failing step and the weights "
        f"before it alone are in the file; full_steps={FULL_STEPS} writes those of the two before "
        "as well."
    ]


def _write_keyframes(
    out: CaptureWriter,
    keyframes: Mapping[int, Mapping[int, Any]],
    sizes: Sizes,
    share: Share,
    progress: DumpProgress,
) -> None:
    keyframe_bytes = sum(sizes.keyframes[step] for step in share.keyframes)
    batch_bytes = sum(sizes.batches[step] for step in share.batches)
    progress.stage("writing", keyframe_bytes + batch_bytes)
    for step in sorted(share.keyframes):
        out.values("keyframes", step, keyframes[step])


def _write_window(out: CaptureWriter, snapshot: Snapshot, window: DumpWindow, share: Share) -> None:
    out.head(
        describe_environment(),
        snapshot.variables.infos,
        [*window.programs.values()],
        window.sources.frames,
        window.sources.stacks,
    )
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
    return any(map(unrecorded_ops_of, window.programs.values()))


def _departure(step: int) -> str:
    return (
        f"Run once more when the file was written, step {step} differs from what was recorded of "
        "it: something changed the state outside of the recorded steps, or the machine computed "
        "otherwise."
    )
