"""Reading fingerprints: what in them is not finite, and whether two are equal bit for bit or how many ulp apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanreplay.records import TriggerWhat

MAX_ULP = 2**62
"""Distance between a number and a NaN, or between NaNs and infinities of other kinds."""


NOT_MEASURED = -1.0
"""Stands for what a step did not measure (see `watch`), in elements of the kinds below alone: these are never negative, a loss may be."""
_AT_TIMES = ("gradient_max", "variable_sum")


def was_measured(name: str, value: float) -> bool:
    """Return whether a step measured the element `name`, given its value."""
    return value != NOT_MEASURED or name.partition(":")[0] not in _AT_TIMES


class NonFinite(NamedTuple):
    """The first non-finite value that a fingerprint shows."""

    what: TriggerWhat
    """`loss`, `gradient` or `variable`."""
    subject: int
    """Index of the loss or of the variable."""
    kind: str
    """`nan`, `inf` or `-inf`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of a fingerprint's elements, taken apart once."""

    names: tuple[str, ...]
    losses: tuple[tuple[int, int], ...]
    """(element, loss) pairs."""
    logged: tuple[tuple[int, int], ...]
    """(element, output) pairs of the numbers that the step returned and that are no losses of its own: metrics, running means."""
    gradients: tuple[tuple[int, int, int], ...]
    """(element of the sum, element of the maximum, variable) triples."""
    variables: tuple[tuple[int, int], ...]
    """(element, variable) pairs."""

    @staticmethod
    def parse(names: Sequence[str]) -> Layout:
        """Take the names apart."""
        split = [(index, *name.partition(":")[::2]) for index, name in enumerate(names)]
        maxima = {subject: index for index, kind, subject in split if kind == "gradient_max"}
        return Layout(
            tuple(names),
            tuple((index, int(subject)) for index, kind, subject in split if kind == "loss"),
            tuple((index, int(subject)) for index, kind, subject in split if kind == "logged"),
            tuple((index, maxima[subject], int(subject)) for index, kind, subject in split if kind == "gradient_sum"),
            tuple((index, int(subject)) for index, kind, subject in split if kind == "variable_sum"),
        )

    def find_nonfinite(
        self, values: Any, *, loss_scaled: bool, bad_variable: Callable[[int], str], logged_losses: Collection[int] = ()
    ) -> tuple[NonFinite | None, bool]:
        """Return the first thing that is not finite, and whether loss scaling skipped this update.

        A sum of squares that is NaN holds a non-finite element. One that is infinite may have overflowed by itself: the
        largest absolute gradient decides, a variable is looked at, as is one that the step did not measure.

        Args:
            values: The fingerprint.
            loss_scaled: Whether a LossScaleOptimizer skips updates with a non-finite gradient.
            bad_variable: Says of a variable by index the worst that it holds, `nan`, `inf` or `-inf`; "" when it is finite or does
                not count.
            logged_losses: Outputs that stand for the loss where the step does not return its own.
        """
        stand_ins = [] if self.losses else [(element, 0) for element, output in self.logged if output in logged_losses]
        for element, loss in (*self.losses, *stand_ins):
            if not math.isfinite(values[element]):
                return NonFinite("loss", loss, _kind(values[element])), False
        bad = [(total, variable) for total, largest, variable in self.gradients if _is_nonfinite(values[total], values[largest])]
        if bad and not loss_scaled:
            return NonFinite("gradient", bad[0][1], _kind(values[bad[0][0]])), False
        for element, variable in self.variables:
            is_unclear = values[element] == NOT_MEASURED or not math.isfinite(values[element])
            if is_unclear and (kind := bad_variable(variable)):
                return NonFinite("variable", variable, kind), False
        return None, bool(bad)

    def distance(self, left: NDArray[Any], right: NDArray[Any]) -> int:
        """`ulp_distance` of two fingerprints in what both measured; what is not finite is measured on both sides."""
        if left.shape != right.shape:
            return ulp_distance(left, right)
        both = self.measured(left) & self.measured(right)
        return ulp_distance(left[both], right[both])

    def measured(self, values: Any) -> NDArray[np.bool_]:
        """Return which elements the step measured."""
        return np.array([was_measured(name, value) for name, value in zip(self.names, values, strict=True)], bool)

    def unmeasured(self, values: Any) -> list[int]:
        """Return the variables that the step did not measure."""
        return [variable for element, variable in self.variables if values[element] == NOT_MEASURED]

    def gradients_fit(self, values: Any) -> bool:
        """Return whether the squares of all gradients are finite."""
        return all(math.isfinite(values[total]) for total, _, _ in self.gradients)


def _is_nonfinite(total: float, largest: float) -> bool:
    return math.isnan(total) or (math.isinf(total) and not math.isfinite(largest))


def _kind(value: float) -> str:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


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
