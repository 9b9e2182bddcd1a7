"""Cutting a capture down to the steps of its failure: a keyframe made by replay just before them, and what they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nanreplay.capture.rewrite import lazy_contents
from nanreplay.program.collectives import local_program
from nanreplay.program.prune import pruned
from nanreplay.records import BatchRecord, CaptureContents, Frame, OpInfo, ProgramRecord, Signature
from nanreplay.replay import Replay


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
    recorded = [capture.program(name) for name in dict.fromkeys(batch.program for batch in batches.values())]
    programs = [pruned(local_program(program)) for program in recorded]  # replicas are told apart by devices, which do not stay
    used = {index for program in programs for index in _variables(program.signature)}
    state = {index: np.asarray(value) for index, value in replay.state(first).items() if index in used}
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
    yield from (int(name.partition(":")[2]) for name in signature.watch_layout if name.startswith("variable_sum:"))


def _with_used_stacks(
    programs: Sequence[ProgramRecord], frames: Sequence[Frame], stacks: Sequence[Sequence[int]]
) -> tuple[list[ProgramRecord], list[Frame], list[Sequence[int]]]:
    """Leave out stacks that no op has and frames that no stack has."""
    used_stacks = sorted({info.stack for program in programs for info in program.ops if 0 <= info.stack < len(stacks)})
    used_frames = sorted({frame for stack in used_stacks for frame in stacks[stack]})
    new_stack = {old: new for new, old in enumerate(used_stacks)}
    new_frame = {old: new for new, old in enumerate(used_frames)}

    def moved(info: OpInfo) -> OpInfo:
        return dataclasses.replace(info, stack=new_stack.get(info.stack, -1))

    kept = [dataclasses.replace(program, ops=tuple(moved(info) for info in program.ops)) for program in programs]
    return kept, [frames[old] for old in used_frames], [[new_frame[frame] for frame in stacks[old]] for old in used_stacks]


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
