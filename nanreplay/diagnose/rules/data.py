"""Rules about the data: NaN, infinities and far-out values in the batch, labels out of range."""

from __future__ import annotations

import re

import numpy as np

from nanreplay.bisect.index_arrays import index_arrays
from nanreplay.bisect.influence import COPIES
from nanreplay.bisect.tensor_stats import is_float, is_opaque, words
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import Case
from nanreplay.diagnose.outliers import find_outliers, places_with_rows
from nanreplay.diagnose.rules import overflow
from nanreplay.diagnose.rules.dynamics import began_with_update
from nanreplay.errors import first_line, without_node_names
from nanreplay.findings import Cause, CauseKind
from nanreplay.records import MADE_BEFORE, MADE_OUTSIDE, batch_name, place_in_batch
from nanreplay.replay.provenance import ValueId

_GATHERS = words(
    "Gather GatherV2 GatherNd ResourceGather ResourceGatherNd SparseSegmentSum SparseSegmentMean "
    "SparseSegmentSqrtN OneHot"
)
_CTC = words("CTCLoss CTCLossV2")
_CROSS_ENTROPY = "SparseSoftmaxCrossEntropyWithLogits"
_OUT_OF_RANGE = re.compile(
    r"outside the valid range|is not in \[0|out of range|out of bounds|does not index into",
    re.IGNORECASE,
)
"""What TensorFlow's kernels say of a label or an index that they refuse."""
_IN_ORDER = COPIES | words("Cast ExpandDims Reshape Squeeze")
"""Ops that hand on all that they get, in its order."""
_SHOWN = 3
"""How many outliers are told at most."""
_FAR_OUT = 100.0
"""A value this many standard deviations away explains what gradients became because of it."""


def data_nan(case: Case) -> Cause | None:
    """The batch itself holds NaN, or what the code gives the step beside it."""
    if not np.isnan(case.value):
        return None
    return _in_batch(case, "data_nan", "NaN") or _in_constant(case)


def data_inf(case: Case) -> Cause | None:
    """The batch itself holds an infinity."""
    return _in_batch(case, "data_inf", "an infinity") if case.is_infinite else None


def _in_batch(case: Case, kind: CauseKind, content: str) -> Cause | None:
    origin, output = case.origin, case.output
    if origin is None or not origin.is_of_batch or output is None:
        return None
    name = origin.operands[0].name if origin.operands else "the batch"
    evidence = [
        f"{output.nonfinite} of {output.size} values of `{name}` are not finite "
        f"in step {origin.step}."
    ]
    clean_steps = _clean_steps(case)
    if clean_steps:
        are = "recorded batch is" if clean_steps == 1 else f"{clean_steps} recorded batches are"
        evidence.append(f"The other {are} finite.")
    where = _place(case, output.indices[0] if output.indices else ())
    if name.startswith(batch_name(MADE_BEFORE)[:-1]):
        sentence = (
            f"`{name}` held {content} before the step, {where}. It is no argument of the step and "
            "no variable: data, or what an earlier step left."
        )
        return Cause("other", 0.9, sentence, tuple(evidence))
    sentence = f"The batch itself holds {content}: `{name}`, {where}."
    if name.startswith(batch_name(MADE_OUTSIDE)[:-1]):
        sentence = (
            "An array that the step's code made outside of TensorFlow, as with NumPy, holds "
            f"{content}, {where}."
        )
    return Cause(kind, 0.99, sentence, tuple(evidence))


def _in_constant(case: Case) -> Cause | None:
    origin, output = case.origin, case.output
    if origin is None or output is None or origin.kind == "set" or not origin.is_given:
        return None
    name = origin.operands[0].name if origin.operands else origin.op_name
    index = output.indices[0] if output.indices else ()
    at = f" at {list(index)}" if index else ""
    sentence = (
        f"`{name}` holds NaN{at}. It is no argument of the step and no variable of it: the code "
        "gives it as it is."
    )
    evidence = f"{output.nonfinite} of {output.size} values of `{name}` are not finite."
    return Cause("data_nan", 0.97, sentence, (evidence,))


def _place(case: Case, index: tuple[int, ...]) -> str:
    """Where an element of an array of the batch is: in which row, where the array has rows."""
    if not index:
        return "its only element"
    suspect = case.bisection.suspect
    leaf = None if suspect is None else suspect.leaf
    path = None if leaf is None else _path_of_rows(case, leaf)
    return f"at {list(index)}" if path is None else place_in_batch(path, index)


