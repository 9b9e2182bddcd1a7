"""Comparing fingerprints: equal bit for bit, or how many units in the last place apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_ULP = 2**62
"""Distance between a number and a NaN, or between NaNs and infinities of other kinds."""


def ulp_distance(left: NDArray[Any], right: NDArray[Any]) -> int:
    """Largest distance in units in the last place between two float arrays of one shape and dtype.

    Equal numbers, equal infinities and any two NaNs are 0 apart (which NaN a kernel makes is no property of the program).

    Raises:
        ValueError: Shapes or dtypes differ.
    """
    if left.shape != right.shape or left.dtype != right.dtype:
        raise ValueError(f"Expected arrays of one shape and dtype. Received: {left.shape} {left.dtype}, {right.shape} {right.dtype}")
    if left.size == 0:
        return 0
    both_nan = np.isnan(left) & np.isnan(right)
    same = both_nan | (left == right)
    if same.all():
        return 0
    if not (np.isfinite(left[~same]).all() and np.isfinite(right[~same]).all()):
        return MAX_ULP
    distance = np.abs(_ordered(left[~same]) - _ordered(right[~same]))
    return int(min(distance.max(), MAX_ULP))


def _ordered(values: NDArray[Any]) -> NDArray[Any]:
    """Integers that order floats as the floats are ordered, one apart for neighbours."""
    bits = values.view({2: np.int16, 4: np.int32, 8: np.int64}[values.dtype.itemsize]).astype(object)
    lowest = -(2 ** (8 * values.dtype.itemsize - 1))
    return np.where(bits >= 0, bits, lowest - bits)
