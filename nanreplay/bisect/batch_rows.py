"""Which elements of a batch belong to which of its samples, and batches of other samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from nanreplay.bisect.index_arrays import IndexUse
from nanreplay.bisect.sample_parts import (
    Choice,
    Leaves,
    Numbers,
    Part,
    RaggedArrays,
    RowArray,
    SegmentArrays,
    SparseArrays,
    is_alike,
)
from nanreplay.bisect.tensor_stats import Mask
from nanreplay.records import batch_name

Rows: TypeAlias = frozenset[int]


def own_leaves(paths: Sequence[str], prefix: str) -> list[int]:
    """Return which arrays of a batch belong to a replica; all when the prefix is empty.

    Args:
        paths: Paths of the arrays.
        prefix: How those of the replica begin (see `Origin.batch_prefix`).
    """
    return [position for position, path in enumerate(paths) if f"{path}/".startswith(prefix)]


def rows_in_whole(
    rows: Sequence[int], replica: int, paths: Sequence[str], leaves: Leaves
) -> tuple[int, ...] | None:
    """Return the rows of a whole batch that rows of a replica's part are.

    None where the size of a part before it cannot be told.

    Args:
        rows: Rows of the part.
        replica: Whose part it is; the parts follow each other in the batch.
        paths: Paths of the arrays of all parts.
        leaves: The arrays.
    """
    before = 0
    for earlier in range(replica):
        own = own_leaves(paths, f"replica_{earlier}/")
        size = batch_size([leaves[position] for position in own])
        if size is None:
            return None
        before += size
    return tuple(before + row for row in rows)


def batch_size(leaves: Leaves) -> int | None:
    """Return the size of the batch axis of arrays that have a row a sample.

    That is the leading dimension that most arrays share, in doubt that of the first array; None
    when no array has an axis.
    """
    sizes = [leaf.shape[0] for leaf in leaves if leaf.ndim]
    return max(sizes, key=lambda size: (sizes.count(size), -sizes.index(size)), default=None)


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
        rest = _places_outside(self.parts, len(other))
        return all(part.fits(self.leaves, other) for part in self.parts) and all(
            is_alike(self.leaves[place], other[place]) for place in rest
        )

    def row_numbers(self, length: int) -> Iterator[Numbers]:
        """Yield the sample of each place along an axis of a length, for each way to read it."""
        if not self.size:
            return
        if length == self.size:
            yield np.arange(length)
        for part in self.parts:
            for rows in part.row_numbers(self.leaves):
                if len(rows) == length:
                    yield rows

    def rows_of(self, position: int, mask: Mask) -> Rows | None:
        """Return the samples that marked elements of an array belong to; None if of no sample."""
        marked = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
        for part in self.parts:
            if position in part.positions:
                numberings = [*part.row_numbers(self.leaves)] or [np.arange(self.size or 0)]
                fitting = []
                for rows in numberings:
                    if len(rows) == len(mask):
                        fitting.append(rows)
                # of a ragged tensor, the last are the values
                return frozenset(int(fitting[-1][place]) for place in marked) if fitting else None
        return None


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
    plain = _places_outside(composites, len(leaves))
    numbering = {place: use for place, use in (indices or {}).items() if place in plain}
    named = [place for place in plain if place < len(paths)]
    size = batch_size([leaves[place] for place in named or plain])
    if composites:
        size = _rows_in(composites[0], leaves)
    segments = None
    if numbering:
        segments = _segments(named, leaves, numbering)
        # Rows that name other rows (edges of a graph, pairs) cannot be replaced one by one: what is
        # left would name rows that are gone.
        if segments is None and _is_odd(leaves, numbering, size):
            shown = paths[min(numbering)]
            reason = (
                f"`{batch_name(shown)}` numbers rows of other arrays, so that rows are no samples."
            )
            return BatchRows(leaves, None, (), reason)
    if segments is not None:
        size = segments.size
        composites.append(segments.part)
        plain = [place for place in plain if place not in segments.part.positions]
    if size is None:
        reason = "No array with rows is handed to the step: its data is drawn or read within it."
        return BatchRows(leaves, None, (), reason)
    parts = [part for part in composites if _rows_in(part, leaves) in (size, None)]
    for place in plain:
        if _has_rows(leaves[place], size):
            parts.append(RowArray((place,)))
    return BatchRows(leaves, size, parts)


def _places_outside(parts: Sequence[Part], count: int) -> list[int]:
    """The arrays of a batch that are in no part of several."""
    inside: set[int] = set()
    for part in parts:
        inside.update(part.positions)
    return [place for place in range(count) if place not in inside]


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
    # The name says what it was, but a file may come from anybody: only splits that fit are cut by.
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
    lengths = set()
    for place in places:
        if leaves[place].ndim:
            lengths.add(len(leaves[place]))
    others = lengths - {len(ids)}
    if ids.ndim != 1 or not len(ids) or len(others) != 1 or bool((np.diff(ids) < 0).any()):
        return None
    size = others.pop()
    if int(ids[0]) < 0 or int(ids[-1]) >= size:
        return None
    nodes = []
    for place in places:
        if leaves[place].ndim and len(leaves[place]) == len(ids):
            nodes.append(place)
    positions = (ids_place, *(place for place in nodes if place != ids_place))
    return _Segments(SegmentArrays(positions), size)


def _is_odd(leaves: Leaves, numbering: Mapping[int, IndexUse], size: int | None) -> bool:
    """Whether an array that numbers rows makes others depend on rows that are not theirs.

    Segment numbers with a row a sample only sort the samples, as labels do.
    """
    return any(
        use == "rows" or not leaves[place].ndim or len(leaves[place]) != size
        for place, use in numbering.items()
    )
