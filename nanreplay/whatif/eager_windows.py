"""The steps of an eager loop before the failing one, and whether its program is theirs.

An eager step is recorded as a flat program only once it fails. The steps before it ran the same
Python code, and may be shown to run the failing step's program. The proof is in the recording: from
a keyframe on, the program must give every recorded fingerprint, and in the end the state before the
failing step, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nanreplay.capture.arrays import as_array
from nanreplay.errors import NanreplayError
from nanreplay.program.fingerprint import ulp_distance
from nanreplay.records import BatchRecord
from nanreplay.replay import Replay
from nanreplay.replay.replay_state import LiveState


def steps_of_program(replay: Replay, failing: int) -> tuple[int, ...]:
    """Return the steps up to `failing` that its program is proved to compute.

    `failing` alone when there are no others.

    Args:
        replay: The capture's replay.
        failing: The step whose program it is.
    """
    for first in replay.capture.keyframe_steps:
        if first >= failing:
            continue
        steps = range(first, failing)
        try:
            is_possible = all(_is_alike(replay, step, failing) for step in steps)
            if is_possible and _is_proved(replay, steps, failing):
                return (*steps, failing)
        except NanreplayError:  # a batch is not held, or an op takes no such batch
            continue
    return (failing,)


def _is_alike(replay: Replay, step: int, failing: int) -> bool:
    """Whether a step could have run the program of the failing one, by what was recorded of it."""
    if step not in replay.capture.steps:
        return False
    batch, failing_batch = replay.batch(step), replay.batch(failing)
    if batch.program or batch.fingerprint is None or failing_batch.fingerprint is None:
        return False
    if np.shape(batch.fingerprint) != np.shape(failing_batch.fingerprint):
        return False  # another layout: it took another branch of the Python code
    return _forms(batch) == _forms(failing_batch)


def _forms(batch: BatchRecord) -> list[tuple[Any, ...]]:
    return [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in batch.leaves]


def _is_proved(replay: Replay, steps: range, failing: int) -> bool:
    """Whether the failing step's program gives all that was recorded of some steps."""
    program, live = replay.program(failing), LiveState(replay.variables)
    live.assign(replay.capture.keyframe(steps[0]))
    for step in steps:
        batch = replay.batch(step)
        live.assign(batch.overrides)
        replayed = program.step("recorded", batch.arrays, live.variables, batch.fingerprint)
        recorded = np.asarray(batch.fingerprint)
        if replayed is None or replayed.shape != recorded.shape:
            return False
        if ulp_distance(replayed, recorded.astype(replayed.dtype)):
            return False
    reached = live.read()
    return all(
        as_array(reached[index]).tobytes() == as_array(value).tobytes()
        for index, value in replay.capture.keyframe(failing).items()
    )
