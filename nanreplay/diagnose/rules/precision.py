"""Rules about number formats and machines.

float16 overflow and underflow, loss scaling, and faults that do not repeat. The first two prove
themselves where they can: the op is run once more in float32, on the same operands.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np

from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.tensor_stats import Mask, dtype_name, nonfinite, words
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import HALF, Case, Values, capital
from nanreplay.diagnose.failure_graph import FailureGraph
from nanreplay.diagnose.rules.division import DIVISIONS
from nanreplay.findings import Cause
from nanreplay.replay.provenance import OpEvent, ValueId

_MAX_HALF = 65504.0
_ZERO_IS_FATAL = words("Log Reciprocal Inv Rsqrt SqrtGrad RsqrtGrad Xlogy Pow RealDiv Div Xdivy")
_SUMMING = words(
    "AddN AvgPool AvgPool3D BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAddGrad Conv2D Conv3D "
    "Cumsum DepthwiseConv2dNative Einsum EuclideanNorm L2Loss MatMul Mean SegmentMean SegmentSum "
    "Sum UnsortedSegmentSum"
)
"""Ops that add up numbers, which may be larger on the way than at the end."""
_CHAIN = 3
"""How many ops before a sum are run in float32 as well."""
_LARGE_LITERAL = re.compile(r"\b\d*\.?\d*e\+?\d+\b", re.IGNORECASE)
"""A number such as `1e9` in the user's line."""
_SMALL_LITERAL = re.compile(r"\b\d*\.?\d+e-\d+\b|\bepsilon\b|\beps\b", re.IGNORECASE)
"""A number such as `1e-8` in the user's line, or the name of one."""
_CALLS_WITH_ZERO = re.compile(r"\b(maximum|relu|clip|clip_by_value|sum)\(")
"""Calls in which a 0 may be meant; Python's `sum` begins with one."""


def fp16_overflow(case: Case) -> Cause | None:
    """A float16 result beyond 65504 that float32 would hold."""
    if case.dtype not in HALF or case.origin is None or case.origin.op_type is None:
        return None
    if case.kind in ("turned", "used"):
        return _mask_beyond_range(case)
    if case.event is None:
        return _by_size(case)
    if _is_pole(case):
        return None
    wide = _result_in_float32(case, case.event)
    if wide is None:
        return _by_size(case)
    if nonfinite(wide).any():
        return None
    # Of the element that is told, not of the largest one.
    result = float(wide.reshape(-1)[0])
    if abs(result) > _MAX_HALF:
        excess = f"gives {result:.6g}{case.place}, which float16 (up to 65504) cannot hold"
    else:
        inside = _held_inside(case, case.event, result)
        if inside is None:
            return None
        excess = inside
    evidence = "Run in float32 on the same operands, the op is finite."
    sentence = f"`{case.op}`{case.where} {excess}; float32 can."
    return Cause("fp16_overflow", 0.95, sentence, (evidence,))


def _held_inside(case: Case, event: OpEvent, result: float) -> str | None:
    """Say what inside of an op float16 cannot hold, where its result fits; None for other ops."""
    if case.op not in _SUMMING:
        return None
    if case.op == "Mean":
        elements = int(np.prod(event.inputs[0].shape))
        means = int(np.prod(event.outputs[0].shape))
        total = result * (elements / max(means, 1))
        if abs(total) > _MAX_HALF:
            return (
                f"first takes the sum{case.place}, {total:.6g}, which float16 (up to 65504) cannot "
                f"hold, though the mean is {result:.6g}"
            )
    return (
        f"gives {result:.6g}{case.place}, but adds up numbers on the way there which float16 "
        "(up to 65504) cannot hold"
    )


def _result_in_float32(case: Case, event: OpEvent) -> Values | None:
    """What the op gives in float32 at the failing elements; None when it cannot be run so."""
    suspect, outputs = case.bisection.suspect, case.in_float32(event)
    k = min(suspect.masks) if suspect is not None else 0
    if outputs is None or k >= len(outputs) or case.mask is None:
        return None
    return outputs[k][case.mask] if outputs[k].shape == case.mask.shape else None


def _mask_beyond_range(case: Case) -> Cause | None:
    """A large negative number that is to mask something out, and that float16 turns into -inf."""
    if case.graph is None or case.fact is None:
        return None
    is_written = _LARGE_LITERAL.search(case.code) is not None
    graph = case.graph
    for fact in chain.from_iterable(map(graph.infinities, case.fact.input_ids)):
        is_cast = fact.type == "Cast" and not _has_nonfinite_inputs(case.graph, fact)
        if is_cast or (fact.type in ("Const", "Mul") and is_written):
            given, end = _infinity_of(case, fact)
            consequence = "a number that is to mask a little masks whole rows"
            if case.op == "Mul":
                where = "where it masks nothing, " if given == "-inf" else ""
                consequence = f"{where}{given} times 0 is NaN"
            sentence = (
                f"`{fact.type}` (`{fact.name}`) gives {given} in float16, which ends at {end}: "
                f"{consequence}."
            )
            source = (f"Source: `{case.code}`",) if is_written else ()
            return Cause("fp16_overflow", 0.97, sentence, source)
    return None


