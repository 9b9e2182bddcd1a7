"""Telling a fault of the machine, or a race, from a bug: does the recording depart from what its own program computes?

A fault shows as a step, or a stretch between two steps, after which the recording differs from every replay although
everything before it came out bit for bit. Differences from the first replayed step on are another machine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanreplay.capture.arrays import as_array
from nanreplay.recorder.environment import describe_environment
from nanreplay.records import VariableInfo
from nanreplay.replay.session import Replay, StepResult
from nanreplay.replay.step_results import Difference

_FEW = 4
"""Elements of a variable that bits may have flipped in; a callback changes more."""
_GROSS = 100.0
"""Ratio of a recorded to a replayed loss or sum of squares that neither rounding nor a loop's own changes of weights explain."""
_SAME_MACHINE = ("tensorflow", "machine", "processor", "onednn", "devices")
"""Facts of the environment that decide which kernels run."""


@dataclass(frozen=True, slots=True)
class Flip:
    """Bits of a variable that changed between two steps."""

    step: int
    """The step before which the changed state was copied."""
    variable: int
    path: str
    index: tuple[int, ...]
    """The first element that changed."""
    elements: int
    bits: int


@dataclass(slots=True)
class KeyframeWatch:
    """Compares the state that a replay reaches with the next keyframe's; for `Replay.run_window(at_keyframe=...)`."""

    infos: Sequence[VariableInfo]
    flips: list[Flip] = field(default_factory=list)

    def __call__(
        self, step: int, replayed: Mapping[int, Any], held: Mapping[int, Any]
    ) -> Mapping[int, Any]:
        """Note flips of single bits; everything is set as the keyframe has it."""
        for index, value in held.items():
            info = self.infos[index]
            if _is_trained(info) and "float" in info.dtype and index in replayed:
                found = _flip(as_array(replayed[index]), as_array(value))
                if found is not None:
                    self.flips.append(Flip(step, index, info.path, *found))
        return held


def _is_trained(info: VariableInfo) -> bool:
    """Whether only steps change it; scalars such as a learning rate are what callbacks set."""
    return info.role == "trainable" or (info.role in ("state", "optimizer") and bool(info.shape))


def _flip(replayed: Any, held: Any) -> tuple[tuple[int, ...], int, int] | None:
    """Return (first index, elements, bits) when a few bits differ; None when nothing or too much does."""
    if replayed.shape != held.shape or replayed.dtype != held.dtype:
        return None
    unsigned = np.dtype(f"u{held.dtype.itemsize}")
    changed = np.atleast_1d(np.ascontiguousarray(replayed)).view(unsigned) ^ np.atleast_1d(
        np.ascontiguousarray(held)
    ).view(unsigned)
    where = np.argwhere(changed)
    if not 0 < len(where) <= _FEW:
        return None
    bits = sum(int(each).bit_count() for each in changed[changed != 0])
    if (
        bits > 1 and len(where) >= changed.size
    ):  # the whole of a small variable: more likely set than flipped
        return None
    return tuple(int(i) for i in where[0]) if held.ndim else (), len(where), bits


def find_departure(replay: Replay, results: Sequence[StepResult]) -> int | None:
    """Return the step at which the recording departs from its replay as only a fault explains it; None when there is none.

    Args:
        replay: The capture's replay.
        results: The replayed steps without gaps, the failing one last; state was taken from every keyframe.
    """
    departures = _departures(results, set(replay.capture.keyframe_steps))
    if (
        len(departures) != 1
    ):  # again after a keyframe has put the state right: something outside changes it, step after step
        return None
    step = departures[0]
    first, failing = results[0].step, results[-1].step
    found = next(each for each in results if each.step == step)
    if step == first:
        return (
            step
            if _is_same_machine(replay) and (step == failing or _is_gross(found.differences))
            else None
        )
    if not any(each.bit_exact for each in results if each.step < step):
        return None
    return step if step == failing or _is_gross(found.differences) else None


def _departures(results: Sequence[StepResult], keyframes: set[int]) -> list[int]:
    """Steps from which the recording is another one, each until the next keyframe."""
    found: list[int] = []
    same = True
    for each in results:
        same = same or each.step in keyframes
        if same and each.bit_exact is False:
            found.append(each.step)
            same = False
    return found


def _is_gross(differences: Sequence[Difference]) -> bool:
    return any(_ratio(abs(each.recorded), abs(each.replayed)) >= _GROSS for each in differences)


def _ratio(one: float, other: float) -> float:
    low, high = min(one, other), max(one, other)
    return float("inf") if not np.isfinite([low, high]).all() or low == 0 else high / low


def _is_same_machine(replay: Replay) -> bool:
    here = describe_environment()
    return all(
        replay.capture.metadata.get(fact, here[fact]) == here[fact] for fact in _SAME_MACHINE
    )


def replay_without(
    replay: Replay, results: Sequence[StepResult], departure: int | None, flips: Sequence[Flip]
) -> list[StepResult]:
    """Replay the same steps once more, and leave out what a fault put into later keyframes.

    Args:
        replay: The capture's replay.
        results: The steps.
        departure: A step from which on keyframes hold what a fault made.
        flips: Variables that keyframes hold with flipped bits.
    """
    infos = replay.variables
    flipped = {(flip.step, flip.variable) for flip in flips}
    spoilt_from = min(
        step for step in (departure, *(flip.step for flip in flips)) if step is not None
    )

    def without(
        step: int, replayed: Mapping[int, Any], held: Mapping[int, Any]
    ) -> Mapping[int, Any]:
        return {
            index: value
            for index, value in held.items()
            if (step, index) not in flipped
            and not (step > spoilt_from and _is_trained(infos[index]))
        }

    return replay.run_window(
        "recorded", first=results[0].step, last=results[-1].step, at_keyframe=without
    )


def reason_of(departure: int | None, flips: Sequence[Flip], failing: int) -> str:
    """Say in a sentence or two what departs and where."""
    if flips:
        flip = flips[0]
        what = "A bit" if flip.bits == 1 else f"{flip.bits} bits"
        where = f"`{flip.path}`" + (f" [{', '.join(map(str, flip.index))}]" if flip.index else "")
        return f"{what} of {where} flipped between steps {flip.step - 1} and {flip.step}."
    readable = (
        "1 step" if failing - (departure or 0) == 1 else f"{failing - (departure or 0)} steps"
    )
    if departure is None or departure == failing:
        return f"The recording departs from every replay at step {failing}."
    return f"The recording departs from every replay at step {departure} and turns non-finite {readable} later."
