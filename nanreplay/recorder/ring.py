"""The ring: the batches of the last steps by reference, and keyframes of all state.

`Keeper` makes its plan and fills it; files are written from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanreplay.recorder.retention_plan import UNBOUNDED, RetentionPlan


@dataclass(slots=True)
class FetchedElement:
    """What a step fetched from an iterator by itself, not taken apart yet."""

    optionals: Any
    """A vector of Optionals, a variant tensor."""
    index: int | None
    """Which of them; None for all, one after the other along a first axis."""
    size_bytes: int


@dataclass(slots=True)
class StepEntry:
    """One step of the window."""

    step: int
    program: str
    """Id of its program; "" when the step ran eagerly and has none yet."""
    leaves: Sequence[Any]
    """Arrays of the flattened batch, by reference."""
    paths: Sequence[str]
    names_data: bool = False
    """Whether these begin with variables of the user's loop."""
    fingerprint: Mapping[str, Any] | None = None
    """What was read of the step, by name of the element: `loss:0`, `variable_sum:3`."""
    fed: Sequence[Any] = ()
    """Outputs of ops that another run would not repeat, by reference."""
    overrides: Mapping[int, Any] = field(default_factory=dict)
    """Variables that something outside the step had set just before it, by reference."""
    element: FetchedElement | None = None
    """Stands for `leaves` where the step fetched its batch."""
    returned: FetchedElement | None = None
    """What the step returned, where it was one of several in a call.

    It stands for the step's numbers in `fingerprint`.
    """


