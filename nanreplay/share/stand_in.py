"""Random arrays in the place of data: of the same type, shape, mean, deviation and range, and with the same special values. Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.random import Generator

DIGITS = 3
"""Significant digits of the statistics that are kept: no number of the data is among the stand-ins but by chance."""


def stand_in(array: Any, random: Generator) -> Any:
    """Return an array that tells no more of another than its statistics.

    Floats are drawn from a normal distribution with the mean and deviation of the finite elements other than 0, within their
    range; NaN, infinities and zeros stay in their places. Integers are drawn evenly from the range, zeros stay. Of booleans, and
    of arrays with one value besides zero (masks, one-hot labels), the rows are shuffled. Texts keep their length.

    Args:
        array: Any array of a batch.
        random: Where random numbers come from.
    """
    kind = array.dtype.kind
    if array.size == 0:
        return array
    if kind in "OSU":
        return _texts(array)
    if kind == "c":
        return (stand_in(array.real, random) + 1j * stand_in(array.imag, random)).astype(array.dtype)
    wide = array.astype(np.float64) if kind not in "biu" else array
    ordinary = np.isfinite(wide) & (wide != 0) if kind not in "biu" else wide != 0
    made = wide.copy()
    if kind == "b" or len(np.unique(wide[ordinary])) <= 1:
        if kind not in "biu":
            made[ordinary] = [_rounded(value) for value in wide[ordinary]]
        return random.permutation(made, axis=0).astype(array.dtype) if array.ndim else made.astype(array.dtype)
    if kind in "iu":
        low, high = int(wide[ordinary].min()), int(wide[ordinary].max())
        drawn = random.integers(low, high, int(ordinary.sum()), dtype=array.dtype, endpoint=True)
        made[ordinary] = np.where(drawn == 0, np.asarray(high or low, array.dtype), drawn)
    else:
        made[ordinary] = _normal(wide[ordinary], random)
    return made.astype(array.dtype)


def _normal(values: Any, random: Generator) -> Any:
    scale = float(np.abs(values).max())
    scaled = values / scale  # squares of large numbers overflow
    mean, deviation = _rounded(float(scaled.mean())), _rounded(float(scaled.std()))
    low, high = _rounded(float(values.min())), _rounded(float(values.max()))
    drawn = np.clip((mean + deviation * random.standard_normal(values.size)) * _rounded(scale), low, high)
    if values.size > 1:  # the range itself is what many failures are about
        first, last = random.choice(values.size, 2, replace=False)
        drawn[first], drawn[last] = low, high
    return drawn


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS - 1}e}") if math.isfinite(value) else value


def _texts(array: Any) -> Any:
    made = np.empty(array.shape, object)
    for index, item in np.ndenumerate(array):
        made[index] = b"x" * len(item if isinstance(item, bytes) else str(item).encode())
    return made
