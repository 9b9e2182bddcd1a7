"""What the ring holds: steps that a keyframe reaches, and no more bytes than it may."""

from __future__ import annotations

import numpy as np

from nanreplay.recorder.retention_plan import RetentionPlan
from nanreplay.recorder.ring import Ring, StepEntry

BATCH_BYTES = 400


def filled(plan: RetentionPlan, steps: int, *, every: int, shared: bool = False) -> Ring:
    ring, same = Ring(plan), np.zeros(100, np.float32)
    for step in range(steps):
        if step % every == 0:
            ring.add_keyframe(step, {0: step})
        ring.add(StepEntry(step, "p0", [same if shared else np.zeros(100, np.float32)], ["x"]))
    return ring


def test_every_step_of_the_window_is_reached_by_a_keyframe() -> None:
    ring = filled(RetentionPlan(5, 4), 23, every=4)
    assert [entry.step for entry in ring.held(22)] == list(range(16, 23))
    assert list(ring.keyframes) == [16, 20]


def test_a_shorter_interval_never_takes_away_what_the_oldest_keyframe_needs() -> None:
    ring = filled(RetentionPlan(5, 100), 90, every=1000)
    ring.plan = RetentionPlan(5, 4)
    ring.add_keyframe(90, {0: 90})
    ring.add(StepEntry(90, "p0", [], []))
    assert [entry.step for entry in ring.held(90)] == list(range(91))


def test_the_oldest_keyframe_goes_first_with_the_steps_that_only_it_reaches() -> None:
    ring = filled(RetentionPlan(40, 10), 35, every=10)
    assert ring.batch_bytes == 35 * BATCH_BYTES
    assert ring.make_room(1000, 2 * 1000 + 15 * BATCH_BYTES, keyframe=False)
    assert list(ring.keyframes) == [20, 30]
    assert ring.held(34)[0].step == 20
    assert not ring.make_room(1000, 100, keyframe=False)
    assert list(ring.keyframes) == [30], "the last one goes for a new one only"
    assert ring.make_room(1000, 1000, keyframe=True)
    assert not ring.keyframes
    assert ring.batch_bytes == 0


def test_a_tensor_that_every_step_is_given_counts_once() -> None:
    assert filled(RetentionPlan(40, 10), 35, every=10, shared=True).batch_bytes == BATCH_BYTES


def test_steps_after_the_failing_one_are_not_held_for_it() -> None:
    ring = filled(RetentionPlan(5, 4, lag=4), 23, every=4)
    assert [entry.step for entry in ring.held(18)] == [12, 13, 14, 15, 16, 17, 18]
