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
    taken = _taken_forward(case)
    if taken is not None:
        return _dropped(case, taken[0].type, taken[1], 0.95)
    for forward in case.graph.forward_of(case.fact):
        chooser = case.graph.dropped_by(forward)
        if chooser is None:
            continue
        if any(stat.nonfinite for stat in forward.outputs):
            return _dropped(case, forward.type, chooser, 0.96)
        if _is_multiplied_by_zero(case):
            return _dropped(case, forward.type, chooser, 0.94)
    return None


def _taken_forward(case: Case) -> tuple[Fact, Fact] | None:
    """Return the forward op whose non-finite value the origin used, and the `where` that drops that value."""
    graph, fact = case.graph, case.fact
    if graph is None or fact is None or case.kind not in ("used", "turned"):
        return None
    for maker in graph.makers(fact):
        if not graph.is_backward(maker) and any(stat.nonfinite for stat in maker.outputs):
            chooser = graph.dropped_by(maker)
            if chooser is not None:
                return maker, chooser
    return None


def _dropped(case: Case, what: str, chooser: Fact, confidence: float) -> Cause:
    product = "its gradient is 0 times an infinity all the same, which is NaN"
    sentence = (
        f"`{what}`{case.where} is not finite{case.place}, and `{chooser.name}` drops it; {product}."
    )
    return Cause(
        "where_gradient",
        confidence,
        sentence,
        (
            f"The forward pass is finite; `{case.op}` in the backward pass: {case.count} are non-finite.",
        ),
    )


def _is_multiplied_by_zero(case: Case) -> bool:
    """Whether the next op on the way turns the infinity into NaN with a gradient of 0."""
    scene, fact = case.bisection.scene, case.fact
    serial = scene.walk.parents.get(fact.serial) if scene is not None and fact is not None else None
    event = scene.trace.facts[serial].event if scene is not None and serial is not None else None
    if (
        event is None
        or event.type != "Mul"
        or not np.isnan(as_array(event.outputs[0]).astype(np.float64)).any()
    ):
        return False
    others = [
        as_array(value) for value in event.inputs if is_float(value) and not nonfinite(value).any()
    ]
    return any((other == 0).any() for other in others)


def mask_all(case: Case) -> Cause | None:
    """A softmax (or log-sum-exp) of a row that is masked out whole."""
    if (
        case.op in ("Softmax", "LogSoftmax", "Sub", "SoftmaxCrossEntropyWithLogits")
        and case.kind in ("turned", "made")
        and not case.is_backward
    ):
        return _softmax(case)
    value = case.input_id(0)
    if (
        case.op == "Log"
        and case.graph is not None
        and value is not None
        and (case.operand(0) == 0).any()
    ):
        types = [fact for fact in case.graph.upstream(value, 3) if fact.type == "Exp"]
        if any(
            stat is not None and stat.inf
            for fact in types
            if (stat := case.graph.stat(fact.input_ids[0]))
        ):
            return Cause(
                "mask_all",
                0.94,
                f"Every term of the log-sum-exp{case.where} is exp(-inf) = 0{case.place}: the row is masked out whole.",
            )
    return _masked_by_hand(case)


def _softmax(case: Case) -> Cause | None:
    event = case.event
    if event is None or not np.isnan(case.value):
        return None
    array, mask = as_array(event.inputs[0]).astype(np.float64), case.mask
    if case.op == "Sub":
        first, second = case.operand(0), case.operand(1)
        if first.shape != second.shape or not (np.isneginf(first) & np.isneginf(second)).any():
            return None
    else:
        rows = array.reshape(-1, array.shape[-1])
        marked = (
            rows
            if mask is None or mask.shape != array.shape
            else rows[mask.reshape(rows.shape).any(axis=1)]
        )
        if not np.isneginf(marked).all(axis=-1).any():
            return None
    sentence = f"`{case.op}`{case.where} gets a row of only -inf{case.place}: everything in it is masked out, and 0 / 0 is NaN."
    return Cause("mask_all", 0.96, sentence, (f"{case.count} of its output are NaN.",))


def _masked_by_hand(case: Case) -> Cause | None:
    """exp(x) * mask / sum(exp(x) * mask) of a mask that is all 0."""
    values = case.input_id(0), case.input_id(1)
    if (
        case.op not in ("RealDiv", "Div")
        or case.graph is None
        or values[0] is None
        or values[1] is None
        or not np.isnan(case.value)
    ):
        return None
    total = case.graph.maker(values[1])
    if (
        total is None
        or total.type != "Sum"
        or case.graph.source(total.input_ids[0]) != case.graph.source(values[0])
    ):
        return None
    if not any(
        fact.type in ("Exp", "Softmax", "Sigmoid") for fact in case.graph.upstream(values[0], 2)
    ):
        return None
    return Cause(
        "mask_all",
        0.88,
        f"All weights{case.where} are 0{case.place}: the mask leaves nothing to share out, and 0 / 0 is NaN.",
    )
