"""Fingerprints: a few numbers a step that tell whether all was finite, and whether two runs agree.

A fingerprint holds each loss, of each gradient its sum of squares and largest element, of each
variable its sum of squares, the learning rate and the loss scale. The recorder takes one of every
step; replays take one and compare. The format calls it `watch` in its field names.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.program.nonfinite_values import read_variable, real
from nanreplay.program.observation import Observation
from nanreplay.records import Signature, TriggerWhat
from nanreplay.tensorflow_internals import tf_variables

# Reading fingerprints: what in them is not finite, and whether two are equal bit for bit or how
# many units in the last place (ulp) apart.

MAX_ULP = 2**62
"""Distance between a number and a NaN, or between NaNs and infinities of other kinds."""
NOT_MEASURED = -1.0
"""Stands for what a step did not measure, in elements of the kinds below.

These are never negative; a loss may be.
"""
_MEASURED_AT_TIMES = ("gradient_max", "variable_sum")


def was_measured(name: str, value: float) -> bool:
    """Return whether a step measured the element `name`, given its value."""
    return value != NOT_MEASURED or name.partition(":")[0] not in _MEASURED_AT_TIMES


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
    """(element, output) pairs of other numbers that the step returned: metrics, running means."""
    gradients: tuple[tuple[int, int, int], ...]
    """(element of the sum, element of the maximum, variable) triples."""
    variables: tuple[tuple[int, int], ...]
    """(element, variable) pairs."""

    @staticmethod
    def parse(names: Sequence[str]) -> Layout:
        """Take the names apart."""
        by_kind: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for element, name in enumerate(names):
            kind, _, subject = name.partition(":")
            by_kind[kind].append((element, subject))
        maxima = {subject: element for element, subject in by_kind["gradient_max"]}
        return Layout(
            names=tuple(names),
            losses=_indexed(by_kind["loss"]),
            logged=_indexed(by_kind["logged"]),
            gradients=tuple(
                (element, maxima[subject], int(subject))
                for element, subject in by_kind["gradient_sum"]
            ),
            variables=_indexed(by_kind["variable_sum"]),
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

        A sum of squares that is NaN holds a non-finite element. One that is infinite may have
        overflowed by itself: of a gradient, the largest absolute value decides; a variable is
        looked at, as is one that the step did not measure.

        Args:
            values: The fingerprint.
            loss_scaled: Whether a LossScaleOptimizer skips updates with a non-finite gradient.
            bad_variable: Given the index of a variable, returns the worst that it holds: `nan`,
                `inf` or `-inf`; "" when it is finite or does not count.
            logged_losses: Outputs that stand for the loss where the step does not return its own.
        """
        losses = list(self.losses)
        if not losses:
            losses = []
            for element, output in self.logged:
                if output in logged_losses:
                    losses.append((element, output))
        for element, loss in losses:
            if not math.isfinite(values[element]):
                return NonFinite("loss", loss, _kind(values[element])), False
        bad_gradients = []
        for element, maximum, variable in self.gradients:
            if _is_nonfinite(values[element], values[maximum]):
                bad_gradients.append((element, variable))
        if bad_gradients and not loss_scaled:
            total, variable = bad_gradients[0]
            return NonFinite("gradient", variable, _kind(values[total])), False
        for element, variable in self.variables:
            if values[element] != NOT_MEASURED and math.isfinite(values[element]):
                continue
            kind = bad_variable(variable)
            if kind:
                return NonFinite("variable", variable, kind), False
        return None, bool(bad_gradients)

    def distance(self, left: NDArray[Any], right: NDArray[Any]) -> int:
        """`ulp_distance` of two fingerprints in what both measured.

        What is not finite is measured in every step.
        """
        if left.shape != right.shape:
            return ulp_distance(left, right)
        both = self.measured(left) & self.measured(right)
        return ulp_distance(left[both], right[both])

    def measured(self, values: Any) -> NDArray[np.bool_]:
        """Return which elements the step measured."""
        pairs = zip(self.names, values, strict=True)
        return np.array([was_measured(name, value) for name, value in pairs], bool)

    def gradients_fit(self, values: Any) -> bool:
        """Return whether the squares of all gradients are finite."""
        return all(math.isfinite(values[total]) for total, _, _ in self.gradients)


def _indexed(pairs: Sequence[tuple[int, str]]) -> tuple[tuple[int, int], ...]:
    return tuple((element, int(subject)) for element, subject in pairs)


def _is_nonfinite(total: float, maximum: float) -> bool:
    """Whether a tensor holds NaN or an infinity, by its sum of squares and its largest element."""
    return math.isnan(total) or (math.isinf(total) and not math.isfinite(maximum))


def _kind(value: float) -> str:
    if math.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"


