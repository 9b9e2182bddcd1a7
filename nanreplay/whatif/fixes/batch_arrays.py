"""The arrays of a batch as fixes of the data see them: names in code, labels, usual ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanreplay.capture.arrays import as_array
from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.records import EACH_ITERATION
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.line_gradients import maker_of

_MOST_OTHERS = 64
"""How many other batches tell what is usual."""
_MOST_COLUMNS = 4
"""How many columns of a table get bounds of their own; beyond, the whole array gets them."""
_MOST_CLASSES = 1e6
"""No classification has as many classes."""
_HANDING_ON = ("Identity", "Cast", "Reshape", "ExpandDims", "Squeeze", "StopGradient")
_SHAPES = ("Shape", "ShapeN", "Rank", "Size")
"""Ops that ask for the shape of an array alone."""
_PLUMBING = ("NoOp", "Assert")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of an array of the batch, or of one column of a table."""

    path: str
    """Where the array sits in the batch, without the replica."""
    column: int | None
    low: float
    high: float

    def code(self, failure: Failure) -> str:
        """The line of code that clips to them."""
        array = in_code(failure, self.path)
        if self.column is not None:
            array += f"[:, {self.column}]"
        return f"{array} = np.clip({array}, {self.low:.6g}, {self.high:.6g})"

    def clipped(self, leaf: Any) -> Any:
        """Return an array within the bounds, in its own type."""
        if self.column is None:
            return np.clip(leaf, self.low, self.high).astype(leaf.dtype)
        new = leaf.copy()
        column = np.clip(leaf[:, self.column], self.low, self.high)
        new[:, self.column] = column.astype(leaf.dtype)
        return new


def in_code(failure: Failure, path: str) -> str:
    """Return how code reaches an array of the batch: `batch[0]["ids"]`.

    What a loop fetched is an array of its batch in each iteration. In a loop of Python that is
    recorded as it is, the batch has no name, and its arrays have their own: `for x, y in data`.
    """
    name, rest = "batch", path.removeprefix(EACH_ITERATION)
    if failure.names_data(path):
        name, _, rest = rest.partition("/")
    keys = []
    for key in rest.split("/"):
        if key:
            keys.append(key if key.isdigit() else f'"{key}"')
    return name + "".join(f"[{key}]" for key in keys)


def own_path(failure: Failure, path: str) -> str:
    """Return an array's path without the replica that got it."""
    first, _, rest = path.partition("/")
    is_replica = first.startswith("replica_") and first[len("replica_") :].isdigit()
    return rest if is_replica and _is_replicated(failure) else path


def _is_replicated(failure: Failure) -> bool:
    return bool(failure.window.replay.signature(failure.step).loss_of) or all(
        path.startswith("replica_") for path in failure.window.replay.batch(failure.step).paths
    )


def is_float(leaf: Any) -> bool:
    """Whether an array holds floats that can be NaN, of NumPy's own types or bfloat16."""
    array = as_array(leaf)
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def label_places(failure: Failure) -> set[int]:
    """Return which arrays of the failing batch are labels (or weights of samples).

    Only the loss takes them, no layer does. Where no array goes through a layer, none is told.
    """
    signature = failure.window.replay.signature(failure.step)
    takers = {}
    for spec in signature.inputs:
        takers[spec.leaf] = set(_takers(failure.editor, maker_of("", spec.tensor)))
    labels = {
        leaf for leaf, wheres in takers.items() if wheres and wheres <= {"loss", "metric"}
    } & {leaf for leaf, wheres in takers.items() if "loss" in wheres}
    return labels if len(labels) < len(takers) else set()


def _takers(editor: ProgramEditor, placeholder: OpKey) -> Iterator[str]:
    """Parts of the step (`layer`, `loss`, ...) that compute with an input."""
    pending, seen = [placeholder], {placeholder}
    while pending:
        key = pending.pop()
        for output in editor.outputs(key):
            for user, _ in editor.consumers("", output):
                info = editor.infos.get(user)
                if user in seen or info is None or info.type in (*_SHAPES, *_PLUMBING):
                    continue
                seen.add(user)
                if info.type in _HANDING_ON:
                    pending.append(user)
                else:
                    yield info.where


