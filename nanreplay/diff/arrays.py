"""Two arrays, element by element."""

from __future__ import annotations

from typing import Any

import numpy as np

from nanreplay.diff.findings import ArrayDifference
from nanreplay.findings import Number
from nanreplay.program.fingerprint import ulp_distance


def differing(left: Any, right: Any) -> Any:
    """A boolean array of what differs; two NaNs, and zeros of both signs, are alike.

    Raises:
        ValueError: The shapes differ.
    """
    one, other = np.asarray(left), np.asarray(right)
    if one.shape != other.shape:
        raise ValueError(f"Expected arrays of one shape. Received: {one.shape}, {other.shape}")
    unequal = one != other
    if is_float(one) and is_float(other):
        unequal &= ~(np.isnan(one) & np.isnan(other))
    return np.asarray(unequal)


def is_float(array: Any) -> bool:
    """Whether an array holds real floats, those of TensorFlow included."""
    return array.dtype.kind == "f" or "float" in array.dtype.name


def compare(name: str, left: Any, right: Any) -> ArrayDifference | None:
    """What differs between two arrays of one shape, None when nothing does."""
    one, other = np.asarray(left), np.asarray(right)
    unequal = differing(one, other)
    if not unequal.any():
        return None
    index = tuple(int(each) for each in np.argwhere(unequal)[0]) if unequal.ndim else ()
    return ArrayDifference(name, int(unequal.sum()), int(unequal.size), index, _number(one[index]), _number(other[index]))


def _number(element: Any) -> Number:
    plain = element.item() if hasattr(element, "item") else element
    if isinstance(plain, bytes):
        return plain.decode("utf-8", "replace")
    return plain if isinstance(plain, (bool, int, float)) else str(plain)


def largest_ulp(left: Any, right: Any) -> int | None:
    """Largest distance in units in the last place; None for what is not two float arrays of one type."""
    one, other = np.asarray(left), np.asarray(right)
    if one.dtype != other.dtype or one.dtype.kind != "f":
        return None
    return ulp_distance(np.atleast_1d(one), np.atleast_1d(other))
