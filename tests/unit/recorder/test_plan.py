"""How much is kept: under the limit always, at a hundredth of the steps' time where that is
possible, and said when it is less."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from nanreplay.recorder.pace import Pace
from nanreplay.recorder.retention_plan import (
    Needs,
    Remedy,
    RetentionPlan,
    Shortage,
    ample_plan,
    every_for,
    make_plan,
    shortfall,
)

MIB = 2**20


def needs(**given: int) -> Needs:
    return Needs(
        **{
            "window": 32,
            "every": 32,
            "limit": 1024 * MIB,
            "state_bytes": MIB,
            "batch_bytes": MIB,
            **given,
        }
    )


def said(given: Needs, share: float | None = None) -> str | None:
    remedy = Remedy(8 * MIB, 4 * MIB, is_free=True)
    return shortfall(given, make_plan(given), "memory_limit", share, lambda: remedy)


def test_a_small_training_is_kept_as_asked() -> None:
    assert make_plan(needs()) == RetentionPlan(32, 32)
    assert said(needs()) is None


def test_no_plan_exceeds_the_limit() -> None:
    sizes = [0, 1, 1000, MIB, 100 * MIB, 700 * MIB, 3000 * MIB]
    for state, batch, every, least, window, lag in itertools.product(
        sizes, sizes, [1, 32, 5000], [0, 7], [1, 3, 32, 500], [0, 4]
    ):
        given = needs(
            state_bytes=state,
            batch_bytes=batch,
            every=every,
            least_every=least,
            window=window,
            lag=lag,
        )
        plan = make_plan(given)
        assert plan.window >= 1
        if plan.keyframe_every or batch <= given.limit:
            assert plan.size_bytes(state, batch) <= given.limit, (given, plan)


def test_one_keyframe_and_two_batches_are_enough_to_replay_the_failing_step() -> None:
    assert make_plan(needs(state_bytes=600 * MIB, batch_bytes=200 * MIB)) == RetentionPlan(1, 2)


def test_without_room_for_them_batches_are_kept() -> None:
    assert make_plan(needs(state_bytes=600 * MIB, batch_bytes=213 * MIB)) == RetentionPlan(4, 0)


@pytest.mark.parametrize(
    ("memory", "disk", "is_disk_given", "expected"),
    [
        ("memory_limit of 1 MiB", None, True, 'With memory_limit="8MiB" it could.'),
        (
            "memory_limit of 1 MiB",
            "disk_limit of 1 MiB",
            True,
            'With memory_limit="8MiB", disk_limit="4MiB" it could.',
        ),
        (None, "a disk with 1 MiB free", False, "With a path on a disk with 4MiB free it could."),
    ],
)
def test_what_cannot_be_replayed_is_said_with_one_setting_for_memory_and_disk(
    memory: str | None, disk: str | None, is_disk_given: bool, expected: str
) -> None:
    said = Shortage(memory, 8 * MIB - 1, disk, 4 * MIB - 1, is_disk_given).sentence(needs())
    assert "(the state has 1.0 MiB, a batch 1.0 MiB)" in said
    assert said.endswith("the capture cannot be replayed. " + expected)


def test_keyframes_on_disk_are_no_more_than_there_are_places_and_take_no_memory() -> None:
    on_disk = needs(state_bytes=0, most_keyframes=2, every=400, least_every=400)
    assert make_plan(on_disk) == RetentionPlan(32, 400)
    for window, every in itertools.product([1, 32, 500], [1, 7, 400]):
        for places in (1, 2):
            plan = make_plan(
                needs(state_bytes=0, most_keyframes=places, window=window, every=every)
            )
            assert plan.keyframes <= places


def test_a_file_that_holds_few_batches_has_keyframes_that_often() -> None:
    assert make_plan(needs(most_batches=5)).keyframe_every <= 5


def test_the_window_shrinks_before_the_training_pays_more() -> None:
    given = needs(every=400, batch_bytes=2 * MIB)
    assert make_plan(given).keyframe_every == 400
    assert make_plan(given).window == 32
    assert make_plan(needs(every=500, batch_bytes=2 * MIB)) == RetentionPlan(8, 500)


def test_cheap_keyframes_come_more_often_before_the_window_shrinks() -> None:
    large = needs(batch_bytes=100 * MIB, limit=900 * MIB)
    assert make_plan(large) == RetentionPlan(1, 8)
    assert make_plan(needs(batch_bytes=100 * MIB, limit=900 * MIB, least_every=1)) == RetentionPlan(
        8, 1
    )
    assert make_plan(needs(batch_bytes=100 * MIB, limit=900 * MIB, least_every=3)) == RetentionPlan(
        4, 4
    )
    assert make_plan(needs(least_every=1)) == RetentionPlan(32, 32)


def test_what_keyframes_cost_beyond_a_hundredth_is_said() -> None:
    given = needs(every=400, batch_bytes=10 * MIB)
    assert make_plan(given).keyframe_every == 102
    assert "a keyframe every 102 steps adds about 4% to" in str(said(given, share=0.04))


def test_what_large_batches_leave_of_the_window_is_said_with_limits_that_hold_all_of_it() -> None:
    given = needs(every=34, least_every=34, batch_bytes=100 * MIB, limit=1365 * MIB)
    assert said(given, share=0.013) == (
        "memory_limit holds 13 batches: of the last 32 steps a file has 1 to 13, and a keyframe "
        "every 13 steps adds about 1% to the time of the training (the state has 1.0 MiB, a batch "
        '100.0 MiB). With memory_limit="8MiB", disk_limit="4MiB" it has 32 and takes less time.'
    )
    ample = ample_plan(given)
    followed = replace(given, limit=ample.size_bytes(MIB, 100 * MIB), every=40, least_every=40)
    assert make_plan(followed).window == 32
    assert make_plan(followed).keyframe_every == 40
    assert Remedy(8 * MIB, None, is_free=False).sentence("has 32") == (
        'More than is free here, memory_limit="8MiB", is needed for that.'
    )


def test_steps_that_run_before_a_check_is_read_are_kept_on_top() -> None:
    assert make_plan(needs(lag=4)).reach == 36


@pytest.mark.parametrize(
    ("keyframe_s", "step_s", "expected"), [(0.005, 0.01, 100), (0.005, 1.0, 32), (0.25, 0.01, 5000)]
)
def test_the_interval_keeps_keyframes_at_half_a_hundredth_of_the_steps(
    keyframe_s: float, step_s: float, expected: int
) -> None:
    assert every_for(keyframe_s, step_s, 32) == expected


def test_a_keyframe_costs_what_its_step_takes_longer_than_the_others() -> None:
    pace, now_s = Pace(), 0.0
    for step in range(100):
        with_keyframe = step % 10 == 0
        pace.begun.append((step, now_s, with_keyframe))
        now_s += 0.010 + 0.008 * with_keyframe
    assert pace.step_s == pytest.approx(0.010)
    assert pace.keyframe_s(copy_s=0.006) == pytest.approx(0.008)
    assert pace.keyframe_s(copy_s=0.001) == pytest.approx(0.004), (
        "what was seen is held against what a copy takes"
    )


def test_the_pace_follows_steps_that_grow_and_leaves_out_pauses() -> None:
    pace, now_s = Pace(), 0.0
    for step in range(200):
        pace.begun.append((step, now_s, False))
        now_s += 0.01 if step < 100 else 0.05
        if step % 10 == 9:  # an epoch ends
            pace.pause()
            now_s += 100.0
    assert pace.step_s == pytest.approx(0.05)


def test_a_call_of_several_steps_is_timed_step_by_step() -> None:
    pace, now_s = Pace(), 0.0
    for call in range(100):
        with_keyframe = call % 10 == 0
        pace.begun.append((8 * call, now_s, with_keyframe))
        now_s += 8 * 0.010 + 0.008 * with_keyframe
    assert pace.step_s == pytest.approx(0.010)
    assert pace.keyframe_s(copy_s=0.008) == pytest.approx(0.008)


def test_a_batch_that_was_not_seen_yet_is_not_said_to_be_empty() -> None:
    sizes = Needs(window=4, every=4, limit=MIB, state_bytes=3 * MIB, batch_bytes=0).sizes
    assert sizes == "the state has 3.0 MiB; how large a batch is, is not known yet"
