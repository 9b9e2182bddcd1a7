"""Steps of an eager loop before the failing one: they have no program of their own, but may be shown to run the failing step's."""

from __future__ import annotations

from typing import Any

import numpy as np

from nanreplay.errors import NanreplayError
from nanreplay.program.fingerprint import ulp_distance
from nanreplay.records import BatchRecord
from nanreplay.replay import Replay
from nanreplay.replay.state import LiveState


def steps_of_program(replay: Replay, failing: int) -> tuple[int, ...]:
    """Return the steps up to `failing` that its program is proved to compute; `failing` alone when there are no others.

    An eager step is recorded as a flat program only once it fails. The steps before it ran the same Python code, and the
    proof is in the recording: from a keyframe on, the program must give every recorded fingerprint, and in the end the
    state before the failing step, bit for bit.

    Args:
        replay: The capture's replay.
        failing: The step whose program it is.
    """
    keyframes = [step for step in replay.capture.keyframe_steps if step < failing]
    for first in keyframes:
        steps = range(first, failing)
        try:
            if all(_is_alike(replay, step, failing) for step in steps) and _is_proved(replay, steps, failing):
                return (*steps, failing)
        except NanreplayError:  # a batch is not held, or an op takes no such batch
            continue
    return (failing,)


def _is_alike(replay: Replay, step: int, failing: int) -> bool:
    if step not in replay.capture.steps:
        return False
    one, other = replay.batch(step), replay.batch(failing)
    if one.program or one.fingerprint is None or other.fingerprint is None:
        return False
    if np.shape(one.fingerprint) != np.shape(other.fingerprint):  # another layout: it took another way
        return False
    return [_form(leaf) for leaf in one.leaves] == [_form(leaf) for leaf in other.leaves]


def _form(leaf: Any) -> tuple[Any, ...]:
    return np.shape(leaf), np.asarray(leaf).dtype


def _is_proved(replay: Replay, steps: range, failing: int) -> bool:
    program, live = replay.program(failing), LiveState(replay.variables)
    live.assign(replay.capture.keyframe(steps[0]))
    for step in steps:
        batch: BatchRecord = replay.batch(step)
        live.assign(batch.overrides)
        found = program.step("recorded", batch.arrays, live.variables, batch.fingerprint)
        recorded = np.asarray(batch.fingerprint)
        if found is None or found.shape != recorded.shape or ulp_distance(found, recorded.astype(found.dtype)):
            return False
    held, reached = replay.capture.keyframe(failing), live.read()
    return all(np.asarray(reached[index]).tobytes() == np.asarray(value).tobytes() for index, value in held.items())
