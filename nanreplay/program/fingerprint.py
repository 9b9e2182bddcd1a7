"""Measuring variables from outside of the step: the sum of squares of each, all in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.capture.arrays import as_array
from nanreplay.program import listening
from nanreplay.program.observation import Observation
from nanreplay.records import Signature, TriggerWhat
from nanreplay.tensorflow_internals import tf_variables

# Reading fingerprints: what in them is not finite, and whether two are equal bit for bit or how
# many ulp apart.

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
            tuple(
                (index, maxima[subject], int(subject))
                for index, kind, subject in split
                if kind == "gradient_sum"
            ),
            tuple(
                (index, int(subject)) for index, kind, subject in split if kind == "variable_sum"
            ),
        )

    def find_nonfinite(
        self,
        values: Any,
        *,
        loss_scaled: bool,
        bad_variable: Callable[[int], str],
        logged_losses: Collection[int] = (),
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
        stand_ins = (
            []
            if self.losses
            else [(element, 0) for element, output in self.logged if output in logged_losses]
        )
        for element, loss in (*self.losses, *stand_ins):
            if not math.isfinite(values[element]):
                return NonFinite("loss", loss, _kind(values[element])), False
        bad = [
            (total, variable)
            for total, largest, variable in self.gradients
            if _is_nonfinite(values[total], values[largest])
        ]
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
        return np.array(
            [was_measured(name, value) for name, value in zip(self.names, values, strict=True)],
            bool,
        )

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
        raise ValueError(
            f"Expected arrays of one shape and dtype. Received: {left.shape} {left.dtype}, {right.shape} {right.dtype}"
        )
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
    bits = values.view({2: np.int16, 4: np.int32, 8: np.int64}[values.dtype.itemsize]).astype(
        object
    )
    lowest = -(2 ** (8 * values.dtype.itemsize - 1))
    return np.where(bits >= 0, bits, lowest - bits)


# What an eager step's fingerprint is made of, and what tells a non-finite value from a finite
# one.

FingerprintKind = Literal[
    "loss", "gradient_sum", "gradient_max", "variable_sum", "learning_rate", "loss_scale"
]


@dataclass(frozen=True, slots=True)
class FingerprintEntry:
    """What one element of the watch vector is."""

    kind: FingerprintKind
    subject: Any
    """The index of the loss (int), or the handle of the variable (a resource tensor), or None."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The watch of one traced step."""

    vector: Any
    """1-D tensor, float32 (float64 when the step holds float64 values), or None when there is nothing to watch."""
    entries: tuple[FingerprintEntry, ...]


def read_variable(handle: Any) -> Any:
    """The value behind a variable's handle; shares the variable's buffer, so it costs no copy."""
    kind = tf_variables.variable_type(handle)
    if kind is None:
        raise ValueError(f"Expected the handle of a variable. Received: {handle!r}")
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=kind[0])


def build_fingerprint(
    seen: Observation, handles: Sequence[Any], learning_rate: Any = None, loss_scale: Any = None
) -> Fingerprint:
    """Measure an eager step that has run.

    Args:
        seen: What the step showed.
        handles: Handles of the float variables to check after the update (no metrics, no seeds).
        learning_rate: That of the step, a scalar; None where there is none.
        loss_scale: That of the step, or None.
    """
    found: list[tuple[FingerprintEntry, Any]] = []
    for index, loss in enumerate(seen.losses()):
        found.append(
            (
                FingerprintEntry("loss", index),
                real(loss) if loss.shape.rank == 0 else tf.reduce_sum(real(loss)),
            )
        )
    for gradient, variable in seen.gradients():
        values = real(gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient)
        handle = tf_variables.handle_of(variable)
        found.append((FingerprintEntry("gradient_sum", handle), tf.nn.l2_loss(values)))
        found.append((FingerprintEntry("gradient_max", handle), largest(values)))
    for handle in handles:
        found.append(
            (FingerprintEntry("variable_sum", handle), tf.nn.l2_loss(real(read_variable(handle))))
        )
    if learning_rate is not None:
        found.append((FingerprintEntry("learning_rate", None), tf.convert_to_tensor(learning_rate)))
    if loss_scale is not None:
        found.append((FingerprintEntry("loss_scale", None), tf.convert_to_tensor(loss_scale)))
    if not found:
        return Fingerprint(None, ())
    wide = tf.float64 if any(value.dtype == tf.float64 for _, value in found) else tf.float32
    return Fingerprint(
        tf.stack([tf.cast(value, wide) for _, value in found]), tuple(entry for entry, _ in found)
    )


def real(tensor: Any) -> Any:
    """`tensor` as float32 or float64, so that a half-precision sum does not overflow by itself."""
    if tensor.dtype.is_complex:
        tensor = tf.abs(tensor)
    return tensor if tensor.dtype in (tf.float32, tf.float64) else tf.cast(tensor, tf.float32)


def largest(values: Any) -> Any:
    """The largest absolute value; no temporary as large as `values` is made. 0 or below for an empty tensor."""
    return tf.maximum(tf.reduce_max(values), -tf.reduce_min(values))


