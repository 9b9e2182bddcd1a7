"""What replayed programs run on: variables of their own.

`Replay` has one `LiveState` for steps as they were trained, one for steps in float64.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.capture.arrays import as_array
from nanreplay.errors import FormatError
from nanreplay.limits import check_size, give_up_pages
from nanreplay.program.nonfinite_values import (
    PIECE,
    has_nonfinite,
    nonfinite_kind,
    read_variable,
    squares_fit,
)
from nanreplay.records import ArrayLike, VariableInfo
from nanreplay.tensorflow_internals.tf_variables import new_handle

STATES_KEPT = 4
"""States of the variables before steps that are kept, so that going back costs no new run."""
_LARGE_STATE = 32 << 20
"""Of states of more bytes only the one that matters most and the one asked for last are kept."""


class KnownStates(Mapping[int, Mapping[int, Any]]):
    """The last states of the variables before steps that were asked for, by step.

    Args:
        infos: The capture's table of variables.
        pinned: The step whose state stays when states are large: it is asked for again and again.
    """

    def __init__(self, infos: Sequence[VariableInfo], pinned: int) -> None:
        """Know of none yet."""
        self.are_large = sum(_size_bytes(info) for info in infos) > _LARGE_STATE
        """Whether a state takes so much memory that it is rather replayed than kept."""
        self._pinned = pinned if self.are_large else None
        self._states: OrderedDict[int, Mapping[int, Any]] = OrderedDict()

    def __getitem__(self, step: int) -> Mapping[int, Any]:
        """Return a state, and note that it was asked for."""
        self._states.move_to_end(step)
        return self._states[step]

    def __iter__(self) -> Iterator[int]:
        """Go through the steps, the one asked for last at the end."""
        return iter(tuple(self._states))

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._states)

    def __contains__(self, step: object) -> bool:
        """Whether a state is kept."""
        return step in self._states

    def add(self, step: int, state: Mapping[int, Any]) -> None:
        """Keep a state, and let go of those that nobody asked for of late."""
        self._states[step] = state
        self._forget(STATES_KEPT if self._pinned is None else 2)

    def is_worth(self, step: int, incident: int, *, is_first: bool = False) -> bool:
        """Whether a state that a replay passes will be asked for: the incident's, and two more.

        The one before tells how far the last update went, the first one how the weights began;
        where states are large, these are replayed or read again.

        Args:
            step: The step that is about to run.
            incident: The step of the incident.
            is_first: Whether the replay begins with the step.
        """
        return step == incident or (self._pinned is None and (is_first or step == incident - 1))

    def make_room(self) -> None:
        """Let go of large states that can be replayed, before steps run that need room."""
        if self._pinned is not None:
            self._forget(1)

    def drop(self, step: int) -> None:
        """Let go of one state."""
        del self._states[step]

    def clear(self) -> None:
        """Let go of all."""
        self._states.clear()

    def _forget(self, most: int) -> None:
        for step in [known for known in self._states if known != self._pinned]:
            if len(self._states) <= most:
                break
            del self._states[step]


@dataclass(frozen=True, slots=True)
class LiveVariable:
    """What programs take of a `tf.Variable`, made in a fraction of its time."""

    handle: Any
    """The resource handle, by which ops read and write it."""


class LiveState:
    """A variable for each recorded one; those that were never given a value are zeros.

    Args:
        infos: The capture's table of variables.
    """

    def __init__(self, infos: Sequence[VariableInfo]) -> None:
        """Make nothing yet."""
        self._infos = infos
        self._variables: list[LiveVariable] = []
        self._looked: dict[int, bool] = {}
        """Whether variables hold NaN or an infinity, as far as they were looked at since somebody
        could last write to them: what a step left behind is what the next one begins with."""

    @property
    def variables(self) -> list[LiveVariable]:
        """The variables, by index. Who writes to them asks for them first, each time."""
        self._looked.clear()
        return self._made()

    def _made(self) -> list[LiveVariable]:
        if not self._variables:
            self._make({})
        return self._variables

    def _make(self, values: Mapping[int, ArrayLike]) -> None:
        """Make the variables, those of some indices with these values."""
        size_bytes = sum(_size_bytes(info) for info in self._infos)
        check_size("The program is refused: its variables", size_bytes)
        made = {
            index: _variable(self._infos[index], tensor) for index, tensor in self._checked(values)
        }
        for index, info in enumerate(self._infos):
            if index not in made:
                made[index] = _variable(info, tf.zeros(info.shape, info.dtype))
        self._variables = [made[index] for index in range(len(self._infos))]

    def some(self, values: Mapping[int, ArrayLike]) -> list[LiveVariable]:
        """Return a list of new variables with some values, by index; an empty one for the rest.

        These are not the variables of this state.
        """
        empty = LiveVariable(new_handle(tf.TensorShape(()), tf.float32))
        made = [empty] * len(self._infos)
        for index, value in values.items():
            info = self._infos[index]
            made[index] = _variable(info, as_type(value, info.dtype))
        return made

    def assign(self, values: Mapping[int, ArrayLike]) -> None:
        """Set variables by index; values of another type are cast to the variable's."""
        if not self._variables:
            self._make(values)
            return
        for index, tensor in self._checked(values):
            self._looked.pop(index, None)
            tf.raw_ops.AssignVariableOp(resource=self._variables[index].handle, value=tensor)

    def _checked(self, values: Mapping[int, ArrayLike]) -> Iterator[tuple[int, Any]]:
        """Yield values as tensors of their variables' types.

        Raises:
            FormatError: One is of no variable of the table, or of another shape.
        """
        for index, value in values.items():
            if not 0 <= index < len(self._infos):
                raise FormatError(
                    f"The capture is damaged: it holds a value of variable {index}, "
                    "which is not in its table."
                )
            info = self._infos[index]
            if tuple(np.shape(value)) != tuple(info.shape):
                raise FormatError(
                    f"The capture is damaged: a value of {info.path} has the shape "
                    f"{np.shape(value)}, not {info.shape}."
                )
            yield index, as_type(value, info.dtype)

    def begin(self, values: Mapping[int, ArrayLike]) -> None:
        """Set all variables by index; those that are given no value are zeros again."""
        if self._variables:
            others = (index for index in range(len(self._infos)) if index not in values)
            self.assign({index: tf.zeros_like(self._value(index)) for index in others})
        self.assign(values)

    def read(self, indices: Iterable[int] | None = None) -> dict[int, Any]:
        """Return values by index, all of them unless some are named.

        They share the variables' buffers, which TensorFlow copies before the next write.
        """
        wanted = range(len(self._infos)) if indices is None else indices
        return {index: self._value(index) for index in wanted}

    def is_bad(self, index: int) -> bool:
        """Whether a variable holds NaN or an infinity."""
        if index not in self._looked:
            self._looked[index] = self._has_nonfinite(index)
        return self._looked[index]

    def _has_nonfinite(self, index: int) -> bool:
        dtype = self._infos[index].dtype
        if "float" not in dtype and "complex" not in dtype:
            return False
        value = self._value(index)
        # of a large one, a dot product takes a quarter of the time of a look at each element
        is_large = math.prod(self._infos[index].shape) >= PIECE
        if is_large and dtype in ("float32", "float64") and squares_fit(value):
            return False
        return has_nonfinite(value)

    def bad_kind(self, index: int) -> str:
        """The worst that a variable holds: `nan`, `inf` or `-inf`; "" when it is finite."""
        return nonfinite_kind(self._value(index)) if self.is_bad(index) else ""

    def _value(self, index: int) -> Any:
        """The value of a variable as a tensor; its `numpy()` would be a copy."""
        return read_variable(self._made()[index].handle)

    def already_bad(self, layout: Iterable[str], claimed: str | None) -> set[int]:
        """Return the variables that are non-finite already, before a step: not the step's doing.

        Asked of are those in the fingerprint and the optimizer's slots.

        Args:
            layout: Names of the fingerprint's elements.
            claimed: Path of the variable that the incident is about, if it is about one. It is
                never among them.
        """
        sums = [name for name in layout if name.startswith("variable_sum:")]
        measured = [int(name.partition(":")[2]) for name in sums]
        slots = [index for index, info in enumerate(self._infos) if info.role == "optimizer"]
        known = [index for index in (*measured, *slots) if index >= 0]
        others = [index for index in known if self._infos[index].path != claimed]
        return {index for index in others if self.is_bad(index)}

    def clear(self) -> None:
        """Let go of the variables."""
        self._variables = []
        self._looked.clear()

    def give_back(self) -> None:
        """Return the memory of other values that the variables had before to the system.

        TensorFlow's allocator keeps what is freed. So buffers of the same sizes are taken from it
        once more, given up, and freed.
        """
        with tf.device("CPU:0"):
            buffers = []
            for info in self._infos:
                n_doubles = _size_bytes(info) // 8
                if n_doubles >= PIECE // 8:
                    empty = tf.raw_ops.Empty(shape=[n_doubles], dtype=tf.float64, init=False)
                    buffers.append(np.asarray(empty))
        for buffer in buffers:
            give_up_pages(buffer.ctypes.data, buffer.nbytes)


def as_type(value: ArrayLike, dtype: str) -> Any:
    """Return a leaf of a batch or a variable's value as a tensor of a TensorFlow type."""
    if not isinstance(value, tf.Tensor):
        array = as_array(value)
        # Strings need the type said; numbers keep their own and are cast below, since TensorFlow
        # refuses to convert an array to another type of number.
        value = tf.convert_to_tensor(array, dtype if array.dtype.kind in "OSU" else None)
    return value if value.dtype.name == dtype else tf.cast(value, dtype)


def number_in(variable: Any) -> float:
    """Return what a variable of one element holds."""
    return float(read_variable(variable.handle))


def _size_bytes(info: VariableInfo) -> int:
    return math.prod(info.shape) * max(int(tf.dtypes.as_dtype(info.dtype).size), 1)


def _variable(info: VariableInfo, value: Any) -> LiveVariable:
    handle = new_handle(tf.TensorShape(info.shape), tf.dtypes.as_dtype(info.dtype))
    tf.raw_ops.AssignVariableOp(resource=handle, value=value)
    return LiveVariable(handle)
