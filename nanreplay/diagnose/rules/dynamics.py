"""Rules about the course of the training: learning rate, exploding gradients, initial weights.

They compete for the same evidence, an overflow after growth. A slow growth speaks for the learning
rate, a jump or a growth within one step for gradients, a failure at the first steps for weights
that begin too large.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.growth import Growth, falls_without_bound, share_added
from nanreplay.bisect.op_trace import Fact
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import Case, Values
from nanreplay.diagnose.failure_graph import FailureGraph
from nanreplay.diagnose.rules import overflow
from nanreplay.diagnose.rules.overshooting import (
    EARLY,
    FAR_OFF,
    OVERSHOOT,
    THROWN_OFF,
    first_update,
    first_update_on_unscaled_data,
    large_data,
    overshooting_update,
)
from nanreplay.findings import Cause
from nanreplay.records import VariableInfo
from nanreplay.replay.matrix_changes import matrices_in

_TOO_WIDE = 5.0
"""How many times wider than He's rule has it a layer must be drawn to count."""
_GROWS = 1.3
"""Spectral radius of a recurrent kernel from which states grow; an orthogonal one has 1."""


def high_learning_rate(case: Case) -> Cause | None:
    """Loss, gradients and weights grow step by step: each update overshoots further.

    Or the first update threw the weights so far off that the next step fails, wherever.
    """
    growth = case.growth
    if not _is_of_op(case) or growth_by_itself(case) is not None:
        return None
    overshot = overshooting_update(case.replay, case.timeline, case.step)
    is_slow = growth is not None and not growth.is_jump
    if overshot is not None and (overshot.ratio > FAR_OFF or not is_slow):
        confidence = 0.97 if overshot.ratio > FAR_OFF else 0.86
        if case.origin is not None and case.origin.loop and not overshot.is_bounded:
            confidence = 0.6  # a gradient through time is large by itself
        evidence = [growth.sentence] if growth is not None else []
        evidence.append(f"What failed in step {case.step} is a consequence: `{case.op}`.")
        return Cause("high_learning_rate", confidence, overshot.sentence, tuple(evidence))
    if growth is None:
        return first_update(case) or first_update_on_unscaled_data(case)
    ratios = _update_ratios(case, growth.step, case.step)
    median = float(np.median(ratios)) if len(ratios) else 0.0
    overshoots = median > OVERSHOOT
    evidence = []
    if len(ratios):
        evidence.append(
            f"The updates changed the weights by {median:.2g} times their norm (median)."
        )
    if growth.is_jump and not began_with_update(case, growth):
        if not overshoots:
            return None
        return Cause("high_learning_rate", 0.35, growth.sentence, tuple(evidence))
    confidence = (
        0.55 + 0.15 * (growth.steps >= 4) + 0.12 * overshoots + 0.08 * (growth.factor > 1e4)
    )
    if not overflow.is_plain(case):
        confidence = min(0.6, confidence - 0.2)
    elif median > THROWN_OFF:
        confidence = max(confidence, 0.85)
    sentence = _grew(growth)
    if growth.rate:
        sentence += f" at a {growth.rate.replace('rate', 'rate of', 1)}"
    told = (growth.sentence, *evidence, *large_data(case))
    return Cause("high_learning_rate", round(confidence, 2), f"{sentence}.", told)


def growth_by_itself(case: Case) -> Cause | None:
    """Weights grow whatever the rate is: updates add a share of them, or the loss asks for it."""
    growth = case.growth
    if growth is None or growth.is_jump or not overflow.is_plain(case):
        return None
    found = share_added(case.timeline, case.step)
    if found is None or found[0] >= len(case.replay.variables):
        return _loss_without_bound(case, growth)
    name, share = case.replay.variables[found[0]].path, found[1]
    sentence = (
        f"Each of the last updates added {share:.3g} times `{name}` to itself, in its own "
        "direction: a weight decay of the wrong sign does so, and a loss that is maximised."
    )
    return Cause("other", 0.9, sentence, (growth.sentence,))


def _loss_without_bound(case: Case, growth: Growth) -> Cause | None:
    losses = falls_without_bound(case.timeline, case.step)
    if losses is None:
        return None
    sentence = (
        f"The loss falls without bound, from {losses[0]:.3g} to {losses[1]:.3g}: it is minimised, "
        "and has no lower bound, as one of the wrong sign has none."
    )
    return Cause("other", 0.9, sentence, (growth.sentence,))


def _is_of_op(case: Case) -> bool:
    """Whether an op computed the non-finite value, not the batch and not a kernel that raised."""
    is_op = case.origin is not None and case.origin.op_type is not None
    return is_op and case.kind not in ("input", "raised")


