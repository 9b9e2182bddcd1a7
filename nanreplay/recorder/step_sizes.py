"""How large the gradients of a step are, and how far it moved its weights.

`reexecution` and `eager_rerun` ask, of steps that run again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.capture.arrays import as_array
from nanreplay.program.fingerprint import largest

PIECE = 2**13
"""Elements that are compared at once.

A product of more than 10,000 OpenBLAS computes in several threads, which wait for each other in a
loop: beside TensorFlow's own that took six times the processor time.
"""
TINY_SQUARE = 1e-20
"""A smaller sum of squares is added up in float64: squares of its numbers may be 0 in float32."""


def size_of_gradient(values: Any) -> tuple[float, float]:
    """(norm, largest absolute value) of a tensor; the norm is infinite where float32 overflows.

    NumPy looks at a small tensor in a tenth of the time that calls of kernels take, and a model may
    have thousands of them.
    """
    if "CPU" not in values.device or not values.shape.num_elements():
        # tf.nn.l2_loss is sum(x^2) / 2
        with np.errstate(all="ignore"):
            return float(np.sqrt(2.0 * float(tf.nn.l2_loss(values)))), float(largest(values))
    flat = np.asarray(values).reshape(-1)
    total, maxima = 0.0, []
    with np.errstate(all="ignore"):
        for start in range(0, len(flat), PIECE):
            piece = flat[start : start + PIECE]
            total += float(np.dot(piece, piece))
            maxima += [piece.max(), -piece.min()]
        half = flat.dtype.type(total / 2)
        return float(np.sqrt(2.0 * float(half))), float(np.max(maxima))


def values_of_gradient(gradient: Any) -> Any:
    """The numbers of a gradient; of a sparse one, those of its rows."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def dense_gradient(gradient: Any) -> NDArray[Any]:
    """A gradient as an array, which shares the tensor's buffer.

    Rows of a sparse one are added up in their places.
    """
    return as_array(tf.convert_to_tensor(gradient))


def change(before: NDArray[Any], after: NDArray[Any]) -> tuple[float, float]:
    """(|after - before| / |before|, |after|), Euclidean norms; the first is 0 without a change.

    In pieces that a processor's cache holds, for the arrays may be large. Squares of float32 are
    added up in float32 within a piece, unless that is not finite, or may have lost something. Of an
    embedding a step leaves most as it was.
    """
    totals = np.zeros(3)
    flat_before, flat_after = before.reshape(-1), after.reshape(-1)
    with np.errstate(all="ignore"):
        for start in range(0, len(flat_before), PIECE):
            old = flat_before[start : start + PIECE]
            new = flat_after[start : start + PIECE]
            if np.array_equal(old, new):
                wide = old.astype(np.float64)
                square = float(np.dot(wide, wide))
                totals += (0.0, square, square)
                continue
            squares = _squares(old, new) if old.dtype == np.float32 else None
            if squares is None or not np.isfinite(squares).all() or min(squares) < TINY_SQUARE:
                squares = _squares(old.astype(np.float64), new.astype(np.float64))
            totals += squares
        distance, size, norm = (float(root) for root in np.sqrt(totals))
    if distance == 0:
        return 0.0, norm
    return distance / size if size else float("inf"), norm


def _squares(old: NDArray[Any], new: NDArray[Any]) -> tuple[float, float, float]:
    """Sums of squares of the difference, of the old values and of the new ones."""
    difference = new - old
    return (
        float(np.dot(difference, difference)),
        float(np.dot(old, old)),
        float(np.dot(new, new)),
    )