def _infinity_of(case: Case, fact: Fact) -> tuple[str, str]:
    """Which infinity an op gave, and the last number before it."""
    seen = fact.seen
    values = np.zeros(0) if seen is None else as_array(seen.outputs[0]).astype(np.float64)
    return ("inf", "65504") if np.isposinf(values).any() else ("-inf", "-65504")


def _has_nonfinite_inputs(graph: FailureGraph, fact: Fact) -> bool:
    stats = [graph.stat(value) for value in fact.input_ids]
    return any(stat.nonfinite for stat in stats if stat is not None)


def _is_pole(case: Case) -> bool:
    """Whether the result is infinite in every format: a division by 0, a logarithm of 0."""
    return case.op in _ZERO_IS_FATAL and bool((case.operand(_divisor(case)) == 0).any())


def _divisor(case: Case) -> int:
    """Which operand is fatal when it is 0."""
    return 1 if case.op in DIVISIONS else 0


def _by_size(case: Case) -> Cause | None:
    """The cause where the op cannot be run in float32: an infinity is all the evidence."""
    if not case.is_infinite or case.op in _ZERO_IS_FATAL:
        return None
    sentence = f"`{case.op}`{case.where} is infinite in float16, which holds numbers up to 65504."
    return Cause("fp16_overflow", 0.75, sentence)


def fp16_underflow(case: Case) -> Cause | None:
    """A float16 0 where float32 would hold a small number: an epsilon, a probability."""
    if case.op not in _ZERO_IS_FATAL and not case.forward:
        return None
    position = _divisor(case)
    value = case.input_id(position)
    if case.graph is None or value is None or not (case.operand(position) == 0).any():
        return None
    adder = _adder_of_lost_constant(case, case.graph, value)
    if adder is None:
        return _rounded_to_zero(case, case.graph, value, position)
    evidence = (f"Source: `{case.code}`",) if _SMALL_LITERAL.search(case.code) else ()
    sentence = (
        f"{capital(case.subject_at(position))} is 0.0 in float16: "
        f"the constant that `{adder.type}` puts under it is 0 there, as any below 3e-8 is."
    )
    return Cause("fp16_underflow", 0.96 if evidence else 0.93, sentence, evidence)


def _adder_of_lost_constant(case: Case, graph: FailureGraph, value: ValueId) -> Fact | None:
    """Return the op that adds (or takes the larger of) a constant that is 0.

    Such a constant is taken for an epsilon that float16 cannot hold, unless the line shows that 0
    is meant, as `tf.maximum(x, 0.0)` does.
    """
    for fact in adders_of_zero(graph, value):
        if not _is_zero_meant(case, fact):
            return fact
    return None


def adders_of_zero(graph: FailureGraph, value: ValueId) -> Iterator[Fact]:
    """Yield ops near a value that add (or take the larger of) a constant that is 0 in float16."""
    for fact in graph.upstream(value, 4):
        if fact.type not in ("AddV2", "Add", "Maximum", "ClipByValue"):
            continue
        constants = []
        for operand in fact.input_ids[:2]:
            if _is_constant(graph, operand):
                constants.append(operand)
        is_half = any(_is_half(graph, constant) for constant in constants)
        if is_half and any(graph.is_zero(constant) for constant in constants):
            yield fact


def _is_zero_meant(case: Case, fact: Fact) -> bool:
    """Whether the user's own line calls the op, and holds no small number."""
    info = case.replay.ops(case.step).get(fact.key)
    frame = None if info is None else case.replay.source(info.stack)
    line = (frame.code if frame is not None else None) or ""
    return bool(_CALLS_WITH_ZERO.search(line)) and not _SMALL_LITERAL.search(line)


def _is_constant(graph: FailureGraph, value: ValueId) -> bool:
    maker = graph.maker(value)
    return maker is not None and maker.type == "Const"


def _is_half(graph: FailureGraph, value: ValueId) -> bool:
    stat = graph.stat(value)
    return stat is not None and stat.dtype in HALF


def _rounded_to_zero(
    case: Case, graph: FailureGraph, value: ValueId, position: int
) -> Cause | None:
    """Run what made the operand in float32 on the same inputs.

    Where it gives a number other than 0, that was rounded away.
    """
    for fact in graph.upstream(value, 2):
        event = case.kept.get(fact.serial)
        if event is None or not event.inputs or dtype_name(event.outputs[0]) not in HALF:
            continue
        is_zero = as_array(event.outputs[0]) == 0
        # Elsewhere it may have been rounded to 0, and be exactly 0 at the element that is told.
        is_told = _told_within(case, is_zero.shape)
        if is_told is None:
            continue
        is_zero = is_zero & is_told
        wide_outputs = case.in_float32(event)
        if wide_outputs is None or wide_outputs[0].shape != is_zero.shape:
            continue
        wide = wide_outputs[0][is_zero]
        rounded_away = wide[wide != 0]
        if rounded_away.size:
            largest = float(np.abs(rounded_away).max())
            sentence = (
                f"{capital(case.subject_at(position))} is 0.0 in float16; "
                f"in float32 `{fact.type}` gives numbers up to {largest:.3g} there."
            )
            evidence = f"`{fact.name}` was run in float32 on the same operands."
            return Cause("fp16_underflow", 0.94, sentence, (evidence,))
    return _sum_of_rounded(case, graph, value, position)


