"""One tensor as people look at it, for the tensor pane.

Statistics, a histogram, where it is not finite, a plane of it as a table; and the operands of one
element. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.influence import Execute, influence_of
from nanreplay.bisect.origin_facts import operands_of
from nanreplay.bisect.tensor_stats import (
    FLOATS,
    OPAQUE,
    Mask,
    TensorStat,
    dtype_name,
    first_indices,
    measure,
    nonfinite,
)
from nanreplay.capture.arrays import as_array
from nanreplay.explore.pictures import Picture, index_within, picture_of
from nanreplay.findings import OperandFacts
from nanreplay.replay.provenance import OpEvent, ValueId

Index = tuple[int, ...]
_BINS = 24
_WIDE = 1e4
"""A ratio of magnitudes above which a histogram counts powers of ten."""
_LISTED = 1000
_ROWS, _COLUMNS = 1000, 200
_MAP = (16, 48)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How the finite elements are spread."""

    scale: Literal["linear", "log"]
    """`log`: the bins are of the base-10 logarithm of absolute values; zeros are counted apart."""
    edges: tuple[float, ...]
    """One more than there are bins."""
    counts: tuple[int, ...]
    zeros: int
    """Elements that are 0; in the bins too when the scale is linear."""
    negative: int
    """Elements below 0."""


@dataclass(frozen=True)
class Plane:
    """A table out of a tensor: its last two axes at given indices of the others.

    Of a large one the part around an element.
    """

    cells: NDArray[Any]
    """Shape [rows, columns]; a vector is one column, a scalar one cell."""
    leading: Index
    """Indices of the other axes."""
    first: tuple[int, int]
    """Row and column, in the whole table, of the first cell."""
    size: tuple[int, int]
    """Rows and columns of the whole table."""
    rank: int
    """Axes of the tensor."""

    def index(self, row: int, column: int) -> Index:
        """Return the index, in the tensor, of a cell that is counted from the first one."""
        ends = (row + self.first[0], column + self.first[1])
        return (*self.leading, *ends[: min(self.rank, 2)])

    def cell(self, index: Index) -> tuple[int, int] | None:
        """Return row and column, from the first cell, of an element; None when it is elsewhere."""
        ends = (*index[len(self.leading) :], 0, 0)[:2]
        row, column = ends[0] - self.first[0], ends[1] - self.first[1]
        inside = 0 <= row < self.cells.shape[0] and 0 <= column < self.cells.shape[1]
        is_same_plane = tuple(index[: len(self.leading)]) == self.leading
        return (row, column) if inside and is_same_plane else None


@dataclass(frozen=True)
class TensorView:
    """One tensor of a step, in numbers, and a part of its values."""

    value: ValueId
    name: str
    stat: TensorStat
    mean: float | None
    """Mean of the finite elements."""
    deviation: float | None
    """Standard deviation of the finite elements."""
    histogram: Histogram | None
    """None when nothing is finite, or for what holds no numbers."""
    failing: tuple[Index, ...]
    """Indices of the non-finite elements to look at, at most 1000.

    Those that made the step fail when there are such.
    """
    failing_count: int
    """How many there are in all."""
    bad_share: NDArray[np.float64]
    """Map of the whole tensor: which share of each patch is not finite.

    Last axis across and the others downwards, at most 16 rows and 48 columns.
    """
    plane: Plane
    opaque: str | None = None
    """Why it has no values: it is a handle or a container; else None."""
    picture: Picture | None = None
    """Two of its axes as a picture; None for what has no two axes of numbers."""


@dataclass(frozen=True, slots=True)
class OperandElement:
    """One input of an op, at the element that an element of its output was computed from."""

    value: ValueId
    facts: OperandFacts
    index: Index | None
    """Where the element is; None when that is not known.

    Of many the largest in absolute value, NaN and infinities first.
    """
    used: int | None
    """How many elements the output element was computed from; None when that is not known."""


def view_tensor(
    value: ValueId, name: str, tensor: Any, *, failing: Mask | None = None, at: Index | None = None
) -> TensorView:
    """Return a tensor as people look at it.

    Args:
        value: Its identity.
        name: What it is called.
        tensor: A tensor or an array.
        failing: Elements that made the step fail; its non-finite elements unless given.
        at: The element that the table is to show; the first failing one, else the first, unless
            given.
    """
    kind = dtype_name(tensor)
    if kind in ("resource", "variant"):
        stat, none = TensorStat(kind, (), 0), np.zeros((0, 0))
        empty = Plane(none, (), (0, 0), (0, 0), 0)
        return TensorView(
            value,
            name,
            stat,
            None,
            None,
            None,
            (),
            0,
            none,
            empty,
            f"A {kind} holds no numbers of its own.",
        )
    array = as_array(tensor)
    bad = nonfinite(array) if kind in FLOATS else np.zeros(array.shape, bool)
    # Masks of -inf fill tensors with infinities that did no harm: those that failed come first.
    shown = bad if failing is None or failing.shape != bad.shape or not failing.any() else failing
    indices = tuple(first_indices(shown, _LISTED))
    finite = _finite(array)
    mean, deviation = (float(finite.mean()), float(finite.std())) if finite.size else (None, None)
    wanted = at
    if wanted is None:
        wanted = indices[0] if indices else ()
    return TensorView(
        value,
        name,
        _stat(array, kind),
        mean,
        deviation,
        _histogram(finite),
        indices,
        int(shown.sum()),
        _share(bad),
        plane(array, wanted),
        picture=picture_of(array, wanted),
    )


