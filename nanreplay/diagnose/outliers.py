"""Values of a batch far out of the range of the other rows of the window.

The rule of data outliers names them. A column is one position of a row, so each feature is compared
with itself only. Imports no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.batch_rows import own_leaves, read_rows
from nanreplay.bisect.index_arrays import IndexUse
from nanreplay.bisect.sample_parts import RowArray
from nanreplay.bisect.step_runner import StepRunner
from nanreplay.bisect.tensor_stats import is_float
from nanreplay.capture.arrays import as_array
from nanreplay.errors import NanreplayError
from nanreplay.records import EACH_ITERATION, batch_name, place_in_batch

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
_NO_SPREAD = 1e-3
"""A column with less spread, as a share of the array's largest value, hardly ever varies."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """One value of a batch that is far from all others of its column."""

    step: int
    """Step of the batch."""
    path: str
    """Array of the batch, e.g. `0` or `1/ids`."""
    index: tuple[int, ...]
    """Index in the array: row first, of one that a loop fetched the iteration before it."""
    value: float
    low: float
    """Smallest usual value of the column, of other rows of the window."""
    high: float
    """Largest usual value."""
    deviations: float
    """Distance from the usual mean in standard deviations.

    Of a column that hardly ever varies, in its largest values.
    """
    varies: bool = True
    """Whether the column varies, so that standard deviations mean something."""

    @property
    def sentence(self) -> str:
        """The value, its place and the usual range."""
        usual = f"usually {self.low:.3g} to {self.high:.3g}"
        if self.low == self.high:
            usual = f"always {self.low:.3g} otherwise"
        elif self.varies:
            usual += f", {self.deviations:.2g} standard deviations away"
        name, value = batch_name(self.path), f"{self.value:.6g}"
        where = place_in_batch(self.path, self.index)
        return f"`{name}` holds {value} in {where} of step {self.step} ({usual})."


def find_outliers(
    replay: StepRunner,
    step: int,
    rows: Sequence[int] | None = None,
    prefix: str = "",
    indices: Mapping[int, IndexUse] | None = None,
) -> tuple[Outlier, ...]:
    """Return the values of a batch that are far out of the range of other rows.

    The farthest of each array, farthest first. The usual range of a column is that of the same
    column in the other batches of the window and in the other rows of this batch.

    Args:
        replay: Holds the batches.
        step: Step of the batch.
        rows: Rows to look at; every row unless given.
        prefix: How the paths of the arrays begin that are looked at.
        indices: Arrays of the batch that number rows of others (see `index_arrays`). Arrays that
            have not a row a sample are not looked at.
    """
    record = _batch(replay, step)
    if record is None:
        return ()
    leaves = list(map(as_array, record.leaves))
    other_batches = _other_batches(replay, step)
    outliers: list[Outlier] = []
    for position in places_with_rows(record.paths, leaves, prefix, indices or {}):
        leaf = leaves[position]
        if not leaf.size or not _is_real(leaf):
            continue
        fitting = _fitting(other_batches, position, leaf)
        if record.paths[position].startswith(EACH_ITERATION) and leaf.ndim > 1:
            outliers += _outliers_of_iterations(step, record.paths[position], leaf, fitting)
        else:
            outliers += _outliers_of_rows(step, record.paths[position], leaf, fitting, rows)
    return tuple(sorted(outliers, key=lambda outlier: -outlier.deviations))


def outlying_rows(
    replay: StepRunner,
    step: int,
    prefix: str = "",
    indices: Mapping[int, IndexUse] | None = None,
) -> tuple[int, ...]:
    """Return all rows of a batch that hold a value as far out as an `Outlier`'s.

    Args:
        replay: Holds the batches.
        step: Step of the batch.
        prefix: How the paths of the arrays begin that are looked at.
        indices: As of `find_outliers`.
    """
    record = _batch(replay, step)
    if record is None:
        return ()
    leaves, others = list(map(as_array, record.leaves)), _other_batches(replay, step)
    found: set[int] = set()
    for position in places_with_rows(record.paths, leaves, prefix, indices or {}):
        leaf = leaves[position]
        fitting = _fitting(others, position, leaf)
        if leaf.size and _is_real(leaf) and fitting:
            rest = np.concatenate([array.astype(np.float64) for array in fitting])
            found |= _far_rows(leaf.astype(np.float64), rest)
    return tuple(sorted(found))


