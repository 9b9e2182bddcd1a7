"""Values of variables and tensors: read without a copy, and told finite from non-finite.

The recorder asks this of every variable now and then, replays of what a step left behind. A
variable may take a large part of the memory: nothing here copies one, or widens it as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.capture.arrays import as_array
from nanreplay.program import listening
from nanreplay.tensorflow_internals import tf_variables

LARGE_VARIABLE = 1 << 16
"""Elements of a variable that is worth an op more, lest TensorFlow copies it."""


def read_variable(handle: Any) -> Any:
    """The value behind a variable's handle; shares the variable's buffer, so it costs no copy."""
    kind = tf_variables.variable_type(handle)
    if kind is None:
        raise ValueError(f"Expected the handle of a variable. Received: {handle!r}")
    dtype, shape = kind
    if math.prod(shape) < LARGE_VARIABLE:  # keyframes read many of these
        return tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
    sharing = share_reads(handle)
    with tf.control_dependencies([] if sharing is None else [sharing]):
        return tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)


def share_reads(handle: Any) -> Any:
    """Let the next read of a large variable share its buffer; returns the op in a graph, or None.

    An op that gathers or scatters rows of a variable, as those of embeddings do, puts it into a
    mode in which each read is a copy. This ends the mode. The next such op begins it again, and
    copies the variable first if somebody still holds what was read: so does any update of a dense
    one. The public `read_value_no_copy` does the same, and needs the `tf.Variable`.
    """
    kind = tf_variables.variable_type(handle)
    if kind is None or math.prod(kind[1]) < LARGE_VARIABLE:
        return None
    return tf.raw_ops.DisableCopyOnRead(resource=handle)


def real(tensor: Any) -> Any:
    """`tensor` as float32 or float64, so that a half-precision sum does not overflow by itself."""
    if tensor.dtype.is_complex:
        tensor = tf.abs(tensor)
    return tensor if tensor.dtype in (tf.float32, tf.float64) else tf.cast(tensor, tf.float32)


# What tells a non-finite value from a finite one.

PIECE = 1 << 20
"""Elements of an array that are looked at together."""


def squares_fit(values: Any) -> bool:
    """Whether the sum of a tensor's squares is finite, and so every element.

    That is the cheapest look at all of them: on a CPU, NumPy's dot product needs half the time of a
    kernel, and `np.asarray` shares the tensor's buffer.
    """
    if "CPU" in values.device and values.dtype in (tf.float32, tf.float64):
        flat = np.asarray(values).reshape(-1)
        with np.errstate(all="ignore"):
            return bool(np.isfinite(np.dot(flat, flat)))
    return not values.dtype.is_floating or bool(np.isfinite(tf.nn.l2_loss(real(values))))


def has_nonfinite(values: Any) -> bool:
    """Whether an array holds NaN or an infinity; False for types that cannot."""
    return any(not np.isfinite(piece).all() for piece in _float_pieces(values))


def nonfinite_kind(values: Any) -> str:
    """The worst that an array holds: `nan`, `inf` or `-inf`; "" when all of it is finite."""
    kinds = {_kind_of_piece(piece) for piece in _float_pieces(values)}
    for kind in ("nan", "inf", "-inf"):
        if kind in kinds:
            return kind
    return ""


def _kind_of_piece(piece: NDArray[Any]) -> str:
    if np.isfinite(piece).all():
        return ""
    magnitudes = np.abs(piece) if piece.dtype.kind == "c" else piece
    if np.isnan(magnitudes).any():
        return "nan"
    return "inf" if (magnitudes == np.inf).any() else "-inf"


def _float_pieces(values: Any) -> Iterator[NDArray[Any]]:
    """An array, or a tensor's own buffer, piece by piece; nothing of types that hold no NaN.

    A variable may take a large part of the memory: neither a copy of it nor one in a wider type may
    be made. `np.asarray` shares the buffer of a tensor, where `numpy()` copies it.
    """
    shares = isinstance(values, tf.Tensor) and values.shape.rank
    flat = (np.asarray(values) if shares else as_array(values)).reshape(-1)
    if flat.dtype.kind not in "fc":
        is_extension = flat.dtype.kind == "V" or "float" in str(flat.dtype)  # bfloat16, float8
        for start in range(0, flat.size if is_extension else 0, PIECE):
            yield flat[start : start + PIECE].astype(np.float32)
    elif flat.size <= PIECE:
        yield flat
    else:
        for start in range(0, flat.size, PIECE):
            yield flat[start : start + PIECE]


# Measuring variables from outside of a compiled step, all in one call.


class VariableSums:
    """Computes `tf.nn.l2_loss` = sum(x^2) / 2 of variables, as a float64 vector.

    A sum is NaN only when an element is not finite. It is infinite when an element is, or when
    finite elements overflow it.

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
                function = tf.function(self._sums, autograph=False, jit_compile=False)
                self._function = function.get_concrete_function()
            return self._function()

    def _sums(self) -> Any:
        sums = []
        for handle in self._handles:
            with tf.device(handle.device):
                total = tf.nn.l2_loss(real(read_variable(handle)))
                sums.append(tf.cast(total, tf.float64))
        return tf.stack(sums)
