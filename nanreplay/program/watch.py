"""What an eager step's fingerprint is made of, and what tells a non-finite value from a finite one.

For each gradient and variable x, `tf.nn.l2_loss(x)` = sum(x^2)/2 takes one pass. It is NaN only when an element is non-finite; it is
infinite when an element is, or when finite elements overflow the sum. The absolute maximum of a gradient decides which; a
variable is read and counted. Replays are held to the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.program import private_tf
from nanreplay.program.fingerprint import NOT_MEASURED
from nanreplay.program.observation import Observation
from nanreplay.records import Signature
from nanreplay.tensors import as_array

WatchKind = Literal["loss", "gradient_sum", "gradient_max", "variable_sum", "learning_rate", "loss_scale"]


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


def build_watch(seen: Observation, handles: Sequence[Any], learning_rate: Any = None, loss_scale: Any = None) -> Watch:
    """Measure an eager step that has run.

    Args:
        seen: What the step showed.
        handles: Handles of the float variables to check after the update (no metrics, no seeds).
        learning_rate: That of the step, a scalar; None where there is none.
        loss_scale: That of the step, or None.
    """
    found: list[tuple[WatchEntry, Any]] = []
    for index, loss in enumerate(seen.losses()):
        found.append((WatchEntry("loss", index), real(loss) if loss.shape.rank == 0 else tf.reduce_sum(real(loss))))
    for gradient, variable in seen.gradients():
        values = real(gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient)
        handle = private_tf.handle_of(variable)
        found.append((WatchEntry("gradient_sum", handle), tf.nn.l2_loss(values)))
        found.append((WatchEntry("gradient_max", handle), largest(values)))
    for handle in handles:
        found.append((WatchEntry("variable_sum", handle), tf.nn.l2_loss(real(read_variable(handle)))))
    if learning_rate is not None:
        found.append((WatchEntry("learning_rate", None), tf.convert_to_tensor(learning_rate)))
    if loss_scale is not None:
        found.append((WatchEntry("loss_scale", None), tf.convert_to_tensor(loss_scale)))
    if not found:
        return Watch(None, ())
    wide = tf.float64 if any(value.dtype == tf.float64 for _, value in found) else tf.float32
    return Watch(tf.stack([tf.cast(value, wide) for _, value in found]), tuple(entry for entry, _ in found))


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
    name: str, recorded: Any, losses: Sequence[Any], outputs: Sequence[Any], gradients: Mapping[int, Any], variables: Sequence[Any]
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


def fingerprint_after(signature: Signature, outputs: Sequence[Any], variables: Sequence[Any], recorded: Any) -> NDArray[Any] | None:
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
        recorded = np.array([NOT_MEASURED if name.startswith("variable_sum:") else 0.0 for name in signature.watch_layout], np.float32)
    returned = dict(zip(signature.outputs, outputs, strict=True))
    losses = [returned.get(name) for name in signature.losses]
    return fingerprint_of(signature.watch_layout, losses=losses, outputs=outputs, gradients={}, variables=variables, recorded=recorded)


def squares_fit(values: Any) -> bool:
    """Whether the sum of a tensor's squares is finite, and so every element; the cheapest look at all of them."""
    if "CPU" in values.device and values.dtype in (tf.float32, tf.float64):
        flat = np.asarray(values).reshape(-1)  # shares the tensor's buffer; the library of numpy needs half the time of a kernel
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
