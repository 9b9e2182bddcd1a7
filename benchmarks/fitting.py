"""How a figure grows with a size: a fixed part, and the power of what comes on top of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POWERS = np.arange(0.2, 3.01, 0.02)
GROWS_FROM = 0.15
"""A figure whose largest row is less above its fixed part, relatively, tells no power: that much it
differs from run to run."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What figures of some sizes are made of."""

    fixed: float
    """What a size of 0 would take, in the unit of the figures."""
    power: float | None
    """Power of the size with which the rest grows; None where hardly anything grows."""
    quadratic_share: float
    """What a quadratic term explains of the growth to the largest size, beside a linear one."""


def growth_of(sizes: Sequence[float], figures: Sequence[float]) -> Growth:
    """Fit `fixed + slope * size ** power`, and `fixed + slope * size + bend * size ** 2`.

    No coefficient is below 0. Each row counts by its relative error: a second more or less matters
    where a figure has two of them, and hardly where it has two hundred.

    Args:
        sizes: At least four, all above 0.
        figures: One for each; a figure below 0 counts as 0.
    """
    size, figure = np.asarray(sizes, float), np.maximum(np.asarray(figures, float), 0.0)
    largest = float(size.max())
    scaled, weights = size / largest, 1 / np.maximum(figure, 0.05 * figure.max() + 1e-12)
    best, power = None, 1.0
    for each in POWERS:
        columns = np.stack([np.ones_like(scaled), scaled**each], axis=1)
        found = _least_squares(columns, figure, weights)
        if best is None or found[1] < best[1]:
            best, power = found, float(each)
    assert best is not None
    fixed, grown = best[0]
    columns = np.stack([np.ones_like(scaled), scaled, scaled**2], axis=1)
    _, linear, bend = _least_squares(columns, figure, weights)[0]
    share = bend / (linear + bend) if linear + bend > 0 else 0.0
    grows = grown > GROWS_FROM * (fixed + grown)
    return Growth(float(fixed), power if grows else None, float(share) if grows else 0.0)


def _least_squares(
    columns: NDArray[np.float64], figure: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """The coefficients, none below 0, and the weighted sum of squares that they leave.

    There are three at most, so each choice of those above 0 is tried.
    """
    count = columns.shape[1]
    best = np.zeros(count), float(np.sum((figure * weights) ** 2))
    for length in range(1, count + 1):
        for chosen in itertools.combinations(range(count), length):
            part = columns[:, chosen] * weights[:, None]
            found = np.linalg.lstsq(part, figure * weights, rcond=None)[0]
            left = float(np.sum((part @ found - figure * weights) ** 2))
            if (found >= 0).all() and left < best[1]:
                coefficients = np.zeros(count)
                coefficients[list(chosen)] = found
                best = coefficients, left
    return best
