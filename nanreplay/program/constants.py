"""Constants of a graph as arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


def constant_array(tensor: Any) -> NDArray[Any]:
    """The values of a TensorProto, as `tf.make_ndarray` gives them.

    Of float16, bfloat16 and float8 a TensorProto may hold the bits as integers. `tf.make_ndarray`
    then sets the dtype of an array, which NumPy 2.5 warns of; here the bits are viewed in it.

    Raises:
        TypeError: A tensor of this type has no array.
        ValueError: It does not hold what its shape asks for.
    """
    kind = tf.dtypes.as_dtype(tensor.dtype)
    if tensor.tensor_content or not kind.is_floating or kind.size > 2:
        return np.asarray(tf.make_ndarray(tensor))
    bits: NDArray[Any] = np.frombuffer(tensor.float8_val, np.uint8)
    if kind.size == 2:
        bits = np.fromiter(tensor.half_val, np.uint16)
    values = bits.view(kind.as_numpy_dtype)
    shape = tuple(dimension.size for dimension in tensor.tensor_shape.dim)
    if not values.size:
        return np.zeros(shape, values.dtype)
    # one value, or the last of several, stands for all that follow
    return np.pad(values, (0, math.prod(shape) - values.size), "edge").reshape(shape)