def _path_of_rows(case: Case, value: ValueId) -> str | None:
    """Path of an array of the batch; None for other values, and where it has no row a sample."""
    scene, origin = case.bisection.scene, case.origin
    kind, place = scene.trace.feed(value) if scene is not None and value.serial < 0 else ("", -1)
    if scene is None or origin is None or kind != "batch":
        return None
    batch = case.replay.batch(case.step)
    leaves, indices = list(map(as_array, batch.leaves)), index_arrays(scene.trace)
    with_rows = places_with_rows(batch.paths, leaves, origin.batch_prefix, indices)
    return batch.paths[place] if place in with_rows else None


def _clean_steps(case: Case) -> int:
    """How many other batches are finite; 0 unless all are."""
    others = [step for step in case.replay.steps if step != case.step]
    for step in others:
        for array in map(as_array, case.replay.batch(step).leaves):
            if is_float(array) and not np.isfinite(array).all():
                return 0
    return len(others)


def data_outlier(case: Case) -> Cause | None:
    """A row of the batch is far out of the range of all others.

    The op overflowed (or left its domain) on it.
    """
    if case.origin is None or case.origin.op_type is None:
        return None
    # Where an infinity only became NaN, a far-out row explains nothing unless it was proved.
    if case.kind == "turned" and not case.origin.rows:
        return None
    outliers = case.outliers
    if not outliers:
        return _outlier_before(case)
    proven = case.origin.recorded_rows
    is_proven = proven is not None and outliers[0].index[0] in proven
    evidence = [outlier.sentence for outlier in outliers[1:_SHOWN]]
    if is_proven:
        evidence.insert(0, case.origin.rows_reason or "The row was proved by replay.")
    is_far_out = is_proven and outliers[0].deviations > _FAR_OUT
    confidence = _confidence_of_outlier(case, is_proven=is_proven, is_far_out=is_far_out)
    return Cause("data_outlier", confidence, outliers[0].sentence, tuple(evidence))


def _confidence_of_outlier(case: Case, *, is_proven: bool, is_far_out: bool) -> float:
    """A far-out value explains an overflow well, unless the training was diverging anyway."""
    if not overflow.is_plain(case):
        return 0.65 if is_proven else 0.35
    # Where values grow step by step, any batch would overflow sooner or later.
    if case.growth is not None:
        return 0.4
    confidence = 0.88 if is_proven else 0.75
    is_forward = case.origin is None or case.origin.phase not in ("backward", "update")
    # A gradient may be large by itself, but for one of a row that nobody would call usual.
    return confidence if is_forward or is_far_out else min(confidence, 0.7)


def _outlier_before(case: Case) -> Cause | None:
    """A jump of gradients or loss at an earlier step began with a row far out of range there.

    The row is gone by the step that fails; only the weights that it spoiled are left.
    """
    growth = case.growth
    if growth is None or not growth.is_jump:
        return None
    outliers = find_outliers(case.replay, growth.step)
    if not outliers:
        return None
    evidence = (growth.sentence, *(outlier.sentence for outlier in outliers[1:_SHOWN]))
    is_far_out = outliers[0].deviations > _FAR_OUT and not began_with_update(case, growth)
    return Cause("data_outlier", 0.86 if is_far_out else 0.7, outliers[0].sentence, evidence)


def label_out_of_range(case: Case) -> Cause | None:
    """A label or an index lies outside of what the op allows."""
    if case.op == _CROSS_ENTROPY:
        return _label(case)
    if case.op in _GATHERS and case.kind == "raised":
        return _index(case)
    if case.op in _CTC and case.is_infinite:
        return _ctc_label(case)
    trigger = case.replay.incident.trigger
    if case.origin is None and trigger.what == "exception" and _OUT_OF_RANGE.search(trigger.value):
        return Cause("label_out_of_range", 0.7, f"The step raised: {trigger.value.rstrip('.')}.")
    return None


