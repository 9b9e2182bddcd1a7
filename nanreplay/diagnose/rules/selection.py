"""Rules about what was left out: `where` branches, masked softmax."""

from __future__ import annotations

import numpy as np

from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.tensor_stats import is_float, nonfinite
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import Case
from nanreplay.findings import Cause


def where_gradient(case: Case) -> Cause | None:
    """The gradient of a branch that `where` dropped: 0 times an infinity."""
    if not case.is_backward or case.graph is None or case.fact is None:
        return None
    used_and_chooser = _used_forward(case)
    if used_and_chooser is not None:
        used, chooser = used_and_chooser
        return _dropped(case, used.type, chooser, 0.95)
    for forward in case.graph.forward_of(case.fact):
        dropped_by = case.graph.dropped_by(forward)
        if dropped_by is None:
            continue
        # The well-known form: the forward value is bad itself, as of `where(x > 0, log(x), 0)`.
        if any(stat.nonfinite for stat in forward.outputs):
            return _dropped(case, forward.type, dropped_by, 0.96)
        # The other form: the value is finite and its gradient is not, as of `sqrt` at 0.
        if _is_multiplied_by_zero(case) and _is_left_out(case, dropped_by, forward):
            return _dropped_gradient(case, forward.type, dropped_by)
    return None


def _used_forward(case: Case) -> tuple[Fact, Fact] | None:
    """Return the forward op whose non-finite value the origin used, and the `where` dropping it."""
    graph, fact = case.graph, case.fact
    if graph is None or fact is None or case.kind not in ("used", "turned"):
        return None
    for maker in graph.makers(fact):
        if not graph.is_backward(maker) and any(stat.nonfinite for stat in maker.outputs):
            chooser = graph.dropped_by(maker)
            if chooser is not None:
                return maker, chooser
    return None


def _dropped(case: Case, op_type: str, chooser: Fact, confidence: float) -> Cause:
    sentence = (
        f"`{op_type}`{case.where} is not finite{case.place}, and `{chooser.name}` drops it; "
        "its gradient is 0 times an infinity all the same, which is NaN."
    )
    evidence = (
        f"The forward pass is finite; `{case.op}` in the backward pass: "
        f"{case.count} are non-finite."
    )
    return Cause("where_gradient", confidence, sentence, (evidence,))


def _dropped_gradient(case: Case, op_type: str, chooser: Fact) -> Cause:
    """The cause of a value that is finite, and whose gradient alone is not."""
    sentence = (
        f"The gradient of `{op_type}`{case.where} is not finite{case.place}, where "
        f"`{chooser.name}` drops its value: 0 times an infinity is NaN."
    )
    evidence = f"`{case.op}` in the backward pass: {case.count} are non-finite."
    return Cause("where_gradient", 0.94, sentence, (evidence,))


def _is_left_out(case: Case, chooser: Fact, forward: Fact) -> bool:
    """Whether a `where` leaves an element out that failed, as far as that can be told."""
    branch = case.graph.branch_of(chooser, forward) if case.graph is not None else None
    # Both branches are made of the value, or what chooses is no `where`: nothing speaks against it.
    if branch is None:
        return True
    condition = case.input_of(chooser, 0)
    if condition is None or case.mask is None or condition.shape != case.mask.shape:
        return True
    is_left_out = ~condition.astype(bool) if branch == 1 else condition.astype(bool)
    return bool((is_left_out & case.mask).any())


def _is_multiplied_by_zero(case: Case) -> bool:
    """Whether the next op on the way turns the infinity into NaN with a gradient of 0.

    `where` sends a gradient of 0 into the branch that it drops; there 0 times infinity is NaN.
    """
    scene, fact = case.bisection.scene, case.fact
    serial = scene.walk.parents.get(fact.serial) if scene is not None and fact is not None else None
    event = scene.trace.facts[serial].event if scene is not None and serial is not None else None
    if event is None or event.type != "Mul":
        return False
    # numpy's `isnan` does not take every float type that TensorFlow has.
    if not np.isnan(as_array(event.outputs[0]).astype(np.float64)).any():
        return False
    finite = []
    for value in event.inputs:
        if is_float(value) and not nonfinite(value).any():
            finite.append(value)
    return any((as_array(value) == 0).any() for value in finite)


