"""Tensors as numpy arrays. Imports no TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_array(value: Any) -> NDArray[Any]:
    """Return a tensor, or anything that numpy takes, as an array that shares its buffer where it can.

    A bfloat16 or float8 scalar of TensorFlow gives numpy a scalar where it asks for an array, which `np.asarray` refuses.
    """
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)
