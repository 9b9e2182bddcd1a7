"""Telling a fault of the machine, or a race, from a bug.

Does the recording depart from what its own program computes? A fault shows as a step, or a
stretch between two steps, after which the recording differs from every replay although everything
before it came out bit for bit. Differences from the first replayed step on are another machine's.
`verdict` decides by this whether an incident was transient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanreplay.capture.arrays import as_array
from nanreplay.program.fingerprint import Layout
from nanreplay.recorder.environment import describe_environment
from nanreplay.records import VariableInfo
from nanreplay.replay.session import Replay, StepResult
from nanreplay.replay.step_results import Difference

_FEW = 4
"""Elements of a variable that bits may have flipped in; a callback changes more."""
_GROSS = 100.0
"""Ratio of a recorded to a replayed loss or sum of squares that nothing but a fault explains.

Neither rounding nor a loop's own changes of weights come near it.
"""
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
    is_gross: bool = True
    """Whether the first of them became another number altogether, not a near one."""


@dataclass(slots=True)
class KeyframeComparison:
    """Compares the state that a replay reaches with the next keyframe's.

    For `Replay.run_window(at_keyframe=...)`.
    """

    infos: Sequence[VariableInfo]
    flips: list[Flip] = field(default_factory=list)
    differing: set[int] = field(default_factory=set)
    """Steps whose keyframe has another weight than the replay reached."""

    def __call__(
        self, step: int, replayed: Mapping[int, Any], held: Mapping[int, Any]
    ) -> Mapping[int, Any]:
        """Note flips of single bits; everything is set as the keyframe has it."""
        for index, value in held.items():
            info = self.infos[index]
            if info.is_trained and "float" in info.dtype and index in replayed:
                reached, kept = as_array(replayed[index]), as_array(value)
                flip = _flip(reached, kept)
                if flip is not None or not np.array_equal(reached, kept, equal_nan=True):
                    self.differing.add(step)
                if flip is not None:
                    self.flips.append(Flip(step, index, info.path, *flip))
        return held


def believable(
    shown: KeyframeComparison, replay: Replay, results: Sequence[StepResult]
) -> list[Flip]:
    """Return the flips that are no rounding of another machine, nor set between steps.

    The steps since the keyframe before must have come out bit for bit. On another machine a small
    variable may differ in a few last bits all the same, which no loss shows. Where weights differ
    at several keyframes, something outside of the step sets them, again and again.

    Args:
        shown: What keyframes showed.
        replay: The capture's replay.
        results: The replayed steps.
    """
    keyframes = replay.capture.keyframe_steps
    is_here = bool(shown.flips) and is_same_machine(replay)
    if is_here and len(shown.differing) > 1:
        return []
    kept = []
    for flip in shown.flips:
        base = max((step for step in keyframes if step < flip.step), default=0)
        between = []
        for result in results:
            if base <= result.step < flip.step:
                between.append(result)
        is_exact = all(result.bit_exact is not False for result in between)
        if is_exact and (is_here or flip.is_gross):
            kept.append(flip)
    return kept


def _flip(replayed: Any, held: Any) -> tuple[tuple[int, ...], int, int, bool] | None:
    """Return (first index, elements, bits, whether gross) of a few bits; None for none or more."""
    if replayed.shape != held.shape or replayed.dtype != held.dtype:
        return None
    changed = _as_unsigned(replayed) ^ _as_unsigned(held)
    indices = np.argwhere(changed)
    if not 0 < len(indices) <= _FEW:
        return None
    bits = sum(int(element).bit_count() for element in changed[changed != 0])
    is_whole = len(indices) >= changed.size
    if bits > 1 and is_whole:  # a small variable: more likely set than flipped
        return None
    first = tuple(map(int, indices[0])) if held.ndim else ()
    old, new = float(replayed[first]), float(held[first])
    is_gross = old * new < 0 or _ratio(abs(old), abs(new)) >= _GROSS
    return first, len(indices), bits, is_gross


def _as_unsigned(array: Any) -> Any:
    """Return the bits of an array's elements as unsigned integers; a scalar has one axis."""
    unsigned = np.dtype(f"u{array.dtype.itemsize}")
    return np.atleast_1d(np.ascontiguousarray(array)).view(unsigned)


