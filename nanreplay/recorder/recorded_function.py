"""A compiled function that trains, and the batches that its steps fetch by themselves.

`CompiledCalls` runs a `RecordedFunction` for each step. One that fetches its batch from an iterator
leaves a copy in a staging area of TensorFlow's, out of which `BatchCollector` takes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from nanreplay.program.fetching import InstrumentedFunction
from nanreplay.program.staging import TAKEN_TOGETHER, components_of
from nanreplay.recorder.program_slots import ProgramSlot
from nanreplay.recorder.recording import Recording
from nanreplay.recorder.ring import FetchedElement, StepEntry, size_of

SMALL_BYTES = 2**20
"""Larger batches are taken one by one, so that no more of them are held than the plan says."""
FORGOTTEN_AFTER = 8
"""Calls of several steps after which what these returned is forgotten, unless a file is written."""


@dataclass(slots=True)
class RecordedFunction:
    """A compiled function that trains, ready to be recorded."""

    function: Any
    """A weak reference to the ConcreteFunction."""
    slot: ProgramSlot
    variant: InstrumentedFunction | None
    """Run in its place, where it fetches its batch or draws what another run would not."""
    outputs: Sequence[tuple[str, int]]
    """(name in the fingerprint, position among the flat outputs of the call) of its numbers."""
    optional_kinds: Sequence[Any] = ()
    """DTypes of the program's outputs, where the function returns them in an Optional."""
    steps_in_call: bool = False
    """Whether one call runs as many steps as it fetches elements."""
    steps_per_call: int = 0
    """How many steps a call runs, where that is known: all of them, unless the data ends."""
    calls: int = 0
    """How many calls ran several steps."""
    is_stacked: bool = False
    """Whether one call is one step that fetches an element in each iteration of a loop."""
    array_positions: Sequence[int] | None = None
    """Which arguments are the leaves of the batch; None for all."""
    batch_bytes: int = 0
    """Size of a batch that it fetched; 0 while it is not known."""
    most_waiting: int = 1
    """How many steps' batches are taken at once, where each call is one step."""
    waiting: deque[StepEntry] = field(default_factory=deque)
    """Steps whose batch has been fetched, and is to be taken from the staging area."""
    fetches_one: bool = field(init=False)
    """Whether each call is one step that fetches one element."""
    returned: slice = field(init=False)
    """Where the outputs of the program are among the flat outputs of the variant."""

    def __post_init__(self) -> None:
        variant = self.variant
        is_fetched = variant is not None and variant.batches is not None
        self.fetches_one = is_fetched and not self.is_stacked and not self.steps_in_call
        self.returned = slice(0, 0)
        if variant is not None:
            self.returned = slice(variant.n_original, variant.n_original + variant.n_returned)

    def runs_steps(self, count: int) -> None:
        """Note that each call runs `count` steps, unless the data ends.

        The batches of several calls are taken together, as long as they hold no more than
        `TAKEN_TOGETHER` single steps may: N calls of `count` steps hold `N * count * batch_bytes`.
        """
        self.steps_per_call = count
        if self.variant is not None and self.variant.batches is not None:
            calls = TAKEN_TOGETHER * SMALL_BYTES // max(1, count * self.batch_bytes)
            self.variant.batches.together = count * max(1, min(calls, TAKEN_TOGETHER))

    @property
    def together(self) -> int:
        """Steps whose small batches are taken at once."""
        if self.variant is None or self.variant.batches is None:
            return TAKEN_TOGETHER
        return self.variant.batches.together

    @property
    def has_small_batches(self) -> bool:
        """Whether its batches are known to be small enough to be taken together."""
        return 0 < self.batch_bytes < SMALL_BYTES

    def outputs_of_last(self, flat: list[Any]) -> list[Any] | None:
        """What the last of several steps in a call returned; None where the data ended before it.

        Args:
            flat: Flat outputs of the call.
        """
        return components_of(flat[0], self.optional_kinds) if len(flat) == 1 else None

    def count_returned(self) -> int | None:
        """How many steps the calls since the last count ran; None where that is not known."""
        if self.variant is None or self.variant.batches is None:
            return None
        return self.variant.batches.count_returned()

    def take(self) -> Any:
        """What steps have fetched: a vector of Optionals; None for nothing."""
        if self.variant is None or self.variant.batches is None:
            return None
        return self.variant.batches.take()


