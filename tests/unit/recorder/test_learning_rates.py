"""The rates of steps between two readings: those of the steps, or none."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from nanreplay.recorder.learning_rates import MOST_ASKED, RateReading
from nanreplay.recorder.timeline_ring import TimelineRing, TimelineRow

NAN = math.nan


def half_of(updates: int) -> float:
    return 0.5**updates


def of_schedule(step: int, updates: int) -> RateReading:
    return RateReading(step, updates=updates, schedule=half_of)


def rates(steps: int, readings: Mapping[int, RateReading]) -> list[float]:
    ring = TimelineRing(100_000)
    for step in range(steps):
        ring.add(TimelineRow(step, 0.1), readings.get(step))
    return list(ring.table([]).columns["learning_rate"])


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ({1: RateReading(1, 0.1), 3: RateReading(3, 0.1)}, [0.1] * 4),
        ({0: RateReading(0, 0.1), 3: RateReading(3, 0.2, was_set=True)}, [0.1, 0.1, 0.1, 0.2]),
        ({0: RateReading(0, 0.1), 3: RateReading(2, 0.2, was_set=True)}, [0.1, 0.1, 0.2, 0.2]),
        ({0: RateReading(0, 0.1), 3: RateReading(3, 0.2)}, [0.1, NAN, NAN, NAN]),
        ({0: RateReading(0), 3: RateReading(3)}, [NAN] * 4),
        ({0: of_schedule(0, 1), 3: of_schedule(3, 4)}, [1.0, 0.5, 0.25, 0.125]),
        ({0: of_schedule(0, 6), 3: of_schedule(3, 9)}, [2**-5, 2**-6, 2**-7, 2**-8]),
        ({0: of_schedule(0, 2), 3: of_schedule(3, 8)}, [1.0, 0.25, 2**-4, 2**-6]),
        ({0: of_schedule(0, 1), 3: of_schedule(3, 3)}, [1.0, NAN, NAN, NAN]),
        ({0: of_schedule(0, 5)}, [NAN] * 4),
    ],
    ids=[
        "held", "set before a step", "set before a call of two steps", "moved within steps",
        "no optimizer", "a schedule", "resumed", "two updates a step", "updates left out", "one",
    ],
)  # fmt: skip
def test_each_step_has_its_own_rate_or_none(
    readings: Mapping[int, RateReading], expected: list[float]
) -> None:
    np.testing.assert_array_equal(rates(4, readings), expected)


def test_a_schedule_is_asked_for_all_of_the_last_steps_and_some_before() -> None:
    steps = 4 * MOST_ASKED
    readings = {step: of_schedule(step, step + 1) for step in range(0, steps, 100)}
    known = np.isfinite(rates(steps, readings))[: max(readings) + 1]
    assert known.sum() <= MOST_ASKED
    assert known[-MOST_ASKED // 2 :].all()
    assert np.diff(np.flatnonzero(known)).max() <= 8
