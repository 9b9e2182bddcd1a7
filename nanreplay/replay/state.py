"""The variables that replayed programs run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from nanreplay.program.compiled import variable_handle
from nanreplay.program.watch import has_nonfinite, read_variable
from nanreplay.records import ArrayLike, VariableInfo


class LiveState:
    """One `tf.Variable` for each recorded variable; those that were never given a value are zeros.

    Args:
        infos: The capture's table of variables.
    """

    def __init__(self, infos: Sequence[VariableInfo]) -> None:
        """Make nothing yet."""
        self._infos = infos
        self._variables: list[Any] = []

    @property
    def variables(self) -> list[Any]:
        """The variables, by index."""
        if not self._variables:
            self._variables = [_variable(info) for info in self._infos]
        return self._variables

    def assign(self, values: Mapping[int, ArrayLike]) -> None:
        """Set variables by index."""
        for index, value in values.items():
            self.variables[index].assign(value)

    def read(self) -> dict[int, Any]:
        """Return all values by index; they share the variables' buffers, which TensorFlow copies on the next write."""
        return {index: read_variable(variable_handle(each)) for index, each in enumerate(self.variables)}

    def is_bad(self, index: int) -> bool:
        """Whether a variable holds NaN or an infinity."""
        return has_nonfinite(self.variables[index])

    def clear(self) -> None:
        """Let go of the variables."""
        self._variables = []


def _variable(info: VariableInfo) -> Any:
    return tf.Variable(tf.zeros(info.shape, info.dtype), dtype=info.dtype, shape=info.shape, trainable=False)
