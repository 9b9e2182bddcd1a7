"""How the arrays of a batch hold its samples, and batches put together of other samples.

A sample is a row of most arrays. A ragged or sparse tensor comes as several arrays, of which none
has a row a sample; nor do the nodes of several graphs in one batch, which an array of segment
numbers tells apart. `BatchRows` knows which elements belong to which sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.influence import COPIES
from nanreplay.bisect.op_trace import Fact, StepTrace
from nanreplay.bisect.tensor_stats import Mask, is_float, words
from nanreplay.capture.arrays import as_array
from nanreplay.replay.provenance import ValueId

Leaves: TypeAlias = Sequence[Any]
Rows: TypeAlias = frozenset[int]
Numbers: TypeAlias = NDArray[np.int64]


def own_leaves(paths: Sequence[str], prefix: str) -> list[int]:
    """Return which arrays of a batch belong to a replica; all when the prefix is empty.

    Args:
        paths: Paths of the arrays.
        prefix: How those of the replica begin (see `Origin.batch_prefix`).
    """
    return [position for position, path in enumerate(paths) if f"{path}/".startswith(prefix)]


def batch_size(leaves: Leaves) -> int | None:
    """Return the size of the batch axis of arrays that have a row a sample.

    That is the leading dimension that most arrays share, in doubt that of the first array; None
    when no array has an axis.
    """
    sizes = [leaf.shape[0] for leaf in leaves if leaf.ndim]
    return max(sizes, key=lambda size: (sizes.count(size), -sizes.index(size)), default=None)


class Choice(NamedTuple):
    """Which samples a batch is put together of, in order."""

    batches: Numbers
    """By sample: which batch it is taken from, a number that counts the batches given."""
    rows: Numbers
    """By sample: which row of that batch it is."""


class Part(Protocol):
    """Arrays of a batch that hold the samples together."""

    positions: tuple[int, ...]
    """Where its arrays are in the batch."""

    def pick(self, batches: Sequence[Leaves], choice: Choice) -> list[Any]:
        """Put its arrays together of samples of some batches."""
        ...

    def row_numbers(self, leaves: Leaves) -> Iterator[Numbers]:
        """Yield the sample of each place along an axis that its samples stretch over."""
        ...

    def fits(self, leaves: Leaves, other: Leaves) -> bool:
        """Whether another batch can give samples to this one."""
        ...


@dataclass(frozen=True, slots=True)
class RowArray:
    """An array with a row a sample."""

    positions: tuple[int, ...]

    def pick(self, batches: Sequence[Leaves], choice: Choice) -> list[Any]:
        """Take the rows."""
        arrays = [leaves[self.positions[0]] for leaves in batches]
        picked = np.empty((len(choice.rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for number in np.unique(choice.batches):
            is_from = choice.batches == number
            picked[is_from] = arrays[number][choice.rows[is_from]]
        return [picked]

    def row_numbers(self, leaves: Leaves) -> Iterator[Numbers]:
        """Yield nothing: an axis of the batch's size is known without."""
        return iter(())

    def fits(self, leaves: Leaves, other: Leaves) -> bool:
        """Whether the other array has the same shape and dtype."""
        return _is_alike(leaves[self.positions[0]], other[self.positions[0]])


@dataclass(frozen=True, slots=True)
class RaggedArrays:
    """A ragged tensor: its values, then the splits of its rows, the outermost first."""

    positions: tuple[int, ...]

    def pick(self, batches: Sequence[Leaves], choice: Choice) -> list[Any]:
        """Cut the rows out and join them."""
        levels: list[list[Any]] = [[] for _ in self.positions]
        for number, row in zip(choice.batches, choice.rows, strict=True):
            values, *splits = (batches[number][position] for position in self.positions)
            first, last = int(row), int(row) + 1
            for level, split in zip(levels[1:], splits, strict=True):
                level.append(np.diff(split[first : last + 1]))
                first, last = int(split[first]), int(split[last])
            levels[0].append(values[first:last])
        own = [batches[0][position] for position in self.positions]
        joined = [np.concatenate([own[0][:0], *levels[0]])]
        for array, lengths in zip(own[1:], levels[1:], strict=True):
            ends = np.cumsum(np.concatenate([[0], *lengths]))
            joined.append(ends.astype(array.dtype))
        return joined

    def row_numbers(self, leaves: Leaves) -> Iterator[Numbers]:
        """Yield the row of each inner row, and of each value."""
        splits = [leaves[position] for position in self.positions[1:]]
        rows = np.arange(len(splits[0]) - 1)
        for split in splits:
            rows = np.repeat(rows, np.diff(split))
            yield rows

    def fits(self, leaves: Leaves, other: Leaves) -> bool:
        """Whether the other has as many rows, and values of the same shape and dtype."""
        values, splits = self.positions[:2]
        return _rows_are_alike(leaves[values], other[values]) and len(leaves[splits]) == len(
            other[splits]
        )


