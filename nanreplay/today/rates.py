"""Whose learning rate holds: that of today's code, unless something changed the recorded one while training ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from nanreplay.records import Timeline
from nanreplay.report.numbers import readable_number

LearningRate: TypeAlias = Literal["auto", "today", "recorded"]


def recorded_rates(timeline: Timeline) -> dict[int, float]:
    """The learning rate of each recorded step, where one was noted."""
    columns = timeline.columns
    pairs = zip(np.asarray(columns["step"]), np.asarray(columns["learning_rate"]), strict=True)
    return {int(step): float(rate) for step, rate in pairs if np.isfinite(rate)}


def chosen_rates(
    rates: Mapping[int, float], steps: Sequence[int], today: float | None, wanted: LearningRate, *, is_variable: bool
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
        return {}, ["Today's learning rate is a schedule or no variable; the recorded rates cannot be set."] if wanted == "recorded" else []
    changed = is_variable and len(set(rates.values())) > 1
    if wanted == "recorded" or (wanted == "auto" and changed):
        if wanted == "recorded":
            return known, []
        low, high = (readable_number(number) for number in (min(rates.values()), max(rates.values())))
        why = f"The learning rate was changed while training ran ({low} to {high}), so the recorded rates are used"
        return known, [f"{why}; --learning-rate today uses that of today's code."]
    before = known[max(known)]
    if np.float32(before) == np.float32(today):
        return {}, []
    return {}, [f"Today's learning rate is used: {readable_number(today)}, where the recording had {readable_number(before)}."]


def rate_of(optimizer: Any) -> float | None:
    """The learning rate that a Keras optimizer holds as a variable, None for a schedule or anything else."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    held = getattr(inner, "_learning_rate", None)
    return float(np.asarray(held)) if hasattr(held, "assign") else None


def set_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of a Keras optimizer."""
    getattr(optimizer, "inner_optimizer", optimizer).learning_rate = rate
