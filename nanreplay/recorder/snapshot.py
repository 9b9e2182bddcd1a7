"""What a file is written from: all that a recording holds at one moment, and what of it fits.

`Recording` takes a `Snapshot`, and `dump` writes it, as far as `fit_disk` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import tensorflow as tf

from nanreplay.capture.storage import Location
from nanreplay.limits import readable_size, size_option
from nanreplay.program.staging import components_of
from nanreplay.recorder.reexecution import CompiledPrograms, Reexecution
from nanreplay.recorder.ring import FetchedElement, StepEntry
from nanreplay.recorder.room import Room
from nanreplay.recorder.settings import Settings
from nanreplay.recorder.timeline_ring import TimelineRing, as_number
from nanreplay.recorder.variable_table import VariableTable
from nanreplay.records import Trigger
from nanreplay.tensorflow_internals import tf_datasets

if TYPE_CHECKING:
    from nanreplay.recorder.program_slots import EagerIncident, ProgramSlot
    from nanreplay.recorder.recording import Recording


@dataclass(slots=True)
class Snapshot:
    """The parts of a recording up to one step."""

    settings: Settings
    room: Room
    trigger: Trigger
    step: int
    """The step that was seen to fail, else the last whole one."""
    entries: Sequence[StepEntry]
    keyframes: dict[int, dict[int, Any]]
    programs: Sequence[ProgramSlot]
    variables: VariableTable
    checked: Sequence[int]
    """Indices of the variables whose sums are in the fingerprints."""
    timeline: TimelineRing
    notes: list[str]
    written: Sequence[Location]
    eager: EagerIncident | None
    proof: Reexecution | None
    """What a failing eager step gave when it was run once more."""
    step_s: float | None
    """What a step takes, where that is known."""
    compiled: CompiledPrograms = field(default_factory=dict)
    """Programs that were compiled to run steps again, for the next one who does."""
    other_bytes: int = 0
    """What programs and timeline take in a file."""
    splits_batches: bool = False
    """Whether the replicas' parts are those of one batch that the user gave, one after another."""


def take_snapshot(
    recording: Recording, trigger: Trigger, step: int, *, keep: bool = False
) -> Snapshot:
    """Take what a recording holds.

    An incident ends its window, so that the ring lets go of the keyframes, for memory's sake.

    Args:
        recording: The recording.
        trigger: Why a file is written.
        step: The last step that is wanted.
        keep: The ring keeps its keyframes all the same.
    """
    ring, was_set = recording.ring, recording.keeper.assignments.has_news
    rate = recording.meter.read_rate(recording.step, was_set=was_set)
    recording.timeline.read_rate(recording.step - 1, rate)
    entries: list[StepEntry] = []
    keyframes: dict[int, dict[int, Any]] = {}
    if ring is not None:
        entries = ring.held(step)
        keyframes = {}
        for number, values in ring.keyframes.items():
            if number <= step:
                keyframes[number] = _made_values(values, recording.variables)
    if ring is not None and not keep and trigger.what in ("loss", "gradient", "variable"):
        ring.keyframes.clear()
    entries, keyframes = _needed_for_window(recording, entries, keyframes, step)
    eager = recording.eager
    if eager is not None and eager.step != step:
        eager = None
    return Snapshot(
        settings=recording.settings,
        room=recording.room,
        trigger=trigger,
        step=step,
        entries=entries,
        keyframes=keyframes,
        programs=tuple(recording.programs),
        variables=recording.variables,
        checked=recording.meter.checked_variables(),
        timeline=recording.timeline,
        notes=[*recording.notes, *filter(None, [recording.keeper.shrunk])],
        written=tuple(recording.written),
        eager=eager,
        proof=None if eager is None else eager.proof,
        step_s=recording.keeper.step_s,
        compiled=recording.compiled,
        other_bytes=recording.file_bytes(),
        splits_batches=recording.splits_batches,
    )


def _made_values(values: Mapping[int, Any], variables: VariableTable) -> dict[int, Any]:
    """Values of those variables that have one.

    Those that a step of replicas makes are empty until its first call has ended.
    """
    shapes = [tf.TensorShape(info.shape) for info in variables.infos]
    made = {}
    for index, value in values.items():
        if shapes[index].is_compatible_with(value.shape):
            made[index] = value
    return made


