"""Rules about the data: NaN, infinities and far-out values in the batch, labels out of range."""

from __future__ import annotations

import re

import numpy as np

from nanreplay.bisect.tensor_stats import is_float, is_opaque, words
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import Case
from nanreplay.diagnose.outliers import Outlier, find_outliers
from nanreplay.diagnose.rules import overflow
from nanreplay.findings import Cause, CauseKind

_GATHERS = words(
    "Gather GatherV2 GatherNd ResourceGather ResourceGatherNd SparseSegmentSum SparseSegmentMean SparseSegmentSqrtN OneHot"
)
_CTC = words("CTCLoss CTCLossV2")
_LABELS = "SparseSoftmaxCrossEntropyWithLogits"
_OUT_OF_RANGE = re.compile(
    r"outside the valid range|is not in \[0|out of range|out of bounds", re.IGNORECASE
)
_SHOWN = 3


def data_nan(case: Case) -> Cause | None:
    """The batch itself holds NaN."""
    return _data(case, "data_nan", "NaN", lambda value: bool(np.isnan(value)))


def data_inf(case: Case) -> Cause | None:
    """The batch itself holds an infinity."""
    return _data(case, "data_inf", "an infinity", lambda value: bool(np.isinf(value)))


def _data(case: Case, kind: CauseKind, what: str, matches: object) -> Cause | None:
    origin = case.origin
    if (
        origin is None
        or origin.op_type is not None
        or not origin.outputs
        or not callable(matches)
        or not matches(case.value)
    ):
        return None
    outputs = origin.outputs[0]
    name = origin.operands[0].name if origin.operands else "the batch"
    index = outputs.indices[0] if outputs.indices else ()
    where = (
        f"row {index[0]}" + (f", column {_column(index)}" if len(index) > 1 else "")
        if index
        else "its only element"
    )
    evidence = [
        f"{outputs.nonfinite} of {outputs.size} values of `{name}` are not finite in step {origin.step}."
    ]
    clean = _clean_steps(case)
    if clean:
        evidence.append(f"The other {clean} recorded batches are finite.")
    return Cause(kind, 0.99, f"The batch itself holds {what}: `{name}`, {where}.", tuple(evidence))


def _column(index: tuple[int, ...]) -> str:
    return str(index[1]) if len(index) == 2 else str(list(index[1:]))


def _clean_steps(case: Case) -> int:
    """How many other batches are finite; 0 unless all are."""
    others = [step for step in case.replay.steps if step != case.step]
    arrays = [as_array(leaf) for step in others for leaf in case.replay.batch(step).leaves]
    return (
        len(others) if all(np.isfinite(array).all() for array in arrays if is_float(array)) else 0
    )


def data_outlier(case: Case) -> Cause | None:
    """A row of the batch is far out of the range of all others, and the op overflowed (or left its domain) on it."""
    if (
        case.origin is None
        or case.origin.op_type is None
        or (case.kind == "turned" and not case.origin.rows)
    ):
        return None
    found, evidence = case.outliers, []
    if not found:
        return _outlier_before(case)
    is_proven = case.origin.rows is not None and found[0].index[0] in case.origin.rows
    confidence = 0.65 if is_proven else 0.35
    if overflow.is_plain(case):
        confidence = 0.4 if case.growth is not None else 0.88 if is_proven else 0.75
        confidence = (
            min(confidence, 0.7) if case.origin.phase in ("backward", "update") else confidence
        )
    if is_proven:
        evidence.append(case.origin.rows_reason or "The row was proved by replay.")
    evidence += [outlier.sentence for outlier in found[1:_SHOWN]]
    return Cause("data_outlier", confidence, found[0].sentence, tuple(evidence))


def _outlier_before(case: Case) -> Cause | None:
    """A jump of gradients or loss at an earlier step began with a row far out of range there."""
    growth = case.growth
    if growth is None or not growth.is_jump:
        return None
    found: tuple[Outlier, ...] = find_outliers(case.replay, growth.step)
    if not found:
        return None
    return Cause(
        "data_outlier",
        0.7,
        found[0].sentence,
        (growth.sentence, *(outlier.sentence for outlier in found[1:_SHOWN])),
    )


def label_out_of_range(case: Case) -> Cause | None:
    """A label or an index lies outside of what the op allows."""
    if case.op == _LABELS or case.forward == _LABELS:
        return _label(case)
    if case.op in _GATHERS and case.kind == "raised":
        return _index(case)
    if case.op in _CTC and case.is_infinite:
        return Cause(
            "label_out_of_range",
            0.6,
            f"`{case.op}` is infinite{case.place}: a sequence of labels that cannot fit its time steps.",
        )
    trigger = case.replay.incident.trigger
    if case.origin is None and trigger.what == "exception" and _OUT_OF_RANGE.search(trigger.value):
        return Cause("label_out_of_range", 0.7, f"The step raised: {trigger.value}")
    return None


def _label(case: Case) -> Cause | None:
    if (
        case.event is not None
        and len(case.event.inputs) > 1
        and not is_opaque(case.event.inputs[1])
    ):
        labels, classes = (
            as_array(case.event.inputs[1]).reshape(-1),
            int(case.event.inputs[0].shape[-1]),
        )
        wrong = labels[(labels < 0) | (labels >= classes)]
        index = np.flatnonzero((labels < 0) | (labels >= classes))
        if not len(wrong):
            return None
        return _said(int(wrong[0]), classes, f" in row {int(index[0])}", len(wrong), case)
    operands = case.origin.operands if case.origin is not None else ()
    if (
        len(operands) < 2
        or not operands[0].shape
        or operands[1].min is None
        or operands[1].max is None
    ):
        return None
    classes = operands[0].shape[-1]
    worst = operands[1].min if operands[1].min < 0 else operands[1].max
    return (
        _said(int(worst), classes, case.place, 1, case) if worst < 0 or worst >= classes else None
    )


def _said(label: int, classes: int, where: str, count: int, case: Case) -> Cause:
    evidence = [
        f"`{case.op}` takes labels from 0 to {classes - 1}; {count} of this batch {'is' if count == 1 else 'are'} outside."
    ]
    if case.kind == "raised":
        evidence.append("Op by op the kernel raises; compiled with XLA it gives NaN.")
    return Cause(
        "label_out_of_range",
        0.98,
        f"The label{where} is {label}, but there are only {classes} classes (0 to {classes - 1}).",
        tuple(evidence),
    )


def _index(case: Case) -> Cause | None:
    error = (
        str(case.event.error).splitlines()[0]
        if case.event is not None and case.event.error is not None
        else ""
    )
    if not _OUT_OF_RANGE.search(error) and "indices" not in error:
        return None
    return Cause(
        "label_out_of_range",
        0.95,
        f"`{case.op}`{case.where} is asked for a row that does not exist: {error[:200]}",
    )
