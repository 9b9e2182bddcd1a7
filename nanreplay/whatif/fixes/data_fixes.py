"""Fixes of the data: non-finite values replaced, rows left out, values cut to a usual range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nanreplay.bisect.batch_rows import BatchRows, own_leaves, read_rows
from nanreplay.bisect.index_arrays import index_arrays
from nanreplay.whatif.edits import BadValueError, CannotTryError, Edit, Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fixes.update_fixes import positive_number

_MOST_OTHERS = 64
"""How many other batches tell what is usual."""


def clean_data(failure: Failure, value: str | None) -> Fix:
    """Replace what is not finite by 0, or leave the rows out that the origin needs."""
    is_in_batch = failure.origin is not None and failure.origin.op_type is None
    way = value or ("nan_to_num" if is_in_batch else "drop_rows")
    if way == "nan_to_num":
        return _nan_to_num(failure)
    if way == "drop_rows":
        return _drop_rows(failure)
    raise BadValueError(f"Expected nan_to_num or drop_rows. Received: {way}")


def _nan_to_num(failure: Failure) -> Fix:
    leaves = [leaf for _, leaf in _named_leaves(failure)]
    if all(np.isfinite(leaf).all() for leaf in leaves if _is_float(leaf)):
        raise CannotTryError(f"The batch of step {failure.step} is finite.")

    def cleaned(leaf: Any) -> Any:
        return np.nan_to_num(leaf, posinf=0.0, neginf=0.0) if _is_float(leaf) else leaf

    def edit(step: int, leaves: Sequence[Any]) -> Sequence[Any]:
        return [cleaned(np.asarray(leaf)) for leaf in leaves]

    code = "x = np.nan_to_num(x, posinf=0.0, neginf=0.0)"
    return Fix("clean_data", {"how": "nan_to_num"}, Edit(batches=(edit,)), code)


def _drop_rows(failure: Failure) -> Fix:
    origin = failure.origin
    if origin is None or not origin.rows:
        raise CannotTryError("No rows of the batch were proved to be the ones that do it.")
    batch = failure.window.replay.batch(failure.step)
    own_places = own_leaves(batch.paths, origin.batch_prefix)
    scene = failure.bisection.scene
    indices = {} if scene is None else index_arrays(scene.trace)

    def samples(leaves: Sequence[Any]) -> BatchRows:
        used = {own_places.index(i): use for i, use in indices.items() if i in own_places}
        paths = [batch.paths[place] for place in own_places]
        return read_rows(paths, [np.asarray(leaves[place]) for place in own_places], used)

    size = samples(batch.leaves).size
    if size is None or len(origin.rows) >= size:
        raise CannotTryError("Every row of the batch would have to be left out.")
    rows, note = np.setdiff1d(np.arange(size), origin.rows), None
    if not _takes_any_batch_size(failure):
        rows = np.array([row if row in rows else rows[row % len(rows)] for row in range(size)])
        note = (
            "The compiled step takes batches of one size: "
            "other rows of the batch stand in their places."
        )

    def without_rows(step: int, leaves: Sequence[Any]) -> Sequence[Any]:
        if step != failure.step:
            return leaves
        changed = list(leaves)
        for place, array in zip(own_places, samples(leaves).keep(rows.tolist()), strict=True):
            changed[place] = array
        return changed

    edit = Edit(batches=(without_rows,))
    dropped = ", ".join(map(str, origin.rows))
    code = (
        f"batch = [np.delete(part, [{dropped}], axis=0) for part in batch]  "
        f"# of step {failure.step}"
    )
    return Fix("clean_data", {"how": "drop_rows", "rows": dropped}, edit, code, note=note)


def _takes_any_batch_size(failure: Failure) -> bool:
    """Whether no input of the program has a fixed first axis."""
    shapes = [spec.shape for spec in failure.window.replay.signature(failure.step).inputs]
    return all(not shape or shape[0] is None for shape in shapes)


def clip_data(failure: Failure, value: str | None) -> Fix:
    """Cut the batch's float arrays to the range of the other batches, or to -value and value."""
    limit = None if value is None else positive_number(value, 1.0)
    leaves = _named_leaves(failure)
    if limit is None:
        bounds = [_usual_range(failure, place) for place in range(len(leaves))]
    else:
        bounds = [(-limit, limit)] * len(leaves)
    clipped = []
    for (path, leaf), (low, high) in zip(leaves, bounds, strict=True):
        if _is_float(leaf) and bool(((leaf < low) | (leaf > high)).any()):
            clipped.append((path, low, high))
    if not clipped:
        raise CannotTryError(
            f"The batch of step {failure.step} lies within the range of the others."
        )

    def edit(step: int, leaves: Sequence[Any]) -> Sequence[Any]:
        arrays = zip(map(np.asarray, leaves), bounds, strict=True)
        return [
            np.clip(leaf, low, high).astype(leaf.dtype) if _is_float(leaf) else leaf
            for leaf, (low, high) in arrays
        ]

    lowest = float(min(np.min(low) for _, low, _ in clipped))
    highest = float(max(np.max(high) for _, _, high in clipped))
    is_by_column = limit is None and any(np.ndim(low) for _, low, _ in clipped)
    where = f"batch[{clipped[0][0]}]{' (column by column)' if is_by_column else ''}"
    code = f"x = np.clip(x, {lowest:.4g}, {highest:.4g})  # {where}"
    return Fix("clip_data", {"low": lowest, "high": highest}, Edit(batches=(edit,)), code)


def _usual_range(failure: Failure, place: int) -> tuple[Any, Any]:
    """Lowest and highest value of an array in the other batches, by column when it is a table."""
    replay = failure.window.replay
    own = np.asarray(replay.batch(failure.step).leaves[place])
    other_steps = [step for step in replay.capture.steps if step != failure.step]
    arrays = []
    for step in other_steps[-_MOST_OTHERS:]:
        leaves = replay.batch(step).leaves
        array = np.asarray(leaves[place]) if place < len(leaves) else None
        if array is None or not array.ndim or not array.size:
            continue
        if array.shape[1:] == own.shape[1:]:
            arrays.append(array)
    if not arrays or not _is_float(own):
        return -np.inf, np.inf
    stacked = np.concatenate(arrays)
    stacked = np.where(np.isfinite(stacked), stacked, np.nan)
    axis = 0 if stacked.ndim == 2 else None
    with np.errstate(all="ignore"):
        low, high = np.nanmin(stacked, axis=axis), np.nanmax(stacked, axis=axis)
    return np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=0.0)


def _named_leaves(failure: Failure) -> list[tuple[str, Any]]:
    batch = failure.window.replay.batch(failure.step)
    return [(path, np.asarray(leaf)) for path, leaf in zip(batch.paths, batch.leaves, strict=True)]


def _is_float(leaf: Any) -> bool:
    return bool(leaf.dtype.kind == "f")
