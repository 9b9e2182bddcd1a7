"""Which samples and elements of a batch are shown, for the terminal interface and pages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.explore import BatchView, Leaf
from nanreplay.report.numbers import readable_list

STRANGE = 3.0
"""Standard deviations from which a value is marked."""
_MOST_SAMPLES = 4
"""Samples to blame that are named."""


def blamed_words(view: BatchView) -> str:
    """Which samples are to blame, else which one is furthest from the usual."""
    if not view.size:
        return "no array has a row for each sample"
    if view.rows:
        more = len(view.rows) - _MOST_SAMPLES
        named = list(map(str, view.rows[:_MOST_SAMPLES]))
        names = readable_list([*named, f"{more} more"] if more > 0 else named)
        return f"{'sample' if len(view.rows) == 1 else 'samples'} {names} of {view.size}"
    strangest = max(view.strangeness, default=0.0)
    if strangest < STRANGE:
        return f"{view.size} samples, none stands out"
    row = view.strangeness.index(strangest)
    return f"sample {row} of {view.size} is furthest from the usual"


def shown_row(view: BatchView) -> int:
    """The sample that is shown: the first to blame, else the strangest of those that were read."""
    if view.rows:
        return view.rows[0]
    return max(view.shown, key=lambda row: view.strangeness[row], default=0)


def good_row(view: BatchView) -> int | None:
    """The nearest sample that is not to blame; None where none was read."""
    row = shown_row(view)
    good = []
    for other in view.shown:
        if other not in view.rows and other != row:
            good.append(other)
    return min(good, key=lambda other: abs(other - row), default=None)


def is_sequence(leaf: Leaf) -> bool:
    """Whether a sample is a sequence: tokens, text, or class labels, one for each position."""
    if leaf.kind in ("tokens", "text"):
        return True
    return leaf.kind == "labels" and leaf.mean is None and len(leaf.shape) > 1


def element_order(
    values: NDArray[Any], scores: NDArray[np.float64] | None
) -> NDArray[np.signedinteger[Any]]:
    """Positions of the elements: non-finite ones, then by distance; as they are without scores."""
    if scores is None:
        return np.arange(len(values))
    distances = np.abs(np.nan_to_num(scores))
    distances = np.where(np.isfinite(values.astype(np.float64)), distances, np.inf)
    return np.argsort(-distances, kind="stable")


def index_in_sample(leaf: Leaf, element: int) -> list[int]:
    """Return the index of an element within its sample; [] for a sample of one element."""
    if len(leaf.shape) <= 1:
        return []
    return list(map(int, np.unravel_index(element, leaf.shape[1:])))
