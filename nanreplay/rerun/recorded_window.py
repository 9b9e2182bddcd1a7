"""The recorded steps that the user's current code runs, with their states and learning rates.

`Rerun` asks here what it is compared with. The recorded program runs over the same steps, to show
that the recorded failure still happens on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np

from nanreplay.capture import Capture
from nanreplay.errors import ReplayError, UnsafeProgramError, UnsupportedOpError
from nanreplay.records import ArrayLike, Compilation, Timeline
from nanreplay.replay import Replay
from nanreplay.report.numbers import readable_number
from nanreplay.whatif.edits import Edit
from nanreplay.whatif.trial_window import TrialWindow


@dataclass(frozen=True, slots=True)
class RecordedWindow:
    """The recorded steps that the current code runs."""

    steps: Sequence[int]
    """From the first step whose state is known through the last whose batch is held."""
    state: Mapping[int, ArrayLike]
    """Variables just before the first step, by index."""
    failing_state: Mapping[int, ArrayLike] | None
    """Variables just before the failing step, by index; None where they are `state` or unknown."""
    reproduces: bool | None
    """Whether the recorded program gives a non-finite value (or raises) again.

    None when it cannot be run here.
    """
    reason: str | None
    """Why it cannot."""
    changed: Sequence[str]
    """Paths of trained variables that something outside of the steps changed in the window."""


def recorded_window(capture: Capture, *, trust: bool = False) -> RecordedWindow:
    """Find the steps, and run the recorded program over them.

    Raises:
        ReplayError: The capture holds no batches that a known state leads to.
    """
    with Replay(capture, trust=trust) as replay:
        try:
            return _run_window(replay, TrialWindow(replay))
        except (ReplayError, UnsupportedOpError, UnsafeProgramError) as error:
            # The recorded program cannot run, but the current code may: it needs only the arrays.
            steps = _steps_with_batches(capture)
            return RecordedWindow(
                steps=steps,
                state=capture.keyframe(steps[0]),
                failing_state=None,
                reproduces=None,
                reason=str(error),
                changed=(),
            )


def _run_window(replay: Replay, window: TrialWindow) -> RecordedWindow:
    """Run the recorded program over the window, with nothing changed."""
    outcome = window.run(Edit())
    reproduces = outcome.raised is not None or outcome.failed is not None
    changed_indices = set(chain.from_iterable(window.changes.values()))
    changed_infos = [replay.variables[index] for index in changed_indices]
    first_state = dict(window.first_state())
    failing, failing_state = window.failing, None
    is_failure = reproduces and replay.incident.trigger.what != "manual"
    if is_failure and window.steps[0] < failing:
        # Eager steps have no program until one fails, so no replay leads from step to step; the
        # recorder writes a keyframe just before the failing one.
        is_eager = replay.signature(failing).compilation == "eager"
        failing_state = replay.capture.keyframe(failing) if is_eager else replay.state(failing)
    return RecordedWindow(
        steps=window.steps,
        state=first_state,
        failing_state=failing_state,
        reproduces=reproduces,
        reason=None,
        changed=sorted({info.path for info in changed_infos if info.role == "trainable"}),
    )


def _steps_with_batches(capture: Capture) -> Sequence[int]:
    """Steps from the first keyframe that leads to the incident through recorded batches.

    Of batches 3 to 7 and keyframes before 4 and 6, with the incident at 6: steps 4 to 7.
    """
    held, incident = set(capture.steps), capture.incident.step
    if incident not in held:
        raise ReplayError(
            f"{capture.path}: does not hold the batch of step {incident}, "
            "so nothing can be said of today's code."
        )
    first = incident
    while first - 1 in held:
        first -= 1
    starts = []
    for step in capture.keyframe_steps:
        if first <= step <= incident:
            starts.append(step)
    if not starts:
        raise ReplayError(
            f"{capture.path}: no recorded state leads to step {incident}, "
            "so nothing can be said of today's code."
        )
    last = max(held)
    if not set(range(incident, last + 1)) <= held:
        last = incident
    return range(starts[0], last + 1)


def compilation_of(capture: Capture) -> Compilation:
    """How the failing step was compiled; `eager` when it has no program."""
    step = capture.incident.step
    program = capture.batch(step).program if step in capture.steps else ""
    return capture.signature(program).compilation if program else "eager"


def iterations_of(capture: Capture, state: Mapping[int, ArrayLike]) -> int | None:
    """How many updates the recorded optimizer had made; None when that is not known."""
    counts: list[Any] = []
    for index, info in enumerate(capture.variables_info):
        if info.path.endswith("/iteration") and index in state:
            counts.append(state[index])
    return int(counts[0]) if len(counts) == 1 else None


# Whose learning rate holds: that of the current code, unless something changed the recorded one
# while training ran.

LearningRate: TypeAlias = Literal["auto", "today", "recorded"]


def recorded_rates(timeline: Timeline) -> dict[int, float]:
    """The learning rate of each recorded step, where one was noted."""
    columns = timeline.columns
    pairs = zip(np.asarray(columns["step"]), np.asarray(columns["learning_rate"]), strict=True)
    return {int(step): float(rate) for step, rate in pairs if np.isfinite(rate)}


def chosen_rates(
    rates: Mapping[int, float],
    steps: Sequence[int],
    current: float | None,
    wanted: LearningRate,
    *,
    is_variable: bool,
) -> tuple[dict[int, float], list[str]]:
    """Return the rates to set before steps (none: the current code decides), and readable notes.

    Args:
        rates: `recorded_rates`.
        steps: The steps to run.
        current: Learning rate of the current optimizer; None when it is no variable (a schedule, no
            optimizer).
        wanted: What was asked for.
        is_variable: Whether the recorded learning rate was a variable, which callbacks change. A
            schedule is part of the code.
    """
    known = {}
    for step in steps:
        if step in rates:
            known[step] = rates[step]
    if not known:
        return {}, []
    if current is None:
        note = (
            "Today's learning rate is a schedule or no variable; the recorded rates cannot be set."
        )
        return {}, [note] if wanted == "recorded" else []
    if wanted == "recorded":
        return known, []
    if wanted == "auto" and is_variable and len(set(rates.values())) > 1:
        low, high = readable_number(min(rates.values())), readable_number(max(rates.values()))
        note = (
            f"The learning rate was changed while training ran ({low} to {high}), so the recorded "
            "rates are used; --learning-rate today uses that of today's code."
        )
        return known, [note]
    last_rate = known[max(known)]
    if np.float32(last_rate) == np.float32(current):  # variables of Keras are float32
        return {}, []
    note = (
        f"Today's learning rate is used: {readable_number(current)}, "
        f"where the recording had {readable_number(last_rate)}."
    )
    return {}, [note]


def rate_of(optimizer: Any) -> float | None:
    """The learning rate that a Keras optimizer holds as a variable.

    None for a schedule or anything else.
    """
    # The attribute without an underscore computes the value of a schedule; only the private one
    # tells a variable from a schedule. A LossScaleOptimizer wraps the one that has it.
    rate = getattr(_inner_optimizer(optimizer), "_learning_rate", None)
    return float(np.asarray(rate)) if hasattr(rate, "assign") else None


def set_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of a Keras optimizer."""
    _inner_optimizer(optimizer).learning_rate = rate


def _inner_optimizer(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)
