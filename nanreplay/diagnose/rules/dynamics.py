"""Rules about the course of the training: learning rate, exploding gradients, initial weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import Case, Values
from nanreplay.diagnose.rules import overflow
from nanreplay.findings import Cause

_EARLY = 10
"""Steps within which initial weights can be to blame."""
_TOO_WIDE = 5.0
"""How many times wider than He's a layer must be drawn to count."""
_GROWS = 1.3
"""Spectral radius of a recurrent kernel from which states grow; an orthogonal one has 1."""
_OVERSHOOT = 0.3
"""A step that changes weights by more than this share of their norm overshoots."""
_THROWN_OFF = 1.0
"""Updates of more than the weights' own norm explain gradients that grow, wherever these overflow in the end."""


def high_learning_rate(case: Case) -> Cause | None:
    """Loss, gradients and weights grow step by step: each update overshoots further than the one before."""
    growth = case.growth
    if (
        growth is None
        or case.origin is None
        or case.origin.op_type is None
        or case.kind in ("input", "raised")
    ):
        return None
    ratios = _update_ratios(case, growth.step, case.step)
    overshoots = len(ratios) > 0 and float(np.median(ratios)) > _OVERSHOOT
    evidence = (
        [
            f"Each update changed the weights by {float(np.median(ratios)):.2g} times their norm (median)."
        ]
        if len(ratios)
        else []
    )
    if growth.is_jump and not _began_with_update(case):
        return (
            Cause("high_learning_rate", 0.35, growth.sentence, tuple(evidence))
            if overshoots
            else None
        )
    confidence = (
        0.55 + 0.15 * (growth.steps >= 4) + 0.12 * overshoots + 0.08 * (growth.factor > 1e4)
    )
    if not overflow.is_plain(case):
        confidence = min(0.6, confidence - 0.2)
    elif len(ratios) and float(np.median(ratios)) > _THROWN_OFF:
        confidence = max(confidence, 0.85)
    rate = (
        f" at a learning rate of {growth.learning_rate:.6g}"
        if growth.learning_rate is not None
        else ""
    )
    sentence = f"{growth.subject[0].upper()}{growth.subject[1:]} grew {growth.numbers}{rate}."
    return Cause("high_learning_rate", round(confidence, 2), sentence, (growth.sentence, *evidence))


def _update_ratios(case: Case, since: int, until: int) -> Values:
    """Largest update ratio of each step, as recorded, else as the norms of the weights tell it."""
    steps = as_array(case.timeline.columns["step"])
    ratios = np.asarray(case.timeline.matrices.get("update_ratio", np.zeros((0, 0))), np.float64)
    weights = case.timeline.matrix("weight_norm")
    if weights.size:
        change = _relative_changes(
            weights, np.asarray(case.timeline.columns.get("measured", np.ones(len(weights))), bool)
        )
        ratios = np.where(np.isfinite(ratios), ratios, change) if ratios.size else change
    if not ratios.size:
        return np.zeros(0)
    chosen = ratios[(steps >= since) & (steps <= until)][:, _kernels(case)]
    largest = np.where(np.isfinite(chosen), chosen, 0).max(axis=1, initial=0)
    return as_array(largest[largest > 0])


def _relative_changes(norms: Values, measured: NDArray[np.bool_]) -> Values:
    """How much the norm of each variable changed with each step, relative to what it was; 0 where it was not measured."""
    rows = np.flatnonzero(measured)
    found = np.zeros_like(norms)
    before = norms[rows[:-1]]
    with np.errstate(all="ignore"):
        change = np.abs(np.diff(norms[rows], axis=0)) / before / np.diff(rows)[:, None]
    found[rows[1:]] = np.where(before > 0, change, 0)
    return found


def _kernels(case: Case) -> list[int]:
    """Columns of the timeline that are matrices; biases begin at 0 and change by much more than their norm. All, without any."""
    known = [
        (column, index)
        for column, index in enumerate(case.timeline.variables)
        if index < len(case.replay.variables)
    ]
    return [column for column, index in known if len(case.replay.variables[index].shape) > 1] or [
        column for column, _ in known
    ]


def _began_with_update(case: Case) -> bool:
    """Whether a jump came after an update that threw the weights far off, not before it."""
    growth = case.growth
    assert growth is not None
    ratios = _update_ratios(case, growth.step - 1, growth.step - 1)
    return len(ratios) > 0 and float(ratios[0]) > 1.0


