"""The variables that replayed programs run on."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.errors import FormatError
from nanreplay.limits import check_size
from nanreplay.program.compiled_program import variable_handle
from nanreplay.program.fingerprint import has_nonfinite, nonfinite_kind, read_variable
from nanreplay.records import ArrayLike, VariableInfo
from nanreplay.tensorflow_internals import tf_eager

# Op determinism, which TensorFlow has once for a process, shared by the replays that are open.

_lock = threading.Lock()
_users = 0
_before = False


class OpDeterminism:
    """Op determinism as one replay wants it. After the last one it is as it was before the first."""

    def __init__(self) -> None:
        global _users, _before
        self._is_wanted = True
        self._is_released = False
        with _lock:
            if not _users:
                _before = tf_eager.is_deterministic()
            _users += 1
        self.enter()

    def enter(self) -> None:
        """Have it as this replay wants it: something of this replay is about to run."""
        tf_eager.set_deterministic(self._is_wanted)

    def give_up(self) -> bool:
        """Do without from now on, for an op that has no deterministic kernel; returns whether it was wanted until now."""
        was_wanted, self._is_wanted = self._is_wanted, False
        return was_wanted

    def release(self) -> None:
        """The replay is closed."""
        global _users
        with _lock:
            if self._is_released:
                return
            self._is_released = True
            _users -= 1
            if not _users:
                tf_eager.set_deterministic(_before)


# --- replay.state


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
            check_size(
                "The program is refused: its variables", sum(_size_of(info) for info in self._infos)
            )
            self._variables = [_variable(info) for info in self._infos]
        return self._variables

    def assign(self, values: Mapping[int, ArrayLike]) -> None:
        """Set variables by index; values of another type are cast to the variable's."""
        for index, value in values.items():
            if not 0 <= index < len(self._infos):
                raise FormatError(
                    f"The capture is damaged: it holds a value of variable {index}, which is not in its table."
                )
            info = self._infos[index]
            if np.shape(value) != tuple(info.shape):
                raise FormatError(
                    f"The capture is damaged: a value of {info.path} has the shape {np.shape(value)}, not {info.shape}."
                )
            self.variables[index].assign(as_type(value, info.dtype))

    def read(self) -> dict[int, Any]:
        """Return all values by index; they share the variables' buffers, which TensorFlow copies on the next write."""
        return {
            index: read_variable(variable_handle(each)) for index, each in enumerate(self.variables)
        }

    def is_bad(self, index: int) -> bool:
        """Whether a variable holds NaN or an infinity."""
        kind = self._infos[index].dtype
        return ("float" in kind or "complex" in kind) and has_nonfinite(
            read_variable(self.variables[index].handle).numpy()
        )

    def bad_kind(self, index: int) -> str:
        """The worst that a variable holds: `nan`, `inf` or `-inf`; "" when it is finite."""
        return (
            nonfinite_kind(read_variable(self.variables[index].handle).numpy())
            if self.is_bad(index)
            else ""
        )

    def already_bad(self, layout: Iterable[str], claimed: str | None) -> set[int]:
        """Return the watched variables and optimizer's slots that are non-finite now, before a step: not the step's doing.

        Args:
            layout: Names of the fingerprint's elements.
            claimed: Path of the variable that the incident is about, if it is about one; it is never among them.
        """
        watched = [
            int(name.partition(":")[2]) for name in layout if name.startswith("variable_sum:")
        ]
        slots = [index for index, info in enumerate(self._infos) if info.role == "optimizer"]
        return {
            index
            for index in (*watched, *slots)
            if index >= 0 and self._infos[index].path != claimed and self.is_bad(index)
        }

    def clear(self) -> None:
        """Let go of the variables."""
        self._variables = []


def as_type(value: ArrayLike, dtype: str) -> Any:
    """Return a leaf of a batch or a variable's value as a tensor of a TensorFlow type."""
    if not isinstance(value, tf.Tensor):
        array = np.asarray(value)
        value = tf.convert_to_tensor(array, dtype if array.dtype.kind in "OSU" else None)
    return value if value.dtype.name == dtype else tf.cast(value, dtype)


def _size_of(info: VariableInfo) -> int:
    return math.prod(info.shape) * max(int(tf.dtypes.as_dtype(info.dtype).size), 1)


def _variable(info: VariableInfo) -> Any:
    return tf.Variable(
        tf.zeros(info.shape, info.dtype), dtype=info.dtype, shape=info.shape, trainable=False
    )
