"""What of a recording fits the disk limit. Pure: sizes in, steps out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanreplay.recorder.plan import MIB


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


def fit_disk(sizes: Sizes, limit: int) -> Share:
    """Leave out what a replay gives again, then what lies farthest back, until the rest fits `limit`.

    First weights and gradients, oldest step first; then the oldest keyframe with the batches that only it reaches. When
    not even the way from the newest keyframe to the last step fits, the last batches are written, without a keyframe.
    """
    keyframes, batches, full = dict(sizes.keyframes), dict(sizes.batches), dict(sizes.full)
    room = limit - sizes.other
    over = sum(keyframes.values()) + sum(batches.values()) + sum(full.values()) - room
    while full and over > 0:
        over -= full.pop(min(full))
    while len(keyframes) > 1 and over > 0:
        over -= keyframes.pop(min(keyframes))
        for step in [step for step in batches if step < min(keyframes)]:
            over -= batches.pop(step)
    replayable = bool(keyframes)
    if over > 0:
        over -= sum(keyframes.values())
        keyframes.clear()
    while batches and over > 0:
        over -= batches.pop(min(batches))
    said = [
        *_missing("the weights and gradients of", sizes.full, full),
        *_missing("the keyframes at", sizes.keyframes, keyframes),
        *_missing("the batches of", sizes.batches, batches),
    ]
    left_out = [f"disk_limit of {limit / MIB:.0f} MiB: {', '.join(said)} were left out."] if said else []
    if replayable and not keyframes:
        needed = sizes.other + sizes.keyframes[max(sizes.keyframes)]
        needed += sum(size for step, size in sizes.batches.items() if step >= max(sizes.keyframes))
        left_out.append(f"The capture cannot be replayed; with disk_limit={-(-needed // MIB)} MiB the failing step could.")
    return Share(frozenset(keyframes), frozenset(batches), frozenset(full), left_out)


def _missing(what: str, whole: Mapping[int, int], kept: Mapping[int, int]) -> list[str]:
    steps = sorted(set(whole) - set(kept))
    if not steps:
        return []
    return [f"{what} step {steps[0]}" if len(steps) == 1 else f"{what} {len(steps)} steps ({steps[0]} to {steps[-1]})"]