def usual_bounds(
    failure: Failure, places: Sequence[int], targets: Sequence[int]
) -> Iterator[Bounds]:
    """Yield bounds, told by the other batches, for arrays of which one value lies outside.

    Where values lie outside by more than the width of the usual range, those arrays and columns
    alone are told: others go a little beyond what was seen, as new data does.

    Args:
        failure: The capture.
        places: Which arrays are looked at.
        targets: Of these, only values that lie far outside count, and no classes do.
    """
    found: list[tuple[Bounds, bool]] = []
    batch = failure.window.replay.batch(failure.data_step)
    for place in (*places, *targets):
        leaf = as_array(batch.leaves[place]).astype(np.float64)
        others = _others(failure, place, leaf.shape[1:])
        if others is None or (place in targets and _are_classes(leaf)):
            continue
        bounds_of_leaf = _bounds_of(own_path(failure, batch.paths[place]), leaf, others)
        for one in bounds_of_leaf:
            if one[1] or place not in targets:
                found.append(one)
    is_far_known = any(is_far for _, is_far in found)
    merged: dict[tuple[str, int | None], Bounds] = {}
    for bounds, is_far in found:
        if is_far or not is_far_known:  # of two replicas, the wider bounds
            same = merged.get((bounds.path, bounds.column), bounds)
            low, high = min(same.low, bounds.low), max(same.high, bounds.high)
            merged[bounds.path, bounds.column] = Bounds(bounds.path, bounds.column, low, high)
    yield from merged.values()


def _are_classes(leaf: Any) -> bool:
    """Whether floats are numbers of classes: whole and not large."""
    return bool(np.isfinite(leaf).all() and (leaf == np.floor(leaf)).all()) and bool(
        (np.abs(leaf) < _MOST_CLASSES).all()
    )


def _bounds_of(path: str, leaf: Any, others: Any) -> Iterator[tuple[Bounds, bool]]:
    """Bounds of an array, and whether a value lies far out of them."""
    if leaf.ndim == 2:
        columns = list(_columns_outside(path, leaf, others))
        if len(columns) <= _MOST_COLUMNS:
            yield from columns
            return
    usual = _range(others)
    if usual is None:
        return
    low, high = usual
    if _is_outside(leaf, low, high):
        yield Bounds(path, None, low, high), _is_outside(leaf, 2 * low - high, 2 * high - low)


def _columns_outside(path: str, leaf: Any, others: Any) -> Iterator[tuple[Bounds, bool]]:
    for column in range(leaf.shape[1]):
        values = leaf[:, column]
        usual = _range(others[:, column])
        if usual is None:
            continue
        low, high = usual
        if _is_outside(values, low, high):
            is_far = _is_outside(values, 2 * low - high, 2 * high - low)
            yield Bounds(path, column, low, high), is_far


def _range(values: Any) -> tuple[float, float] | None:
    """Lowest and highest finite value, as they are written in code; None where all are NaN, say."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    return float(f"{finite.min():.6g}"), float(f"{finite.max():.6g}")


def _is_outside(values: Any, low: float, high: float) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(((values < low) | (values > high)).any())


def _others(failure: Failure, place: int, row_shape: tuple[int, ...]) -> Any:
    """The same array of other steps, in float64, all rows one below the other; None without one."""
    replay = failure.window.replay
    other_steps = []
    for step in replay.capture.steps:
        if step != failure.data_step:
            other_steps.append(step)
    arrays = []
    for step in other_steps[-_MOST_OTHERS:]:
        leaves = replay.batch(step).leaves
        array = as_array(leaves[place]) if place < len(leaves) else None
        if array is None or not array.ndim or not array.size or not is_float(array):
            continue
        if array.shape[1:] == row_shape:
            arrays.append(array.astype(np.float64))
    return np.concatenate(arrays) if arrays else None
