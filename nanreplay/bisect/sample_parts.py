"""Arrays of a batch that hold its samples together, and how they are cut and joined by sample.

A sample is a row of most arrays. A ragged or sparse tensor comes as several arrays, of which none
has a row a sample; nor have the nodes of several graphs in one batch, which an array of segment
numbers tells apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Leaves: TypeAlias = Sequence[Any]
Numbers: TypeAlias = NDArray[np.int64]


class Choice(NamedTuple):
    """Which samples a batch is put together of, in order."""

    batches: Numbers
    """By sample: which batch it is taken from, a number that counts the batches given."""
    rows: Numbers
    """By sample: which row of that batch it is."""


class Part(Protocol):
    """Arrays of a batch that hold the samples together."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Where its arrays are in the batch."""
        ...

    def pick(self, batches: Sequence[Leaves], choice: Choice) -> list[Any]:
        """Put its arrays together of samples of some batches."""
        ...

    def row_numbers(self, leaves: Leaves) -> Iterator[Numbers]:
        """Yield the sample of each place along an axis that its samples stretch over."""
        ...

    def fits(self, leaves: Leaves, other: Leaves) -> bool:
        """Whether another batch can give samples to this one."""
        ...


def _at(positions: Sequence[int], leaves: Leaves) -> list[Any]:
    """The arrays of a batch at some places."""
    return [leaves[position] for position in positions]


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
        return is_alike(leaves[self.positions[0]], other[self.positions[0]])


@dataclass(frozen=True, slots=True)
class RaggedArrays:
    """A ragged tensor: its values, then the splits of its rows, the outermost first."""

    positions: tuple[int, ...]

    def pick(self, batches: Sequence[Leaves], choice: Choice) -> list[Any]:
        """Cut the rows out and join them."""
        levels: list[list[Any]] = [[] for _ in self.positions]
        for number, row in zip(choice.batches, choice.rows, strict=True):
            values, *splits = _at(self.positions, batches[number])
            # From the outermost splits inwards: the splits of one level say which rows of the next
            # are the sample's, down to its values.
            first, last = int(row), int(row) + 1
            for level, split in zip(levels[1:], splits, strict=True):
                level.append(np.diff(split[first : last + 1]))
                first, last = int(split[first]), int(split[last])
            levels[0].append(values[first:last])
        own = _at(self.positions, batches[0])
        joined = [np.concatenate([own[0][:0], *levels[0]])]
        for array, lengths in zip(own[1:], levels[1:], strict=True):
            # Lengths can be joined as they are; splits count from the begin of the batch, so they
            # are made anew.
            ends = np.cumsum(np.concatenate([[0], *lengths]))
            joined.append(ends.astype(array.dtype))
        return joined

    def row_numbers(self, leaves: Leaves) -> Iterator[Numbers]:
        """Yield the row of each inner row, and of each value."""
        splits = _at(self.positions[1:], leaves)
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
            indices, values, _ = _at(self.positions, batches[number])
            is_in_row = indices[:, 0] == row
            picked = indices[is_in_row]
            picked[:, 0] = place
            all_indices.append(picked)
            all_values.append(values[is_in_row])
        own_indices, own_values, own_shape = _at(self.positions, batches[0])
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
            ids, *others = _at(self.positions, batches[number])
            is_in_sample = ids == row
            picked[0].append(np.full(int(is_in_sample.sum()), place, ids.dtype))
            for into, array in zip(picked[1:], others, strict=True):
                into.append(array[is_in_sample])
        own = _at(self.positions, batches[0])
        pairs = zip(own, picked, strict=True)
        # An empty part of the own array first: the dtype and rank stay where no sample has rows.
        return [np.concatenate([array[:0], *pieces]) for array, pieces in pairs]

    def row_numbers(self, leaves: Leaves) -> Iterator[Numbers]:
        """Yield the sample of each row."""
        yield leaves[self.positions[0]]

    def fits(self, leaves: Leaves, other: Leaves) -> bool:
        """Whether the rows of the other have the same shapes and dtypes."""
        return all(_rows_are_alike(leaves[place], other[place]) for place in self.positions)


def is_alike(one: Any, other: Any) -> bool:
    """Whether two arrays have the same shape and dtype."""
    return bool(one.shape == other.shape and one.dtype == other.dtype)


def _rows_are_alike(one: Any, other: Any) -> bool:
    return bool(other.ndim and one.shape[1:] == other.shape[1:] and one.dtype == other.dtype)
