"""Cuts that make a capture smaller: steps, features and variables that a failure does not need.

`minimize` and `redact` start from `cut_to_steps`. Only `minimize` goes on to set features and
variables to zero, and each of these is replayed before it counts.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from nanreplay.bisect.batch_rows import batch_size
from nanreplay.capture.writer import lazy_contents
from nanreplay.export.trials import FailureTrials, smallest_part
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

Feature: TypeAlias = tuple[int, int]
"""(array of the batch, place in a row of it, or in all of it when it has no rows)."""
_ROLES_BY_RELEVANCE: tuple[Role, ...] = (
    "trainable",
    "state",
    "other",
    "seed",
    "optimizer",
    "metric",
)
"""Roles of variables. Those that are likely to matter come first, so that the search ends early."""


def cut_to_steps(replay: Replay, first: int) -> CaptureContents:
    """Return the contents of a capture from step `first` to its incident.

    They hold one keyframe: the state just before `first`, made by replay. Programs lose the ops
    that the steps do not run, sources lose the stacks of these ops.

    Args:
        replay: The capture's replay, which makes the keyframe.
        first: A step that can be replayed.

    Raises:
        ReplayError: The steps before `first` cannot be run.
    """
    capture = replay.capture
    steps = []
    for step in replay.steps:
        if first <= step <= replay.incident.step:
            steps.append(step)
    batches = {step: replay.batch(step) for step in steps}
    program_ids = dict.fromkeys(batch.program for batch in batches.values())
    # Pruning would take away the devices that tell replicas apart, so a program of several replicas
    # becomes a local one first.
    programs = []
    used: set[int] = set()
    for name in program_ids:
        program = pruned(local_program(capture.program(name)))
        programs.append(program)
        used.update(_used_variables(program.signature))
    values = replay.state(first)
    state = {}
    for index, value in values.items():
        if index in used:
            state[index] = np.asarray(value)
    programs, frames, stacks = _with_used_stacks(programs, capture.frames, capture.stacks)
    return dataclasses.replace(
        lazy_contents(capture),
        programs=programs,
        keyframes={first: state},
        states={},  # the keyframe tells it, with what is changed of it later
        batches=batches,
        frames=frames,
        stacks=stacks,
    )


def _used_variables(signature: Signature) -> Iterator[int]:
    """Variables that a program captures, and those that its fingerprint sums up."""
    for spec in signature.captures:
        if spec.variable is not None:
            yield spec.variable
    for element in signature.watch_layout:
        kind, _, index = element.partition(":")
        if kind == "variable_sum":
            yield int(index)


def _with_used_stacks(
    programs: Sequence[ProgramRecord], frames: Sequence[Frame], stacks: Sequence[Sequence[int]]
) -> tuple[list[ProgramRecord], list[Frame], list[Sequence[int]]]:
    """Leave out stacks that no op has and frames that no stack has."""
    all_stacks: set[int] = set()
    for program in programs:
        for info in program.ops:
            all_stacks.add(info.stack)
    used_stacks = sorted(all_stacks & set(range(len(stacks))))  # -1 stands for none
    used_frames = sorted(set().union(*map(stacks.__getitem__, used_stacks)))
    # What is left is numbered anew, in the old order.
    new_stack = dict(zip(used_stacks, itertools.count(), strict=False))
    new_frame = dict(zip(used_frames, itertools.count(), strict=False))

    def renumbered(info: OpInfo) -> OpInfo:
        return dataclasses.replace(info, stack=new_stack.get(info.stack, -1))

    def with_new_stacks(program: ProgramRecord) -> ProgramRecord:
        return dataclasses.replace(program, ops=tuple(map(renumbered, program.ops)))

    def with_new_frames(old: int) -> Sequence[int]:
        return [new_frame[frame] for frame in stacks[old]]

    frames_now = [frames[old] for old in used_frames]
    stacks_now = list(map(with_new_frames, used_stacks))
    return list(map(with_new_stacks, programs)), frames_now, stacks_now


def with_notes(contents: CaptureContents, notes: Sequence[str]) -> CaptureContents:
    """Return contents whose incident has more notes; a note that it has already is not repeated."""
    incident = contents.incident
    all_notes = tuple(dict.fromkeys((*incident.notes, *notes)))
    return dataclasses.replace(contents, incident=dataclasses.replace(incident, notes=all_notes))


def with_batch(contents: CaptureContents, step: int, batch: BatchRecord) -> CaptureContents:
    """Return contents in which one step has another batch."""
    return dataclasses.replace(contents, batches={**contents.batches, step: batch})


def with_state(contents: CaptureContents, values: dict[int, Any]) -> CaptureContents:
    """Return contents whose only keyframe has other values of some variables."""
    ((step, state),) = contents.keyframes.items()
    return dataclasses.replace(contents, keyframes={step: {**state, **values}})


# Numbers set to zero. `smallest_part` finds those that must keep their values.


def zero_features(trials: FailureTrials) -> tuple[CaptureContents, int, int]:
    """Return the draft with all features zero that its origin does not need.

    Returns:
        The draft, how many features are left, and how many there were.
    """
    leaves = list(map(np.asarray, trials.batch.leaves))
    size = batch_size(leaves)
    features: list[Feature] = []
    for i, leaf in enumerate(leaves):
        nonzero_places = np.flatnonzero(_has_nonzero(_columns(leaf, size)))
        for place in nonzero_places:
            features.append((i, int(place)))

    def batch_with(kept: Sequence[Feature]) -> BatchRecord:
        return dataclasses.replace(trials.batch, leaves=tuple(_with_only(leaves, size, kept)))

    needed = smallest_part(features, lambda kept: trials.holds(batch_with(kept)))
    draft = with_batch(trials.contents, trials.step, batch_with(needed))
    return draft, len(needed), len(features)


def _columns(leaf: Any, size: int | None) -> Any:
    """An array as [row, place in the row]; one row when it has no batch axis."""
    rows = leaf.shape[0] if leaf.ndim and leaf.shape[0] == size else 1
    return leaf.reshape(rows, -1)


def _has_nonzero(columns: Any) -> Any:
    """Which places hold anything but zero in some row."""
    if columns.dtype.kind in "OSU":
        any_text = []
        for column in columns.T:
            any_text.append(any(item not in (b"", "") for item in column))
        return np.array(any_text, bool)
    if columns.dtype.kind in "biufc":
        return (columns != 0).any(axis=0)
    # bfloat16 and float8 are no types of numpy's own: their bits are looked at, so that -0.0 counts
    # as a value too.
    return (columns.view(f"u{columns.dtype.itemsize}") != 0).any(axis=0)


def _with_only(leaves: Sequence[Any], size: int | None, kept: Sequence[Feature]) -> list[Any]:
    """The arrays of a batch with all but these features zero; texts empty."""
    zeroed = []
    for i, leaf in enumerate(leaves):
        columns = _columns(leaf, size)
        is_text = leaf.dtype.kind in "OSU"
        result = np.full_like(columns, b"") if is_text else np.zeros_like(columns)
        places = [place for array, place in kept if array == i]
        result[:, places] = columns[:, places]
        zeroed.append(result.reshape(leaf.shape))
    return zeroed


def zero_variables(trials: FailureTrials) -> tuple[CaptureContents, list[int]]:
    """Return the draft with all variables zero whose values its origin does not need.

    Scalars stay: they cost nothing, and a learning rate of zero would be another training.

    Returns:
        The draft, and the indices of the variables that are zero now.
    """
    ((_, state),) = trials.contents.keyframes.items()
    infos = trials.contents.variables

    def is_candidate(index: int) -> bool:
        return bool(infos[index].shape) and bool(np.any(np.asarray(state[index]) != 0))

    def relevance(index: int) -> tuple[int, int]:
        return _ROLES_BY_RELEVANCE.index(infos[index].role), index

    nonzero = sorted(filter(is_candidate, state), key=relevance)
    zeros = {}
    for index in nonzero:
        zeros[index] = np.zeros_like(np.asarray(state[index]))

    def fails_with(kept: Sequence[int]) -> bool:
        values = {}
        for index in nonzero:
            values[index] = state[index] if index in kept else zeros[index]
        return trials.holds(state=values)

    needed = set(smallest_part(nonzero, fails_with))
    zeroed = []
    for index in nonzero:
        if index not in needed:
            zeroed.append(index)
    return with_state(trials.contents, {index: zeros[index] for index in zeroed}), zeroed
