"""What of a capture today's code is held against: the steps, their states, and whether the recorded failure still happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from nanreplay.capture import Capture
from nanreplay.errors import ReplayError, UnsafeProgramError, UnsupportedOpError
from nanreplay.records import ArrayLike, Compilation, Timeline
from nanreplay.replay import Replay
from nanreplay.report.numbers import readable_number
from nanreplay.whatif.edits import Edit
from nanreplay.whatif.trial_window import TrialWindow

# Whose learning rate holds: that of today's code, unless something changed the recorded one while
# training ran.

LearningRate: TypeAlias = Literal["auto", "today", "recorded"]


def recorded_rates(timeline: Timeline) -> dict[int, float]:
    """The learning rate of each recorded step, where one was noted."""
    columns = timeline.columns
    pairs = zip(np.asarray(columns["step"]), np.asarray(columns["learning_rate"]), strict=True)
    return {int(step): float(rate) for step, rate in pairs if np.isfinite(rate)}


def chosen_rates(
    rates: Mapping[int, float],
    steps: Sequence[int],
    today: float | None,
    wanted: LearningRate,
    *,
    is_variable: bool,
) -> tuple[dict[int, float], list[str]]:
    """Return the rates to set before steps (none: today's code decides), and readable notes.

    Args:
        rates: `recorded_rates`.
        steps: The steps to run.
        today: Learning rate of today's optimizer; None when it is no variable (a schedule, no optimizer).
        wanted: What was asked for.
        is_variable: Whether the recorded learning rate was a variable, which callbacks change; a schedule is part of the code.
    """
    known = {step: rates[step] for step in steps if step in rates}
    if not known:
        return {}, []
    if today is None:
        return {}, [
            "Today's learning rate is a schedule or no variable; the recorded rates cannot be set."
        ] if wanted == "recorded" else []
    changed = is_variable and len(set(rates.values())) > 1
    if wanted == "recorded" or (wanted == "auto" and changed):
        if wanted == "recorded":
            return known, []
        low, high = (
            readable_number(number) for number in (min(rates.values()), max(rates.values()))
        )
        why = f"The learning rate was changed while training ran ({low} to {high}), so the recorded rates are used"
        return known, [f"{why}; --learning-rate today uses that of today's code."]
    before = known[max(known)]
    if np.float32(before) == np.float32(today):
        return {}, []
    return {}, [
        f"Today's learning rate is used: {readable_number(today)}, where the recording had {readable_number(before)}."
    ]


def rate_of(optimizer: Any) -> float | None:
    """The learning rate that a Keras optimizer holds as a variable, None for a schedule or anything else."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    held = getattr(inner, "_learning_rate", None)
    return float(np.asarray(held)) if hasattr(held, "assign") else None


def set_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of a Keras optimizer."""
    getattr(optimizer, "inner_optimizer", optimizer).learning_rate = rate


# --- today.recording


@dataclass(frozen=True, slots=True)
class RecordedWindow:
    """The recorded steps that today's code runs."""

    steps: Sequence[int]
    """From the first step whose state is known through the last that is held."""
    state: Mapping[int, ArrayLike]
    """Variables just before the first step, by index."""
    failing_state: Mapping[int, ArrayLike] | None
    """Variables just before the failing step, by index; None where they are `state` or not known."""
    reproduces: bool | None
    """Whether the recorded program gives a non-finite value (or raises) again; None when it cannot be run here."""
    reason: str | None
    """Why it cannot."""
    changed: Sequence[str]
    """Paths of trained variables that something outside of the steps changed within the window."""


def recorded_window(capture: Capture, *, trust: bool = False) -> RecordedWindow:
    """Find the steps, and run the recorded program over them.

    Raises:
        ReplayError: The capture holds no batches that a known state leads to.
    """
    with Replay(capture, trust=trust) as replay:
        try:
            window = TrialWindow(replay)
            return _of_window(replay, window)
        except (ReplayError, UnsupportedOpError, UnsafeProgramError) as error:
            steps = _held_steps(capture)
            return RecordedWindow(steps, capture.keyframe(steps[0]), None, None, str(error), ())


def _of_window(replay: Replay, window: TrialWindow) -> RecordedWindow:
    steps, failing = window.steps, window.failing
    outcome = window.run(Edit())
    reproduces = outcome.raised is not None or outcome.failed is not None
    changed = {
        replay.variables[index].path
        for values in window.changes.values()
        for index in values
        if replay.variables[index].role == "trainable"
    }
    first = dict(window.first_state())
    before = None
    if steps[0] < failing and reproduces and replay.incident.trigger.what != "manual":
        eager = replay.signature(failing).compilation == "eager"
        before = replay.capture.keyframe(failing) if eager else replay.state(failing)
    return RecordedWindow(steps, first, before, reproduces, None, sorted(changed))


def _held_steps(capture: Capture) -> Sequence[int]:
    """Steps from the first keyframe that leads to the incident through recorded batches."""
    held, last = set(capture.steps), capture.incident.step
    if last not in held:
        raise ReplayError(
            f"{capture.path}: does not hold the batch of step {last}, so nothing can be said of today's code."
        )
    first = last
    while first - 1 in held:
        first -= 1
    starts = [step for step in capture.keyframe_steps if first <= step <= last]
    if not starts:
        raise ReplayError(
            f"{capture.path}: no recorded state leads to step {last}, so nothing can be said of today's code."
        )
    return range(starts[0], max(held) + 1 if set(range(last, max(held) + 1)) <= held else last + 1)


def compilation_of(capture: Capture) -> Compilation:
    """How the failing step was compiled; `eager` when it has no program."""
    step = capture.incident.step
    name = capture.batch(step).program if step in capture.steps else ""
    return capture.signature(name).compilation if name else "eager"


def iterations_of(capture: Capture, state: Mapping[int, ArrayLike]) -> int | None:
    """How many updates the recorded optimizer had made; None when that is not known."""
    found: list[Any] = [
        state[index]
        for index, info in enumerate(capture.variables_info)
        if info.path.endswith("/iteration") and index in state
    ]
    return int(found[0]) if len(found) == 1 else None
