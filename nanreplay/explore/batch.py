"""The batch of a step, sample by sample: what each array probably is, and how far each value is from the other batches. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

LeafKind: TypeAlias = Literal["table", "image", "tokens", "labels", "weights", "array", "text"]
_LARGEST_ROW = 65_536
"""Elements of a sample above which it is compared by its summary only."""
_SMALLEST_IMAGE = 6


@dataclass(frozen=True)
class Leaf:
    """One array of a batch."""

    path: str
    """Where it sits in the batch, as the user wrote it."""
    kind: LeafKind
    """What it probably is, judged by its place, type and shape."""
    array: NDArray[Any]
    """Batch axis first."""
    mean: NDArray[Any] | None
    """Mean of each element of a sample over the other batches of the window (the other rows when there are none); None
    for what holds no quantities."""
    deviation: NDArray[Any] | None
    """Standard deviation in the same way."""

    @property
    def columns(self) -> int:
        """Elements of one sample."""
        return int(np.prod(self.array.shape[1:], dtype=np.int64))

    def row(self, row: int) -> NDArray[Any]:
        """Return the elements of one sample, flat."""
        return np.asarray(self.array[row]).reshape(-1)

    def scores(self, row: int) -> NDArray[np.float64] | None:
        """Return how many standard deviations each element of a sample is from the mean; NaN where that says nothing."""
        if self.mean is None or self.deviation is None:
            return None
        distance = self.row(row).astype(np.float64) - self.mean.reshape(-1)
        spread = self.deviation.reshape(-1)
        with np.errstate(all="ignore"):
            return np.where(spread > 0, distance / spread, np.where(distance == 0, 0.0, np.nan))


@dataclass(frozen=True)
class BatchView:
    """The batch of one step."""

    step: int
    size: int
    """Samples; 0 when no array has a batch axis."""
    leaves: tuple[Leaf, ...]
    rows: tuple[int, ...]
    """Samples that the failure needs, else those that hold non-finite values; empty when there are none."""
    reason: str | None
    """How `rows` were found."""
    compared: int
    """How many other batches the means are of."""

    def neighbours(self, row: int, around: int = 2) -> tuple[int, ...]:
        """Return a sample and those beside it."""
        first = max(0, min(row - around, self.size - 2 * around - 1))
        return tuple(range(first, min(first + 2 * around + 1, self.size)))


def view_batch(
    step: int,
    leaves: Sequence[Any],
    paths: Sequence[str],
    others: Sequence[Sequence[Any]],
    rows: tuple[int, ...] | None = None,
    reason: str | None = None,
) -> BatchView:
    """Return a batch as people look at it.

    Args:
        step: The step that took it.
        leaves: Its arrays.
        paths: Where each sits in the batch.
        others: Arrays of the other batches of the window.
        rows: Samples that are known to be to blame.
        reason: How that is known.
    """
    arrays = [np.asarray(leaf) for leaf in leaves]
    sizes = [array.shape[0] for array in arrays if array.ndim]
    size = max(set(sizes), key=sizes.count) if sizes else 0
    same = [[other[i] for other in others if i < len(other)] for i in range(len(arrays))]
    found = tuple(_leaf(array, path, before, size) for array, path, before in zip(arrays, paths, same, strict=True))
    if rows is None:
        rows = tuple(sorted({row for array in arrays for row in _bad_rows(array, size)}))
        reason = "These samples hold non-finite values." if rows else reason
    return BatchView(step, size, found, rows, reason, len(others))


def kind_of_leaf(path: str, array: NDArray[Any]) -> LeafKind:
    """Guess what an array of a batch is."""
    top = path.split("/")[0]
    last = path.rsplit("/", 1)[-1].lower()
    if array.dtype.kind in "OSU":
        return "text"
    if top == "2" or "weight" in last:
        return "weights"
    if array.ndim >= 3 and _is_image(array):
        return "image"
    if top == "1" or last in ("y", "label", "labels", "target", "targets"):
        return "labels"
    if array.dtype.kind in "iu" and array.ndim == 2 and array.shape[1] > 1:
        return "tokens"
    return "table" if array.ndim <= 2 else "array"


def _is_image(array: NDArray[Any]) -> bool:
    if array.ndim == 4:
        height, width, channels = array.shape[1:]
        return channels in (1, 3, 4) and min(height, width) >= _SMALLEST_IMAGE
    return array.ndim == 3 and array.shape[1] == array.shape[2] >= 2 * _SMALLEST_IMAGE


def _bad_rows(array: NDArray[Any], size: int) -> Iterator[int]:
    if array.dtype.kind in "OSUbiu" or not array.ndim or array.shape[0] != size:
        return
    with np.errstate(all="ignore"):
        bad = ~np.isfinite(array.reshape(size, -1)).all(axis=1)
    yield from (int(row) for row in np.flatnonzero(bad))


def _leaf(array: NDArray[Any], path: str, others: Sequence[Any], size: int) -> Leaf:
    kind = kind_of_leaf(path, array)
    comparable = kind != "text" and kind != "tokens" and array.ndim > 0 and array.shape[0] == size
    if not comparable or np.prod(array.shape[1:], dtype=np.int64) > _LARGEST_ROW or array.dtype.kind == "c":
        return Leaf(path, kind, array, None, None)
    same = [other for other in map(np.asarray, others) if other.ndim == array.ndim and other.shape[1:] == array.shape[1:]]
    return Leaf(path, kind, array, *_spread(same or [array]))


def _spread(arrays: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation along the batch axis over some arrays, of the finite elements; in two passes, array by array."""
    shape = arrays[0].shape[1:]
    count, total, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    with np.errstate(all="ignore"):
        for wide, finite in map(_finite, arrays):
            count += finite.sum(axis=0)
            total += wide.sum(axis=0)
        mean = total / np.maximum(count, 1)
        for wide, finite in map(_finite, arrays):
            squares += np.where(finite, (wide - mean) ** 2, 0).sum(axis=0)
        return mean, np.sqrt(squares / np.maximum(count, 1))


def _finite(array: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    wide = array.astype(np.float64)
    finite = np.isfinite(wide)
    return np.where(finite, wide, 0.0), finite