def _far_rows(leaf: NDArray[Any], rest: NDArray[Any]) -> set[int]:
    if len(rest) < _FEWEST:
        return set()
    with np.errstate(all="ignore"):
        is_far = _distances(leaf, _usual_range(rest)).is_far
    return set(map(int, np.flatnonzero(is_far.reshape(len(leaf), -1).any(axis=1))))


def places_with_rows(
    paths: Sequence[str], leaves: Sequence[Any], prefix: str, indices: Mapping[int, IndexUse]
) -> list[int]:
    """Return which arrays of a batch have a row a sample.

    Args:
        paths: Paths of the arrays.
        leaves: The arrays.
        prefix: How the paths of the arrays begin that are looked at.
        indices: Arrays that number rows of others (see `index_arrays`).
    """
    own = own_leaves(paths, prefix)
    used = {own.index(place): use for place, use in indices.items() if place in own}
    samples = read_rows([paths[place] for place in own], [leaves[place] for place in own], used)
    return sorted(own[part.positions[0]] for part in samples.parts if isinstance(part, RowArray))


def _outliers_of_iterations(
    step: int, path: str, leaf: NDArray[Any], fitting: Sequence[NDArray[Any]]
) -> list[Outlier]:
    """Compare the rows that all iterations of a loop fetched."""
    own, *others = (array.reshape(-1, *array.shape[2:]) for array in (leaf, *fitting))
    outliers = []
    for outlier in _outliers_of_rows(step, path, own, others, None):
        row, *column = outlier.index
        index = (*divmod(row, leaf.shape[1]), *column)
        outliers.append(replace(outlier, index=index))
    return outliers


