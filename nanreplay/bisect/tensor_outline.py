"""What is remembered of a large tensor that only handed on what it got: where it is bad."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.capture.arrays import as_array


class Outline:
    """A tensor of which only the elements that are not finite are known; the others read as 0.

    It has the type and the shape of the tensor, and `as_array` makes an array of it. Elements that
    all are NaN, or all finite, take no memory; otherwise it is a bit an element.
    """

    __slots__ = ("_array_dtype", "_bits", "_fill", "_values", "dtype", "original", "shape")

    def __init__(self, tensor: Any, *, all_nan: bool = False, all_finite: bool = False) -> None:
        """Look at a tensor, where it is not known what all of it holds, and let go of it."""
        array = as_array(tensor)
        self.dtype = tensor.dtype
        self.shape = array.shape
        self.original = weakref.ref(tensor)
        """The tensor, while somebody else holds it."""
        self._array_dtype = array.dtype
        self._fill = np.nan if all_nan else 0.0
        self._bits: Any = None
        self._values: Any = None
        bad = None if all_nan or all_finite else np.asarray(~np.isfinite(array))
        if bad is not None and bad.any():
            self._bits = np.packbits(bad.reshape(-1))
            values = array[bad]
            self._values = values[:1].copy() if np.isnan(values).all() else values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return what is known as an array, which is not to be written to."""
        wanted = self._array_dtype if dtype is None else np.dtype(dtype)
        if self._bits is None:
            return np.broadcast_to(np.asarray(self._fill, wanted), self.shape)
        array = np.zeros(self.shape, wanted)
        array[self._bad()] = self._values
        return array

    def where(self, test: Callable[[Any], Any]) -> NDArray[np.bool_]:
        """Return where a test of single elements holds, which is False of finite ones.

        The mask is not to be written to. It is made without the array, which takes more memory.
        """
        if self._bits is None:
            return np.broadcast_to(np.bool_(test(self._array_dtype.type(self._fill))), self.shape)
        bad = self._bad()
        holds = np.asarray(test(self._values))
        if holds.all():
            return bad
        if len(holds) == 1:
            return np.broadcast_to(np.False_, self.shape)
        marked = np.zeros(self.shape, bool)
        marked[bad] = holds
        return marked

    def _bad(self) -> NDArray[np.bool_]:
        count = int(np.prod(self.shape, dtype=np.int64))
        bits = np.unpackbits(self._bits, count=count)
        return bits.view(np.bool_).reshape(self.shape)  # bytes of 0 and 1 are bools
