"""Fixes of the data: NaN and infinities replaced, rows left out, values cut to the range of the other batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nanreplay.bisect.row_proof import batch_size, own_leaves
from nanreplay.whatif.edits import BadValueError, BatchEdit, CannotTryError, Edit, Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fixes.update_fixes import number

_OTHERS = 64
"""How many other batches tell what is usual."""


def clean_data(failure: Failure, value: str | None) -> Fix:
    """Replace what is not finite by 0, or leave the rows out that the origin needs."""
    how = value or (
        "nan_to_num"
        if failure.origin is not None and failure.origin.op_type is None
        else "drop_rows"
    )
    if how == "nan_to_num":
        return _nan_to_num(failure)
    if how == "drop_rows":
        return _drop_rows(failure)
    raise BadValueError(f"Expected nan_to_num or drop_rows. Received: {how}")


def _nan_to_num(failure: Failure) -> Fix:
    bad = [
        path for path, leaf in _leaves(failure) if _is_float(leaf) and not np.isfinite(leaf).all()
    ]
    if not bad:
        raise CannotTryError(f"The batch of step {failure.step} is finite.")

    def change(step: int, leaves: Sequence[Any]) -> Sequence[Any]:
        return [
            np.nan_to_num(leaf, posinf=0.0, neginf=0.0) if _is_float(leaf) else leaf
            for leaf in map(np.asarray, leaves)
        ]

    code = "x = np.nan_to_num(x, posinf=0.0, neginf=0.0)"
    return Fix("clean_data", {"how": "nan_to_num"}, Edit(batches=(change,)), code)


def _drop_rows(failure: Failure) -> Fix:
    rows = failure.origin.rows if failure.origin is not None else None
    if not rows:
        raise CannotTryError("No rows of the batch were proved to be the ones that do it.")
    assert failure.origin is not None
    batch = failure.window.replay.batch(failure.step)
    own = own_leaves(batch.paths, failure.origin.batch_prefix)
    size = batch_size([np.asarray(batch.leaves[place]) for place in own])
    if size is None or len(rows) >= size:
        raise CannotTryError("Every row of the batch would have to be left out.")
    kept = np.setdiff1d(np.arange(size), rows)
    signature = failure.window.replay.signature(failure.step)
    can_shrink = all(
        spec.shape is None or not spec.shape or spec.shape[0] is None for spec in signature.inputs
    )
    places = (
        kept
        if can_shrink
        else np.array([row if row in kept else kept[row % len(kept)] for row in range(size)])
    )
    change = _only_at(
        failure.step,
        lambda leaf: leaf[places] if leaf.ndim and leaf.shape[0] == size else leaf,
        own,
    )
    said = ", ".join(map(str, rows))
    note = (
        None
        if can_shrink
        else "The compiled step takes batches of one size: other rows of the batch stand in their places."
    )
    code = (
        f"batch = [np.delete(part, [{said}], axis=0) for part in batch]  # of step {failure.step}"
    )
    return Fix(
        "clean_data", {"how": "drop_rows", "rows": said}, Edit(batches=(change,)), code, note=note
    )


def _only_at(step: int, change: Callable[[Any], Any], places: Sequence[int]) -> BatchEdit:
    """Change the arrays at some places of one step's batch."""

    def edit(at: int, leaves: Sequence[Any]) -> Sequence[Any]:
        return (
            [
                change(np.asarray(leaf)) if place in places else leaf
                for place, leaf in enumerate(leaves)
            ]
            if at == step
            else leaves
        )

    return edit


def clip_data(failure: Failure, value: str | None) -> Fix:
    """Cut the batch's float arrays to the range of the other batches of the window, or to the range that is given."""
    limit = None if value is None else number(value, 1.0)
    bounds = [
        (-limit, limit) if limit is not None else _usual(failure, index)
        for index in range(len(_leaves(failure)))
    ]
    changed = [
        (path, low, high)
        for (path, leaf), (low, high) in zip(_leaves(failure), bounds, strict=True)
        if _is_float(leaf) and bool(((leaf < low) | (leaf > high)).any())
    ]
    if not changed:
        raise CannotTryError(
            f"The batch of step {failure.step} lies within the range of the others."
        )

    def change(step: int, leaves: Sequence[Any]) -> Sequence[Any]:
        pairs = zip(map(np.asarray, leaves), bounds, strict=True)
        return [
            np.clip(leaf, low, high).astype(leaf.dtype) if _is_float(leaf) else leaf
            for leaf, (low, high) in pairs
        ]

    lowest = float(min(np.min(low) for _, low, _ in changed))
    highest = float(max(np.max(high) for *_, high in changed))
    where = (
        " (column by column)"
        if limit is None and any(np.ndim(low) for _, low, _ in changed)
        else ""
    )
    code = f"x = np.clip(x, {lowest:.4g}, {highest:.4g})  # batch[{changed[0][0]}]{where}"
    return Fix("clip_data", {"low": lowest, "high": highest}, Edit(batches=(change,)), code)


def _usual(failure: Failure, index: int) -> tuple[Any, Any]:
    """Lowest and highest value of an array in the other batches, by column when it is a table."""
    replay = failure.window.replay
    others = [step for step in failure.window.replay.capture.steps if step != failure.step][
        -_OTHERS:
    ]
    arrays = [
        np.asarray(replay.batch(step).leaves[index])
        for step in others
        if index < len(replay.batch(step).leaves)
    ]
    own = np.asarray(replay.batch(failure.step).leaves[index])
    arrays = [
        array for array in arrays if array.shape[1:] == own.shape[1:] and array.ndim and array.size
    ]
    if not arrays or not _is_float(own):
        return -np.inf, np.inf
    stacked = np.concatenate(arrays)
    stacked = np.where(np.isfinite(stacked), stacked, np.nan)
    axes = 0 if stacked.ndim == 2 else None
    with np.errstate(all="ignore"):
        low, high = np.nanmin(stacked, axis=axes), np.nanmax(stacked, axis=axes)
    return np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=0.0)


def _leaves(failure: Failure) -> list[tuple[str, Any]]:
    batch = failure.window.replay.batch(failure.step)
    return [(path, np.asarray(leaf)) for path, leaf in zip(batch.paths, batch.leaves, strict=True)]


def _is_float(leaf: Any) -> bool:
    return bool(leaf.dtype.kind == "f")