def fingerprint_of(
    layout: Sequence[str],
    *,
    losses: Sequence[Any],
    outputs: Sequence[Any] = (),
    gradients: Mapping[int, Any],
    variables: Sequence[Any],
    recorded: Any,
) -> NDArray[Any] | None:
    """The fingerprint of a step that has run, from its parts.

    Args:
        layout: Names of the elements.
        losses: The step's losses; None for one that is not known.
        outputs: What the step returned.
        gradients: Gradients by variable (the values of sparse ones).
        variables: `tf.Variable`s by index, after the update.
        recorded: The recorded fingerprint. What the parts do not tell (learning rate, loss scale) is taken from it; what it did not
            measure is not measured.
    """
    if recorded is None:
        return None
    parts: dict[int, Any] = {}
    for element, name in enumerate(layout):
        found = _part(name, np.asarray(recorded)[element], losses, outputs, gradients, variables)
        if found is not None:
            parts[element] = found.numpy()
    dtype = np.result_type(np.asarray(recorded).dtype, *(part.dtype for part in parts.values()))
    values = np.array(recorded, dtype)  # wider when the step ran in float64
    values[list(parts)] = list(parts.values())
    return values


def _part(
    name: str,
    recorded: Any,
    losses: Sequence[Any],
    outputs: Sequence[Any],
    gradients: Mapping[int, Any],
    variables: Sequence[Any],
) -> Any:
    kind, _, subject = name.partition(":")
    if kind == "loss" and losses[int(subject)] is not None:
        return tf.reduce_sum(real(losses[int(subject)]))
    if kind == "logged" and int(subject) < len(outputs):
        return real(outputs[int(subject)])
    if kind in ("gradient_sum", "gradient_max") and int(subject) in gradients:
        return (tf.nn.l2_loss if kind == "gradient_sum" else largest)(real(gradients[int(subject)]))
    if kind == "variable_sum" and int(subject) >= 0 and recorded != NOT_MEASURED:
        return tf.nn.l2_loss(real(tf.convert_to_tensor(variables[int(subject)])))
    return None


def fingerprint_after(
    signature: Signature, outputs: Sequence[Any], variables: Sequence[Any], recorded: Any
) -> NDArray[Any] | None:
    """The fingerprint of a compiled step that has run, of what it returned and of the variables after it.

    Args:
        signature: Of its program.
        outputs: What it returned.
        variables: `tf.Variable`s by index, after the step.
        recorded: The recorded fingerprint. Where there is none, variables are not measured.
    """
    if signature.watch is not None:
        values: NDArray[Any] = outputs[signature.outputs.index(signature.watch)].numpy()
        return values
    if not signature.watch_layout:
        return None
    if recorded is None:
        recorded = np.array(
            [
                NOT_MEASURED if name.startswith("variable_sum:") else 0.0
                for name in signature.watch_layout
            ],
            np.float32,
        )
    returned = dict(zip(signature.outputs, outputs, strict=True))
    losses = [returned.get(name) for name in signature.losses]
    return fingerprint_of(
        signature.watch_layout,
        losses=losses,
        outputs=outputs,
        gradients={},
        variables=variables,
        recorded=recorded,
    )


def squares_fit(values: Any) -> bool:
    """Whether the sum of a tensor's squares is finite, and so every element; the cheapest look at all of them."""
    if "CPU" in values.device and values.dtype in (tf.float32, tf.float64):
        flat = np.asarray(values).reshape(
            -1
        )  # shares the tensor's buffer; the library of numpy needs half the time of a kernel
        with np.errstate(all="ignore"):
            return bool(np.isfinite(np.dot(flat, flat)))
    return not values.dtype.is_floating or bool(np.isfinite(tf.nn.l2_loss(real(values))))


def has_nonfinite(values: Any) -> bool:
    """Whether an array holds NaN or an infinity; False for types that cannot."""
    array = as_array(values)
    if array.dtype.kind in "fc":
        return not bool(np.isfinite(array).all())
    if array.dtype.kind == "V" or "float" in str(array.dtype):
        return not bool(np.isfinite(array.astype(np.float32)).all())
    return False


def nonfinite_kind(values: Any) -> str:
    """The worst that an array holds: `nan`, `inf` or `-inf`; "" when all of it is finite."""
    if not has_nonfinite(values):
        return ""
    array = as_array(values)
    array = np.abs(array) if array.dtype.kind == "c" else array.astype(np.float64)
    return "nan" if np.isnan(array).any() else "inf" if (array == np.inf).any() else "-inf"


# --- program.look


class VariableSums:
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
        with listening.muted():
            if self._function is None:
                self._function = tf.function(
                    self._sums, autograph=False, jit_compile=False
                ).get_concrete_function()
            return self._function()

    def _sums(self) -> Any:
        sums = []
        for handle in self._handles:
            with tf.device(handle.device):
                sums.append(tf.cast(tf.nn.l2_loss(real(read_variable(handle))), tf.float64))
        return tf.stack(sums)