def mask_all(case: Case) -> Cause | None:
    """A softmax (or log-sum-exp) of a row that is masked out whole."""
    is_softmax = case.op in ("Softmax", "LogSoftmax", "Sub", "SoftmaxCrossEntropyWithLogits")
    if is_softmax and case.kind in ("turned", "made") and not case.is_backward:
        return _softmax(case)
    if _is_log_of_masked_sum(case):
        sentence = (
            f"Every term of the log-sum-exp{case.where} is exp(-inf) = 0{case.place}: "
            "the row is masked out whole."
        )
        return Cause("mask_all", 0.94, sentence)
    return _masked_by_hand(case)


def _is_log_of_masked_sum(case: Case) -> bool:
    """Whether the origin is the Log of a sum of Exp of infinities."""
    value = case.input_id(0)
    if case.op != "Log" or case.graph is None or value is None:
        return False
    if not (case.operand(0) == 0).any():
        return False
    for fact in case.graph.upstream(value, 3):
        stat = case.graph.stat(fact.input_ids[0]) if fact.type == "Exp" else None
        if stat is not None and stat.inf:
            return True
    return False


def _softmax(case: Case) -> Cause | None:
    if case.event is None or not np.isnan(case.value):
        return None
    has_row_of_inf = _subtracts_infinities(case) if case.op == "Sub" else _has_masked_row(case)
    if not has_row_of_inf:
        return None
    sentence = (
        f"`{case.op}`{case.where} gets a row of only -inf{case.place}: "
        "everything in it is masked out, and 0 / 0 is NaN."
    )
    if _takes_larger_off(case):
        sentence = (
            f"`{case.op}`{case.where} takes the larger of two terms off them, and both are -inf"
            f"{case.place}: that is NaN, where the log-sum-exp of both is -inf."
        )
    return Cause("mask_all", 0.96, sentence, (f"{case.count} of its output are NaN.",))


def _subtracts_infinities(case: Case) -> bool:
    """Whether a Sub takes the maximum of a row, -inf, off that row: a softmax by hand does."""
    row, shift = case.input_id(0), case.input_id(1)
    if case.graph is None or row is None or shift is None:
        return False
    maximum = case.graph.maker(shift)
    if maximum is None or maximum.type not in ("Max", "Maximum", "Select", "SelectV2"):
        return False
    first, second = case.operand(0), case.operand(1)
    if first.shape != second.shape:
        return False
    return bool((np.isneginf(first) & np.isneginf(second)).any())


def _takes_larger_off(case: Case) -> bool:
    """Whether a log-sum-exp of two terms is written by hand, as `tf.maximum(a, b)` off each."""
    shift = case.input_id(1) if case.op == "Sub" and case.graph is not None else None
    if case.graph is None or shift is None:
        return False
    maximum = case.graph.maker(shift)
    return maximum is not None and maximum.type == "Maximum"


def _has_masked_row(case: Case) -> bool:
    """Whether a row of the logits that gave NaN holds -inf only."""
    assert case.event is not None
    logits, mask = as_array(case.event.inputs[0]).astype(np.float64), case.mask
    rows = logits.reshape(-1, logits.shape[-1])
    if mask is not None and mask.shape == logits.shape:
        rows = rows[mask.reshape(rows.shape).any(axis=1)]
    return bool(np.isneginf(rows).all(axis=-1).any())


def _masked_by_hand(case: Case) -> Cause | None:
    """exp(x) * mask / sum(exp(x) * mask) of a mask that is all 0."""
    weights, denominator = case.input_id(0), case.input_id(1)
    if case.op not in ("RealDiv", "Div") or not np.isnan(case.value):
        return None
    if case.graph is None or weights is None or denominator is None:
        return None
    total = case.graph.maker(denominator)
    if total is None or total.type != "Sum":
        return None
    if case.graph.source(total.input_ids[0]) != case.graph.source(weights):
        return None
    types = {fact.type for fact in case.graph.upstream(weights, 2)}
    if not types & {"Exp", "Softmax", "Sigmoid"}:
        return None
    sentence = (
        f"All weights{case.where} are 0{case.place}: "
        "the mask leaves nothing to share out, and 0 / 0 is NaN."
    )
    return Cause("mask_all", 0.88, sentence)
