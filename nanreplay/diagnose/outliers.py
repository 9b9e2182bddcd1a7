"""Everything that the rules of `rules/` may look at, asked for when it is needed. Imports no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.row_proof import batch_size, own_leaves
from nanreplay.bisect.step_runner import StepRunner
from nanreplay.bisect.tensor_stats import is_float
from nanreplay.capture.arrays import as_array
from nanreplay.errors import NanreplayError

# Values of a batch far out of the range of the other rows of the window. Pure numpy.

_BATCHES = 16
"""How many other batches are looked at."""
_ELEMENTS = 5_000_000
"""How many elements of other batches are looked at for one array."""
_FEWEST = 8
"""How many other rows tell a usual range at the least."""
_BEYOND = 3.0
"""How many widths of the usual range a value must lie out of it."""
_DEVIATIONS = 10.0
"""How many standard deviations it must lie from the mean."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """One value of a batch that is far from all others of its column."""

    step: int
    """Step of the batch."""
    path: str
    """Array of the batch, e.g. `0` or `1/ids`."""
    index: tuple[int, ...]
    """Index in the array, row first."""
    value: float
    low: float
    """Smallest usual value of the column, of other rows of the window."""
    high: float
    """Largest usual value."""
    deviations: float
    """Distance from the usual mean in standard deviations."""

    @property
    def sentence(self) -> str:
        """The value, its place and the usual range."""
        row, column = self.index[0], list(self.index[1:])
        where = f"row {row}" + (
            f", column {column[0] if len(column) == 1 else column}" if column else ""
        )
        usual = f"usually {self.low:.3g} to {self.high:.3g}, {self.deviations:.2g} standard deviations away"
        return (
            f"`batch[{self.path}]` holds {self.value:.6g} in {where} of step {self.step} ({usual})."
        )


def find_outliers(
    replay: StepRunner, step: int, rows: Sequence[int] | None = None, prefix: str = ""
) -> tuple[Outlier, ...]:
    """Return the values of a batch that are far out of the range of other rows, the farthest of each array, farthest first.

    The usual range of a column is that of the same column in the other batches of the window and in the other rows of
    this batch.

    Args:
        replay: Holds the batches.
        step: Step of the batch.
        rows: Rows to look at; every row unless given.
        prefix: How the paths of the arrays begin that are looked at.
    """
    record = _batch(replay, step)
    if record is None:
        return ()
    leaves = [as_array(leaf) for leaf in record.leaves]
    own = own_leaves(record.paths, prefix)
    size = batch_size([leaves[place] for place in own])
    others = _others(replay, step)
    found = []
    for i, leaf in enumerate(leaves):
        if (
            i in own
            and leaf.ndim
            and leaf.shape[0] == size
            and leaf.size
            and is_float(leaf)
            and leaf.dtype.kind != "c"
        ):
            looked_at = (
                range(len(leaf)) if rows is None else [row for row in rows if row < len(leaf)]
            )
            usual = [
                other[i]
                for other in others
                if i < len(other) and other[i].ndim and other[i].shape[1:] == leaf.shape[1:]
            ]
            few = max(_ELEMENTS // (leaf.size // len(leaf)), _FEWEST)
            found += _of_array(
                step,
                record.paths[i],
                leaf.astype(np.float64),
                looked_at,
                list(_first_rows(usual, few)),
            )
    return tuple(sorted(found, key=lambda outlier: -outlier.deviations))


def _batch(replay: StepRunner, step: int) -> Any:
    try:
        return replay.batch(step)
    except (NanreplayError, LookupError):  # the window does not reach that far
        return None


def _others(replay: StepRunner, step: int) -> list[list[NDArray[Any]]]:
    """Arrays of the batches before a step, and of those after it where there are too few."""
    near = [
        *range(step - 1, max(step - 1 - _BATCHES, -1), -1),
        *(later for later in replay.steps if later > step),
    ]
    records = [record for other in near[:_BATCHES] if (record := _batch(replay, other)) is not None]
    return [[as_array(leaf) for leaf in record.leaves] for record in records]


def _first_rows(arrays: Sequence[NDArray[Any]], count: int) -> Iterator[NDArray[Any]]:
    """Rows of arrays, at most `count` in all."""
    for array in arrays:
        if count <= 0:
            return
        yield array[:count]
        count -= len(array)


def _of_array(
    step: int, path: str, leaf: NDArray[Any], rows: Sequence[int], usual: Sequence[NDArray[Any]]
) -> list[Outlier]:
    """The farthest value of the looked-at rows that is far from those of its column."""
    own = np.array([row for row in range(len(leaf)) if row not in set(rows)], int)
    if (
        len(own) == 0 and not usual
    ):  # no proof, no other batch: each row against all the others of its batch
        return _within(step, path, leaf)
    rest = np.concatenate([*(array.astype(np.float64) for array in usual), leaf[own]])
    return _farthest(step, path, leaf, rows, rest)


def _within(step: int, path: str, leaf: NDArray[Any]) -> list[Outlier]:
    flat = np.abs(np.where(np.isfinite(leaf), leaf, 0).reshape(len(leaf), -1)).max(axis=1)
    row = int(np.argmax(flat))
    return _farthest(step, path, leaf, [row], np.delete(leaf, row, axis=0))


def _farthest(
    step: int, path: str, leaf: NDArray[Any], rows: Sequence[int], rest: NDArray[Any]
) -> list[Outlier]:
    if len(rest) < _FEWEST or not len(rows):
        return []
    with np.errstate(all="ignore"):
        finite = np.isfinite(rest)
        low, high = (
            np.where(finite, rest, np.inf).min(axis=0),
            np.where(finite, rest, -np.inf).max(axis=0),
        )
        mean, spread = np.where(finite, rest, 0).mean(axis=0), np.where(finite, rest, 0).std(axis=0)
        picked = leaf[list(rows)]
        beyond = np.maximum(picked - high, low - picked)
        largest = float(np.abs(np.where(finite, rest, 0)).max())
        scale = np.where(
            spread > 1e-3 * largest, spread, largest
        )  # a column that is nearly always one value has no range of its own
        deviations = np.where(np.isfinite(picked), np.abs(picked - mean) / scale, 0)
        is_far = (
            (beyond > _BEYOND * np.maximum(high - low, scale))
            & (deviations > _DEVIATIONS)
            & (scale > 0)
        )
    if not is_far.any():
        return []
    place = np.unravel_index(int(np.argmax(np.where(is_far, deviations, 0))), picked.shape)
    column = tuple(int(i) for i in place[1:])
    index = (int(rows[int(place[0])]), *column)
    return [
        Outlier(
            step,
            path,
            index,
            float(leaf[index]),
            float(low[column]),
            float(high[column]),
            float(deviations[place]),
        )
    ]
