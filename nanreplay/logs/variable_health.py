"""A variable in numbers, a piece at a time: memory does not grow with its size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIECE = 2**17
"""Elements that are looked at together: they stay in the processor's cache."""
_SAFE = (1e-15, 1e15)
"""Magnitudes whose squares are summed in float32 without a loss that shows."""


@dataclass(slots=True)
class Measured:
    """What is known of the elements so far."""

    nan: int = 0
    inf: int = 0
    largest: float = 0.0
    squares: float = 0.0
    """Sum of the squares of the finite elements, divided by `scale` squared."""
    scale: float = 1.0

    @property
    def norm(self) -> float:
        """Euclidean norm of the finite elements."""
        return math.sqrt(self.squares) * self.scale


def measure(pieces: Iterable[NDArray[Any]]) -> Measured:
    """Count the non-finite elements of an array that comes in pieces; its magnitude and norm."""
    result = Measured()
    for piece in pieces:
        flat = piece.reshape(-1)
        if flat.dtype.kind == "c":
            flat = flat.view(flat.real.dtype)
        for start in range(0, len(flat), _PIECE):
            _add(result, flat[start : start + _PIECE])
    return result


def _add(result: Measured, part: NDArray[Any]) -> None:
    # bfloat16, float8 and float16 have no fast kernels
    if part.dtype not in (np.float32, np.float64):
        part = part.astype(np.float64 if part.dtype.kind in "iu" else np.float32)
    largest = max(float(part.max()), -float(part.min()))  # both are NaN where one element is
    if not math.isfinite(largest):
        finite = part[np.isfinite(part)]
        result.nan += int(np.isnan(part).sum())
        result.inf += len(part) - len(finite) - int(np.isnan(part).sum())
        part = finite
        largest = float(np.abs(part).max(initial=0.0))
    result.largest = max(result.largest, largest)
    if largest == 0:
        return
    if part.dtype == np.float32 and _SAFE[0] < largest < _SAFE[1]:
        _add_squares(result, float(np.dot(part, part)), 1.0)
    else:
        scaled = part.astype(np.float64) / largest
        _add_squares(result, float(np.dot(scaled, scaled)), largest)


def _add_squares(result: Measured, squares: float, scale: float) -> None:
    """Add squares that were divided by `scale` squared, so that no sum overflows."""
    if scale > result.scale:
        result.squares *= (result.scale / scale) ** 2
        result.scale = scale
    result.squares += squares * (scale / result.scale) ** 2
