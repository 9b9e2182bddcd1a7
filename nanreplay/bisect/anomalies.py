"""How a series of numbers leaves its usual range for good, and what steps up or falls beside it.

Timelines of captures and logs of any program are looked at alike: `growth` asks for the steps of a
capture, `nanreplay.logs` for what was logged. Pure NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FACTOR: Final = 10.0
"""Growth over the median of the earlier steps that counts."""
STEPS: Final = 3
"""How many steps before the origin gradual growth must have lasted."""
JUMP: Final = 100.0
"""Growth over the largest earlier value that counts within fewer steps."""
JUMP_FROM_FEW: Final = 1e4
"""The same when fewer than `STEPS` earlier values are known."""

_MOST_TRIED = 500
"""Positions that are tried as the first of the growth, where steps were left out."""
_LONGEST = 20_000
"""Values before the end that are looked at one by one."""
_WINDOWS = (20, 100, 500, _LONGEST)
"""Values before a position that make its usual range: slow growth hides in a short window."""
_FEWEST = 4
_MOST_CANDIDATES = 2_000
_SIGMAS, _LAST_SIGMAS = 6.0, 8.0
"""Widths of the usual range that each value, and the last one, must be away."""
_LEAST_RISE, _LEAST_LAST = float(np.log(1.5)), float(np.log(3.0))
"""The same in logarithms, for series without noise."""
_RATE_STEP = 1.5
"""By how much a learning rate must rise at once."""
_HALVINGS = 4
"""How often in a row a loss scale must have been halved: once or twice is its normal work."""


# With fixed factors, for series of every step.


def gradual_start(values: NDArray[Any], stands_for: NDArray[Any]) -> int | None:
    """Return the first position from which a series stays far above what it was before.

    None when it did not grow to `FACTOR` times its median.

    Args:
        values: The series.
        stands_for: How many steps each value stands for, where steps were left out.
    """
    if len(values) <= STEPS or values[-1] <= 0:
        return None
    if values[-1] < FACTOR * _median(values, stands_for):
        return None
    return _first_lasting(values, stands_for)


def _first_lasting(values: NDArray[Any], stands_for: NDArray[Any]) -> int | None:
    """Return the first position from which a series stays far above what it was before.

    That is, from which every value is at least `FACTOR` times the median of those before it: in
    1, 2, 1, 50, 1, 90, 200 it is 5, because after the 50 a 1 came back. A median of all values
    before each position would take quadratic time. So positions are first picked by the smallest
    value before them, which is at most the median and comes with one pass.
    """
    lowest_after = np.minimum.accumulate(values[::-1])[::-1]
    lowest_before = np.minimum.accumulate(values)
    possible = 1 + np.flatnonzero(lowest_after[1:] >= FACTOR * lowest_before[:-1])
    if (stands_for > 1).any():  # near enough, where steps were left out
        possible = possible[:: 1 + len(possible) // _MOST_TRIED]
    for position in possible:
        usual = _median(values[:position], stands_for[:position])
        if lowest_after[position] >= FACTOR * usual > 0:
            return int(position)
    return None


def _median(values: NDArray[Any], stands_for: NDArray[Any]) -> float:
    """Median over steps; a value counts as often as there are steps that it stands for."""
    if (stands_for == 1).all():
        return float(np.median(values))
    order = np.argsort(values)
    counts = np.cumsum(stands_for[order])
    return float(values[order[np.searchsorted(counts, counts[-1] / 2)]])


def jump_start(values: NDArray[Any]) -> int | None:
    """Return the position of a jump that only the last one or two values stand above.

    None when there is none.
    """
    for start in range(max(len(values) - STEPS + 1, 1), len(values)):
        usual = float(values[:start].max())
        wanted = JUMP if start >= STEPS else JUMP_FROM_FEW
        if usual > 0 and values[start:].min() >= wanted * usual:
            return start
    return None


# By the noise of the series itself, for values that were logged now and then.


@dataclass(frozen=True, slots=True)
class Departure:
    """How a series left its usual range and did not come back."""

    start: int
    """Position of the first value outside."""
    usual: float
    """Median of the values before it."""
    last: float
    """The last value."""
    count: int
    """How many values are outside, up to the end."""
    rises: bool
    """Whether it still rose after it had left; a level that was reached and kept does not."""


def departure(values: NDArray[np.float64]) -> Departure | None:
    """Return how a series of finite numbers left its usual range upwards, for good.

    The range is the median of the values before, give or take six times their spread (by the
    median of the deviations, so that single spikes do not widen it), and at least half as much
    again. Magnitudes count: values are compared by their logarithms, those near zero and negative
    ones as they are.
    """
    offset = max(len(values) - _LONGEST, 0)
    levels = _levels(values)[offset:]
    if len(levels) < _FEWEST:
        return None
    lowest_after = np.minimum.accumulate(levels[::-1])[::-1]
    for position in _candidates(levels, lowest_after):
        level_before = _usual_before(levels, position, lowest_after[position])
        if level_before is None:
            continue
        usual, spread, window = level_before
        begin = position
        while (
            begin > 1
            and levels[begin - 1] < levels[begin]
            and (
                # above the usual ones, or risen steeply itself: what is usual is not known early on
                levels[begin - 1] > usual + 2 * spread
                or levels[begin - 1] - levels[begin - 2] > _LEAST_LAST
            )
        ):
            begin -= 1  # back down the slope, to where it began
        start = begin + offset
        before = float(np.median(values[max(start - window, 0) : start]))
        rises = bool(levels[-1] - levels[begin] > _LEAST_RISE) or begin == len(levels) - 1
        return Departure(start, before, float(values[-1]), len(values) - start, rises)
    return None


def _levels(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values by magnitude: as they are well below the usual magnitude, as logarithms above it."""
    magnitudes = np.abs(values)
    known = magnitudes[magnitudes > 0]
    # a small share of a small one, so that a loss that fell to a thousandth is still seen to grow,
    # and a series of which most is growth as well
    scale = float(np.quantile(known, 0.25)) * 1e-3 if len(known) else 1.0
    levels: NDArray[np.float64] = np.sign(values) * np.log1p(magnitudes / max(scale, 1e-300))
    return levels


