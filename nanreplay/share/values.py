"""Numbers that do not matter, set to zero: features of the batch, and variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from nanreplay.bisect.rows import batch_size
from nanreplay.records import BatchRecord, CaptureContents, Role
from nanreplay.share.bench import Bench
from nanreplay.share.cut import with_batch, with_state
from nanreplay.share.ddmin import ddmin

Feature: TypeAlias = tuple[int, int]
"""(array of the batch, place in a row of it, or in all of it when it has no rows)."""
_ORDER: tuple[Role, ...] = ("trainable", "state", "other", "seed", "optimizer", "metric")
"""Roles of variables, those that are likely to matter first."""


def zero_features(bench: Bench) -> tuple[CaptureContents, int, int]:
    """Return the draft with all features zero that its origin does not need, how many are left, and how many there were."""
    leaves = [np.asarray(leaf) for leaf in bench.batch.leaves]
    size = batch_size(leaves)
    units = [(i, int(place)) for i, leaf in enumerate(leaves) for place in np.flatnonzero(_is_set(_columns(leaf, size)))]

    def batch_of(kept: Sequence[Feature]) -> BatchRecord:
        return dataclasses.replace(bench.batch, leaves=tuple(_with_only(leaves, size, kept)))

    kept = ddmin(units, lambda some: bench.holds(batch_of(some)))
    return with_batch(bench.contents, bench.step, batch_of(kept)), len(kept), len(units)


def _columns(leaf: Any, size: int | None) -> Any:
    """An array as [row, place in the row]; one row when it has no batch axis."""
    rows = leaf.shape[0] if leaf.ndim and leaf.shape[0] == size else 1
    return leaf.reshape(rows, -1)


def _is_set(columns: Any) -> Any:
    """Which places hold anything but zero in some row."""
    if columns.dtype.kind in "OSU":
        return np.array([any(item not in (b"", "") for item in column) for column in columns.T], bool)
    return (columns.view(f"u{columns.dtype.itemsize}") != 0 if columns.dtype.kind not in "biufc" else columns != 0).any(axis=0)


def _with_only(leaves: Sequence[Any], size: int | None, kept: Sequence[Feature]) -> list[Any]:
    """The batch with all but these features zero; texts empty."""
    made = []
    for i, leaf in enumerate(leaves):
        columns = _columns(leaf, size)
        empty = np.full_like(columns, b"") if leaf.dtype.kind in "OSU" else np.zeros_like(columns)
        places = [place for array, place in kept if array == i]
        empty[:, places] = columns[:, places]
        made.append(empty.reshape(leaf.shape))
    return made


def zero_variables(bench: Bench) -> tuple[CaptureContents, list[int]]:
    """Return the draft with all variables zero whose values its origin does not need, and which these are.

    Scalars stay: they cost nothing, and a learning rate of zero would be another training.
    """
    ((_, state),) = bench.contents.keyframes.items()
    infos = bench.contents.variables
    units = [index for index, value in state.items() if infos[index].shape and np.any(np.asarray(value) != 0)]
    units.sort(key=lambda index: (_ORDER.index(infos[index].role), index))
    zeros = {index: np.zeros_like(np.asarray(state[index])) for index in units}

    def happens(kept: Sequence[int]) -> bool:
        return bench.holds(state={index: state[index] if index in kept else zeros[index] for index in units})

    kept = set(ddmin(units, happens))
    gone = [index for index in units if index not in kept]
    return with_state(bench.contents, {index: zeros[index] for index in gone}), gone
