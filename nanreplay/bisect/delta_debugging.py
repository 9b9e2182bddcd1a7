"""Delta debugging: the smallest part of a set with which something still happens.

Rows of a batch, numbers of a tensor and features are all searched by it.
Source: A. Zeller and R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE
Transactions on Software Engineering 28(2), 2002: the algorithm ddmin.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def ddmin(
    units: Sequence[T],
    happens: Callable[[Sequence[T]], bool],
    *,
    spent: type[Exception] | tuple[type[Exception], ...] = (),
) -> tuple[T, ...]:
    """Return a part of `units` with which it still happens and of which no unit can be left out.

    The units are split into parts. The search goes on with a part with which it happens, else with
    all but one part if it happens with these, else with smaller parts. Of 8 units of which 5 is
    needed it keeps (4, 5, 6, 7), then (4, 5), then (5,).

    Args:
        units: With all of them it happens, and with none of them it does not; neither is tried.
        happens: Whether it happens with these units, which keep their order.
        spent: What `happens` raises when it may try no more: the smallest part so far is returned
            then, which may hold more than it must.
    """
    kept = tuple(units)
    parts = 2
    try:
        while len(kept) > 1:
            smaller = next((part for part in _candidates(kept, parts) if happens(part)), None)
            if smaller is not None:
                # A part divides further from two; a complement keeps parts of about the same size.
                is_part = len(smaller) <= len(kept) // parts + 1
                parts = 2 if is_part else max(parts - 1, 2)
                kept = smaller
            elif parts >= len(kept):
                break
            else:
                parts = min(parts * 2, len(kept))
    except spent:
        pass
    return kept


def _candidates(units: tuple[T, ...], parts: int) -> Iterator[tuple[T, ...]]:
    """Yield the parts of a division into parts of nearly equal size, then their complements.

    Of two parts each is the other's complement, so these are not tried twice.
    """
    bounds = [len(units) * i // parts for i in range(parts + 1)]
    pairs = list(itertools.pairwise(bounds))
    for low, high in pairs:
        yield units[low:high]
    if parts > 2:
        for low, high in pairs:
            yield units[:low] + units[high:]
