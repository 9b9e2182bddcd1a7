"""Loss scaling: whether an update was skipped, which is normal, until it does not end.

`Recording` asks before and after each step, where an optimizer scales the loss.
"""

from __future__ import annotations

from typing import Any

from nanreplay.program.nonfinite_values import read_variable
from nanreplay.records import Trigger
from nanreplay.tensorflow_internals import tf_variables

WHOLE = 1.0
"""A loss that is scaled up no more: a gradient that overflows then does so by itself."""


class LossScales:
    """Reads the loss scale before a step, and after it whether the update was made.

    An optimizer that scales the loss leaves everything as it is when a gradient is not finite: the
    number of its updates too. That of Keras 2 counts the update all the same. Its scale falls, and
    the steps since it last changed are none.
    """

    def __init__(self) -> None:
        self.optimizers: list[Any] = []
        """Those that scale the loss; nothing is to be read without them."""
        self._before: list[tuple[float, int]] = []

    def learn(self, optimizer: Any) -> None:
        """Read this one too, if it scales the loss."""
        # As the `LossScaleOptimizer` of Keras 3 and that of Keras 2 have.
        if hasattr(optimizer, "initial_scale") and hasattr(optimizer, "inner_optimizer"):
            self.optimizers.append(optimizer)

    def before(self) -> None:
        """A step begins."""
        self._before = list(map(_scale_and_count, self.optimizers))

    def after(self) -> tuple[float, bool] | None:
        """(loss scale of the step, whether its update was skipped); None without loss scaling."""
        # An optimizer that was learned in this very step has no numbers from before it.
        if not self.optimizers or len(self._before) != len(self.optimizers):
            return None
        after = list(map(_scale_and_count, self.optimizers))
        skipped = all(map(_is_skipped, self.optimizers, self._before, after))
        return self._before[0][0], skipped


def _is_of_keras_2(optimizer: Any) -> bool:
    return hasattr(optimizer, "dynamic_counter")


def _scale_and_count(optimizer: Any) -> tuple[float, int]:
    """(loss scale, updates that were made); with Keras 2 (loss scale, steps since it changed)."""
    if _is_of_keras_2(optimizer):
        counter = optimizer.dynamic_counter
        return float(optimizer.loss_scale), -1 if counter is None else int(counter)
    # Keras 3 makes the variable of the scale when the optimizer is built.
    scale = None
    if getattr(optimizer, "built", True):
        scale = tf_variables.handle_of(getattr(optimizer, "dynamic_scale", None))
    updates = tf_variables.handle_of(optimizer.inner_optimizer.iterations)
    value = float(optimizer.initial_scale) if scale is None else float(read_variable(scale).numpy())
    return value, 0 if updates is None else int(read_variable(updates).numpy())


def _is_skipped(optimizer: Any, before: tuple[float, int], after: tuple[float, int]) -> bool:
    scale_before, count_before = before
    scale, count = after
    if not _is_of_keras_2(optimizer):
        return count == count_before
    # At its floor of 1 the scale of Keras 2 stays, and the steps since it changed are none again.
    return scale < scale_before or (scale == scale_before <= WHOLE and count == 0)


class Skips:
    """Counts skipped updates in a row.

    Args:
        limit: How many are an incident.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0
        """How many were skipped, the last one included."""
        self._scale: float | None = None
        """The loss scale of the last step, where its update was skipped."""

    def note(self, scale: float | None, *, skipped: bool) -> Trigger | None:
        """Note a step; an incident when skipping goes on, or the scale falls no further.

        Keras 3 halves the scale without end. Where an optimizer has a floor, two updates that are
        skipped at the same scale show it.
        """
        scale_before, self._scale = self._scale, None
        if not skipped:
            self.count = 0
            return None
        self.count += 1
        self._scale = scale
        if self.count >= self._limit:
            return Trigger("gradient", "loss scale", f"{self.count} updates in a row were skipped")
        if scale is not None and scale == scale_before and scale <= WHOLE:
            return Trigger(
                "gradient", "loss scale", f"an update was skipped at the floor of {scale:g}"
            )
        return None
