"""The watch: a vector of sums and maxima, computed inside the recorded step, that tells a non-finite value from a finite one.

For each gradient and variable x the step computes `tf.nn.l2_loss(x)` = sum(x^2)/2 in one pass. It is NaN only when an
element is non-finite; it is infinite when an element is, or when finite elements overflow the sum. The absolute maximum
of a gradient decides which; a variable is read and counted. The same vector is the fingerprint that replays are held to.

A pass over a large tensor costs about a hundredth of a step of small batches. Every step has one, over the gradients; the
maxima of large gradients and the sums of large variables are measured every few updates, and whenever a loss, a gradient's
sum or the learning rate is not finite. When that is so follows from the state of the optimizer, so a replay measures in
the same steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.program import private_tf
from nanreplay.program.fingerprint import NOT_MEASURED
from nanreplay.program.observation import Observation

WatchKind = Literal["loss", "gradient_sum", "gradient_max", "variable_sum", "learning_rate", "loss_scale"]


EVERY = 8
"""Updates after which the maxima of large gradients and the sums of large variables are measured again; the first ones are all."""
LARGE = 2**14
"""Elements of a tensor that counts as large."""


@dataclass(frozen=True, slots=True)
class WatchEntry:
    """What one element of the watch vector is."""

    kind: WatchKind
    subject: Any
    """The index of the loss (int), or the handle of the variable (a resource tensor), or None."""


@dataclass(frozen=True, slots=True)
class Watch:
    """The watch of one traced step."""

    vector: Any
    """1-D tensor, float32 (float64 when the step holds float64 values), or None when there is nothing to watch."""
    entries: tuple[WatchEntry, ...]


def read_variable(handle: Any) -> Any:
    """The value behind a variable's handle; shares the variable's buffer, so it costs no copy."""
    kind = private_tf.variable_type(handle)
    if kind is None:
        raise ValueError(f"Expected the handle of a variable. Received: {handle!r}")
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=kind[0])


def build_watch(seen: Observation, handles: list[Any], *, xla: bool = False) -> Watch:
    """Build the watch in the current graph (or eagerly).

    Args:
        seen: What the trace showed so far.
        handles: Handles of the float variables to check after the update (no metrics, no seeds).
        xla: Whether XLA compiles the step.
    """
    squares, largest = (_squares_xla, _largest_xla) if xla else (tf.nn.l2_loss, _largest)
    several = len(seen.replica_devices) > 1
    elements = _Elements(None if several else _updates(seen))
    for index, loss in enumerate(seen.losses()):
        elements.add(WatchEntry("loss", index), _real(loss) if loss.shape.rank == 0 else tf.reduce_sum(_real(loss)))
    for gradient, variable in seen.gradients():
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        handle = private_tf.handle_of(variable)
        with _beside(values, several):
            values = _real(values)
            elements.add(WatchEntry("gradient_sum", handle), squares(values))
            if xla:  # a gradient that a branch reads may be computed in another order, which training would show in the last bit
                elements.add(WatchEntry("gradient_max", handle), largest(values))
            else:
                elements.measure(WatchEntry("gradient_max", handle), largest, values)
    for handle in handles:
        with _beside(handle, several):
            elements.measure(WatchEntry("variable_sum", handle), squares, _real(read_variable(handle)))
    if seen.learning_rate is not None:
        elements.add(WatchEntry("learning_rate", None), seen.learning_rate)
    if seen.loss_scale is not None:
        elements.add(WatchEntry("loss_scale", None), seen.loss_scale)
    return elements.watch()


class _Elements:
    """Collects what goes into a watch.

    Args:
        updates: Number of the updates so far, a tensor; None to measure all in every step.
    """

    def __init__(self, updates: Any) -> None:
        self._updates = updates
        self._always: list[tuple[WatchEntry, Any]] = []
        self._at_times: list[tuple[WatchEntry, Callable[[], Any]]] = []

    def add(self, entry: WatchEntry, value: Any) -> None:
        """Add a scalar."""
        self._always.append((entry, value))

    def measure(self, entry: WatchEntry, measure: Callable[[Any], Any], values: Any) -> None:
        """Add the scalar `measure(values)`; that of a large tensor only now and then."""
        if self._updates is not None and (values.shape.num_elements() or 0) >= LARGE:
            self._at_times.append((entry, lambda: measure(values)))
        else:
            self._always.append((entry, measure(values)))

    def watch(self) -> Watch:
        """The vector of all of them."""
        if not self._always:
            return Watch(None, ())
        wide = tf.float64 if any(value.dtype == tf.float64 for _, value in self._always) else tf.float32
        vector = tf.stack([tf.cast(value, wide) for _, value in self._always])
        if self._at_times:
            rest = tf.cond(
                self._is_time(wide),
                lambda: tf.stack([tf.cast(measure(), wide) for _, measure in self._at_times]),
                lambda: tf.fill([len(self._at_times)], tf.constant(NOT_MEASURED, wide)),
            )
            vector = tf.concat([vector, rest], 0)
        return Watch(vector, tuple(entry for entry, _ in [*self._always, *self._at_times]))

    def _is_time(self, wide: Any) -> Any:
        decisive = [tf.cast(value, wide) for entry, value in self._always if entry.kind in ("loss", "gradient_sum", "learning_rate")]
        is_finite = tf.math.is_finite(tf.add_n(decisive))
        return ~is_finite | (self._updates <= EVERY) | (self._updates % EVERY == 0)


def _updates(seen: Observation) -> Any:
    """The number of updates that the first optimizer has made, a tensor of the current graph; None where it is not known."""
    for optimizer in seen.optimizers:
        handle = private_tf.handle_of(getattr(getattr(optimizer, "inner_optimizer", optimizer), "iterations", None))
        if handle is not None and not tf.executing_eagerly():
            return read_variable(handle)
    return None


def _beside(tensor: Any, several: bool) -> contextlib.AbstractContextManager[Any]:
    """Where what is measured of a tensor is computed: on its own device where there are several, so that only a number moves."""
    return tf.device(tensor.device) if several and tensor.device else contextlib.nullcontext()


def _real(tensor: Any) -> Any:
    """`tensor` as float32 or float64, so that a half-precision sum does not overflow by itself."""
    if tensor.dtype.is_complex:
        tensor = tf.abs(tensor)
    return tensor if tensor.dtype in (tf.float32, tf.float64) else tf.cast(tensor, tf.float32)


LANES = 16
"""Partial sums that XLA computes side by side on a CPU, whose loops it does not vectorise when they add up a single number."""


def _squares_xla(values: Any) -> Any:
    """What `tf.nn.l2_loss` gives but for the order of the sum, for XLA.

    The values are flattened first. Else XLA on a CPU may choose the layout of a gradient to suit the sum, compute the gradient
    in another order, and so train to other bits than without the watch.
    """
    flat = tf.reshape(values, [-1])
    squares, count = tf.square(flat), flat.shape.num_elements() or 0
    if count < 2**10:
        return tf.reduce_sum(squares) / 2
    whole = count - count % LANES
    total = tf.reduce_sum(tf.add_n(tf.unstack(tf.reshape(squares[:whole], [LANES, -1]))))
    return (total + tf.reduce_sum(squares[whole:])) / 2


def _largest_xla(values: Any) -> Any:
    return tf.reduce_max(tf.abs(tf.reshape(values, [-1])))


def _largest(values: Any) -> Any:
    """The largest absolute value; no temporary as large as `values` is made. 0 or below for an empty tensor."""
    return tf.maximum(tf.reduce_max(values), -tf.reduce_min(values))


def fingerprint_of(
    layout: Sequence[str], *, losses: Sequence[Any], gradients: Mapping[int, Any], variables: Sequence[Any], recorded: Any
) -> NDArray[Any] | None:
    """The watch of a step whose program does not compute it (an eager one), from its parts.

    Args:
        layout: Names of the elements.
        losses: The step's losses.
        gradients: Gradients by variable (the values of sparse ones).
        variables: `tf.Variable`s by index, after the update.
        recorded: The recorded watch; what the parts do not tell (learning rate, loss scale) is taken from it.
    """
    if recorded is None:
        return None
    parts: dict[int, Any] = {}
    for element, name in enumerate(layout):
        kind, _, subject = name.partition(":")
        if kind == "loss":
            found = tf.reduce_sum(_real(losses[int(subject)]))
        elif kind in ("gradient_sum", "gradient_max") and int(subject) in gradients:
            found = (tf.nn.l2_loss if kind == "gradient_sum" else _largest)(_real(gradients[int(subject)]))
        elif kind == "variable_sum" and int(subject) >= 0:
            found = tf.nn.l2_loss(_real(tf.convert_to_tensor(variables[int(subject)])))
        else:
            continue
        parts[element] = found.numpy()
    values = np.array(
        recorded, np.result_type(np.asarray(recorded).dtype, *(part.dtype for part in parts.values()))
    )  # wider when the step ran in float64
    values[list(parts)] = list(parts.values())
    return values


def squares_fit(values: Any) -> bool:
    """Whether the sum of a tensor's squares is finite, and so every element; the cheapest look at all of them."""
    if "CPU" in values.device and values.dtype in (tf.float32, tf.float64):
        flat = np.asarray(values).reshape(-1)  # shares the tensor's buffer; the library of numpy needs half the time of a kernel
        with np.errstate(all="ignore"):
            return bool(np.isfinite(np.dot(flat, flat)))
    return not values.dtype.is_floating or bool(np.isfinite(tf.nn.l2_loss(_real(values))))


def has_nonfinite(values: Any) -> bool:
    """Whether an array holds NaN or an infinity; False for types that cannot."""
    array = np.asarray(values)
    if array.dtype.kind in "fc":
        return not bool(np.isfinite(array).all())
    if array.dtype.kind == "V" or "float" in str(array.dtype):
        return not bool(np.isfinite(array.astype(np.float32)).all())
    return False


def nonfinite_kind(values: Any) -> str:
    """The worst that an array holds: `nan`, `inf` or `-inf`; "" when all of it is finite."""
    if not has_nonfinite(values):
        return ""
    array = np.asarray(values)
    array = np.abs(array) if array.dtype.kind == "c" else array.astype(np.float64)
    return "nan" if np.isnan(array).any() else "inf" if (array == np.inf).any() else "-inf"