class BatchCollector:
    """Takes what steps have fetched out of the staging areas, and gives it to their entries.

    A staging area is first in, first out, and so is `RecordedFunction.waiting`: the first element
    that is taken is that of the step that has waited longest. Taking costs a call of TensorFlow, so
    small batches are left there for some steps and taken together.

    Args:
        recording: The recording.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    # After a call

    def note_call(self, recorded: RecordedFunction, entry: StepEntry) -> int:
        """Note a call that has fetched more than one element; returns how many steps it ran.

        Args:
            recorded: The function.
            entry: The entry of the call's first step.
        """
        if recorded.is_stacked:
            self._take_stacked(recorded, entry)
            return 1
        return self._note_steps(recorded, entry)

    def _note_steps(self, recorded: RecordedFunction, entry: StepEntry) -> int:
        """Note a call of several steps; their number shows in what they returned."""
        count = recorded.count_returned()
        is_whole = count is not None and 0 < count == recorded.steps_per_call
        optionals = None
        # The data may have ended within the call: an empty Optional is staged then, and is taken.
        if not is_whole or not recorded.has_small_batches:
            optionals = recorded.take()
        if count is None:
            count = _count_fetched(optionals, len(recorded.waiting))
        self._wait(recorded, entry, count)
        if optionals is not None:
            self._give(recorded, optionals, range(len(recorded.waiting)))
        elif len(recorded.waiting) >= recorded.together:
            self.take(recorded)
        recorded.calls += 1
        is_time = recorded.calls % FORGOTTEN_AFTER == 0
        if is_time and recorded.variant is not None and recorded.variant.batches is not None:
            # Taking what the steps returned would cost more than all else; a file alone needs it.
            recorded.variant.batches.forget_returned()
        return count

    def _wait(self, recorded: RecordedFunction, entry: StepEntry, count: int) -> None:
        """Queue the entries of `count` steps, of which `entry` is the first."""
        for number in range(count):
            recorded.waiting.append(entry if number == 0 else self._following(entry, number))

    def _following(self, entry: StepEntry, number: int) -> StepEntry:
        """The entry of one more step of the call that began with `entry`."""
        following = StepEntry(entry.step + number, entry.program, entry.leaves, entry.paths)
        if self._recording.ring is not None and self._recording.lifecycle.is_recording:
            self._recording.ring.add(following)
        return following

    # Taking

    def take(self, recorded: RecordedFunction) -> None:
        """Take what the steps of a function have fetched until now."""
        optionals = recorded.take()
        if optionals is not None:
            self._give(recorded, optionals, range(int(optionals.shape[0])))

    def _give(self, recorded: RecordedFunction, optionals: Any, indices: Sequence[int]) -> None:
        recording = self._recording
        # The size of small batches hardly matters: theirs is measured once.
        if indices and not recorded.has_small_batches:
            assert recorded.slot.fetch is not None
            first = components_of(optionals[indices[0]], recorded.slot.fetch.kinds) or []
            # `size_of` needs dtypes of a known size; 1 says that the size is known.
            sized = []
            for tensor in first:
                if tensor.dtype not in _WITHOUT_SIZE:
                    sized.append(tensor)
            recorded.batch_bytes = size_of(sized) or 1
            recorded.most_waiting = recorded.together if recorded.has_small_batches else 1
        ring, size_bytes = recording.ring, recorded.batch_bytes
        for index in indices:
            if recorded.waiting:
                entry = recorded.waiting.popleft()
                if ring is not None:
                    ring.fetched(entry, FetchedElement(optionals, index, size_bytes))
        if ring is not None:
            recording.keeper.learn_batch(ring, size_bytes)

    def _take_stacked(self, recorded: RecordedFunction, entry: StepEntry) -> None:
        """Take what the iterations of one call have fetched: together they are one batch."""
        optionals, fetch, ring = recorded.take(), recorded.slot.fetch, self._recording.ring
        if optionals is None or fetch is None or ring is None:
            return
        count = int(optionals.shape[0])
        recorded.batch_bytes = count * size_of(components_of(optionals[0], fetch.kinds) or [])
        ring.fetched(entry, FetchedElement(optionals, None, recorded.batch_bytes))
        self._recording.keeper.learn_batch(ring, recorded.batch_bytes)

    # Before a file is written, and after an error

    def take_all(self, recorded: RecordedFunction) -> None:
        """Take all that the steps of a function have fetched: a file is about to be written."""
        if recorded.waiting:
            self.take(recorded)
        self._take_returned(recorded)

    def _take_returned(self, recorded: RecordedFunction) -> None:
        """Give the last steps of calls that run several what they returned."""
        ring = self._recording.ring
        area = None if recorded.variant is None else recorded.variant.batches
        if ring is None or area is None or not recorded.steps_in_call:
            return
        returned = area.take_returned()
        count = 0 if returned is None else int(returned.shape[0])
        if not count:
            return
        entries = []
        for entry in ring.entries:
            if entry.program == recorded.slot.id and entry.step < self._recording.step:
                entries.append(entry)
        # The last of both belong together. With fewer entries, the first values have none.
        first = max(0, count - len(entries))
        for number, entry in enumerate(entries[-count:], first):
            entry.returned = FetchedElement(returned, number, 0)

    def keep_after_error(self, recorded: RecordedFunction, entry: StepEntry) -> None:
        """Take the batch of a step that raised: it was staged before."""
        if recorded.variant is None or recorded.variant.batches is None:
            return
        if recorded.is_stacked:
            self._take_stacked(recorded, entry)
            return
        if not recorded.steps_in_call:
            recorded.waiting.append(entry)
            self.take(recorded)
            return
        recorded.count_returned()  # the next call counts from here
        optionals = recorded.take()
        count = 0 if optionals is None else int(optionals.shape[0])
        self._wait(recorded, entry, count)
        self._give(recorded, optionals, range(count))
        self._recording.step += max(0, count - 1)  # the last one that was fetched raised


_WITHOUT_SIZE = (tf.variant, tf.resource, tf.string)


def _count_fetched(optionals: Any, n_waiting: int) -> int:
    """How many steps of the last call have fetched an element; those before it wait already.

    Where the data ended within the call, its last Optionals are empty: they are no steps.
    """
    n_staged = 0 if optionals is None else int(optionals.shape[0])
    count = n_staged - n_waiting
    while count and not bool(tf.raw_ops.OptionalHasValue(optional=optionals[n_staged - 1])):
        count -= 1
        n_staged -= 1
    return count
