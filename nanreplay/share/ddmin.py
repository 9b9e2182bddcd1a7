"""Delta debugging: the smallest part of a set with which something still happens. Pure.

Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class BudgetSpentError(Exception):
    """No more trials are allowed."""


def ddmin(units: Sequence[T], happens: Callable[[Sequence[T]], bool]) -> tuple[T, ...]:
    """Return a part of `units` with which it still happens and of which no unit can be left out.

    When `happens` raises `BudgetSpentError`, the smallest part so far is returned; it may hold more than it must.

    Args:
        units: With all of them it happens; this is not tried.
        happens: Whether it happens with these units, which keep their order.
    """
    kept = tuple(units)
    try:
        if not kept or happens(()):
            return ()
        parts = 2
        while len(kept) > 1:
            smaller = next((part for part in _candidates(kept, parts) if happens(part)), None)
            if smaller is not None:
                parts = 2 if len(smaller) <= len(kept) // parts + 1 else max(parts - 1, 2)
                kept = smaller
            elif parts >= len(kept):
                break
            else:
                parts = min(parts * 2, len(kept))
    except BudgetSpentError:
        pass
    return kept


def _candidates(units: tuple[T, ...], parts: int) -> Iterator[tuple[T, ...]]:
    """Yield each part of a division into parts of nearly equal size, then, of more than two, all but each."""
    bounds = [len(units) * i // parts for i in range(parts + 1)]
    pairs = list(itertools.pairwise(bounds))
    yield from (units[low:high] for low, high in pairs)
    if parts > 2:
        yield from (units[:low] + units[high:] for low, high in pairs)