def _grew(growth: Growth) -> str:
    return f"{growth.subject[0].upper()}{growth.subject[1:]} grew {growth.numbers}"


def _update_ratios(case: Case, since: int, until: int) -> Values:
    """Largest update ratio of each step, as recorded, else as the norms of the weights tell it."""
    timeline = case.timeline
    steps = as_array(timeline.columns["step"])
    ratios = np.asarray(timeline.matrices.get("update_ratio", np.zeros((0, 0))), np.float64)
    weights = timeline.matrix("weight_norm")
    if weights.size:
        is_measured = np.asarray(timeline.columns.get("measured", np.ones(len(weights))), bool)
        changes = _relative_changes(weights, is_measured)
        ratios = np.where(np.isfinite(ratios), ratios, changes) if ratios.size else changes
    if not ratios.size:
        return np.zeros(0)
    in_range = ratios[(steps >= since) & (steps <= until)][:, _kernels(case)]
    largest = np.where(np.isfinite(in_range), in_range, 0).max(axis=1, initial=0)
    return as_array(largest[largest > 0])


def _relative_changes(norms: Values, is_measured: NDArray[np.bool_]) -> Values:
    """How much the norm of each variable changed with each step, relative to what it was.

    Between two measured steps the change is shared out evenly; 0 where a step was not measured.
    """
    rows = np.flatnonzero(is_measured)
    changes = np.zeros_like(norms)
    before = norms[rows[:-1]]
    with np.errstate(all="ignore"):
        change = np.abs(np.diff(norms[rows], axis=0)) / before / np.diff(rows)[:, None]
    changes[rows[1:]] = np.where(before > 0, change, 0)
    return changes


def _kernels(case: Case) -> list[int]:
    """Columns of the timeline that are matrices; all columns, where there are none.

    Biases begin at 0 and change by much more than their norm.
    """
    variables = case.replay.variables
    known = []
    for column, index in enumerate(case.timeline.variables):
        if index < len(variables):
            known.append((column, variables[index]))
    kernels = []
    for column, info in known:
        if len(info.shape) > 1:
            kernels.append(column)
    return kernels or [column for column, _ in known]


def began_with_update(case: Case, growth: Growth) -> bool:
    """Whether a jump came after an update that threw the weights far off, not before it."""
    ratios = _update_ratios(case, growth.step - 1, growth.step - 1)
    return len(ratios) > 0 and float(ratios[0]) > THROWN_OFF


def exploding_gradient(case: Case) -> Cause | None:
    """Gradients (or the state of a recurrence) grow until they overflow.

    Within a few steps, or within one.
    """
    if case.origin is None or not overflow.is_plain(case) or growth_by_itself(case):
        return None
    growth = case.growth
    loops = [loop for loop in case.origin.loop if loop.iteration > 0]
    if not _grows_in_loop(case):
        loops = []  # its iterations may know nothing of one another, as those of `tf.map_fn`
    confidence = 0.0
    evidence: list[str] = []
    if growth is not None:
        is_own_jump = growth.is_jump and not began_with_update(case, growth)
        confidence = 0.8 if is_own_jump else 0.62
        evidence.append(growth.sentence)
    if loops:
        confidence = max(confidence + 0.08, 0.72)
        evidence.append(
            f"It overflows in iteration {loops[0].iteration} of `{loops[0].op}`: "
            "values grow from one iteration to the next."
        )
    if case.origin.phase in ("backward", "update"):
        confidence = max(confidence + 0.05, 0.8)
        evidence.append(
            f"Nothing failed before the {case.origin.phase} phase; `{case.op}` overflows there."
        )
    if not confidence:
        return None
    confidence = round(min(confidence, 0.9), 2)
    told = (*evidence, *large_data(case))
    return Cause("exploding_gradient", confidence, _exploded(case), told)


def _grows_in_loop(case: Case) -> bool:
    """Whether the origin computes with what it gave in the iterations before, and that grew."""
    if case.graph is None or case.fact is None:
        return False
    sizes: list[float] = []
    earlier: Fact | None = case.fact
    while earlier is not None and len(sizes) < 2:
        earlier = _run_before(case.graph, earlier)
        stat = earlier.outputs[0] if earlier is not None and earlier.outputs else None
        if stat is not None:
            sizes.append(stat.absmax or 0.0)
    return bool(sizes) and sizes[0] >= sizes[-1]