def _needed_for_window(
    recording: Recording, entries: list[StepEntry], keyframes: dict[int, dict[int, Any]], step: int
) -> tuple[list[StepEntry], dict[int, dict[int, Any]]]:
    """The window that was asked for, and the keyframe that reaches it.

    It lies before the first step that may have been the first to fail: the one after the last step
    that was measured. With steps 0 to 9, step 9 seen to fail, step 7 the last one measured before
    and a window of 4, the window begins with step 5.
    """
    if any(not entry.program for entry in entries):
        return entries, keyframes
    measured = []
    for row in recording.timeline.rows:
        if row.measured is not None and row.step < step:
            measured.append(row.step)
    first_suspect = max(measured, default=step - 1) + 1
    oldest = first_suspect - recording.settings.window + 1
    reaching = []
    for number in keyframes:
        if number <= oldest:
            reaching.append(number)
    base = max(reaching, default=min(keyframes, default=0))
    return (
        [entry for entry in entries if entry.step >= base],
        {number: values for number, values in keyframes.items() if number >= base},
    )


# What an entry stands for


TakenApart: TypeAlias = dict[int, Sequence[Any]]
"""Optionals that several steps share, one by one, by the id of the tensor that holds them."""


def leaves_of(
    entry: StepEntry, slots: Mapping[str, ProgramSlot], taken: TakenApart
) -> Sequence[Any]:
    """The arrays of a step's batch, taken out of what it fetched by itself where it did.

    Args:
        entry: The step, which lives as long as `taken`.
        slots: Programs by id.
        taken: What other steps have taken apart, and where this one puts what it does.
    """
    slot = slots.get(entry.program)
    fetch = None if slot is None else slot.fetch
    if entry.element is None or fetch is None:
        return entry.leaves
    return [*entry.leaves, *decoded(entry.element, fetch.kinds, fetch.spec, taken)]


def numbers_of(entry: StepEntry, slots: Mapping[str, ProgramSlot]) -> Mapping[str, Any] | None:
    """What was read of a step, or can be read now."""
    slot = slots.get(entry.program)
    if entry.fingerprint is not None or entry.returned is None or slot is None:
        return entry.fingerprint
    kinds = [tensor.dtype for tensor in slot.traced.outputs]
    outputs = components_of(entry.returned.optionals[entry.returned.index], kinds)
    if outputs is None:
        return None
    return {name: as_number(outputs[index]) for name, index in slot.outputs}


def decoded(
    element: FetchedElement, kinds: Sequence[Any], spec: Any, taken: TakenApart
) -> list[Any]:
    """The arrays of one fetched element.

    Args:
        element: The element.
        kinds: DTypes of its flat components.
        spec: Its spec, where it is known; ragged and sparse tensors need one, and so does a None
            among the components.
        taken: As for `leaves_of`: the batches of thousands of short steps are here, and to take one
            out of a vector takes as long as to take them all.
    """
    if element.index is None:
        return _stacked(element.optionals, kinds)
    optionals = element.optionals
    if id(optionals) not in taken:
        taken[id(optionals)] = tf.unstack(optionals)
    components = components_of(taken[id(optionals)][element.index], kinds)
    if components is None:
        return []
    if spec is None or _are_plain(spec, components):
        return components
    return tf_datasets.decoded_element(spec, components)


def _are_plain(spec: Any, components: Sequence[Any]) -> bool:
    """Whether an element is made of tensors alone, which its components are then."""
    leaves = tf.nest.flatten(spec)
    is_plain = all(type(leaf) is tf.TensorSpec for leaf in leaves)
    return is_plain and len(leaves) == len(components)


def _stacked(optionals: Any, kinds: Sequence[Any]) -> list[Any]:
    """What several elements hold, each component along a first axis.

    Nothing where their shapes differ.
    """
    count = int(optionals.shape[0])
    elements = []
    for number in range(count):
        elements.append(components_of(optionals[number], kinds) or [])
    columns = list(zip(*elements, strict=True))
    for column in columns:
        if any(tensor.shape != column[0].shape for tensor in column):
            return []
    return list(map(tf.stack, columns))


# What of a recording fits the disk limit. Pure: sizes in, steps out.


