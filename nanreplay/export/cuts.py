"""Numbers that do not matter, set to zero: features of the batch, and variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from nanreplay.bisect.row_proof import batch_size
from nanreplay.capture.writer import lazy_contents
from nanreplay.export.trials import FailureTrials, ddmin
from nanreplay.program.collectives import local_program
from nanreplay.program.graph_editor import pruned
from nanreplay.records import (
    BatchRecord,
    CaptureContents,
    Frame,
    OpInfo,
    ProgramRecord,
    Role,
    Signature,
)
from nanreplay.replay import Replay

# Cutting a capture down to the steps of its failure: a keyframe made by replay just before them,
# and what they run.


def cut_to_steps(replay: Replay, first: int) -> CaptureContents:
    """Return the contents of a capture from step `first` to its incident, with one keyframe, of the state just before `first`.

    Programs lose what the steps do not run, sources the stacks that belong to it.

    Args:
        replay: The capture's replay, which makes the keyframe.
        first: A step that can be replayed.

    Raises:
        ReplayError: The steps before `first` cannot be run.
    """
    capture = replay.capture
    steps = [step for step in replay.steps if first <= step <= replay.incident.step]
    batches = {step: replay.batch(step) for step in steps}
    recorded = [
        capture.program(name) for name in dict.fromkeys(batch.program for batch in batches.values())
    ]
    programs = [
        pruned(local_program(program)) for program in recorded
    ]  # replicas are told apart by devices, which do not stay
    used = {index for program in programs for index in _variables(program.signature)}
    state = {
        index: np.asarray(value) for index, value in replay.state(first).items() if index in used
    }
    programs, frames, stacks = _with_used_stacks(programs, capture.frames, capture.stacks)
    whole = lazy_contents(capture)
    return dataclasses.replace(
        whole,
        programs=programs,
        keyframes={first: state},
        batches=batches,
        frames=frames,
        stacks=stacks,
    )


def _variables(signature: Signature) -> Iterator[int]:
    """Variables that a program is given, and those that its fingerprint is of."""
    yield from (spec.variable for spec in signature.captures if spec.variable is not None)
    yield from (
        int(name.partition(":")[2])
        for name in signature.watch_layout
        if name.startswith("variable_sum:")
    )


def _with_used_stacks(
    programs: Sequence[ProgramRecord], frames: Sequence[Frame], stacks: Sequence[Sequence[int]]
) -> tuple[list[ProgramRecord], list[Frame], list[Sequence[int]]]:
    """Leave out stacks that no op has and frames that no stack has."""
    used_stacks = sorted(
        {
            info.stack
            for program in programs
            for info in program.ops
            if 0 <= info.stack < len(stacks)
        }
    )
    used_frames = sorted({frame for stack in used_stacks for frame in stacks[stack]})
    new_stack = {old: new for new, old in enumerate(used_stacks)}
    new_frame = {old: new for new, old in enumerate(used_frames)}

    def moved(info: OpInfo) -> OpInfo:
        return dataclasses.replace(info, stack=new_stack.get(info.stack, -1))

    kept = [
        dataclasses.replace(program, ops=tuple(moved(info) for info in program.ops))
        for program in programs
    ]
    return (
        kept,
        [frames[old] for old in used_frames],
        [[new_frame[frame] for frame in stacks[old]] for old in used_stacks],
    )


def with_notes(contents: CaptureContents, notes: Sequence[str]) -> CaptureContents:
    """Return contents whose incident has more notes."""
    incident = contents.incident
    kept = dict.fromkeys((*incident.notes, *notes))
    return dataclasses.replace(contents, incident=dataclasses.replace(incident, notes=tuple(kept)))


def with_batch(contents: CaptureContents, step: int, batch: BatchRecord) -> CaptureContents:
    """Return contents in which one step has another batch."""
    batches = {each: contents.batches[each] for each in contents.batches} | {step: batch}
    return dataclasses.replace(contents, batches=batches)


def with_state(contents: CaptureContents, values: dict[int, Any]) -> CaptureContents:
    """Return contents whose only keyframe has other values of some variables."""
    ((step, state),) = contents.keyframes.items()
    return dataclasses.replace(contents, keyframes={step: {**state, **values}})


# --- share.values

Feature: TypeAlias = tuple[int, int]
"""(array of the batch, place in a row of it, or in all of it when it has no rows)."""
_ORDER: tuple[Role, ...] = ("trainable", "state", "other", "seed", "optimizer", "metric")
"""Roles of variables, those that are likely to matter first."""


def zero_features(bench: FailureTrials) -> tuple[CaptureContents, int, int]:
    """Return the draft with all features zero that its origin does not need, how many are left, and how many there were."""
    leaves = [np.asarray(leaf) for leaf in bench.batch.leaves]
    size = batch_size(leaves)
    units = [
        (i, int(place))
        for i, leaf in enumerate(leaves)
        for place in np.flatnonzero(_is_set(_columns(leaf, size)))
    ]

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
        return np.array(
            [any(item not in (b"", "") for item in column) for column in columns.T], bool
        )
    return (
        columns.view(f"u{columns.dtype.itemsize}") != 0
        if columns.dtype.kind not in "biufc"
        else columns != 0
    ).any(axis=0)


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


def zero_variables(bench: FailureTrials) -> tuple[CaptureContents, list[int]]:
    """Return the draft with all variables zero whose values its origin does not need, and which these are.

    Scalars stay: they cost nothing, and a learning rate of zero would be another training.
    """
    ((_, state),) = bench.contents.keyframes.items()
    infos = bench.contents.variables
    units = [
        index
        for index, value in state.items()
        if infos[index].shape and np.any(np.asarray(value) != 0)
    ]
    units.sort(key=lambda index: (_ORDER.index(infos[index].role), index))
    zeros = {index: np.zeros_like(np.asarray(state[index])) for index in units}

    def happens(kept: Sequence[int]) -> bool:
        return bench.holds(
            state={index: state[index] if index in kept else zeros[index] for index in units}
        )

    kept = set(ddmin(units, happens))
    gone = [index for index in units if index not in kept]
    return with_state(bench.contents, {index: zeros[index] for index in gone}), gone
