"""The batch of a step, sample by sample, for the batch pane.

It says what each array probably is, and how far each value is from the other batches of the window.
Pure numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nanreplay.capture.arrays import as_array

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
    dtype: str
    shape: tuple[int, ...]
    """Of the whole array, batch axis first."""
    samples: NDArray[Any]
    """Its rows for `BatchView.shown`, in that order; the whole array when it has no batch axis."""
    mean: NDArray[Any] | None
    """Mean of each element of a sample over the other batches of the window.

    Over the rows of this batch when there are no others; None for what holds no quantities.
    """
    deviation: NDArray[Any] | None
    """Standard deviation in the same way."""


@dataclass(frozen=True)
class BatchView:
    """The batch of one step: of all samples how strange they are, of some of them the values."""

    step: int
    size: int
    """Samples; 0 when no array has a batch axis."""
    leaves: tuple[Leaf, ...]
    shown: tuple[int, ...]
    """Samples whose values are in `leaves`."""
    rows: tuple[int, ...]
    """Samples that the failure needs, else those that hold non-finite values; may be empty."""
    reason: str | None
    """How `rows` were found."""
    compared: int
    """How many other batches the means are of."""
    strangeness: tuple[float, ...]
    """Of each sample the largest distance of one of its elements from the mean.

    In standard deviations; infinite when it holds a non-finite value.
    """

    def values(self, leaf: Leaf, row: int) -> NDArray[Any]:
        """Return the elements of one array in one of the samples that are shown, flat."""
        return as_array(leaf.samples[self.shown.index(row)]).reshape(-1)

    def scores(self, leaf: Leaf, row: int) -> NDArray[np.float64] | None:
        """Return how many standard deviations each element of a sample is from the mean.

        NaN where that says nothing.
        """
        if leaf.mean is None or leaf.deviation is None:
            return None
        return _scores(self.values(leaf, row), leaf.mean.reshape(-1), leaf.deviation.reshape(-1))


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and deviation of each array of a batch over the other batches of the window."""

    means: tuple[NDArray[Any] | None, ...]
    deviations: tuple[NDArray[Any] | None, ...]
    compared: int
    """How many other batches there are."""


def spread_of(
    leaves: Sequence[Any], paths: Sequence[str], others: Sequence[Sequence[Any]]
) -> Spread:
    """Return mean and deviation of each array of a batch over other batches.

    Args:
        leaves: Arrays of the batch.
        paths: Where each sits in the batch.
        others: Arrays of the other batches.
    """
    size = batch_size(leaves)
    means, deviations = [], []
    for i, (leaf, path) in enumerate(zip(leaves, paths, strict=True)):
        same_place = [other[i] for other in others if i < len(other)]
        mean, deviation = _leaf_spread(as_array(leaf), path, same_place, size)
        means.append(mean)
        deviations.append(deviation)
    return Spread(tuple(means), tuple(deviations), len(others))


def view_batch(
    step: int,
    leaves: Sequence[Any],
    paths: Sequence[str],
    spread: Spread,
    *,
    rows: tuple[int, ...] | None = None,
    reason: str | None = None,
    row: int | None = None,
    around: int = 2,
) -> BatchView:
    """Return a batch as people look at it.

    Args:
        step: The step that took it.
        leaves: Its arrays.
        paths: Where each sits in the batch.
        spread: What is usual.
        rows: Samples that are known to be to blame.
        reason: How that is known.
        row: The sample to show; the first of those to blame unless given.
        around: How many samples before and after it are shown.
    """
    arrays, size = list(map(as_array, leaves)), batch_size(leaves)
    if rows is None:
        # Nothing proved which samples are to blame, but a NaN that is in the batch itself needs no
        # proof.
        rows = tuple(sorted({bad for array in arrays for bad in _bad_rows(array, size)}))
        reason = "These samples hold non-finite values." if rows else reason
    middle = rows[0] if rows else 0
    if row is not None:
        middle = row
    # At the ends of the batch as many samples are shown as in its middle.
    first = max(0, min(middle - around, size - 2 * around - 1))
    shown = tuple(range(first, min(first + 2 * around + 1, size)))
    parts = zip(arrays, paths, spread.means, spread.deviations, strict=True)
    return BatchView(
        step=step,
        size=size,
        leaves=tuple(_leaf(*part, shown, size) for part in parts),
        shown=shown,
        rows=rows,
        reason=reason,
        compared=spread.compared,
        strangeness=tuple(_strangeness(arrays, spread, size).tolist()),
    )