def plane(array: NDArray[Any], at: Index = ()) -> Plane:
    """Return the last two axes of an array as a table, at most 1000 rows and 200 columns of it.

    Args:
        array: Of any rank.
        at: The element to show; the first one where left out.
    """
    wanted = index_within(array.shape, at)
    leading, ends = wanted[: max(array.ndim - 2, 0)], wanted[max(array.ndim - 2, 0) :]
    if not array.size:
        return Plane(np.zeros((0, 0), array.dtype), leading, (0, 0), (0, 0), array.ndim)
    table = array[leading]
    table = table.reshape(-1, 1) if table.ndim < 2 else table
    end_row, end_column, *_ = (*ends, 0, 0)  # an array of one axis is a table of one column
    row = _start(end_row, table.shape[0], _ROWS)
    column = _start(end_column, table.shape[1], _COLUMNS)
    cells = np.array(table[row : row + _ROWS, column : column + _COLUMNS])
    return Plane(cells, leading, (row, column), (table.shape[0], table.shape[1]), array.ndim)


def operands_at(
    event: OpEvent,
    output: int,
    index: Index,
    names: Sequence[str],
    held: Sequence[Any],
    execute: Execute,
) -> Iterator[OperandElement]:
    """Return the inputs of an execution at what one element of an output was computed from.

    Args:
        event: The execution with its tensors.
        output: Which output.
        index: The element.
        names: A name for each input.
        held: What each input holds; None for one that is left out.
        execute: Runs the event's kernel on other inputs.
    """
    mask = np.zeros(np.shape(event.outputs[output]), bool)
    mask[index] = True
    kept = []
    for i, tensor in enumerate(held):
        if tensor is not None:
            kept.append(i)
    influence = influence_of(event, execute)
    for i, facts in zip(
        kept, operands_of(event, {output: mask}, names, held, execute), strict=True
    ):
        shape = tuple(np.shape(held[i]))
        # Without a rule that is exact, to point at an element would be a guess. A variable that is
        # shown in the place of its handle has a shape that the rule knows nothing of.
        if not influence.exact or shape != tuple(influence.in_shapes[i]):
            yield OperandElement(event.input_ids[i], facts, () if facts.shape == () else None, None)
            continue
        # Back through the op's own rule: of a matrix product, a row of the one operand, a column of
        # the other.
        used = as_array(influence.back(i, output, mask))
        yield OperandElement(
            event.input_ids[i], facts, _largest(as_array(held[i]), used), int(used.sum())
        )


def _largest(array: NDArray[Any], used: Mask) -> Index | None:
    """Where the largest of the marked elements is."""
    if not used.any() or array.dtype.kind in "OSU":
        return None
    with np.errstate(all="ignore"):
        sizes = np.nan_to_num(
            np.abs(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)),
            nan=np.inf,
        )
    position = np.unravel_index(int(np.argmax(np.where(used, sizes, -1))), array.shape)
    return tuple(map(int, position))


def _start(wanted: int, size: int, most: int) -> int:
    """Where a part of an axis begins that has the wanted element in its middle."""
    return max(0, min(wanted - most // 2, size - most))


def _stat(array: NDArray[Any], kind: str) -> TensorStat:
    if kind in OPAQUE:
        return TensorStat(kind, array.shape, array.size)
    if array.dtype.kind in "biu" and array.size:
        return TensorStat(
            kind, array.shape, array.size, 0, 0, float(array.min()), float(array.max())
        )
    return measure(array)


def _share(bad: Mask) -> NDArray[np.float64]:
    """How much of each patch is marked."""
    table = (
        bad.reshape(-1, bad.shape[-1] if bad.ndim > 1 else 1)
        if bad.size
        else np.zeros((0, 0), bool)
    )
    if not table.size:
        return np.zeros((0, 0))
    share = table.astype(np.float64)
    for axis, most in enumerate(_MAP):
        size = share.shape[axis]
        starts = np.unique(np.arange(min(size, most)) * size // min(size, most))
        widths = np.diff(np.append(starts, size))
        share = np.add.reduceat(share, starts, axis=axis) / (
            widths[:, None] if axis == 0 else widths
        )
    return share


def _finite(array: NDArray[Any]) -> NDArray[Any]:
    """The finite elements as float64; none of text."""
    if array.dtype.kind in "OSU":
        return np.zeros(0)
    flat = np.abs(array).reshape(-1) if array.dtype.kind == "c" else array.reshape(-1)
    wide = flat.astype(np.float64)
    with np.errstate(all="ignore"):
        return wide[np.isfinite(wide)]


def _histogram(finite: NDArray[Any]) -> Histogram | None:
    if not finite.size:
        return None
    zeros, negative = int((finite == 0).sum()), int((finite < 0).sum())
    sizes = np.abs(finite[finite != 0])
    # On a linear scale, values of many magnitudes would all be in the first bar.
    if sizes.size and sizes.max() / sizes.min() > _WIDE:
        counts, edges = np.histogram(np.log10(sizes), bins=_BINS)
        return Histogram("log", tuple(edges.tolist()), tuple(counts.tolist()), zeros, negative)
    low, high = float(finite.min()), float(finite.max())
    span = low, high
    if low == high:
        # Beside a number above 1e15 half a unit vanishes.
        span = (low - 0.5, low + 0.5) if abs(low) < 1e15 else (low * 0.9, low * 1.1)
    counts, edges = np.histogram(finite, bins=_BINS, range=(min(span), max(span)))
    return Histogram("linear", tuple(edges.tolist()), tuple(counts.tolist()), zeros, negative)
