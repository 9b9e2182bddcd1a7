"""How well a value is: finite, non-finite without consequence, infinite, NaN. Pure data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from nanreplay.bisect.arrays import TensorStat

Health: TypeAlias = Literal["finite", "contained", "inf", "nan"]
"""`contained` is non-finite, but nothing that failed was computed from it: a mask, a dropped branch, a metric."""
HEALTHS: tuple[Health, ...] = ("finite", "contained", "inf", "nan")
"""The worst last."""


def worst(healths: Iterable[Health]) -> Health:
    """Return the worst; `finite` of none."""
    return max(healths, key=HEALTHS.index, default="finite")


def health_of(stats: Iterable[TensorStat], *, on_path: bool) -> Health:
    """Return the health of an op or a value, from the facts of its tensors.

    Args:
        stats: Facts of its tensors.
        on_path: Whether what failed was computed from its non-finite elements.
    """
    known = list(stats)
    if not any(stat.nonfinite for stat in known):
        return "finite"
    if not on_path:
        return "contained"
    return "nan" if any(stat.nan for stat in known) else "inf"
