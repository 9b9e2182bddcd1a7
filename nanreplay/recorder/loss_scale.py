"""Loss scaling: whether an update was skipped, which is normal, until it does not end."""

from __future__ import annotations

from typing import Any

from nanreplay.program import private_tf
from nanreplay.program.watch import read_variable
from nanreplay.records import Trigger

WHOLE = 1.0
"""A loss that is scaled up no more: a gradient that overflows then does so by itself."""


class LossScales:
    """Reads the loss scale before a step, and after it whether the update was made.

    An optimizer that scales the loss leaves everything as it is when a gradient is not finite: the number of its updates too.
    That of Keras 2 counts the update all the same. Its scale falls, and the steps since it last changed are none.
    """

    def __init__(self) -> None:
        self._optimizers: list[Any] = []
        self._before: list[tuple[float, int]] = []

    def learn(self, optimizer: Any) -> None:
        """Read this one too, if it scales the loss."""
        if hasattr(optimizer, "initial_scale") and hasattr(optimizer, "inner_optimizer"):
            self._optimizers.append(optimizer)

    def before(self) -> None:
        """A step begins."""
        if self._optimizers:
            self._before = [_scale_and_count(optimizer) for optimizer in self._optimizers]

    def after(self) -> tuple[float, bool] | None:
        """(loss scale of the step, whether its update was skipped); None where nothing scales the loss."""
        if not self._optimizers or len(self._before) != len(self._optimizers):
            return None
        after = [_scale_and_count(optimizer) for optimizer in self._optimizers]
        skipped = all(map(_is_skipped, self._optimizers, self._before, after))
        return self._before[0][0], skipped


def _is_of_keras_2(optimizer: Any) -> bool:
    return hasattr(optimizer, "dynamic_counter")


def _scale_and_count(optimizer: Any) -> tuple[float, int]:
    """(loss scale, how many updates were made); with Keras 2 (loss scale, steps since it last changed)."""
    if _is_of_keras_2(optimizer):
        counter = optimizer.dynamic_counter
        return float(optimizer.loss_scale), -1 if counter is None else int(counter)
    scale = private_tf.handle_of(getattr(optimizer, "dynamic_scale", None)) if getattr(optimizer, "built", True) else None
    updates = private_tf.handle_of(optimizer.inner_optimizer.iterations)
    value = float(optimizer.initial_scale) if scale is None else float(read_variable(scale).numpy())
    return value, 0 if updates is None else int(read_variable(updates).numpy())


def _is_skipped(optimizer: Any, before: tuple[float, int], after: tuple[float, int]) -> bool:
    if not _is_of_keras_2(optimizer):
        return after[1] == before[1]
    return after[0] < before[0] or (after[0] == before[0] <= WHOLE and after[1] == 0)


class Skips:
    """Counts skipped updates in a row.

    Args:
        limit: How many are an incident.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._scale: float | None = None

    def note(self, scale: float | None, *, skipped: bool) -> Trigger | None:
        """Note a step; an incident when skipping goes on, or the scale falls no further.

        Keras 3 halves the scale without end. Where an optimizer has a floor, two updates that are skipped at the same scale
        show it.
        """
        before, self._scale = self._scale, None
        self._count = self._count + 1 if skipped else 0
        if not skipped:
            return None
        self._scale = scale
        if self._count >= self._limit:
            return Trigger("gradient", "loss scale", f"{self._count} updates in a row were skipped")
        if self._scale is not None and self._scale == before and self._scale <= WHOLE:
            return Trigger("gradient", "loss scale", f"an update was skipped at the floor of {self._scale:g}")
        return None