def _outliers_of_rows(
    step: int,
    path: str,
    leaf: NDArray[Any],
    fitting: Sequence[NDArray[Any]],
    rows: Sequence[int] | None,
) -> list[Outlier]:
    """Compare rows of an array with its others, and with those of other batches."""
    most_rows = max(_ELEMENTS // (leaf.size // len(leaf)), _FEWEST)
    usual = list(_first_rows(fitting, most_rows))
    wanted = range(len(leaf)) if rows is None else [row for row in rows if row < len(leaf)]
    return _outliers_of_array(step, path, leaf.astype(np.float64), wanted, usual)


def _fitting(
    batches: Sequence[Sequence[NDArray[Any]]], position: int, leaf: NDArray[Any]
) -> list[NDArray[Any]]:
    """The same array of other batches, where its rows have the same shape."""
    fitting = []
    for batch in batches:
        if position < len(batch) and _has_rows_like(batch[position], leaf):
            fitting.append(batch[position])
    return fitting


def _has_rows_like(array: NDArray[Any], leaf: NDArray[Any]) -> bool:
    return bool(array.ndim) and array.shape[1:] == leaf.shape[1:]


def _is_real(leaf: NDArray[Any]) -> bool:
    return is_float(leaf) and leaf.dtype.kind != "c"


def _batch(replay: StepRunner, step: int) -> Any:
    try:
        return replay.batch(step)
    except (NanreplayError, LookupError):  # the window does not reach that far
        return None


def _other_batches(replay: StepRunner, step: int) -> list[list[NDArray[Any]]]:
    """Arrays of the batches before a step, and of those after it where there are too few."""
    earlier = range(step - 1, max(step - 1 - _BATCHES, -1), -1)
    later = [other for other in replay.steps if other > step]
    batches = []
    for other in [*earlier, *later][:_BATCHES]:
        record = _batch(replay, other)
        if record is not None:
            batches.append(list(map(as_array, record.leaves)))
    return batches


def _first_rows(arrays: Sequence[NDArray[Any]], count: int) -> Iterator[NDArray[Any]]:
    """Rows of arrays, at most `count` in all."""
    for array in arrays:
        if count <= 0:
            return
        yield array[:count]
        count -= len(array)


def _outliers_of_array(
    step: int, path: str, leaf: NDArray[Any], rows: Sequence[int], usual: Sequence[NDArray[Any]]
) -> list[Outlier]:
    """The farthest value of the wanted rows that is far from those of its column."""
    wanted = set(rows)
    other_rows = np.array([row for row in range(len(leaf)) if row not in wanted], int)
    if len(other_rows) == 0 and not usual:  # every row is wanted, and there is no other batch
        return _outliers_within(step, path, leaf)
    rest = np.concatenate([*(array.astype(np.float64) for array in usual), leaf[other_rows]])
    return _farthest(step, path, leaf, rows, rest)


def _outliers_within(step: int, path: str, leaf: NDArray[Any]) -> list[Outlier]:
    """Compare the row with the largest value with all the others of its batch."""
    largest = np.abs(np.where(np.isfinite(leaf), leaf, 0).reshape(len(leaf), -1)).max(axis=1)
    row = int(np.argmax(largest))
    return _farthest(step, path, leaf, [row], np.delete(leaf, row, axis=0))


def _farthest(
    step: int, path: str, leaf: NDArray[Any], rows: Sequence[int], rest: NDArray[Any]
) -> list[Outlier]:
    """The farthest value of some rows that is far from the rest, as a list of one or none.

    Args:
        step: Step of the batch.
        path: Path of the array.
        leaf: The array.
        rows: The rows to look at.
        rest: Rows that tell the usual range; non-finite values among them do not count.
    """
    if len(rest) < _FEWEST or not len(rows):
        return []
    picked = leaf[list(rows)]
    with np.errstate(all="ignore"):  # infinite bounds of a column without finite values
        usual = _usual_range(rest)
        deviations, is_far = _distances(picked, usual)
    if not is_far.any():
        return []
    farthest = int(np.argmax(np.where(is_far, deviations, 0)))
    place = tuple(map(int, np.unravel_index(farthest, picked.shape)))
    column = place[1:]
    index = (int(rows[place[0]]), *column)
    return [
        Outlier(
            step=step,
            path=path,
            index=index,
            value=float(leaf[index]),
            low=float(usual.low[column]),
            high=float(usual.high[column]),
            deviations=float(deviations[place]),
            varies=bool(usual.varies[column]),
        )
    ]


class _UsualRange(NamedTuple):
    """What is usual in each column of some rows."""

    low: NDArray[Any]
    high: NDArray[Any]
    mean: NDArray[Any]
    scale: NDArray[Any]
    """Standard deviation; of a column that hardly ever varies, the array's largest value."""
    varies: NDArray[np.bool_]


class _Distances(NamedTuple):
    """How far values of some rows are from what is usual."""

    deviations: NDArray[Any]
    is_far: NDArray[np.bool_]


def _distances(rows: NDArray[Any], usual: _UsualRange) -> _Distances:
    low, high, scale = usual.low, usual.high, usual.scale
    beyond = np.maximum(rows - high, low - rows)
    deviations = np.where(np.isfinite(rows), np.abs(rows - usual.mean) / scale, 0)
    is_beyond = beyond > _BEYOND * np.maximum(high - low, scale)
    is_far = is_beyond & (deviations > _DEVIATIONS) & (scale > 0) & np.isfinite(low)
    return _Distances(deviations, is_far)


def _usual_range(rows: NDArray[Any]) -> _UsualRange:
    is_finite = np.isfinite(rows)
    finite_or_0, count = np.where(is_finite, rows, 0), is_finite.sum(axis=0)
    mean, largest = finite_or_0.sum(axis=0) / count, float(np.abs(finite_or_0).max())
    spread = np.sqrt((np.where(is_finite, rows - mean, 0) ** 2).sum(axis=0) / count)
    varies = spread > _NO_SPREAD * largest
    return _UsualRange(
        low=np.where(is_finite, rows, np.inf).min(axis=0),
        high=np.where(is_finite, rows, -np.inf).max(axis=0),
        mean=mean,
        scale=np.where(varies, spread, largest),
        varies=varies,
    )