def find_departure(replay: Replay, results: Sequence[StepResult]) -> int | None:
    """Return the step at which the recording departs from its replay as only a fault explains it.

    Args:
        replay: The capture's replay.
        results: The replayed steps without gaps, the failing one last; state was taken from every
            keyframe.

    Returns:
        The step; None when there is none.
    """
    capture = replay.capture
    departures = _departures(results, {*capture.keyframe_steps, *capture.state_steps})
    # More than one: it departs again after a keyframe has put the state right. So something
    # outside of the step changes the state, step after step.
    if len(departures) != 1:
        return None
    step = departures[0]
    first, failing = results[0].step, results[-1].step
    departing = next(result for result in results if result.step == step)
    if step != failing and not _is_gross(departing.differences):
        return None
    if step == first:
        return step if is_same_machine(replay) else None
    return step if any(result.bit_exact for result in results if result.step < step) else None


def _departures(results: Sequence[StepResult], keyframes: set[int]) -> list[int]:
    """Steps from which the recording is another one, each until the next keyframe."""
    departures: list[int] = []
    is_same = True
    for result in results:
        is_same = is_same or result.step in keyframes
        if is_same and result.bit_exact is False:
            departures.append(result.step)
            is_same = False
    return departures


def _is_gross(differences: Sequence[Difference]) -> bool:
    return any(_ratio(abs(pair.recorded), abs(pair.replayed)) >= _GROSS for pair in differences)


def _ratio(one: float, other: float) -> float:
    low, high = min(one, other), max(one, other)
    return float("inf") if not np.isfinite([one, other]).all() or low == 0 else high / low


def is_same_machine(replay: Replay) -> bool:
    """Whether this machine runs the same kernels; what the capture does not tell counts as same."""
    here = describe_environment()
    recorded = replay.capture.metadata
    return all(recorded.get(fact, here[fact]) == here[fact] for fact in _SAME_MACHINE)


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
    fault_steps = [flip.step for flip in flips]
    if departure is not None:
        fault_steps.append(departure)
    spoilt_from = min(fault_steps)

    def without_fault(
        step: int, replayed: Mapping[int, Any], held: Mapping[int, Any]
    ) -> Mapping[int, Any]:
        kept: dict[int, Any] = {}
        for index, value in held.items():
            # a mean of losses goes on from what the fault made of them, unless it was reset
            is_mean = infos[index].role == "metric" and bool(np.any(as_array(value)))
            is_spoilt = step > spoilt_from and (infos[index].is_trained or is_mean)
            if (step, index) not in flipped and not is_spoilt:
                kept[index] = value
        return kept

    return replay.run_window(
        "recorded",
        first=results[0].step,
        last=results[-1].step,
        at_keyframe=without_fault,
        takes_state=False,
    )


def reason_of(replay: Replay, departure: int | None, flips: Sequence[Flip]) -> str:
    """Say in a sentence or two what departs and where.

    Args:
        replay: The capture's replay.
        departure: The step at which the recording departs, None where it is not known.
        flips: Flipped bits; they are told instead where there are some.
    """
    failing = replay.incident.step
    if flips:
        flip = flips[0]
        bits = "A bit" if flip.bits == 1 else f"{flip.bits} bits"
        where = f"`{flip.path}`" + (f" [{', '.join(map(str, flip.index))}]" if flip.index else "")
        return f"{bits} of {where} flipped between steps {flip.step - 1} and {flip.step}."
    if departure is None:
        departure = failing
    steps = f"{departure}"
    if _left_variables_out(replay, departure - 1):
        steps = f"{departure - 1} or {departure}"
    told = f"The recording departs from every replay at step {steps}"
    later = failing - departure
    if not later:
        return f"{told}."
    if steps != f"{departure}":
        return f"{told} and turns non-finite at step {failing}."
    return f"{told} and turns non-finite {'1 step' if later == 1 else f'{later} steps'} later."


def _left_variables_out(replay: Replay, step: int) -> bool:
    """Whether a step was recorded without sums of its variables: the next one shows their fault."""
    if step not in replay.steps:
        return False
    layout = Layout.parse(replay.signature(step).watch_layout)
    recorded = replay.batch(step).fingerprint
    if recorded is None or np.shape(recorded) != (len(layout.names),):
        return False
    return not bool(layout.measured(as_array(recorded)).all())