@dataclass(slots=True)
class Ring:
    """Batches of the last `plan.window` steps and the keyframes that reach them.

    A step can be replayed if a keyframe lies before it, with all batches from there on. Steps and
    keyframes are in the order of time.
    """

    plan: RetentionPlan
    entries: deque[StepEntry] = field(default_factory=deque)
    keyframes: dict[int, Mapping[int, Any]] = field(default_factory=dict)
    batch_bytes: int = 0
    """What the entries hold together; a tensor that several steps were given counts once."""
    _sizes: dict[int, int] = field(default_factory=dict)
    """Bytes of each leaf that is held, by its id."""
    _shared: dict[int, int] = field(default_factory=dict)
    """How many entries hold the leaf of an id, where that is more than one."""

    # Filling

    def add(self, entry: StepEntry) -> None:
        """Append a step and forget what no kept step needs."""
        self.entries.append(entry)
        self._count(entry.leaves)
        # Without keyframes, or in an eager loop, the number of batches alone says what may go.
        if not self.keyframes or not entry.program:
            while len(self.entries) > self.plan.batches:
                self._drop_oldest()
        self._forget()

    def add_keyframe(self, step: int, values: Mapping[int, Any]) -> None:
        """Keep the state just before `step`."""
        self.keyframes[step] = values
        self._forget()

    def hold(self, entry: StepEntry, fed: Sequence[Any]) -> None:
        """Keep outputs of a step's ops with its batch."""
        entry.fed = fed
        self._count(fed)

    def extend(self, entry: StepEntry, leaves: Sequence[Any], paths: Sequence[str]) -> None:
        """Keep more arrays as part of a step's batch: the step took them from elsewhere."""
        entry.leaves, entry.paths = [*entry.leaves, *leaves], [*entry.paths, *paths]
        if self.entry(entry.step) is entry:
            self._count(leaves)

    def fetched(self, entry: StepEntry, element: FetchedElement) -> None:
        """Keep what a step fetched by itself."""
        entry.element = element
        if self.entry(entry.step) is entry:
            self.batch_bytes += element.size_bytes

    def override(self, values: Mapping[int, Any]) -> None:
        """Keep what something outside had set before the last step."""
        self.entries[-1].overrides = values
        self._count(list(values.values()))

    def _count(self, tensors: Sequence[Any]) -> None:
        for tensor in tensors:
            key = id(tensor)
            if key in self._sizes:
                self._shared[key] = self._shared.get(key, 1) + 1
            else:
                self._sizes[key] = size_bytes = _size_of(tensor)
                self.batch_bytes += size_bytes

    # Looking

    def entry(self, step: int) -> StepEntry | None:
        """The entry of a step, if it is still held."""
        index = step - self.entries[0].step if self.entries else -1
        return self.entries[index] if 0 <= index < len(self.entries) else None

    def held(self, last: int) -> list[StepEntry]:
        """The steps up to `last` that a keyframe reaches.

        All of them in an eager loop, or where no keyframe is kept.
        """
        base = min(self.keyframes, default=0)
        is_eager = any(not entry.program for entry in self.entries)
        replayable = []
        for entry in self.entries:
            if entry.step <= last and (entry.step >= base or is_eager):
                replayable.append(entry)
        return replayable

    # Forgetting

    def make_room(
        self, state_bytes: int, limit: int, *, keyframe: bool, most: int = UNBOUNDED
    ) -> bool:
        """Forget the oldest keyframes, and the batches that only they reach, until all fits.

        Args:
            state_bytes: Size of a keyframe.
            limit: Bytes that batches and keyframes may hold.
            keyframe: Whether one more keyframe is about to be added, and the last one that is held
                may go for it.
            most: Keyframes that may be held at once.

        Returns:
            Whether everything fits now.
        """
        fewest = 0 if keyframe else 1
        n_keyframes = len(self.keyframes) + keyframe
        while len(self.keyframes) > fewest:
            if n_keyframes <= most and n_keyframes * state_bytes + self.batch_bytes <= limit:
                break
            del self.keyframes[min(self.keyframes)]
            n_keyframes -= 1
            self._drop_unreachable(min(self.keyframes, default=None))
        return n_keyframes * state_bytes + self.batch_bytes <= limit

    def drop_from(self, step: int) -> None:
        """Forget `step` and all after it."""
        while self.entries and self.entries[-1].step >= step:
            self._release(self.entries.pop())
        for number in [number for number in self.keyframes if number >= step]:
            del self.keyframes[number]

    def _forget(self) -> None:
        """Drop what no step of the window needs; the keyframe just before the window stays.

        With keyframes before steps 0, 4 and 8 and a window of steps 6 to 9, the keyframe of 0 goes
        with the steps 0 to 3: the one of 4 reaches the window.
        """
        if not self.entries or not self.keyframes:
            return
        oldest = self.entries[-1].step - self.plan.reach + 1
        keyframes = iter(self.keyframes)
        first, second = next(keyframes), next(keyframes, None)
        is_first_needed = second is None or second > oldest
        if is_first_needed and self.entries[0].step >= first:
            return  # as in nearly every step
        reaching = []
        for step in self.keyframes:
            if step <= oldest:
                reaching.append(step)
        base = max(reaching, default=min(self.keyframes))
        for step in [step for step in self.keyframes if step < base]:
            del self.keyframes[step]
        self._drop_unreachable(base)

    def _drop_unreachable(self, base: int | None) -> None:
        """Drop the steps before the keyframe `base`, all when there is none.

        Eager steps are kept for their batches.
        """
        while self.entries and self.entries[0].program:
            if base is not None and self.entries[0].step >= base:
                return
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._release(self.entries.popleft())

    def _release(self, entry: StepEntry) -> None:
        if entry.element is not None:
            self.batch_bytes -= entry.element.size_bytes
        for leaf in (*entry.leaves, *entry.fed, *entry.overrides.values()):
            n_holders = self._shared.pop(id(leaf), 1) - 1
            if n_holders > 1:
                self._shared[id(leaf)] = n_holders
            elif not n_holders:
                self.batch_bytes -= self._sizes.pop(id(leaf))


def size_of(leaves: Sequence[Any]) -> int:
    """Size in bytes of a flattened batch."""
    return sum(map(_size_of, leaves))


def _size_of(leaf: Any) -> int:
    if isinstance(leaf, np.ndarray):
        return leaf.nbytes
    return int(leaf.shape.num_elements()) * int(leaf.dtype.size)
