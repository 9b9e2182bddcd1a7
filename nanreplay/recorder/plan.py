"""How much of a training is kept, and how often its state is copied. Pure: bytes and seconds in, a plan out."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHARE = 0.005
"""What keyframes may add to the time of the steps, on average."""
USUAL_EVERY = 32
"""Steps between keyframes where copies cost next to nothing: a replay starts at most that far before the window."""
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is kept."""

    window: int
    """Steps that can be replayed at any moment."""
    keyframe_every: int
    """Steps between keyframes; 0 keeps none."""
    lag: int = 0
    """Steps that may run before a step's check has been read; they are kept on top of the window."""

    @property
    def reach(self) -> int:
        """Steps back from the newest one that a keyframe must reach."""
        return self.window + self.lag

    @property
    def keyframes(self) -> int:
        """Keyframes held at once, so that the oldest step of the window can be reached."""
        return -(-(self.reach - 1) // self.keyframe_every) + 1 if self.keyframe_every else 0

    @property
    def batches(self) -> int:
        """Batches held at once."""
        return self.reach - 1 + max(1, self.keyframe_every)

    def size_bytes(self, state_bytes: int, batch_bytes: int) -> int:
        """What it may hold at once."""
        return self.keyframes * state_bytes + self.batches * batch_bytes


@dataclass(frozen=True, slots=True)
class Needs:
    """What is asked for, and what there is."""

    window: int
    """Steps that should be kept."""
    every: int
    """Steps between keyframes that are wanted: as given, or as few as cost no more than `SHARE`."""
    limit: int
    """Bytes that batches and keyframes may hold."""
    state_bytes: int
    """Size of one keyframe."""
    batch_bytes: int
    """Size of one batch."""
    lag: int = 0
    """Steps that may run before a check is read."""
    soft_lag: int = 0
    """More steps that may run before variables are looked at, where memory does not ask for looking more often."""
    least_every: int = 0
    """Steps between keyframes that cost no more than `SHARE`, where memory is short; 0 where `every` is all that is known."""

    def intervals(self, window: int) -> list[int]:
        """Steps between keyframes to try for a window, none of which costs more than it may."""
        least = min(self.least_every or self.every, self.every)
        halves = [half for shift in range(1, self.every.bit_length()) if (half := self.every >> shift) > least]
        longer = max(self.every, window + self.lag + self.soft_lag)  # needs fewer keyframes; a shorter one, fewer batches
        return [self.every, longer, *halves, least]


def least_every_for(keyframe_s: float, step_s: float) -> int:
    """Steps between keyframes so that they add `SHARE` to the steps."""
    return max(1, math.ceil(keyframe_s / (SHARE * step_s)))


def every_for(keyframe_s: float, step_s: float, window: int) -> int:
    """Steps between keyframes so that they add at most `SHARE` to the steps; not below what costs nothing anyway."""
    return max(min(USUAL_EVERY, window), least_every_for(keyframe_s, step_s))


def _halves(number: int) -> list[int]:
    """A number, its half, a quarter, ..., 0."""
    return [number >> shift for shift in range(number.bit_length() + 1)]


def make_plan(needs: Needs) -> Plan:
    """Choose window and interval under the limit.

    The interval shrinks as far as what the training pays allows, then the window halves, until all fits. When not even one
    step does, the interval shrinks further. Without room for a keyframe and two batches, only batches are kept.
    """
    fitting = (needs.limit - needs.state_bytes) // max(1, needs.batch_bytes)
    if fitting < 2:
        return Plan(max(1, min(needs.window, needs.limit // max(1, needs.batch_bytes))), 0)
    lag = min(needs.lag, fitting - 2)
    window = needs.window
    while True:
        for soft in _halves(needs.soft_lag):
            for every in needs.intervals(window):
                plan = Plan(window, every, lag + soft)
                if plan.size_bytes(needs.state_bytes, needs.batch_bytes) <= needs.limit:
                    return plan
        if window == 1:
            break
        window //= 2
    two_keyframes = lag > 0  # the step that is checked lies before the newest keyframe
    room = (needs.limit - (1 + two_keyframes) * needs.state_bytes) // max(1, needs.batch_bytes) - lag
    return Plan(1, min(needs.every, room), lag) if room >= 1 else Plan(1, min(needs.every, fitting), 0)


def shortfall(needs: Needs, plan: Plan, memory_limit: int, share: float | None) -> str | None:
    """A sentence when less than was asked for fits, and what would fit more.

    Args:
        needs: What was asked for.
        plan: What fits.
        memory_limit: The limit as it was given; the timeline takes a little of it.
        share: What the plan's keyframes add to the time of the steps, where it is known.
    """
    sizes = f"the state has {needs.state_bytes / MIB:.1f} MiB, a batch {needs.batch_bytes / MIB:.1f} MiB"
    limit = f"memory_limit of {memory_limit / MIB:.0f} MiB"
    if not plan.keyframe_every:
        least = memory_limit - needs.limit + needs.state_bytes + 2 * needs.batch_bytes
        return (
            f"{limit} does not hold one copy of the state and two batches ({sizes}): the timeline and the last {plan.window} batches "
            f"are recorded, and the capture cannot be replayed. With memory_limit={math.ceil(least / MIB)} MiB it could."
        )
    if share is not None and share > 1.5 * SHARE and plan.keyframe_every < needs.every:
        return (
            f"{limit} holds {plan.batches} batches, so that a keyframe is needed every {plan.keyframe_every} steps, which adds about "
            f"{share:.0%} to the time of the training: {sizes}. A larger memory_limit costs less time."
        )
    if plan.window < needs.window:
        return f"{limit} holds a window of {plan.window} instead of {needs.window} steps: {sizes}."
    return None