def batch_size(leaves: Sequence[Any]) -> int:
    """Return how many samples a batch holds: the first axis that most arrays share; 0 without."""
    sizes = []
    for leaf in leaves:
        if np.ndim(leaf):
            sizes.append(np.shape(leaf)[0])
    # Most, not all: a batch may bring an array of its own length along, such as class weights.
    return max(set(sizes), key=sizes.count) if sizes else 0


def kind_of_leaf(path: str, array: NDArray[Any]) -> LeafKind:
    """Guess what an array of a batch is."""
    top = path.split("/", maxsplit=1)[0]
    last = path.rsplit("/", 1)[-1].lower()
    if array.dtype.kind in "OSU":
        return "text"
    # Keras gives a batch as (inputs, labels, sample weights), so the first part of a path tells.
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
        # A feature map of a network has more channels, and a short series with three features less
        # height.
        return channels in (1, 3, 4) and min(height, width) >= _SMALLEST_IMAGE
    # Without a channel axis only the square form tells an image from a series of [time, features].
    return array.ndim == 3 and array.shape[1] == array.shape[2] >= 2 * _SMALLEST_IMAGE


def _bad_rows(array: NDArray[Any], size: int) -> Iterator[int]:
    if array.dtype.kind in "OSUbiu" or not array.ndim or array.shape[0] != size:
        return
    with np.errstate(all="ignore"):
        bad = ~np.isfinite(array.reshape(size, -1)).all(axis=1)
    for row in np.flatnonzero(bad):
        yield int(row)


def _leaf(
    array: NDArray[Any],
    path: str,
    mean: NDArray[Any] | None,
    deviation: NDArray[Any] | None,
    shown: tuple[int, ...],
    size: int,
) -> Leaf:
    samples = array[list(shown)] if _has_rows(array, size) else array
    return Leaf(
        path, kind_of_leaf(path, array), array.dtype.name, array.shape, samples, mean, deviation
    )


def _has_rows(array: NDArray[Any], size: int) -> bool:
    return array.ndim > 0 and array.shape[0] == size


def _leaf_spread(
    array: NDArray[Any], path: str, others: Sequence[Any], size: int
) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    kind = kind_of_leaf(path, array)
    unscaled = (
        kind in ("text", "tokens")
        or array.dtype.kind == "c"
        or (kind == "labels" and array.dtype.kind in "biu")
    )
    if (
        unscaled
        or not _has_rows(array, size)
        or np.prod(array.shape[1:], dtype=np.int64) > _LARGEST_ROW
    ):
        return None, None
    # The last batch of an epoch is shorter, so the number of samples may differ.
    same = []
    for other in map(np.asarray, others):
        if other.ndim == array.ndim and other.shape[1:] == array.shape[1:]:
            same.append(other)
    return _spread(same or [array])


def _scores(
    values: NDArray[Any], mean: NDArray[Any], deviation: NDArray[Any]
) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):
        distance = values.astype(np.float64) - mean
        return np.where(deviation > 0, distance / deviation, np.where(distance == 0, 0.0, np.nan))


def _strangeness(arrays: Sequence[NDArray[Any]], spread: Spread, size: int) -> NDArray[np.float64]:
    strangeness = np.zeros(size)
    for array, mean, deviation in zip(arrays, spread.means, spread.deviations, strict=True):
        if mean is not None and deviation is not None:
            scores = np.abs(_scores(array, mean, deviation)).reshape(size, -1)
            known = np.nan_to_num(scores, nan=0.0, posinf=np.inf)
            strangeness = np.maximum(strangeness, known.max(axis=1, initial=0.0))
        # A sample that is not finite is the strangest, whatever the others look like.
        strangeness[list(_bad_rows(array, size))] = np.inf
    return strangeness


def _spread(arrays: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation along the batch axis over some arrays, of finite elements.

    In two passes, array by array: the mean first, then the squares of what is left, since the
    difference of two large sums of squares would have no digits left.
    """
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
