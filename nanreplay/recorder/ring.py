"""The ring: the batches of the last steps by reference, and keyframes of all state."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(slots=True)
class StepEntry:
    """One step of the window."""

    step: int
    program: str
    """Id of its program; "" when the step ran eagerly and has none yet."""
    leaves: Sequence[Any]
    """Arrays of the flattened batch, by reference."""
    paths: Sequence[str]
    fingerprint: Any = None
    """The watch's values, a numpy vector."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is kept."""

    window: int
    """Steps whose batches are kept."""
    keyframe_every: int
    """Steps between keyframes."""

    @property
    def keyframes(self) -> int:
        """Keyframes held at once, so that the oldest kept step can be reached."""
        return -(-self.window // self.keyframe_every) + 1


@dataclass(slots=True)
class Ring:
    """Batches of the last `plan.window` steps and the keyframes that reach them."""

    plan: Plan
    entries: deque[StepEntry] = field(default_factory=deque)
    keyframes: dict[int, Mapping[int, Any]] = field(default_factory=dict)

    def add(self, entry: StepEntry) -> None:
        """Append a step and forget what no kept step needs."""
        self.entries.append(entry)
        while len(self.entries) > self.plan.window + self.plan.keyframe_every:
            self.entries.popleft()
        self._forget()

    def add_keyframe(self, step: int, values: Mapping[int, Any]) -> None:
        """Keep the state just before `step`."""
        self.keyframes[step] = values
        self._forget()

    def _forget(self) -> None:
        """Drop keyframes and batches that no step of the window needs; the keyframe just before the window stays."""
        if not self.entries or not self.keyframes:
            return
        oldest = self.entries[-1].step - self.plan.window + 1
        base = max((step for step in self.keyframes if step <= oldest), default=min(self.keyframes))
        for step in [step for step in self.keyframes if step < base]:
            del self.keyframes[step]
        while self.entries and self.entries[0].program and self.entries[0].step < base:  # eager steps are kept for their batches
            self.entries.popleft()

    def held(self) -> list[StepEntry]:
        """The steps of the window, with those that reach back to its oldest keyframe; all of them in an eager loop."""
        base = min(self.keyframes, default=None)
        eager = any(not entry.program for entry in self.entries)
        return [entry for entry in self.entries if base is not None and (entry.step >= base or eager)]


def plan_ring(*, state_bytes: int, batch_bytes: int, window: int, keyframe_every: int | None, memory_limit: int) -> tuple[Plan, str | None]:
    """Choose how often to copy the state so that the ring stays under the limit.

    Keyframes are `window / every + 1` copies of the state, batches at most `window + every`. The interval starts at the
    window, at most 32 steps, and doubles up to the window; then the window halves.

    Returns:
        The plan, and a sentence when less than was asked for fits.
    """
    asked = window
    while True:
        every = keyframe_every or max(1, min(32, window))
        while True:
            plan = Plan(window, every)
            if plan.keyframes * state_bytes + (window + every) * batch_bytes <= memory_limit:
                return plan, None if window == asked else _shrunk(asked, window, state_bytes, batch_bytes, memory_limit)
            if keyframe_every or every >= window:
                break
            every = min(window, every * 2)
        if window == 1:
            return Plan(1, 1), _shrunk(asked, 1, state_bytes, batch_bytes, memory_limit)
        window = max(1, window // 2)


def _shrunk(asked: int, window: int, state_bytes: int, batch_bytes: int, memory_limit: int) -> str:
    mib = 2**20
    return (
        f"memory_limit of {memory_limit / mib:.0f} MiB holds a window of {window} instead of {asked} steps: "
        f"the state has {state_bytes / mib:.1f} MiB, a batch {batch_bytes / mib:.1f} MiB."
    )


def size_of(leaves: Sequence[Any]) -> int:
    """Size in bytes of a flattened batch."""
    return sum(int(np.prod(leaf.shape)) * getattr(leaf.dtype, "size", getattr(leaf.dtype, "itemsize", 8)) for leaf in leaves)