@dataclass(frozen=True, slots=True)
class Sizes:
    """What there is to write, in bytes."""

    other: int
    """Programs, timeline and tables, which are always written."""
    keyframes: Mapping[int, int]
    batches: Mapping[int, int]
    full: Mapping[int, int]
    """Weights and gradients, by step."""


@dataclass(frozen=True, slots=True)
class Share:
    """What is written, by step, and what is not, in sentences."""

    keyframes: frozenset[int]
    batches: frozenset[int]
    full: frozenset[int]
    left_out: Sequence[str]


FEW_STEPS = 8
"""Steps to the failing one that a file should hold at least, where it holds one keyframe."""


def fit_disk(sizes: Sizes, limit: int, limit_name: str = "disk_limit") -> Share:
    """Leave out what a replay gives again, then what lies farthest back, until the rest fits.

    First weights and gradients of all steps but the failing one; then keyframes, but for one, with
    the batches that only they reach; then the weights and gradients of the failing step. When not
    even the way from the newest keyframe to the last step fits, the last batches are written,
    without a keyframe.

    Args:
        sizes: What there is.
        limit: Bytes that all of it may take.
        limit_name: What sentences call the limit.
    """
    room = limit - sizes.other
    last_full = sorted(sizes.full)[-1:]
    keyframes, batches, full = _replayable_part(sizes, last_full, room)
    room -= _total(sizes.keyframes, keyframes) + _total(sizes.batches, batches)
    room -= _total(sizes.full, full)
    if not keyframes:
        batches = _newest(sizes.batches, room)
    elif full == last_full:
        full = full + _newest(
            {step: size for step, size in sizes.full.items() if step not in full}, room
        )
    missing = [
        *_missing("the weights and gradients of", sizes.full, full),
        *_missing("the keyframes at", sizes.keyframes, keyframes),
        *_missing("the batches of", sizes.batches, batches),
    ]
    left_out = []
    if missing:
        left_out.append(
            f"{limit_name} of {readable_size(limit)}: {', '.join(missing)} were left out."
        )
    if sizes.keyframes and not keyframes:
        newest = max(sizes.keyframes)
        needed = sizes.other + sizes.keyframes[newest]
        needed += sum(size for step, size in sizes.batches.items() if step >= newest)
        left_out.append(
            "The capture cannot be replayed; "
            f'with disk_limit="{size_option(needed)}" the failing step could.'
        )
    return Share(frozenset(keyframes), frozenset(batches), frozenset(full), left_out)


def _replayable_part(
    sizes: Sizes, last_full: list[int], room: int
) -> tuple[list[int], list[int], list[int]]:
    """(keyframes, batches, weights and gradients): the best that fits; nothing where nothing does.

    As many keyframes as there are, the newest of them; else one, so that a few steps lead to the
    failing one, or the newest, after which fewer do.
    """
    ordered = sorted(sizes.keyframes)
    last = max(sizes.batches, default=0)
    several = [ordered[start:] for start in range(len(ordered) - 1)]
    far, near = [], []
    for step in reversed(ordered):
        if last - step + 1 >= FEW_STEPS:
            far.append(step)
        else:
            near.append(step)
    single = [[step] for step in (*far, *near)]
    choices = [
        *((each, last_full) for each in (*several, *single)),
        *((each, []) for each in single),
    ]
    for keyframes, full in choices:
        batches = []
        for step in sizes.batches:
            if step >= keyframes[0]:
                batches.append(step)
        size = _total(sizes.keyframes, keyframes) + _total(sizes.batches, batches)
        if size + _total(sizes.full, full) <= room:
            return keyframes, batches, full
    return [], [], []


def _total(sizes: Mapping[int, int], steps: Sequence[int]) -> int:
    return sum(sizes[step] for step in steps)


def _newest(sizes: Mapping[int, int], room: int) -> list[int]:
    """The last steps that fit."""
    kept: list[int] = []
    for step in sorted(sizes, reverse=True):
        room -= sizes[step]
        if room < 0:
            break
        kept.append(step)
    return kept


def _missing(parts: str, whole: Mapping[int, int], kept: Sequence[int]) -> list[str]:
    steps = sorted(set(whole) - set(kept))
    if not steps:
        return []
    if len(steps) == 1:
        return [f"{parts} step {steps[0]}"]
    return [f"{parts} {len(steps)} steps ({steps[0]} to {steps[-1]})"]