def _sum_of_rounded(case: Case, graph: FailureGraph, value: ValueId, position: int) -> Cause | None:
    """Run a sum, and what it adds up, in float32: the squares of small numbers are 0 in float16."""
    if not any(fact.type in _SUMMING for fact in graph.upstream(value, 2)):
        return None
    wide = _in_float32(case, graph, value, _CHAIN)
    if wide is None or case.mask is None:
        return None
    try:
        told = np.broadcast_to(wide, case.mask.shape)[case.mask][:1]
    except ValueError:  # elements cannot be told apart
        return None
    if not told.size or told[0] == 0 or not np.isfinite(told[0]):
        return None
    sentence = (
        f"{capital(case.subject_at(position))} is 0.0 in float16, where what it is made of was "
        f"rounded; in float32 it is {float(told[0]):.3g}."
    )
    evidence = "The ops that lead to it were run in float32 on the same operands."
    return Cause("fp16_underflow", 0.94, sentence, (evidence,))


def _in_float32(case: Case, graph: FailureGraph, value: ValueId, depth: int) -> Values | None:
    """Return a value as float32 has it, with the ops before it run so as well.

    None where one cannot be run so.
    """
    fact = graph.maker(value)
    event = None if fact is None else case.kept.get(fact.serial)
    if fact is None or event is None or dtype_name(event.outputs[value.output]) not in HALF:
        return None
    inputs = list(event.inputs)
    for i, source in enumerate(fact.input_ids if depth else ()):
        wide = _in_float32(case, graph, source, depth - 1)
        inputs[i] = inputs[i] if wide is None else wide
    outputs = case.in_float32(replace(event, inputs=tuple(inputs)))
    return None if outputs is None else as_array(outputs[value.output])


def _told_within(case: Case, shape: tuple[int, ...]) -> Mask | None:
    """Which elements of another tensor the element that is told is made of; None if not known."""
    if case.mask is None:
        return np.ones(shape, bool)
    is_told = np.zeros(case.mask.shape, bool)
    is_told[tuple(np.argwhere(case.mask)[0])] = True
    if shape[: is_told.ndim] == is_told.shape:  # all of a row, of which it is the sum
        is_told = is_told.reshape(is_told.shape + (1,) * (len(shape) - is_told.ndim))
    elif len(shape) != is_told.ndim:
        return None
    with contextlib.suppress(ValueError):  # the shapes do not fit
        return np.asarray(np.broadcast_to(is_told, shape))
    return None


def loss_scale_stuck(case: Case) -> Cause | None:
    """Loss scaling skipped update after update."""
    trigger = case.replay.incident.trigger
    scales = np.asarray(case.timeline.columns.get("loss_scale", ()), np.float64)
    known = scales[np.isfinite(scales)]
    # a scale that begins at 1 says nothing
    is_used_up = len(known) > 0 and known[-1] <= 1.0 < known[0]
    if trigger.name == "loss scale":
        state = trigger.value
    elif trigger.what == "gradient" and is_used_up:
        state = f"the scale is down to {known[-1]:.6g}"
    else:
        return None
    evidence: list[str] = []
    if len(known):
        evidence.append(f"The loss scale went from {known[0]:.6g} to {known[-1]:.6g}.")
    skipped = np.asarray(case.timeline.columns.get("skipped", ()), bool)
    if len(skipped):
        evidence.append(f"{int(skipped.sum())} of {len(skipped)} recorded updates were skipped.")
    sentence = f"Gradients stay non-finite whatever the loss scale is: {state}."
    return Cause("loss_scale_stuck", 0.97, sentence, tuple(evidence))


def hardware_like(case: Case) -> Cause | None:
    """The step is finite in every replay that computes what led to it.

    A copy of the state may hold what a fault made, and the step fails from that one again.
    """
    if case.verdict.kind != "transient":
        return None
    evidence = [] if case.verdict.reason is None else [case.verdict.reason]
    for run in case.verdict.evidence:
        evidence.append(f"Replayed as `{run.mode}`: {'finite' if run.finite else 'non-finite'}.")
    sentence = (
        "The step was non-finite in training, and replaying the program gives finite values: "
        "a race or a fault of the machine."
    )
    return Cause("hardware_like", 0.85, sentence, tuple(evidence))
