"""Small facts of one tensor: which elements are not finite, the extremes, one element as a number.

Bisecting keeps these of every op of a step, and whole tensors only where something is not finite.
Pure NumPy; a tensor is whatever `as_array` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.tensor_outline import Outline
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
    # Nearly all tensors of a step are finite, and finite extremes prove that one is, because
    # NumPy's min and max hand NaN on: two passes over the data are enough, and no mask is made.
    with np.errstate(all="ignore"):
        low, high = float(array.min()), float(array.max())
    if np.isfinite(low) and np.isfinite(high):
        return TensorStat(name, array.shape, array.size, 0, 0, low, high)
    nan_count = int(np.count_nonzero(np.isnan(array)))
    if nan_count == array.size:
        return TensorStat(name, array.shape, array.size, nan_count)
    finite = array[np.isfinite(array)]
    inf_count = array.size - finite.size - nan_count
    if not finite.size:
        return TensorStat(name, array.shape, array.size, nan_count, inf_count)
    low, high = float(finite.min()), float(finite.max())
    return TensorStat(name, array.shape, array.size, nan_count, inf_count, low, high)


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
    return np.broadcast_to(np.True_, mask.shape)


def inf_mask(value: Any) -> Mask:
    """Return where a float tensor is infinite and not NaN; a complex number can be both."""
    return _tested(value, lambda array: np.isinf(array) & ~np.isnan(array))


def _tested(value: Any, test: Callable[[Any], Any]) -> Mask:
    """Return where a test of single elements holds; one element in all places is asked once."""
    if isinstance(value, Outline):
        return value.where(test)
    array = as_array(value)
    if array.size and is_repeated(array):
        return np.broadcast_to(test(array.flat[0]), array.shape)
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
    return np.broadcast_to(np.False_, tuple(shape))


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


def nonfinite_outputs(outputs: Sequence[Any]) -> dict[int, Mask]:
    """Return the mask of non-finite elements of each output that has any, by output."""
    masks: dict[int, Mask] = {}
    for k, output in enumerate(outputs):
        if is_float(output):
            mask = nonfinite(output)
            if mask.any():
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
