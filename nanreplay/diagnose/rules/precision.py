"""Rules about number formats and machines: float16 overflow and underflow, loss scaling, faults that do not repeat."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.tensor_stats import dtype_name, nonfinite, words
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import Case, capital
from nanreplay.diagnose.rules.division import DIVISIONS
from nanreplay.findings import Cause
from nanreplay.replay.provenance import ValueId

_HALF = ("float16", "half")
_MAX_HALF = 65504.0
_ZERO_IS_FATAL = words("Log Reciprocal Inv Rsqrt SqrtGrad RsqrtGrad Xlogy Pow RealDiv Div Xdivy")
_LARGE_LITERAL = re.compile(r"\b\d*\.?\d*e\+?\d+\b", re.IGNORECASE)
_SMALL_LITERAL = re.compile(r"\b\d*\.?\d+e-\d+\b|\bepsilon\b|\beps\b", re.IGNORECASE)


def fp16_overflow(case: Case) -> Cause | None:
    """A float16 result beyond 65504 that float32 would hold."""
    if case.dtype not in _HALF or case.origin is None or case.origin.op_type is None:
        return None
    if case.kind in ("turned", "used"):
        return _mask_beyond_range(case)
    if case.event is None:
        return _by_size(case)
    if _is_pole(case):
        return None
    made = case.in_float32(case.event)
    k = min(case.bisection.suspect.masks) if case.bisection.suspect is not None else 0
    if made is None or k >= len(made) or case.mask is None or made[k].shape != case.mask.shape:
        return _by_size(case)
    wide = made[k][case.mask]
    if nonfinite(wide).any():
        return None
    largest = float(np.abs(wide.astype(np.float64)).max())
    if largest <= _MAX_HALF and case.op not in ("Sum", "Mean", "MatMul"):
        return None
    sentence = f"`{case.op}`{case.where} gives {largest:.6g}{case.place}, which float16 (up to 65504) cannot hold; float32 can."
    return Cause(
        "fp16_overflow", 0.95, sentence, ("Run in float32 on the same operands, the op is finite.",)
    )


def _mask_beyond_range(case: Case) -> Cause | None:
    """A large negative number that is to mask something out, and that float16 turns into -inf."""
    value = case.input_id(0)
    if case.graph is None or value is None:
        return None
    is_written = _LARGE_LITERAL.search(case.code) is not None
    for fact in case.graph.infinities(value):
        if (fact.type == "Cast" and not _has_infinite_inputs(case, fact)) or (
            fact.type in ("Const", "Mul") and is_written
        ):
            what = f"`{fact.type}` (`{fact.name}`) gives -inf in float16, which ends at -65504"
            source = (f"Source: `{case.code}`",) if is_written else ()
            return Cause(
                "fp16_overflow",
                0.97,
                f"{what}: a number that is to mask a little masks whole rows.",
                source,
            )
    return None


def _has_infinite_inputs(case: Case, fact: Fact) -> bool:
    assert case.graph is not None
    return any(
        stat.nonfinite for each in fact.input_ids if (stat := case.graph.stat(each)) is not None
    )


def _is_pole(case: Case) -> bool:
    """Whether the result is infinite in every format: a division by 0, a logarithm of 0."""
    position = 1 if case.op in DIVISIONS else 0
    return case.op in _ZERO_IS_FATAL and bool((case.operand(position) == 0).any())


def _by_size(case: Case) -> Cause | None:
    if not case.is_infinite or case.op in _ZERO_IS_FATAL:
        return None
    return Cause(
        "fp16_overflow",
        0.75,
        f"`{case.op}`{case.where} is infinite in float16, which holds numbers up to 65504.",
    )


def fp16_underflow(case: Case) -> Cause | None:
    """A float16 0 where float32 would hold a small number: an epsilon, a probability."""
    if case.op not in _ZERO_IS_FATAL and not case.forward:
        return None
    position = 1 if case.op in DIVISIONS else 0
    value = case.input_id(position)
    if case.graph is None or value is None or not (case.operand(position) == 0).any():
        return None
    lost = _lost_constant(case, value)
    if lost is not None:
        evidence = (f"Source: `{case.code}`",) if _SMALL_LITERAL.search(case.code) else ()
        what = f"the constant that `{lost.type}` puts under it rounds to 0 there"
        sentence = f"{capital(case.subject(position))}{case.place} is 0.0 in float16: {what}."
        return Cause("fp16_underflow", 0.96 if evidence else 0.93, sentence, evidence)
    return _rounded(case, value, position)


def _lost_constant(case: Case, value: ValueId) -> Fact | None:
    """Return the op that adds (or takes the larger of) a constant that is 0: an epsilon that float16 cannot hold."""
    assert case.graph is not None
    for fact in case.graph.upstream(value, 4):
        if fact.type in ("AddV2", "Add", "Maximum", "ClipByValue"):
            constants = [each for each in fact.input_ids[:2] if _is_constant(case, each)]
            if _is_half(case, constants) and any(case.graph.is_zero(each) for each in constants):
                return fact
    return None


def _is_half(case: Case, values: Sequence[ValueId]) -> bool:
    assert case.graph is not None
    return any(
        (stat := case.graph.stat(value)) is not None and stat.dtype in _HALF for value in values
    )


def _is_constant(case: Case, value: ValueId) -> bool:
    assert case.graph is not None
    maker = case.graph.maker(value)
    return maker is not None and maker.type == "Const"


def _rounded(case: Case, value: ValueId, position: int) -> Cause | None:
    """Run what made the operand in float32 on the same inputs: a number other than 0 was rounded away."""
    assert case.graph is not None
    for fact in case.graph.upstream(value, 2):
        event = case.kept.get(fact.serial)
        if event is None or not event.inputs or dtype_name(event.outputs[0]) not in _HALF:
            continue
        made = case.in_float32(event)
        zeros = as_array(event.outputs[0]) == 0
        if made is not None and made[0].shape == zeros.shape and (made[0][zeros] != 0).any():
            small = float(np.abs(made[0][zeros])[made[0][zeros] != 0].max())
            what = f"in float32 `{fact.type}` gives numbers up to {small:.3g} there"
            sentence = f"{capital(case.subject(position))}{case.place} is 0.0 in float16; {what}."
            return Cause(
                "fp16_underflow",
                0.94,
                sentence,
                (f"`{fact.name}` was run in float32 on the same operands.",),
            )
    return None


def loss_scale_stuck(case: Case) -> Cause | None:
    """Loss scaling skipped update after update."""
    trigger = case.replay.incident.trigger
    scales = np.asarray(case.timeline.columns.get("loss_scale", ()), np.float64)
    known = scales[np.isfinite(scales)]
    if trigger.name != "loss scale" and not (
        len(known) and trigger.what == "gradient" and known[-1] <= 1.0
    ):
        return None
    evidence = (
        [f"The loss scale went from {known[0]:.6g} to {known[-1]:.6g}."] if len(known) else []
    )
    skipped = np.asarray(case.timeline.columns.get("skipped", ()), bool)
    evidence += (
        [f"{int(skipped.sum())} of {len(skipped)} recorded updates were skipped."]
        if len(skipped)
        else []
    )
    said = (
        trigger.value if trigger.name == "loss scale" else f"the scale is down to {known[-1]:.6g}"
    )
    return Cause(
        "loss_scale_stuck",
        0.97,
        f"Gradients stay non-finite whatever the loss scale is: {said}.",
        tuple(evidence),
    )


def hardware_like(case: Case) -> Cause | None:
    """The step is finite in every replay from the very state and batch that were recorded."""
    if case.verdict.kind != "transient":
        return None
    evidence = tuple(
        f"Replayed as `{each.mode}`: {'finite' if each.finite else 'non-finite'}."
        for each in case.verdict.evidence
    )
    sentence = "The step was non-finite in training and is finite in every replay from the same state and batch: a race or a fault of the machine."
    return Cause("hardware_like", 0.85, sentence, evidence)