@dataclass(frozen=True, slots=True)
class SparseArrays:
    """A sparse tensor: the indices of its values, the values, its shape."""

    positions: tuple[int, ...]

    def pick(self, batches: Sequence[Leaves], choice: Choice) -> list[Any]:
        """Take the values of the rows, and number the rows anew."""
        all_indices, all_values = [], []
        for place, (number, row) in enumerate(zip(choice.batches, choice.rows, strict=True)):
            indices, values, _ = (batches[number][position] for position in self.positions)
            is_in_row = indices[:, 0] == row
            picked = indices[is_in_row]
            picked[:, 0] = place
            all_indices.append(picked)
            all_values.append(values[is_in_row])
        own_indices, own_values, own_shape = (batches[0][position] for position in self.positions)
        shape = np.array([len(choice.rows), *own_shape[1:]], own_shape.dtype)
        return [
            np.concatenate([own_indices[:0], *all_indices]),
            np.concatenate([own_values[:0], *all_values]),
            shape,
        ]

    def row_numbers(self, leaves: Leaves) -> Iterator[Numbers]:
        """Yield the row of each value."""
        yield leaves[self.positions[0]][:, 0]

    def fits(self, leaves: Leaves, other: Leaves) -> bool:
        """Whether the other has the same shape and dtype."""
        _, values, shape = self.positions
        return _rows_are_alike(leaves[values], other[values]) and bool(
            np.array_equal(leaves[shape], other[shape])
        )


@dataclass(frozen=True, slots=True)
class SegmentArrays:
    """Arrays of many rows a sample, and first of all the array that numbers each row's sample."""

    positions: tuple[int, ...]

    def pick(self, batches: Sequence[Leaves], choice: Choice) -> list[Any]:
        """Take all rows of the samples, and number the samples anew."""
        picked: list[list[Any]] = [[] for _ in self.positions]
        for place, (number, row) in enumerate(zip(choice.batches, choice.rows, strict=True)):
            ids, *others = (batches[number][position] for position in self.positions)
            is_in_sample = ids == row
            picked[0].append(np.full(int(is_in_sample.sum()), place, ids.dtype))
            for into, array in zip(picked[1:], others, strict=True):
                into.append(array[is_in_sample])
        own = [batches[0][position] for position in self.positions]
        pairs = zip(own, picked, strict=True)
        return [np.concatenate([array[:0], *pieces]) for array, pieces in pairs]

    def row_numbers(self, leaves: Leaves) -> Iterator[Numbers]:
        """Yield the sample of each row."""
        yield leaves[self.positions[0]]

    def fits(self, leaves: Leaves, other: Leaves) -> bool:
        """Whether the rows of the other have the same shapes and dtypes."""
        return all(_rows_are_alike(leaves[place], other[place]) for place in self.positions)


def _is_alike(one: Any, other: Any) -> bool:
    return bool(one.shape == other.shape and one.dtype == other.dtype)


