"""How much of a training is kept, and how often its state is copied.

Pure: bytes and seconds in, a plan out, and a sentence where that is less than was asked for.
`Keeper` makes plans, and a `Ring` follows its plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from nanreplay.limits import readable_size, size_option

SHARE = 0.005
"""What keyframes may add to the time of the steps, on average."""
USUAL_EVERY = 32
"""Steps between keyframes where copies cost next to nothing.

A replay starts at most that far before the window.
"""
UNBOUNDED = 2**31
"""More keyframes than anybody holds."""


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """How much is kept."""

    window: int
    """Steps that can be replayed at any moment."""
    keyframe_every: int
    """Steps between keyframes; 0 keeps none."""
    lag: int = 0
    """Steps that may run before a step's check has been read; they are kept beside the window."""
    reach: int = field(init=False)
    """Steps back from the newest one that a keyframe must reach."""

    def __post_init__(self) -> None:
        # Each step asks for it.
        object.__setattr__(self, "reach", self.window + self.lag)

    @property
    def keyframes(self) -> int:
        """Keyframes held at once, so that the oldest step of the window can be reached."""
        if not self.keyframe_every:
            return 0
        return math.ceil((self.reach - 1) / self.keyframe_every) + 1

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
    """Steps between keyframes that are wanted: as given, or as few as cost at most `SHARE`."""
    limit: int
    """Bytes that batches and keyframes may hold."""
    state_bytes: int
    """Size of one keyframe."""
    batch_bytes: int
    """Size of one batch."""
    lag: int = 0
    """Steps that may run before a check is read."""
    soft_lag: int = 0
    """More steps that may run before variables are looked at, where memory allows it."""
    least_every: int = 0
    """Steps between keyframes that cost at most `SHARE`, where memory is short; 0 for `every`."""
    most_keyframes: int = UNBOUNDED
    """Keyframes that may be held at once, where they are on disk."""
    most_batches: int = UNBOUNDED
    """Batches that a file holds beside a keyframe."""

    @property
    def sizes(self) -> str:
        """The sizes, for a sentence."""
        state = f"the state has {readable_size(self.state_bytes)}"
        if not self.batch_bytes:  # the first step fetches its batch itself
            return f"{state}; how large a batch is, is not known yet"
        return f"{state}, a batch {readable_size(self.batch_bytes)}"

    def intervals(self, window: int) -> list[int]:
        """Steps between keyframes to try for a window, none of which costs more than it may."""
        least = min(self.least_every or self.every, self.every)
        halves = []
        for half in _halves(self.every)[1:]:
            if half > least:
                halves.append(half)
        # A longer interval needs fewer keyframes; a shorter one, fewer batches.
        longer = max(self.every, window + self.lag + self.soft_lag)
        return [self.every, longer, *halves, least]


def least_every_for(keyframe_s: float, step_s: float) -> int:
    """Steps between keyframes so that they add `SHARE` to the steps."""
    return max(1, math.ceil(keyframe_s / (SHARE * step_s)))


def every_for(keyframe_s: float, step_s: float, window: int) -> int:
    """Steps between keyframes so that they add at most `SHARE` to the steps.

    Not below what costs nothing anyway.
    """
    return max(min(USUAL_EVERY, window), least_every_for(keyframe_s, step_s))


def _halves(number: int) -> list[int]:
    """A number, its half, a quarter, ..., 0."""
    return [number >> shift for shift in range(number.bit_length() + 1)]