def _candidates(levels: NDArray[np.float64], lowest_after: NDArray[np.float64]) -> list[int]:
    """Positions after which no value is as low as the lowest before, give or take half of it."""
    lowest_before = np.minimum.accumulate(levels)[:-1]
    possible = 1 + np.flatnonzero(lowest_after[1:] > lowest_before + _LEAST_RISE)
    possible = possible[possible >= _FEWEST - 1]
    if len(possible) > _MOST_CANDIDATES:
        possible = possible[:: len(possible) // _MOST_CANDIDATES + 1]
    return list(map(int, possible))


def _usual_before(
    levels: NDArray[np.float64], position: int, lowest_after: float
) -> tuple[float, float, int] | None:
    """Median and spread before a position, and of how many values.

    None unless all that follows is beyond their range.
    """
    for window in _WINDOWS:
        before = levels[max(position - window, 0) : position]
        usual = float(np.median(before))
        spread = 1.4826 * float(np.median(np.abs(before - usual)))
        if lowest_after - usual > max(_SIGMAS * spread, _LEAST_RISE) and levels[-1] - usual > max(
            _LAST_SIGMAS * spread, _LEAST_LAST
        ):
            return usual, max(spread, _LEAST_RISE / 4), window
        if window >= position:
            break
    return None


def rate_steps(rates: NDArray[np.float64]) -> list[tuple[int, bool]]:
    """Positions at which a learning rate steps up, and whether it was rising before (a warm-up)."""
    if len(rates) < 2:
        return []
    with np.errstate(all="ignore"):
        ratios = rates[1:] / rates[:-1]
    steps_up = []
    for position in 1 + np.flatnonzero((ratios >= _RATE_STEP) & (rates[:-1] > 0)):
        before = ratios[max(position - 4, 0) : position - 1]
        rose = len(before) > 0 and bool((before > 1.0).all())
        warms_up = rose or (int(position) <= 3 and _rises_on(ratios))
        steps_up.append((int(position), warms_up))
    return steps_up


def _rises_on(ratios: NDArray[np.float64]) -> bool:
    """Whether a learning rate keeps rising after its first steps, as a warm-up does."""
    return len(ratios) >= 3 and bool((ratios[:3] > 1.0).all())


def falling_scale(scales: NDArray[np.float64]) -> int | None:
    """The position at which a loss scale begins to fall without rising again; None if it holds.

    A scale that is halved now and then and doubled again does its work.
    """
    known = scales[np.isfinite(scales)]
    if len(known) < 2:
        return None
    rises = np.flatnonzero(np.diff(known) > 0)
    begin = int(rises[-1]) + 1 if len(rises) else 0
    tail = known[begin:]
    if tail[-1] <= 0:
        return begin + int(np.flatnonzero(tail <= 0)[0])
    if len(tail) < 2 or tail[0] / tail[-1] < 2.0**_HALVINGS:
        return None
    drops = np.flatnonzero(np.diff(tail) < 0)
    # halvings that lie far apart are single overflows: only those of one stretch count
    last = len(drops) - 1
    first = last
    while first > 0 and drops[first] - drops[first - 1] <= 20:
        first -= 1
    start = begin + int(drops[first]) + 1
    return start if known[start - 1] / known[-1] >= 2.0**_HALVINGS else None


def frozen_from(values: NDArray[np.float64], fewest: int = 10) -> int | None:
    """The position from which a series has one and the same value to its end; None if it moves."""
    if len(values) < fewest + 1:
        return None
    moved = np.flatnonzero(np.diff(values) != 0)
    start = int(moved[-1]) + 1 if len(moved) else 0
    return start if 0 < start <= len(values) - fewest else None
