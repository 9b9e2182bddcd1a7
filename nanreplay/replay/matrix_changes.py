"""How far one step moved the trainable matrices: the size of its update.

The change of the last step before an incident is measured while the window is replayed: a second
replay, and a second state of a large model, only to tell it would be dear.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanreplay.capture.arrays import as_array
from nanreplay.records import VariableInfo

_PIECE = 1 << 20
"""Elements of a variable that are looked at together."""


@dataclass(frozen=True, slots=True)
class MatrixChange:
    """What one step changed of the trainable matrices."""

    ratio: float
    """Norm of the change, relative to the norm of what was there."""
    largest: float
    """Largest change of one weight."""


def matrices_in(variables: Sequence[VariableInfo]) -> list[int]:
    """Return the indices of the trainable matrices.

    Biases are left out: they begin at 0 and change by much more than their norm.
    """
    matrices = []
    for index, info in enumerate(variables):
        if info.role == "trainable" and len(info.shape) > 1:
            matrices.append(index)
    return matrices


def change_between(
    variables: Sequence[VariableInfo], before: Mapping[int, Any], after: Mapping[int, Any]
) -> MatrixChange:
    """Return how far a step moved the trainable matrices.

    What is not finite after the step is left out, and a matrix of zeros counts as one that is
    drawn.

    Args:
        variables: The capture's table of variables.
        before: Values by index, the matrices among them, just before the step.
        after: The same just after it.
    """
    changed = usual = largest = 0.0
    for index in matrices_in(variables):
        if index not in before:
            continue
        pieces = list(_changes(as_array(before[index]), as_array(after[index])))
        if not all(math.isfinite(most) for _, _, most in pieces):
            continue
        changed += sum(squares for squares, _, _ in pieces)
        squares_before = sum(squares for _, squares, _ in pieces)
        usual += max(squares_before, 2.0 * variables[index].shape[-1])
        largest = max(largest, *(most for _, _, most in pieces))
    return MatrixChange(math.sqrt(changed / usual) if usual else 0.0, largest)


def _changes(old: Any, new: Any) -> Iterator[tuple[float, float, float]]:
    """Of each piece of a variable: sum of squares of its change, of what it held, largest change.

    Piece by piece, since a variable may take a large part of the memory.
    """
    old, new = old.reshape(-1), new.reshape(-1)
    for start in range(0, old.size, _PIECE):
        piece = old[start : start + _PIECE].astype(np.float64)
        with np.errstate(all="ignore"):
            change = np.abs(new[start : start + _PIECE].astype(np.float64) - piece)
            most = float(change.max()) if np.isfinite(change).all() else math.inf
            yield float(np.sum(np.square(change))), float(np.sum(np.square(piece))), most