def make_plan(needs: Needs) -> RetentionPlan:
    """Choose window and interval under the limit.

    The interval shrinks as far as what the training pays allows, then the window halves, until all
    fits. When not even one step does, the interval shrinks further. Without room for a keyframe and
    two batches, only batches are kept.
    """
    batch_bytes = max(1, needs.batch_bytes)
    fitting = (needs.limit - needs.state_bytes) // batch_bytes
    if fitting < 2:
        return RetentionPlan(max(1, min(needs.window, needs.limit // batch_bytes)), 0)
    lag = min(needs.lag, fitting - 2)
    for window in _halves(needs.window)[:-1]:
        plan = _fitting_plan(needs, window, lag)
        if plan is not None:
            return plan
    # With a lag, the step that is checked lies before the newest keyframe: two are needed.
    n_keyframes = 2 if lag > 0 and needs.most_keyframes > 1 else 1
    room = (needs.limit - n_keyframes * needs.state_bytes) // batch_bytes - lag
    if room >= 1:
        return RetentionPlan(1, min(needs.every, room, needs.most_batches), lag)
    return RetentionPlan(1, min(needs.every, fitting, needs.most_batches), 0)


def _fitting_plan(needs: Needs, window: int, lag: int) -> RetentionPlan | None:
    """The plan for a window with the most lag that fits."""
    for soft_lag in _halves(needs.soft_lag):
        for every in needs.intervals(window):
            plan = RetentionPlan(window, every, lag + soft_lag)
            if plan.keyframes > needs.most_keyframes or every > needs.most_batches:
                continue
            if plan.size_bytes(needs.state_bytes, needs.batch_bytes) <= needs.limit:
                return plan
    return None


def ample_plan(needs: Needs) -> RetentionPlan:
    """What keeps the window that was asked for, with keyframes that cost as little as they may.

    What they cost is measured as the training goes on, so that some more room is left.
    """
    every = needs.every if not needs.least_every else math.ceil(1.5 * needs.every)
    return RetentionPlan(needs.window, every, needs.lag)


@dataclass(frozen=True, slots=True)
class Remedy:
    """The limits with which all is kept that was asked for."""

    memory_bytes: int
    """The memory_limit."""
    disk_bytes: int | None
    """The disk_limit; None where there is room enough."""
    is_free: bool
    """Whether this machine has as much."""

    def sentence(self, gains: str) -> str:
        """Say what would do, and what it gives: verbs that follow `it`."""
        settings = f'memory_limit="{size_option(self.memory_bytes)}"'
        if self.disk_bytes is not None:
            settings += f', disk_limit="{size_option(self.disk_bytes)}"'
        if self.is_free:
            return f"With {settings} it {gains}."
        return f"More than is free here, {settings}, is needed for that."


def shortfall(
    needs: Needs,
    plan: RetentionPlan,
    limit: str,
    share: float | None,
    remedy: Callable[[], Remedy],
) -> str | None:
    """A sentence when a smaller window than was asked for fits, or costs more time.

    Args:
        needs: What was asked for.
        plan: What fits, with keyframes.
        limit: What limits it, such as `memory_limit of 24 MiB`.
        share: What the plan's keyframes add to the time of the steps, where it is known.
        remedy: Says what would do.
    """
    is_costly = share is not None and share > 1.5 * SHARE and plan.keyframe_every < needs.every
    if plan.window >= needs.window and not is_costly:
        return None
    parts, gains = [], []
    if plan.window < needs.window:
        most = min(plan.batches, needs.window)
        steps = f"{plan.window} to {most}" if most > plan.window else f"{most}"
        parts.append(f"of the last {needs.window} steps a file has {steps}")
        gains.append(f"has {needs.window}")
    if is_costly:
        parts.append(
            f"a keyframe every {plan.keyframe_every} steps adds about {share:.0%} to the time of "
            "the training"
        )
        gains.append("takes less time")
    return (
        f"{limit} holds {plan.batches} batches: {', and '.join(parts)} ({needs.sizes}). "
        f"{remedy().sentence(' and '.join(gains))}"
    )


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why nothing that is recorded could be replayed; sizes in bytes."""

    memory: str | None
    """What memory it has, such as `memory_limit of 1 MiB`, where that is too little."""
    least_memory: int
    """The memory_limit that would do."""
    disk: str | None
    """What disk it has, where that is too little."""
    least_disk: int
    """What a file that can be replayed would take."""
    is_disk_given: bool
    """Whether the user said what a file may take; else the disk has no more room."""

    def sentence(self, needs: Needs) -> str:
        """Say it once, with one setting for all, which is enough."""
        settings = []
        if self.memory is not None:
            settings.append(f'memory_limit="{size_option(self.least_memory)}"')
        if self.disk is not None and self.is_disk_given:
            settings.append(f'disk_limit="{size_option(self.least_disk)}"')
        elif self.disk is not None:
            settings.append(f"a path on a disk with {size_option(self.least_disk)} free")
        short = [each for each in (self.memory, self.disk) if each is not None]
        verb = "does not hold" if len(short) == 1 else "do not hold"
        return (
            f"{' and '.join(short)} {verb} one copy of the state and two batches ({needs.sizes}): "
            "the timeline and the last batches are recorded, and the capture cannot be replayed. "
            f"With {', '.join(settings)} it could."
        )