def _label(case: Case) -> Cause | None:
    event = case.event
    if event is None or len(event.inputs) < 2 or is_opaque(event.inputs[1]):
        return _label_by_extremes(case)
    # On a CPU the kernel raises, compiled by XLA or on a GPU it gives NaN: the labels say it either
    # way.
    labels, classes = as_array(event.inputs[1]).reshape(-1), int(event.inputs[0].shape[-1])
    wrong_rows = np.flatnonzero((labels < 0) | (labels >= classes))
    if not len(wrong_rows):
        return None
    first = int(wrong_rows[0])
    where = _place_of_label(case, first)
    return _wrong_label(case, int(labels[first]), classes, where, len(wrong_rows))


def _place_of_label(case: Case, number: int) -> str:
    """Where one of the labels is that an op got, counted in order: ` in row 4`."""
    event, scene = case.event, case.bisection.scene
    assert event is not None
    assert scene is not None
    assert case.origin is not None
    value = event.input_ids[1]
    while value.serial >= 0:  # through what keeps all of them in their order
        fact = scene.trace.facts.get(value.serial)
        if fact is None or fact.type not in _IN_ORDER or not fact.input_ids:
            break
        value = fact.input_ids[0]
    given = scene.trace.value(value) if value.serial < 0 else None
    array, labels = event.inputs[1] if given is None else given, event.inputs[1]
    array, labels = as_array(array), as_array(labels)
    index = tuple(map(int, np.unravel_index(number, labels.shape)))
    path = None if array.size != labels.size else _path_of_rows(case, value)
    if path is None:
        return f" at {list(index)}" if index else ""
    index = tuple(map(int, np.unravel_index(number, array.shape)))
    if array.size == len(array):
        index = index[:1]
    of = f" of `{batch_name(path)}`" if case.origin.batch_prefix else ""
    return f" in {place_in_batch(path, index)}{of}"


def _label_by_extremes(case: Case) -> Cause | None:
    """The same by the facts of the origin, where there are no tensors."""
    if len(case.operands) < 2:
        return None
    logits, labels = case.operands[:2]
    if not logits.shape or labels.min is None or labels.max is None:
        return None
    classes = logits.shape[-1]
    worst = labels.min if labels.min < 0 else labels.max
    if 0 <= worst < classes:
        return None
    sentence = (
        f"A label is {int(worst)}, but there are only {classes} classes (0 to {classes - 1})."
    )
    evidence = f"`{case.op}` takes labels from 0 to {classes - 1}."
    return Cause("label_out_of_range", 0.98, sentence, (evidence,))


def _wrong_label(case: Case, label: int, classes: int, where: str, count: int) -> Cause:
    sentence = (
        f"The label{where} is {label}, but there are only {classes} classes (0 to {classes - 1})."
    )
    evidence = [
        f"`{case.op}` takes labels from 0 to {classes - 1}; "
        f"{count} of this batch {'is' if count == 1 else 'are'} outside."
    ]
    if case.kind == "raised":
        evidence.append("Op by op the kernel raises; compiled with XLA it gives NaN.")
    return Cause("label_out_of_range", 0.98, sentence, tuple(evidence))


def _index(case: Case) -> Cause | None:
    error = ""
    if case.event is not None and case.event.error is not None:
        error = without_node_names(first_line(case.event.error))
    if not _OUT_OF_RANGE.search(error):  # of shapes that do not fit, say
        return None
    sentence = f"`{case.op}`{case.where} is asked for a row that does not exist: {error[:200]}."
    return Cause("label_out_of_range", 0.95, sentence)


def _ctc_label(case: Case) -> Cause | None:
    """A sequence of labels that is longer than its time steps."""
    begin = f"`{case.op}` is infinite{case.place}"
    if case.event is None or case.mask is None or len(case.event.inputs) < 4:
        return None
    indices, labels, lengths = (as_array(value) for value in case.event.inputs[1:4])
    for sample in np.flatnonzero(case.mask):
        own = labels[indices[:, 0] == sample]
        # CTC puts a blank between two equal labels, which takes a time step of its own.
        repeats = int((own[1:] == own[:-1]).sum())
        steps = int(lengths[sample])
        if len(own) + repeats > steps:
            blanks = f" and {repeats} blanks between equal ones" if repeats else ""
            sentence = (
                f"{begin}: the {len(own)} labels of sample {sample}{blanks} "
                f"need {len(own) + repeats} time steps, and there are {steps}."
            )
            return Cause("label_out_of_range", 0.95, sentence)
    return None  # the labels fit: it is infinite for another reason
