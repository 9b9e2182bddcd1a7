"""Whose learning rate holds."""

from __future__ import annotations

import pytest

from nanreplay.rerun.recorded_window import LearningRate, chosen_rates

STEADY, MOVED = {0: 0.1, 1: 0.1, 2: 0.1}, {0: 0.1, 1: 0.1, 2: 0.01}


@pytest.mark.parametrize(
    ("recorded", "today", "wanted", "is_variable", "rates", "note"),
    [
        (
            STEADY,
            0.001,
            "auto",
            True,
            {},
            "Today's learning rate is used: 0.001, where the recording had 0.1.",
        ),
        (STEADY, 0.1, "auto", True, {}, None),
        (
            MOVED,
            0.1,
            "auto",
            True,
            {1: 0.1, 2: 0.01},
            "The learning rate was changed while training ran (0.01 to 0.1)",
        ),
        (
            MOVED,
            0.1,
            "auto",
            False,
            {},
            "Today's learning rate is used: 0.1, where the recording had 0.01.",
        ),
        (
            MOVED,
            0.1,
            "today",
            True,
            {},
            "Today's learning rate is used: 0.1, where the recording had 0.01.",
        ),
        (STEADY, 0.001, "recorded", True, {1: 0.1, 2: 0.1}, None),
        (MOVED, None, "auto", True, {}, None),
        (
            MOVED,
            None,
            "recorded",
            True,
            {},
            "Today's learning rate is a schedule or no variable; the recorded rates cannot be set.",
        ),
        ({}, 0.1, "recorded", True, {}, None),
    ],
)
def test_todays_rate_holds_unless_the_recorded_one_was_moved(
    recorded: dict[int, float],
    today: float | None,
    wanted: LearningRate,
    is_variable: bool,
    rates: dict[int, float],
    note: str | None,
) -> None:
    chosen, notes = chosen_rates(recorded, [1, 2], today, wanted, is_variable=is_variable)
    assert chosen == rates
    assert notes[0].startswith(note) if note else notes == [], notes