def exploding_gradient(case: Case) -> Cause | None:
    """Gradients (or the state of a recurrence) grow within a few steps, or within one, until they overflow."""
    if case.origin is None or not overflow.is_plain(case):
        return None
    growth, loops = case.growth, [loop for loop in case.origin.loop if loop.iteration > 0]
    confidence, evidence = 0.0, []
    if growth is not None and growth.is_jump and not _began_with_update(case):
        confidence = 0.8
        evidence.append(growth.sentence)
    elif growth is not None:
        confidence = 0.62
        evidence.append(growth.sentence)
    if loops:
        confidence = max(confidence + 0.08, 0.72)
        evidence.append(
            f"It overflows in iteration {loops[0].iteration} of `{loops[0].op}`: values grow from one time step to the next."
        )
    if case.origin.phase in ("backward", "update"):
        confidence = max(confidence + 0.05, 0.8)
        evidence.append(
            f"The forward pass is finite; `{case.op}` overflows in the {case.origin.phase} phase."
        )
    if not confidence:
        return None
    return Cause(
        "exploding_gradient", round(min(confidence, 0.9), 2), _exploded(case), tuple(evidence)
    )


def _exploded(case: Case) -> str:
    growth = case.growth
    if growth is not None:
        return f"{growth.subject[0].upper()}{growth.subject[1:]} grew {growth.numbers}, to {growth.high:.3g}."
    assert case.origin is not None
    what = "Gradients" if case.origin.phase in ("backward", "update") else "Values"
    return f"{what} grow until `{case.op}`{case.where} overflows."


def bad_init(case: Case) -> Cause | None:
    """Weights at step 0 are drawn far wider than their shapes allow, and a value overflows within the first steps."""
    if (
        case.origin is None
        or case.origin.op_type is None
        or case.step > _EARLY
        or 0 not in case.replay.steps
        or case.kind in ("input", "raised")
    ):
        return None
    found = sorted(_too_wide(case), reverse=True)
    if not found:
        return _recurrence(case)
    ratio, path, spread, usual = found[0]
    gain = float(np.sum([np.log10(each[0]) for each in found]))
    confidence = min(0.95, 0.5 + 0.1 * gain + 0.25 * (case.step == 0) + 0.1 * (case.step <= 2))
    if not overflow.is_plain(case):
        confidence = min(confidence, 0.62)
    sentence = f"`{path}` begins with a standard deviation of {spread:.3g}, {ratio:.3g} times the {usual:.3g} that He's rule gives for its shape."
    evidence = [f"Step {case.step} is the first that fails."] + [
        f"`{each[1]}`: {each[0]:.3g} times." for each in found[1:4]
    ]
    return Cause("bad_init", round(confidence, 2), sentence, tuple(evidence))


def _too_wide(case: Case) -> Iterator[tuple[float, str, float, float]]:
    """Kernels at step 0 with far too wide values: (ratio, path, standard deviation, that of He et al. 2015, sqrt(2 / fan_in))."""
    state = case.replay.state(0)
    for index, info in enumerate(case.replay.variables):
        if (
            info.role != "trainable"
            or len(info.shape) < 2
            or "embedding" in info.path.lower()
            or index not in state
        ):
            continue
        values = as_array(state[index]).astype(np.float64)
        if not np.isfinite(values).all():
            continue
        usual, spread = (
            float(np.sqrt(2.0 / max(int(np.prod(info.shape[:-1])), 1))),
            float(np.sqrt(np.mean(np.square(values)))),
        )
        if spread > _TOO_WIDE * usual:
            yield spread / usual, info.path, spread, usual


def _recurrence(case: Case) -> Cause | None:
    """A recurrent kernel at step 0 that makes the state larger at each time step."""
    if case.origin is None or not case.origin.loop:
        return None
    state = case.replay.state(0)
    for index, info in enumerate(case.replay.variables):
        is_recurrent = (
            "recurrent" in info.path
            and info.role == "trainable"
            and len(info.shape) == 2
            and index in state
        )
        if not is_recurrent or info.shape[0] != info.shape[1]:
            continue
        factor = float(np.abs(np.linalg.eigvals(as_array(state[index]).astype(np.float64))).max())
        if factor > _GROWS:
            sentence = f"`{info.path}` begins with a spectral radius of {factor:.3g}: it multiplies the state by that at each time step."
            evidence = (
                f"Step {case.step} is the first that fails, in iteration {case.origin.loop[-1].iteration} of `{case.origin.loop[-1].op}`.",
            )
            return Cause("bad_init", 0.85 if case.step <= 2 else 0.6, sentence, evidence)
    return None
