"""What a file is written from: all that a recording holds at one moment, taken out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from nanreplay.capture.storage import Location
from nanreplay.program import private_tf
from nanreplay.program.fetching import components_of
from nanreplay.recorder.reexecute import Reexecution
from nanreplay.recorder.ring import Element, StepEntry
from nanreplay.recorder.settings import Settings
from nanreplay.recorder.timeline import TimelineRing
from nanreplay.recorder.variables import VariableTable
from nanreplay.records import Trigger
from nanreplay.tensors import as_array

if TYPE_CHECKING:
    from nanreplay.recorder.session import EagerIncident, ProgramSlot, Session


@dataclass(slots=True)
class Snapshot:
    """The parts of a recording up to one step."""

    settings: Settings
    trigger: Trigger
    step: int
    """The step that was seen to fail, else the last whole one."""
    entries: Sequence[StepEntry]
    keyframes: dict[int, dict[int, Any]]
    programs: Sequence[ProgramSlot]
    variables: VariableTable
    watched: Sequence[int]
    timeline: TimelineRing
    notes: list[str]
    written: Sequence[Location]
    eager: EagerIncident | None
    proof: Reexecution | None
    """What a failing eager step gave when it was run once more."""
    step_s: float | None
    """What a step takes, where that is known."""


def take_snapshot(session: Session, trigger: Trigger, step: int, *, keep: bool = False) -> Snapshot:
    """Take what `session` holds up to `step`; an incident ends its window, so the keyframes go with the snapshot, unless `keep`."""
    ring = session.ring
    entries = [] if ring is None else ring.held(step)
    held = {} if ring is None else ring.keyframes
    keyframes = {number: _given(values, session.variables) for number, values in held.items() if number <= step}
    if ring is not None and not keep and trigger.what in ("loss", "gradient", "variable"):
        ring.keyframes.clear()
    entries, keyframes = _needed(session, entries, keyframes, step)
    eager = session.eager if session.eager is not None and session.eager.step == step else None
    return Snapshot(
        settings=session.settings,
        trigger=trigger,
        step=step,
        entries=entries,
        keyframes=keyframes,
        programs=tuple(session.programs),
        variables=session.variables,
        watched=session.watched,
        timeline=session.timeline,
        notes=[*session.notes, *filter(None, [session.keeper.shrunk])],
        written=tuple(session.written),
        eager=eager,
        proof=None if eager is None else eager.proof,
        step_s=session.keeper.step_s,
    )


def _given(values: Mapping[int, Any], variables: VariableTable) -> dict[int, Any]:
    """Values of variables that have one: those that a step of replicas makes are empty until its first call has ended."""
    shapes = [tf.TensorShape(info.shape) for info in variables.infos]
    return {index: value for index, value in values.items() if shapes[index].is_compatible_with(value.shape)}


def _needed(
    session: Session, entries: list[StepEntry], keyframes: dict[int, dict[int, Any]], step: int
) -> tuple[list[StepEntry], dict[int, dict[int, Any]]]:
    """The window that was asked for, before the first step that may have been the first to fail, and the keyframe that reaches it."""
    measured = [row.step for row in session.timeline.rows if row.sums is not None and row.step < step]
    oldest = max(measured, default=step - 1) + 1 - session.settings.window + 1
    base = max((number for number in keyframes if number <= oldest), default=min(keyframes, default=0))
    if any(not entry.program for entry in entries):
        return entries, keyframes
    return [entry for entry in entries if entry.step >= base], {number: each for number, each in keyframes.items() if number >= base}


def leaves_of(entry: StepEntry, slots: Mapping[str, ProgramSlot]) -> Sequence[Any]:
    """The arrays of a step's batch, taken out of what it fetched by itself where it did."""
    if entry.element is None:
        return entry.leaves
    slot = slots.get(entry.program)
    fetch = None if slot is None else slot.fetch
    return entry.leaves if fetch is None else [*entry.leaves, *decoded(entry.element, fetch.kinds, fetch.spec)]


def numbers_of(entry: StepEntry, slots: Mapping[str, ProgramSlot]) -> Mapping[str, Any] | None:
    """What was read of a step, or can be read now."""
    slot = slots.get(entry.program)
    if entry.fingerprint is not None or entry.returned is None or slot is None:
        return entry.fingerprint
    kinds = [tensor.dtype for tensor in slot.traced.outputs]
    outputs = components_of(entry.returned.optionals[entry.returned.index], kinds)
    return None if outputs is None else {name: as_number(outputs[index]) for name, index in slot.outputs}


def as_number(value: Any) -> Any:
    """A scalar as a numpy number, float32 at least."""
    if isinstance(value, tf.Tensor) and value.dtype in (tf.float32, tf.float64):
        return value.numpy()
    array = as_array(value)
    return array[()] if array.dtype in (np.float32, np.float64) else array.astype(np.float32)[()]


def decoded(element: Element, kinds: Sequence[Any], spec: Any) -> list[Any]:
    """The arrays of one fetched element.

    Args:
        element: The element.
        kinds: DTypes of its flat components.
        spec: Its spec, where it is known; ragged and sparse tensors, and nothing where None was, need one.
    """
    if element.index is None:
        return _stacked(element.optionals, kinds)
    components = components_of(element.optionals[element.index], kinds)
    if components is None:
        return []
    if spec is None:
        return components
    return private_tf.decoded_element(spec, components)


def _stacked(optionals: Any, kinds: Sequence[Any]) -> list[Any]:
    """What several elements hold, each component along a first axis; nothing where their shapes differ."""
    elements = [components_of(optionals[number], kinds) or [] for number in range(int(optionals.shape[0]))]
    columns = list(zip(*elements, strict=True))
    if any(each.shape != column[0].shape for column in columns for each in column):
        return []
    return [tf.stack(column) for column in columns]
