"""Rules about variances that are 0: of a feature, a channel, or of one value."""

from __future__ import annotations

import re

import numpy as np

from nanreplay.bisect.tensor_stats import Mask, words
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import Case
from nanreplay.diagnose.rules.division import DIVISIONS, REDUCTIONS, divides_by_zero
from nanreplay.findings import Cause

_NORMALIZATION = words(
    "FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 FusedBatchNormGrad FusedBatchNormGradV2 "
    "FusedBatchNormGradV3 _FusedBatchNormEx"
)
_NORMALIZED = re.compile(r"(batch|layer|group|instance)_?norm", re.IGNORECASE)


def variance_zero(case: Case) -> Cause | None:
    """A variance (or standard deviation) of exactly 0.

    It is divided by, or its root's gradient is taken.
    """
    if case.op in _NORMALIZATION:
        return _of_channel(case)
    variance = _variance(case)
    if variance is None:
        return _of_one_value(case)
    consequence = f"dividing by {_divisor_in_words(case)} is not finite"
    if case.is_backward:
        consequence = "its root's gradient is infinite"
    why, made_of = "the values that it is taken over are all the same", "squared deviations"
    name, kind = variance
    if kind == "Sub":
        why = f"{why}, or differ by less than the rounding of their squares"
        made_of = "squares less the square of a mean"
    sentence = (
        f"The variance{case.where} is exactly 0.0{case.place}: {why}, and {consequence}."
        f"{_epsilon_in_words(case)}"
    )
    what = "sum" if kind == "Sum" else "mean"
    evidence = f"`{name}` is a {what} of {made_of}, and `{case.op}` got 0.0."
    if kind == "Rsqrt":
        evidence = f"`{name}` is of a normalization by its name, and got 0.0."
    return Cause("variance_zero", 0.95, sentence, (evidence,))


def _of_channel(case: Case) -> Cause | None:
    """A fused batch normalization of a channel whose values are all the same."""
    if case.event is None or not case.event.inputs:
        return None
    # The gradient takes the gradient of the output first, then what was normalized.
    values = as_array(case.event.inputs[1 if "Grad" in case.op else 0])
    layout = getattr(case.event.attrs.get("data_format"), "s", case.event.attrs.get("data_format"))
    channels = 1 if layout in (b"NCHW", "NCHW", b"NCDHW", "NCDHW") else values.ndim - 1
    rows = np.moveaxis(values, channels, 0).reshape(values.shape[channels], -1)
    failing = _failing_channels(case, values.shape, channels)
    is_constant = (rows == rows[:, :1]).all(axis=1) if rows.size else np.zeros(len(rows), bool)
    constant = np.flatnonzero(is_constant & failing)
    if not len(constant):
        return None  # too large for the square of a deviation, say
    sentence = (
        f"`{case.op}`{case.where}: channel {int(constant[0])} is constant over the batch, "
        "its variance is 0.0 and epsilon too small."
    )
    return Cause("variance_zero", 0.85, sentence)


def _failing_channels(case: Case, shape: tuple[int, ...], axis: int) -> Mask:
    """Which channels of a normalization are not finite: in what is normalized, or in a moment."""
    mask = case.mask
    if mask is not None and mask.shape == shape:
        return np.asarray(np.moveaxis(mask, axis, 0).reshape(shape[axis], -1).any(axis=1))
    if mask is not None and mask.shape == (shape[axis],):
        return mask
    return np.zeros(shape[axis], bool)


def _epsilon_in_words(case: Case) -> str:
    """Say so where an epsilon is added to the variance and is 0, as a layer's setting may be."""
    value = case.input_id(1 if case.op in DIVISIONS else 0)
    if case.graph is None or value is None or case.is_backward:
        return ""
    for fact in case.graph.upstream(value, 3):
        if fact.type in REDUCTIONS:
            break
        constants = []
        for operand in fact.input_ids:
            if case.graph.is_zero_constant(operand):
                constants.append(operand)
        if fact.type in ("AddV2", "Add") and constants:
            return " The epsilon that is added to it is 0."
    return ""


def _divisor_in_words(case: Case) -> str:
    """What is divided by: the variance itself, or its root."""
    value = case.input_id(1)
    if case.op == "Rsqrt" or case.graph is None or value is None:
        return "its root"
    for fact in case.graph.upstream(value, 4):
        if fact.type == "Sqrt":
            return "its root"
        if fact.type in REDUCTIONS:
            break
    return "it"


def _variance(case: Case) -> tuple[str, str] | None:
    """Name and type of the op that gives the variance that is 0 at the origin."""
    if case.graph is None or case.fact is None:
        # Only the compiled step fails: a name scope of a normalization must do.
        if case.op != "Rsqrt" or not divides_by_zero(case):
            return None
        if case.info is None or not _NORMALIZED.search(case.info.name):
            return None
        return case.info.name, "Rsqrt"
    if divides_by_zero(case):
        value = case.input_id(1 if case.op in DIVISIONS else 0)
    elif case.is_backward and case.forward in ("Sqrt", "Rsqrt"):
        roots = case.graph.forward_of(case.fact)
        value = roots[0].input_ids[0] if roots else None
    else:
        return None
    variance = case.graph.variance(value) if value is not None else None
    values = None if variance is None else case.told_of(variance)
    # 1 - variance is 0 where the variance is 1; a difference may be rounded to below 0
    if variance is None or (values is not None and (values > 0).all()):
        return None
    return variance.name, variance.type


def _of_one_value(case: Case) -> Cause | None:
    """A sum of squared deviations that the origin divides, by an n - 1 that is 0."""
    value = case.input_id(0)
    if case.graph is None or value is None or case.op not in DIVISIONS:
        return None
    total = case.graph.maker(value)
    if total is None or total.type != "Sum" or not case.graph.is_mean_of_deviations(total):
        return None
    if not divides_by_zero(case) or (case.told(0) != 0).any():
        return None
    sentence = (
        f"The variance{case.where} is 0 / 0{case.place}: it is taken over one value, "
        "and a count less 1 divides the sum of its squared deviations."
    )
    evidence = f"`{total.name}` is a sum of squared deviations, and `{case.op}` divides it by 0.0."
    return Cause("variance_zero", 0.95, sentence, (evidence,))
