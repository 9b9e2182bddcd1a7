"""When skipped updates are an incident."""

from __future__ import annotations

from nanreplay.recorder.loss_scaling import Skips


def steps_until_stuck(scales: list[float], limit: int = 20) -> tuple[int, str] | None:
    skips = Skips(limit)
    for step, scale in enumerate(scales):
        found = skips.note(abs(scale), skipped=scale > 0)
        if found is not None:
            assert (found.what, found.name) == ("gradient", "loss scale")
            return step, found.value
    return None


def test_a_scale_that_falls_is_normal_below_one_too() -> None:
    assert steps_until_stuck([2.0**power for power in range(10, -9, -1)]) is None


def test_skipping_on_and_on_is_stuck() -> None:
    assert steps_until_stuck([8.0, 4.0, 2.0], limit=3) == (2, "3 updates in a row were skipped")


def test_a_scale_that_falls_no_further_is_stuck() -> None:
    assert steps_until_stuck([4.0, 2.0, 1.0, 1.0]) == (3, "an update was skipped at the floor of 1")


def test_an_update_between_two_skipped_ones_starts_anew() -> None:
    assert steps_until_stuck([1.0, -1.0, 1.0, -1.0, 1.0], limit=2) is None


def test_a_scale_that_waits_above_one_is_no_floor() -> None:
    assert steps_until_stuck([64.0, 64.0, 32.0, 32.0]) is None
