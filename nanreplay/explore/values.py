"""One tensor as people look at it: statistics, histogram, where it is not finite, a plane of it as a table. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.arrays import FLOATS, OPAQUE, Mask, TensorStat, dtype_name, measure, nonfinite
from nanreplay.bisect.facts import operands_of
from nanreplay.bisect.rules import Execute, influence_of
from nanreplay.findings import OperandFacts
from nanreplay.replay.events import OpEvent, ValueId

Index = tuple[int, ...]
_BINS = 24
_WIDE = 1e4
"""A ratio of magnitudes above which a histogram counts powers of ten."""
_LISTED = 1000


@dataclass(frozen=True, slots=True)
class Histogram:
    """How the finite elements are spread."""

    scale: Literal["linear", "log"]
    """`log`: the bins are of the base-10 logarithm of the absolute values; zeros are counted apart."""
    edges: tuple[float, ...]
    """One more than there are bins."""
    counts: tuple[int, ...]
    zeros: int
    """Elements that are 0; in the bins too when the scale is linear."""
    negative: int
    """Elements below 0."""


@dataclass(frozen=True)
class TensorView:
    """One tensor of a step, with its values."""

    value: ValueId
    name: str
    array: NDArray[Any]
    """All elements; text of a string tensor, empty for a handle."""
    stat: TensorStat
    mean: float | None
    """Mean of the finite elements."""
    deviation: float | None
    """Standard deviation of the finite elements."""
    histogram: Histogram | None
    """None when nothing is finite, or for what holds no numbers."""
    failing: tuple[Index, ...]
    """Indices of the non-finite elements to look at: those that made the step fail when there are such; at most 1000."""
    opaque: str | None = None
    """Why it has no values: it is a handle or a container; else None."""


@dataclass(frozen=True, slots=True)
class Operand:
    """One input of an op, at the element that an element of its output was computed from."""

    value: ValueId
    facts: OperandFacts
    index: Index | None
    """Where the element is; None when the output element was computed from many, or when that is not known."""
    used: int | None
    """How many elements the output element was computed from; None when that is not known."""


@dataclass(frozen=True, slots=True)
class Plane:
    """A table out of a tensor: its last two axes at given indices of the others."""

    cells: NDArray[Any]
    """Shape [rows, columns]; a vector is one column, a scalar one cell."""
    leading: Index
    """Indices of the other axes."""

    def index(self, row: int, column: int, rank: int) -> Index:
        """Return the index, in the whole tensor, of a cell."""
        return (*self.leading, row, column)[: len(self.leading) + min(rank, 2)] if rank else ()


def view_tensor(value: ValueId, name: str, tensor: Any, failing: Mask | None = None) -> TensorView:
    """Return a tensor as people look at it.

    Args:
        value: Its identity.
        name: What it is called.
        tensor: A tensor or an array.
        failing: Elements that made the step fail; its non-finite elements unless given.
    """
    kind = dtype_name(tensor)
    if kind in ("resource", "variant"):
        stat = TensorStat(kind, (), 0)
        return TensorView(value, name, np.zeros(0), stat, None, None, None, (), f"A {kind} holds no numbers of its own.")
    array = np.asarray(tensor)
    stat = measure(array) if kind not in OPAQUE else TensorStat(kind, array.shape, array.size)
    bad = () if kind not in FLOATS else _indices(nonfinite(array) if failing is None or not failing.any() else failing)
    finite = _finite(array)
    mean, deviation = (float(finite.mean()), float(finite.std())) if finite.size else (None, None)
    if array.dtype.kind in "biu" and array.size:
        stat = TensorStat(stat.dtype, stat.shape, stat.size, 0, 0, float(array.min()), float(array.max()))
    return TensorView(value, name, array, stat, mean, deviation, _histogram(finite), tuple(bad))


def plane(array: NDArray[Any], leading: Sequence[int] = ()) -> Plane:
    """Return the last two axes of an array as a table.

    Args:
        array: Of any rank.
        leading: Indices of the axes before the last two; 0 where left out.
    """
    extra = max(array.ndim - 2, 0)
    chosen = tuple(min(max(int(index), 0), size - 1) for index, size in zip((*leading, *[0] * extra), array.shape[:extra], strict=False))
    if not array.size:
        return Plane(np.zeros((0, 0), array.dtype), chosen)
    part = array[chosen]
    return Plane(part.reshape(-1, 1) if part.ndim < 2 else part, chosen)


def operands_at(
    event: OpEvent, output: int, index: Index, names: Sequence[str], held: Sequence[Any], execute: Execute
) -> Iterator[Operand]:
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
    kept = [i for i, tensor in enumerate(held) if tensor is not None]
    influence = influence_of(event, execute)
    for i, facts in zip(kept, operands_of(event, {output: mask}, names, held, execute), strict=True):
        shape = tuple(np.shape(held[i]))
        if not influence.exact or shape != tuple(influence.in_shapes[i]):
            yield Operand(event.input_ids[i], facts, () if facts.shape == () else None, None)
            continue
        used = np.argwhere(influence.back(i, output, mask))
        single = tuple(int(axis) for axis in used[0]) if len(used) == 1 else None
        yield Operand(event.input_ids[i], facts, single, len(used))


def failing_of(masks: Mapping[int, Mask], output: int) -> Mask | None:
    """Return which elements of an output failed."""
    mask = masks.get(output)
    return mask if mask is not None and mask.any() else None


def _indices(mask: Mask) -> Iterable[Index]:
    found = np.argwhere(mask)[:_LISTED]
    return (tuple(int(axis) for axis in index) for index in found)


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
    if sizes.size and sizes.max() / sizes.min() > _WIDE:
        counts, edges = np.histogram(np.log10(sizes), bins=_BINS)
        return Histogram("log", tuple(edges.tolist()), tuple(counts.tolist()), zeros, negative)
    low, high = float(finite.min()), float(finite.max())
    span = (low, high) if high > low else (low - 0.5, low + 0.5) if abs(low) < 1e15 else (low * 0.9, low * 1.1)
    counts, edges = np.histogram(finite, bins=_BINS, range=(min(span), max(span)))
    return Histogram("linear", tuple(edges.tolist()), tuple(counts.tolist()), zeros, negative)
