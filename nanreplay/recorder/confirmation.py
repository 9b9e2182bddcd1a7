"""Whether a step whose mean of losses is not finite is an incident: such a mean may overflow.

`Recording.confirm` asks. What the training holds tells it nearly always; else the window runs again
from a keyframe, within the memory that was promised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from nanreplay.errors import NanreplayError, first_line
from nanreplay.limits import readable_size
from nanreplay.recorder.dump_proof import from_keyframe, last_clean, reexecutor_of
from nanreplay.recorder.dump_sizes import sizes_before_description
from nanreplay.recorder.dump_window import gather
from nanreplay.recorder.ring import size_of
from nanreplay.recorder.snapshot import Snapshot, take_snapshot

if TYPE_CHECKING:
    from nanreplay.recorder.lifecycle import Suspicion
    from nanreplay.recorder.recording import Recording
    from nanreplay.recorder.timeline_ring import TimelineRow


def confirm(recording: Recording, suspicion: Suspicion) -> bool | None:
    """Whether something that trains is not finite.

    A non-finite variable tells it at once, and so does a mean that no overflow explains. Only for
    the rest the window runs again. An error of the recorder's own is raised.

    Returns:
        None where it cannot be told, which is noted for the file.
    """
    # On a GPU the variables have moved on since the step.
    if not recording.keeper.device_lag:
        sums = np.asarray(recording.meter.measure())
        if recording.health.measured_suspicion(sums, recording.meter.checked, suspicion.step):
            return True
    if total_tells(recording.timeline.rows, suspicion.step):
        return True
    answer = _run_again(take_snapshot(recording, suspicion.trigger, suspicion.step, keep=True))
    if isinstance(answer, bool):
        return answer
    number = suspicion.trigger
    recording.notes.append(
        f"The {number.name} that step {suspicion.step} returned is {number.value}. Whether it is "
        f"the step's own, or a mean that overflowed, could not be told: {answer}."
    )
    return None


def total_tells(rows: Iterable[TimelineRow], step: int) -> bool:
    """Whether the running mean alone proves that a loss was not finite: its total turned NaN.

    A finite total and a finite loss may add up to an infinity, but never to NaN. A total begins
    at 0.
    """
    total_before = 0.0
    for row in rows:
        if row.mean is None:
            continue
        if row.step == step:
            return math.isnan(row.mean.total) and math.isfinite(total_before)
        total_before = row.mean.total
    return False


def _run_again(snapshot: Snapshot) -> bool | str:
    """Whether the window, run again, shows a non-finite loss or variable; else why not known."""
    window = gather(snapshot, with_ops=False)
    if not window.is_replayable:
        return "no keyframe is held from which the step can be run again"
    base, batches = from_keyframe(window, last_clean(snapshot) + 1)
    problem = _no_room(snapshot, window.keyframes[base])
    if problem is not None:
        return problem
    first = _first_doubtful(snapshot)
    keyframes = {step: dict(values) for step, values in window.keyframes.items()}
    ignored = snapshot.variables.born_nonfinite
    try:
        return reexecutor_of(snapshot, window).fails(keyframes, batches, first, ignored)
    except (NanreplayError, tf.errors.OpError, MemoryError, OSError) as error:
        return f"the window could not be run again ({type(error).__name__}: {first_line(error)})"


def _no_room(snapshot: Snapshot, keyframe: Mapping[int, Any]) -> str | None:
    """Why there is no memory to run the window again; None where there is.

    The training may go on, so that its keyframe stays: what runs again is a state of its own.
    """
    held = sum(sizes_before_description(snapshot).batches.values())
    for values in snapshot.keyframes.values():
        held += size_of([value for value in values.values() if tf.is_tensor(value)])
    needed = sum(snapshot.variables.sizes[index] for index in keyframe)
    is_given = snapshot.settings.memory_limit is not None
    room = snapshot.room.rerun_bytes() - (held if is_given else 0)
    if needed <= room:
        return None
    return (
        f"running the window again takes {readable_size(needed)} of memory, and "
        f"{readable_size(max(0, room))} may be taken"
    )


def _first_doubtful(snapshot: Snapshot) -> int:
    """The first step since all was known to be finite that may have failed.

    A mean of losses that is finite tells that those before it were. What a step made of the
    variables is seen after the last one too.
    """
    clean = last_clean(snapshot)
    for entry in snapshot.entries:
        numbers = entry.fingerprint
        if entry.step > clean and (
            numbers is None or not all(map(math.isfinite, numbers.values()))
        ):
            return entry.step
    return clean + 1