def ulp_distance(left: NDArray[Any], right: NDArray[Any]) -> int:
    """Largest distance in units in the last place between two float arrays of one shape and dtype.

    Equal numbers, equal infinities and any two NaNs are 0 apart: which NaN a kernel makes is no
    property of the program.

    Raises:
        ValueError: Shapes or dtypes differ.
    """
    if left.shape != right.shape or left.dtype != right.dtype:
        raise ValueError(
            "Expected arrays of one shape and dtype. Received: "
            f"{left.shape} {left.dtype}, {right.shape} {right.dtype}"
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
    """Integers that order floats as the floats are ordered, one apart for neighbours.

    The bits of positive floats, read as integers, are in order already. Those of negative ones go
    backwards from the lowest integer: they are counted down from it, so that -0.0 becomes 0 and the
    float next to it -1. Python's integers hold differences that int64 cannot.
    """
    signed = {2: np.int16, 4: np.int32, 8: np.int64}[values.dtype.itemsize]
    bits = values.view(signed).astype(object)
    lowest = -(2 ** (8 * values.dtype.itemsize - 1))
    return np.where(bits >= 0, bits, lowest - bits)


# Taking fingerprints: of an eager step, of a step's parts, of a compiled step's outputs.

FingerprintKind = Literal[
    "loss", "gradient_sum", "gradient_max", "variable_sum", "learning_rate", "loss_scale"
]


@dataclass(frozen=True, slots=True)
class FingerprintEntry:
    """What one element of a fingerprint is."""

    kind: FingerprintKind
    subject: Any
    """The index of the loss (int), or the handle of the variable (a resource tensor), or None."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The fingerprint of one eager step."""

    vector: Any
    """1-D tensor, float32, or float64 when the step holds such values; None when it is empty."""
    entries: tuple[FingerprintEntry, ...]


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
    parts: list[tuple[FingerprintEntry, Any]] = []
    for index, loss in enumerate(seen.losses()):
        value = real(loss) if loss.shape.rank == 0 else tf.reduce_sum(real(loss))
        parts.append((FingerprintEntry("loss", index), value))
    for gradient, variable in seen.gradients():
        values = real(gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient)
        handle = tf_variables.handle_of(variable)
        parts.append((FingerprintEntry("gradient_sum", handle), tf.nn.l2_loss(values)))
        parts.append((FingerprintEntry("gradient_max", handle), largest(values)))
    for handle in handles:
        total = tf.nn.l2_loss(real(read_variable(handle)))
        parts.append((FingerprintEntry("variable_sum", handle), total))
    if learning_rate is not None:
        parts.append((FingerprintEntry("learning_rate", None), tf.convert_to_tensor(learning_rate)))
    if loss_scale is not None:
        parts.append((FingerprintEntry("loss_scale", None), tf.convert_to_tensor(loss_scale)))
    if not parts:
        return Fingerprint(None, ())
    has_float64 = any(value.dtype == tf.float64 for _, value in parts)
    dtype = tf.float64 if has_float64 else tf.float32
    vector = tf.stack([tf.cast(value, dtype) for _, value in parts])
    return Fingerprint(vector, tuple(entry for entry, _ in parts))


def largest(values: Any) -> Any:
    """The largest absolute value; 0 or below for an empty tensor.

    Of the largest and the smallest value, since `tf.abs` would make a copy as large as `values`.
    """
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
        recorded: The recorded fingerprint. What the parts do not tell (learning rate, loss scale)
            is taken from it; what it did not measure is not measured.
    """
    if recorded is None:
        return None
    recorded = np.asarray(recorded)
    parts: dict[int, Any] = {}
    for element, name in enumerate(layout):
        part = _part(name, recorded[element], losses, outputs, gradients, variables)
        if part is not None:
            parts[element] = part.numpy()
    dtype = np.result_type(recorded.dtype, *(part.dtype for part in parts.values()))
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
    """The element of a fingerprint that is called `name`, a tensor; None where no part tells it."""
    kind, _, subject = name.partition(":")
    if kind not in ("loss", "logged", "gradient_sum", "gradient_max", "variable_sum"):
        return None
    index = int(subject)
    if kind == "loss" and losses[index] is not None:
        return tf.reduce_sum(real(losses[index]))
    if kind == "logged" and index < len(outputs):
        return real(outputs[index])
    if kind == "gradient_sum" and index in gradients:
        return tf.nn.l2_loss(real(gradients[index]))
    if kind == "gradient_max" and index in gradients:
        return largest(real(gradients[index]))
    if kind == "variable_sum" and index >= 0 and recorded != NOT_MEASURED:
        return tf.nn.l2_loss(real(read_variable(tf_variables.handle_of(variables[index]))))
    return None


def fingerprint_after(
    signature: Signature, outputs: Sequence[Any], variables: Sequence[Any], recorded: Any
) -> NDArray[Any] | None:
    """The fingerprint of a compiled step that has run, of what it returned and left behind.

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
        measured = []
        for name in signature.watch_layout:
            if name.startswith("variable_sum:"):
                measured.append(NOT_MEASURED)
            else:
                measured.append(0.0)
        recorded = np.array(measured, np.float32)
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


def loss_added(before: tuple[float, float], after: tuple[float, float]) -> float:
    """The loss of one step, from (total, count) of a mean of losses before it and after it.

    `(10.0, 4)` and then `(13.0, 5)` give 3.0. A total that was not finite before the step gives the
    mean; so does one that was reset, as an epoch begins.
    """
    total, count = after
    if before[1] < count and math.isfinite(before[0]):
        total, count = total - before[0], count - before[1]
    return total / count if count else math.nan
