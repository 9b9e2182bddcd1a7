"""Small facts of one tensor: which elements are not finite, the extremes, one element as a number.

Bisecting keeps these of every op of a step, and whole tensors only where something is not finite.
Pure NumPy; a tensor is whatever `as_array` takes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nanreplay.capture.arrays import as_array

Mask: TypeAlias = NDArray[np.bool_]


def words(text: str) -> frozenset[str]:
    """Return the words of a text: tables of op types read best as one."""
    return frozenset(text.split())


FLOATS = words(
    "half float16 bfloat16 float32 float64 complex64 complex128 "
    "float8_e5m2 float8_e4m3fn float8_e4m3fnuz float8_e4m3b11fnuz float8_e5m2fnuz"
)
"""TensorFlow dtype names that have NaN."""
OPAQUE = frozenset({"resource", "variant", "string", "object"})
"""Dtype names of handles, containers and text; NumPy calls text `object`."""


@dataclass(frozen=True, slots=True)
class TensorStat:
    """What is known of one tensor of one run, without its values."""

    dtype: str
    """TensorFlow dtype name."""
    shape: tuple[int, ...]
    """Shape; () for a scalar."""
    size: int
    """Number of elements."""
    nan: int = 0
    """How many elements are NaN."""
    inf: int = 0
    """How many elements are infinite."""
    minimum: float | None = None
    """Smallest finite element (of the absolute values when complex), None when there is none."""
    maximum: float | None = None
    """Largest finite element, None when there is none."""

    @property
    def nonfinite(self) -> int:
        """How many elements are NaN or infinite."""
        return self.nan + self.inf

    @property
    def is_nan(self) -> bool:
        """Whether all elements are NaN."""
        return 0 < self.size == self.nan

    @property
    def absmax(self) -> float | None:
        """Largest absolute value of the finite elements."""
        if self.minimum is None or self.maximum is None:
            return None
        return max(abs(self.minimum), abs(self.maximum))


def measure(value: Any) -> TensorStat:
    """Return the facts of a tensor; those of a handle are its dtype alone."""
    name = dtype_name(value)
    if name in OPAQUE:
        return TensorStat(name, (), 0)
    array = as_array(value)
    if name not in FLOATS or not array.size:
        return TensorStat(name, array.shape, array.size)
    if name.startswith("complex"):
        array = np.abs(array)
    nan_count, low, high = _extremes(array)
    if np.isfinite(low) and np.isfinite(high):
        return TensorStat(name, array.shape, array.size, nan_count, 0, low, high)
    if nan_count == array.size:
        return TensorStat(name, array.shape, array.size, nan_count)
    finite = array[np.isfinite(array)]
    inf_count = array.size - finite.size - nan_count
    if not finite.size:
        return TensorStat(name, array.shape, array.size, nan_count, inf_count)
    low, high = float(finite.min()), float(finite.max())
    return TensorStat(name, array.shape, array.size, nan_count, inf_count, low, high)


_PIECE = 1 << 16
"""Elements that are looked at together, so that what one pass has read is in the cache."""


def _extremes(array: NDArray[Any]) -> tuple[int, float, float]:
    """How many elements of an array are NaN, the smallest and the largest of the others.

    Nearly all tensors of a step are finite, or behind a NaN all NaN. NumPy's min and max hand NaN
    on, so that two passes prove that a piece has none, and no mask is made.
    """
    nan_count, low, high = 0, np.inf, -np.inf
    flat = array.reshape(-1)
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE]
            smallest = piece.min()
            if np.isnan(smallest):
                is_nan = np.isnan(piece)
                nan_count += int(np.count_nonzero(is_nan))
                if is_nan.all():
                    continue
                piece = piece[~is_nan]
                smallest = piece.min()
            low, high = min(low, float(smallest)), max(high, float(piece.max()))
    return nan_count, low, high


def dtype_name(value: Any) -> str:
    """Return the dtype name of a tensor or array."""
    dtype = value.dtype
    return str(getattr(dtype, "name", dtype))


def is_float(value: Any) -> bool:
    """Return whether a tensor can hold NaN at all."""
    return dtype_name(value) in FLOATS


def is_opaque(value: Any) -> bool:
    """Return whether a tensor is a handle, a container or text."""
    return dtype_name(value) in OPAQUE


def nonfinite(value: Any) -> Mask:
    """Return where a float tensor is NaN or infinite."""
    return _tested(value, lambda array: ~np.isfinite(array))


def nan_mask(value: Any) -> Mask:
    """Return where a float tensor is NaN."""
    return _tested(value, np.isnan)


def compact(mask: Mask) -> Mask:
    """Return a mask, one of ones without memory of its own; it is not to be written to."""
    if is_repeated(mask) or not mask.all():
        return mask
    return repeated(True, mask.shape)


def inf_mask(value: Any) -> Mask:
    """Return where a float tensor is infinite and not NaN; a complex number can be both."""
    return _tested(value, lambda array: np.isinf(array) & ~np.isnan(array))


def _tested(value: Any, test: Callable[[Any], Any]) -> Mask:
    """Return where a test of single elements holds; one element in all places is asked once."""
    if isinstance(value, Outline):
        return value.where(test)
    array = as_array(value)
    if array.size and is_repeated(array):
        return repeated(bool(test(array.flat[0])), array.shape)
    return np.asarray(test(array))


def is_repeated(array: NDArray[Any]) -> bool:
    """Return whether an array is one element in all places, which takes no memory."""
    return bool(array.ndim) and not any(array.strides)


# Masks of one shape, put together. What a NaN reaches is mostly NaN in all places, and a mask of
# one element in all places takes neither time nor memory, however large the tensor is.


def is_some(mask: Mask) -> bool:
    """Return whether a mask marks any element."""
    return bool(mask.size and mask.flat[0]) if is_repeated(mask) else bool(mask.any())


def both(left: Mask, right: Mask) -> Mask:
    """Return the elements that two masks of one shape mark; it is not to be written to."""
    for mask, other in ((left, right), (right, left)):
        if is_repeated(mask) and mask.size:
            return other if mask.flat[0] else mask
    return _known(left & right, left, right)


def either(left: Mask, right: Mask) -> Mask:
    """Return the elements that one of two masks of one shape marks; it is not to be written to."""
    for mask, other in ((left, right), (right, left)):
        if is_repeated(mask) and mask.size:
            return mask if mask.flat[0] else other
    return _known(left | right, left, right)


def without(left: Mask, right: Mask) -> Mask:
    """Return the elements that the left mask marks and the right does not; not to be written to."""
    if is_repeated(right) and right.size:
        return none_of(left.shape) if right.flat[0] else left
    return _known(np.greater(left, right), left)


def none_of(shape: Sequence[int]) -> Mask:
    """Return a mask that marks nothing; it is not to be written to."""
    return repeated(False, tuple(shape))


@lru_cache(maxsize=1024)
def repeated(is_marked: bool, shape: tuple[int, ...]) -> Mask:
    """Return a mask of one element in all places; it is not to be written to.

    A step with a NaN asks for thousands of them, of few shapes.
    """
    return np.broadcast_to(np.bool_(is_marked), shape)


def _known(made: Mask, *masks: Mask) -> Mask:
    """Return a mask, or one of those that it was made of, or one without memory of its own.

    Masks are as large as tensors, and most that are put together are alike. What was made by
    leaving elements out, or by adding some, is the other one if it marks as many.
    """
    count = np.count_nonzero(made)
    if not count:
        return none_of(made.shape)
    for mask in masks:
        if np.count_nonzero(mask) == count:
            return mask
    return made


def reshaped(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """Return a mask of another shape; reshaping one of ones would make a copy."""
    return repeated(bool(mask.flat[0]), shape) if is_repeated(mask) else mask.reshape(shape)


def known_nonfinite(value: Any, stat: TensorStat | None) -> Mask:
    """Return where a float tensor is not finite; where its facts tell, without a look at it."""
    is_told = stat is not None and stat.dtype == dtype_name(value) and stat.shape == value.shape
    if stat is not None and is_told and (stat.is_nan or not stat.nonfinite):
        return repeated(stat.is_nan, stat.shape)
    return nonfinite(value)


def nonfinite_outputs(outputs: Sequence[Any]) -> dict[int, Mask]:
    """Return the mask of non-finite elements of each output that has any, by output."""
    masks: dict[int, Mask] = {}
    for k, output in enumerate(outputs):
        if is_float(output):
            mask = nonfinite(output)
            if is_some(mask):
                masks[k] = mask
    return masks


def kind_of(element: Any) -> str:
    """Return `nan`, `inf`, `-inf`, or `finite`, of one element."""
    if np.isnan(element):
        return "nan"
    if not np.isinf(element):
        return "finite"
    return "inf" if np.real(element) > 0 or np.imag(element) > 0 else "-inf"


def first_index(mask: Mask) -> tuple[int, ...]:
    """Return the index of the first marked element; () for a scalar."""
    if not mask.ndim:
        return ()
    return tuple(map(int, np.unravel_index(int(np.argmax(mask)), mask.shape)))


def first_indices(mask: Mask, most: int) -> list[tuple[int, ...]]:
    """Return the indices of the first marked elements, in order.

    `np.argwhere` makes a row of each marked element, which of a large tensor that is all NaN takes
    many times the tensor's memory.
    """
    flat, places = mask.reshape(-1), []
    for start in range(0, flat.size, _PIECE):
        places += (np.flatnonzero(flat[start : start + _PIECE])[:most] + start).tolist()
        if len(places) >= most:
            break
    found = []
    for place in places[:most]:
        found.append(tuple(map(int, np.unravel_index(place, mask.shape))))
    return found


def number(element: Any) -> float | int | bool | str | None:
    """Return one element as a plain Python number; a complex one as text."""
    scalar = as_array(element)
    if scalar.dtype.kind == "b":
        return bool(scalar)
    if scalar.dtype.kind in "iu":
        return int(scalar)
    if scalar.dtype.kind == "c":
        return str(complex(scalar))
    return float(scalar)


# What is remembered of a large tensor that only handed on what it got: where it is bad.


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
