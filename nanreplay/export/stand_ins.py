"""Stand-ins: random arrays in the place of data, for `redact`.

A stand-in has the type, shape, mean, deviation and range of an array, and the same special values,
since these are what a failure depends on. Pure: arrays in, arrays out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.random import Generator

DIGITS = 3
"""Significant digits of the statistics that are kept.

So no number of the data is among the stand-ins but by chance.
"""


def stand_in(array: Any, random: Generator) -> Any:
    """Return an array that tells no more of another than its statistics.

    Floats are drawn from a normal distribution with the mean and deviation of the finite elements
    other than 0, within their range; NaN, infinities and zeros stay in their places. Integers are
    drawn evenly from the range, zeros stay. Of booleans, and of arrays with one value besides zero
    (masks, one-hot labels), the rows are shuffled. Texts keep their length.

    Args:
        array: Any array of a batch.
        random: Where random numbers come from.
    """
    kind = array.dtype.kind
    if array.size == 0:
        return array
    if kind in "OSU":
        return _blank_texts(array)
    if kind == "c":
        real, imaginary = stand_in(array.real, random), stand_in(array.imag, random)
        return (real + 1j * imaginary).astype(array.dtype)
    is_float = kind not in "biu"
    values = array.astype(np.float64) if is_float else array
    ordinary = values != 0
    if is_float:
        ordinary &= np.isfinite(values)
    drawn = values.copy()
    if kind == "b" or len(np.unique(values[ordinary])) <= 1:
        if is_float:
            drawn[ordinary] = list(map(_rounded, values[ordinary]))
        if array.ndim:
            drawn = random.permutation(drawn, axis=0)
    elif is_float:
        drawn[ordinary] = _normal(values[ordinary], random)
    else:
        drawn[ordinary] = _uniform(values[ordinary], random)
    return drawn.astype(array.dtype)


def _uniform(values: Any, random: Generator) -> Any:
    """Integers other than 0, drawn evenly from the range of some that are not 0 either."""
    low, high = int(values.min()), int(values.max())
    drawn = random.integers(low, high, values.size, dtype=values.dtype, endpoint=True)
    return np.where(drawn == 0, np.asarray(high or low, values.dtype), drawn)


def _normal(values: Any, random: Generator) -> Any:
    """Normally distributed floats with the mean, the deviation and the range of some."""
    scale = float(np.abs(values).max())
    scaled = values / scale  # squares of large numbers overflow
    mean, deviation = _rounded(float(scaled.mean())), _rounded(float(scaled.std()))
    low, high = _rounded(float(values.min())), _rounded(float(values.max()))
    normal = mean + deviation * random.standard_normal(values.size)
    drawn = np.clip(normal * _rounded(scale), low, high)
    if values.size > 1:  # the range itself is what many failures are about
        first, last = random.choice(values.size, 2, replace=False)
        drawn[first], drawn[last] = low, high
    return drawn


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS - 1}e}") if math.isfinite(value) else value


def _blank_texts(array: Any) -> Any:
    """Texts of as many bytes, all of the letter x."""
    blank = np.empty(array.shape, object)
    for index, item in np.ndenumerate(array):
        encoded = item if isinstance(item, bytes) else str(item).encode()
        blank[index] = b"x" * len(encoded)
    return blank