def _rows_are_alike(one: Any, other: Any) -> bool:
    return bool(other.ndim and one.shape[1:] == other.shape[1:] and one.dtype == other.dtype)


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Which arrays of a batch hold its samples, and how.

    Made by `read_rows`. Arrays are told by their place among those that it was made of.
    """

    leaves: Leaves
    size: int | None
    """How many samples there are; None where that cannot be told."""
    parts: Sequence[Part] = ()
    reason: str = ""
    """Why samples cannot be told; "" where they can be."""

    @property
    def is_aligned(self) -> bool:
        """Whether every sample keeps its places when others are replaced."""
        return all(isinstance(part, RowArray) for part in self.parts)

    def pick(self, batches: Sequence[Leaves], choice: Choice) -> list[Any]:
        """Put a batch together of samples of some batches; the first is this one.

        What has no samples stays as it is in this one.
        """
        picked = list(self.leaves)
        for part in self.parts:
            for position, array in zip(part.positions, part.pick(batches, choice), strict=True):
                picked[position] = array
        return picked

    def keep(self, rows: Sequence[int]) -> list[Any]:
        """Return the batch with these samples only, in this order."""
        numbers = np.asarray(rows, np.int64)
        return self.pick([self.leaves], Choice(np.zeros_like(numbers), numbers))

    def fits(self, other: Leaves) -> bool:
        """Whether samples of another batch can stand in for those of this one."""
        if len(other) != len(self.leaves):
            return False
        held = {position for part in self.parts for position in part.positions}
        rest = [place for place in range(len(other)) if place not in held]
        return all(part.fits(self.leaves, other) for part in self.parts) and all(
            _is_alike(self.leaves[place], other[place]) for place in rest
        )

    def row_numbers(self, length: int) -> Iterator[Numbers]:
        """Yield the sample of each place along an axis of a length, for each way to read it."""
        if not self.size:
            return
        if length == self.size:
            yield np.arange(length)
        for part in self.parts:
            yield from (rows for rows in part.row_numbers(self.leaves) if len(rows) == length)

    def rows_of(self, position: int, mask: Mask) -> Rows | None:
        """Return the samples that marked elements of an array belong to; None if of no sample."""
        marked = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
        for part in self.parts:
            if position in part.positions:
                numberings = [*part.row_numbers(self.leaves)] or [np.arange(self.size or 0)]
                fitting = [rows for rows in numberings if len(rows) == len(mask)]
                # of a ragged tensor, the last are the values
                return frozenset(int(fitting[-1][place]) for place in marked) if fitting else None
        return None


IndexUse: TypeAlias = Literal["segments", "rows"]
"""What an array of the batch numbers: the segment of each of its rows, or rows of another array."""


def read_rows(
    paths: Sequence[str], leaves: Leaves, indices: Mapping[int, IndexUse] | None = None
) -> BatchRows:
    """Find out how the arrays of a batch hold its samples.

    Args:
        paths: Paths of the first of these arrays; the others are recorded outputs of ops.
        leaves: The arrays.
        indices: Arrays that number rows of others, by place (see `index_arrays`).
    """
    composites = list(_composites(paths, leaves))
    held = {position for part in composites for position in part.positions}
    plain = [place for place in range(len(leaves)) if place not in held]
    numbering = {place: use for place, use in (indices or {}).items() if place in plain}
    named = [place for place in plain if place < len(paths)]
    size = batch_size([leaves[place] for place in named or plain])
    if composites:
        size = _rows_in(composites[0], leaves)
    segments = None
    if numbering:
        segments = _segments(named, leaves, numbering)
        if segments is None and _is_odd(leaves, numbering, size):
            shown = paths[min(numbering)]
            reason = f"`batch[{shown}]` numbers rows of other arrays, so that rows are no samples."
            return BatchRows(leaves, None, (), reason)
    if segments is not None:
        size = segments.size
        composites.append(segments.part)
        plain = [place for place in plain if place not in segments.part.positions]
    if size is None:
        return BatchRows(leaves, None, (), "The arrays of the batch have no axis in common.")
    rows = [RowArray((place,)) for place in plain if _has_rows(leaves[place], size)]
    matching = [part for part in composites if _rows_in(part, leaves) in (size, None)]
    return BatchRows(leaves, size, [*matching, *rows])


def _has_rows(leaf: Any, size: int) -> bool:
    return bool(leaf.ndim) and leaf.shape[0] == size


def _composites(paths: Sequence[str], leaves: Leaves) -> Iterator[Part]:
    """Ragged and sparse tensors, whose arrays are named by their type and a number."""
    groups: dict[tuple[str, str], list[int]] = {}
    for position, path in enumerate(paths):
        before, name, number = _before_number(path)
        if name and number == len(groups.get((before, name), ())):
            groups.setdefault((before, name), []).append(position)
    for (_, name), positions in groups.items():
        arrays = [leaves[position] for position in positions]
        if name == "RaggedTensor" and _are_splits(arrays):
            yield RaggedArrays(tuple(positions))
        elif name == "SparseTensor" and _are_sparse(arrays):
            yield SparseArrays(tuple(positions))


def _before_number(path: str) -> tuple[str, str, int]:
    """`0/RaggedTensor/1` -> ("0", "RaggedTensor", 1); no name where the path is another."""
    rest, _, number = path.rpartition("/")
    before, _, name = rest.rpartition("/")
    return (before, name, int(number)) if number.isdecimal() else ("", "", -1)


def _are_splits(arrays: Leaves) -> bool:
    """Whether the first array is cut by the others, the innermost last."""
    values, *splits = arrays
    if not splits or not values.ndim or any(split.ndim != 1 or not len(split) for split in splits):
        return False
    lengths = [*(len(split) - 1 for split in splits[1:]), len(values)]
    return all(
        split[0] == 0 and split[-1] == length and bool((np.diff(split) >= 0).all())
        for split, length in zip(splits, lengths, strict=True)
    )


def _are_sparse(arrays: Leaves) -> bool:
    if len(arrays) != 3:
        return False
    indices, values, shape = arrays
    return indices.ndim == 2 and len(indices) == len(values) and shape.ndim == 1 and len(shape) > 0


def _rows_in(part: Part, leaves: Leaves) -> int | None:
    """How many rows a ragged or sparse tensor has; None for other parts."""
    if isinstance(part, RaggedArrays):
        return len(leaves[part.positions[1]]) - 1
    return int(leaves[part.positions[2]][0]) if isinstance(part, SparseArrays) else None


@dataclass(frozen=True, slots=True)
class _Segments:
    part: SegmentArrays
    size: int


def _segments(
    places: Sequence[int], leaves: Leaves, numbering: Mapping[int, IndexUse]
) -> _Segments | None:
    """How segment numbers tell samples of many rows apart; None where they do not.

    Samples are the segments where other arrays of the batch, such as the labels, have a row a
    segment.
    """
    if set(numbering.values()) != {"segments"} or len(numbering) != 1:
        return None
    ids_place = min(numbering)
    ids = leaves[ids_place]
    lengths = {len(leaves[place]) for place in places if leaves[place].ndim}
    others = lengths - {len(ids)}
    if ids.ndim != 1 or not len(ids) or len(others) != 1 or bool((np.diff(ids) < 0).any()):
        return None
    size = others.pop()
    if int(ids[0]) < 0 or int(ids[-1]) >= size:
        return None
    nodes = [place for place in places if leaves[place].ndim and len(leaves[place]) == len(ids)]
    positions = (ids_place, *(place for place in nodes if place != ids_place))
    return _Segments(SegmentArrays(positions), size)


def _is_odd(leaves: Leaves, numbering: Mapping[int, IndexUse], size: int | None) -> bool:
    """Whether an array that numbers rows has itself not a row a sample."""
    return any(not leaves[place].ndim or len(leaves[place]) != size for place in numbering)


# Which arrays of a batch number rows of others, as the ops of the step tell.

_SEGMENT_IDS = {
    **dict.fromkeys(
        words(
            "SegmentSum SegmentSumV2 SegmentMean SegmentMax SegmentMaxV2 SegmentMin SegmentMinV2 "
            "SegmentProd SegmentProdV2 UnsortedSegmentSum UnsortedSegmentMax UnsortedSegmentMin "
            "UnsortedSegmentProd"
        ),
        1,
    ),
    **dict.fromkeys(words("SparseSegmentSum SparseSegmentMean SparseSegmentSqrtN"), 2),
}
"""Position of the segment numbers, by op type."""
_ROW_NUMBERS = {**dict.fromkeys(words("Gather GatherV2"), 1), "ScatterNd": 0, "TensorScatterAdd": 1}
"""Position of the numbers of rows, by op type."""
_HANDED_ON = COPIES | words("Cast ExpandDims Slice Squeeze StridedSlice Transpose Unpack")


@dataclass(slots=True)
class _BatchTrace:
    """Which values of a step come from the batch."""

    trace: StepTrace
    serials: set[int] = field(default_factory=set)

    def is_from_batch(self, value: ValueId) -> bool:
        if value.serial >= 0:
            return value.serial in self.serials
        return self.trace.feed(value)[0] == "batch"

    def array(self, value: ValueId) -> int | None:
        """Place of the array of the batch that a value is (a part of); None if it is none."""
        while value.serial >= 0:
            fact = self.trace.facts.get(value.serial)
            if fact is None or fact.type not in _HANDED_ON or not fact.input_ids:
                return None
            value = fact.input_ids[0]
        kind, index = self.trace.feed(value)
        return index if kind == "batch" else None


def index_arrays(trace: StepTrace) -> dict[int, IndexUse]:
    """Return the arrays of the batch that number rows of others, by place.

    Numbers of the rows of a variable, as an embedding takes them, are none.
    """
    found: dict[int, IndexUse] = {}
    known = _BatchTrace(trace)
    for fact in trace.facts.values():
        if any(known.is_from_batch(value) for value in fact.input_ids):
            known.serials.add(fact.serial)
        for table, use in ((_SEGMENT_IDS, "segments"), (_ROW_NUMBERS, "rows")):
            place = table.get(fact.type)
            index = None if place is None else known.array(fact.input_ids[place])
            if index is None or not _numbers_rows(known, fact, index):
                continue
            if use == "rows" or index not in found:
                found[index] = "rows" if use == "rows" else "segments"
    return found


def _numbers_rows(known: _BatchTrace, fact: Fact, index: int) -> bool:
    """Whether an array of the batch numbers rows of what comes from the batch as well."""
    leaves = known.trace.runner.batch(known.trace.step).leaves
    if index >= len(leaves) or is_float(leaves[index]):
        return False
    array = as_array(leaves[index])
    if fact.type not in ("Gather", "GatherV2"):
        return bool(array.ndim)
    taken_from = fact.input_ids[0]
    stat = known.trace.stat(taken_from)
    if not known.is_from_batch(taken_from) or stat is None or not stat.shape or not array.ndim:
        return False
    return len(array) != stat.shape[0]
