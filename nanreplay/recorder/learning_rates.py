"""The learning rate of each step, though it is read now and then only.

A variable that holds a rate keeps it until somebody sets it, which is seen. Under a schedule the
number of updates is read: where each step between two readings made as many, the number before each
step is known, and the schedule tells its rate when a file is written. A rate that cannot be known
so is NaN.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nanreplay.recorder.timeline_ring import TimelineRow

MOST_OPEN = 4_096
"""Steps that may wait for a reading: many more than pass between two looks at the variables."""
MOST_ASKED = 2_000
"""Steps whose rates a schedule is asked for: about half a second of a dump."""


@dataclass(frozen=True, slots=True)
class RateReading:
    """What was read of a learning rate just after a step."""

    first: int
    """First step of the call that the step ended; a call may run several."""
    rate: float = math.nan
    """The rate, where a variable or a number holds it."""
    updates: int | None = None
    """How many updates there were, where a schedule tells the rate by that."""
    schedule: Callable[[int], float] | None = None
    """Gives the rate of the update that follows so many."""
    was_set: bool = False
    """Whether something outside of the steps set a number of the optimizer before the call."""


class StepRates:
    """Tells the rows of the timeline their rates."""

    def __init__(self) -> None:
        self.open: deque[TimelineRow] = deque(maxlen=MOST_OPEN)
        """Rows since the last reading; whoever has one more appends it."""
        self._early: list[TimelineRow] = []
        """Rows up to the first reading of a schedule: the next one tells how updates are made."""
        self._last: RateReading | None = None
        self._last_step = -1

    def drop_from(self, step: int) -> None:
        """Forget `step` and all after it."""
        while self.open and self.open[-1].step >= step:
            self.open.pop()
        self._early = [row for row in self._early if row.step < step]

    def settle(self, step: int, reading: RateReading) -> None:
        """Tell the rows since the last reading what they were, by a reading just after `step`."""
        rows, before, before_step = list(self.open), self._last, self._last_step
        self.open.clear()
        self._last, self._last_step = reading, step
        if reading.schedule is None:
            self._early = []
            _tell_held(rows, before, reading)
            return
        assert reading.updates is not None
        if before is None or before.updates is None or before_step >= step:
            self._early = rows
            if reading.updates <= 1:  # there was no step with an update before the first one
                for row in rows[-1:]:
                    row.updates, row.schedule = 0, reading.schedule
            return
        per_step, rest = divmod(reading.updates - before.updates, step - before_step)
        if rest or per_step < 0 or reading.was_set:
            self._early = []
            return
        for row in (*self._early, *rows):
            number = before.updates + per_step * (row.step - before_step - 1)
            if number >= 0:
                row.updates, row.schedule = number, reading.schedule
        self._early = []


def _tell_held(
    rows: Sequence[TimelineRow], before: RateReading | None, reading: RateReading
) -> None:
    """Tell rows a rate that a variable holds."""
    known = math.nan if before is None else before.rate
    moved = not math.isnan(known) and known != reading.rate and not reading.was_set
    for row in rows:
        if before is None or row.step >= reading.first:
            row.learning_rate = math.nan if moved else reading.rate
        elif not moved:
            row.learning_rate = known


def rates_of(rows: Sequence[TimelineRow]) -> NDArray[np.float64]:
    """The learning rate of each row, NaN where it is not known.

    A schedule is asked for the last steps, and for as many more of those before, evenly spread.
    """
    rates = np.array([row.learning_rate for row in rows], np.float64)
    asked = [place for place, row in enumerate(rows) if row.updates is not None]
    half = MOST_ASKED // 2
    older, last = asked[:-half], asked[-half:]
    told: dict[tuple[int, int], float] = {}
    for place in (*older[:: max(1, -(-len(older) // half))], *last):
        row = rows[place]
        assert row.schedule is not None
        assert row.updates is not None
        key = (id(row.schedule), row.updates)
        if key not in told:
            told[key] = row.schedule(row.updates)
        rates[place] = told[key]
    return rates
