"""Measuring variables from outside of the step: the sum of squares of each, all in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nanreplay.program import observe
from nanreplay.program.watch import read_variable, real


class Look:
    """Computes `tf.nn.l2_loss` = sum(x^2) / 2 of variables, as a float64 vector.

    A sum is NaN only when an element is not finite. It is infinite when an element is, or when finite elements overflow it.

    Args:
        handles: Of float variables.
    """

    def __init__(self, handles: Sequence[Any]) -> None:
        self._handles = list(handles)
        self._function: Any = None

    def __call__(self) -> Any:
        """The vector, a tensor that may still be computed."""
        if not self._handles:
            return tf.zeros([0], tf.float64)
        with observe.muted():
            if self._function is None:
                self._function = tf.function(self._sums, autograph=False, jit_compile=False).get_concrete_function()
            return self._function()

    def _sums(self) -> Any:
        sums = []
        for handle in self._handles:
            with tf.device(handle.device):
                sums.append(tf.cast(tf.nn.l2_loss(real(read_variable(handle))), tf.float64))
        return tf.stack(sums)