def _run_before(graph: FailureGraph, fact: Fact) -> Fact | None:
    """Return the nearest earlier run of an op that a later one computes with."""
    pending, seen = deque(fact.sources), set(fact.sources)
    while pending:
        maker = graph.trace.facts.get(pending.popleft().serial)
        if maker is None or not maker.calls:
            continue  # it comes from outside of the loop
        if maker.key == fact.key:
            return maker
        fresh = [value for value in maker.sources if value not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return None


def _exploded(case: Case) -> str:
    if case.growth is not None:
        return f"{_grew(case.growth)}, to {case.growth.high:.3g}."
    if case.origin is not None and case.origin.phase == "update":
        return f"What the optimizer makes of a gradient overflows in `{case.op}`{case.where}."
    if case.origin is not None and case.origin.phase == "backward":
        return f"A gradient overflows in `{case.op}`{case.where}."  # in this step, for all we know
    return f"Values grow until `{case.op}`{case.where} overflows."


def bad_init(case: Case) -> Cause | None:
    """Weights at step 0 are drawn far wider than their shapes allow.

    A value overflows within the first steps.
    """
    if not _is_of_op(case) or case.step > EARLY or 0 not in case.replay.steps:
        return None
    kernels = sorted(_wide_kernels(case), reverse=True)
    if not kernels:
        return _growing_recurrence(case)
    widest = kernels[0]
    # Each layer multiplies what goes through it, so their excess adds up in powers of ten.
    gain = float(np.sum([np.log10(kernel.ratio) for kernel in kernels]))
    confidence = min(0.95, 0.5 + 0.1 * gain + 0.25 * (case.step == 0) + 0.1 * (case.step <= 2))
    if not overflow.is_plain(case):
        confidence = min(confidence, 0.62)
    sentence = (
        f"`{widest.path}` begins with a root mean square of {widest.spread:.3g}, "
        f"{widest.ratio:.3g} times the {widest.usual:.3g} that He's rule gives for its shape."
    )
    evidence = [f"Step {case.step} is the first that fails."]
    for kernel in kernels[1:4]:
        evidence.append(f"`{kernel.path}`: {kernel.ratio:.3g} times.")
    return Cause("bad_init", round(confidence, 2), sentence, tuple(evidence))


class _WideKernel(NamedTuple):
    ratio: float
    path: str
    spread: float
    """Root mean square of its values: of all ones it is 1, and their deviation 0."""
    usual: float
    """That of He et al. (2015), sqrt(2 / fan_in)."""


def _wide_kernels(case: Case) -> Iterator[_WideKernel]:
    """Kernels at step 0 with far too wide values; an embedding has no fan-in."""
    for info, kernel in _initial_kernels(case, lambda info: "embedding" not in info.path.lower()):
        fan_in = max(int(np.prod(info.shape[:-1])), 1)
        usual = float(np.sqrt(2.0 / fan_in))
        flat = kernel.reshape(-1)
        if flat.dtype == np.float32:
            # nearly all kernels are far from too wide, which a sum in float32 tells
            about = float(np.dot(flat, flat)) / flat.size
            if about < (0.9 * _TOO_WIDE * usual) ** 2:  # false where it is not finite
                continue
        values = flat.astype(np.float64)
        if not np.isfinite(values).all():
            continue
        spread = float(np.sqrt(np.mean(np.square(values))))
        if spread > _TOO_WIDE * usual:
            yield _WideKernel(spread / usual, info.path, spread, usual)


def _initial_kernels(
    case: Case, is_wanted: Callable[[VariableInfo], bool]
) -> Iterator[tuple[VariableInfo, Values]]:
    """Some trainable matrices with what they hold before step 0; each is read when it is due."""
    state = case.replay.state(0)
    for index in matrices_in(case.replay.variables):
        info = case.replay.variables[index]
        if index in state and is_wanted(info):
            yield info, as_array(state[index])


def _is_recurrent(info: VariableInfo) -> bool:
    is_square = len(info.shape) == 2 and info.shape[0] == info.shape[1]
    return "recurrent" in info.path and is_square


def _growing_recurrence(case: Case) -> Cause | None:
    """A recurrent kernel at step 0 that makes the state larger at each time step."""
    if case.origin is None or not overflow.is_plain(case) or case.outliers:
        return None
    innermost = case.origin.loop[-1] if case.origin.loop else None
    for info, kernel in _initial_kernels(case, _is_recurrent):
        radius = float(np.abs(np.linalg.eigvals(kernel.astype(np.float64))).max())
        if radius > _GROWS:
            sentence = (
                f"`{info.path}` begins with a spectral radius of {radius:.3g}: "
                "it multiplies the state by that at each time step."
            )
            # The state may still fit, and overflow in what is computed of it.
            where = f"in `{case.op}`{case.where}"
            if innermost is not None:
                where = f"in iteration {innermost.iteration} of `{innermost.op}`"
            evidence = f"Step {case.step} is the first that fails, {where}."
            return Cause("bad_init", 0.85 if case.step <= 2 else 0.6, sentence, (evidence,))
    return None
