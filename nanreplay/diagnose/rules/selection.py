"""Rules about what was left out: `where` branches, masked softmax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.tensor_stats import is_float, nonfinite
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import Case, Values, shown
from nanreplay.diagnose.failure_graph import SELECTS, FailureGraph
from nanreplay.errors import few_digits
from nanreplay.findings import Cause
from nanreplay.replay.provenance import OpEvent, ValueId


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
        why = "0 times an infinity is NaN" if _is_multiplied_by_zero(case) else ""
        if _divides_zero_by_zero(case):
            why = "0 / 0 is NaN"
        if why and _is_left_out(case, dropped_by, forward):
            return _dropped_gradient(case, forward.type, dropped_by, why)
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
    evidence = f"The loss is finite; `{case.op}` in the backward pass: {case.count} are non-finite."
    return Cause("where_gradient", confidence, sentence, (evidence,))


def _divides_zero_by_zero(case: Case) -> bool:
    """Whether the gradient that comes to a branch is 0, and divided by 0 there: as of `atan2`."""
    is_quotient = case.op in ("RealDiv", "Div") and np.isnan(case.value)
    return is_quotient and bool((case.told(0) == 0).any() and (case.told(1) == 0).any())


def _dropped_gradient(case: Case, op_type: str, chooser: Fact, why: str) -> Cause:
    """The cause of a value that is finite, and whose gradient alone is not."""
    sentence = (
        f"The gradient of `{op_type}`{case.where} is not finite{case.place}, where "
        f"`{chooser.name}` drops its value: {why}."
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
    for value_id, value in zip(event.input_ids, event.inputs, strict=True):
        maker = scene.trace.facts.get(value_id.serial) if scene is not None else None
        # A factor of the forward pass may be 0 where the value is kept: x of sqrt(x * w) is.
        if maker is None or case.graph is None or not case.graph.is_backward(maker):
            continue
        if not is_float(value) or nonfinite(value).any():
            continue
        is_zero = np.asarray(as_array(value) == 0)
        if case.mask is not None and case.mask.shape == is_zero.shape:
            is_zero &= case.mask
        if is_zero.any():
            return True
    return False


def zero_times_infinity(case: Case) -> Cause | None:
    """A mask by multiplication with -inf: where it is to leave a value as it is, 0 * inf is NaN."""
    if case.op != "Mul" or case.kind != "turned" or not np.isnan(case.value):
        return None
    for position in (0, 1):
        zeros, infinities = case.told(1 - position), case.told(position)
        if not (zeros.size and infinities.size):
            continue
        if (zeros == 0).any() and np.isinf(infinities).any():
            infinity = shown(float(infinities[np.isinf(infinities)][0]))
            sentence = (
                f"`Mul`{case.where} multiplies 0 by {infinity}{case.place}: that is NaN, not 0. "
                "So an infinity that is to be added in some places makes NaN of all the others."
            )
            return Cause("other", 0.9, sentence, (f"{case.count} of its output are NaN.",))
    return None


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
    """Whether the origin is the Log of a sum of Exp, all of -inf in the row that failed."""
    if case.op != "Log" or not (case.told(0) == 0).any():
        return False
    terms = summed_exponentials(case, 0)
    if terms is None or not np.isneginf(terms).all():
        return False
    value = case.input_id(0)
    return case.graph is not None and value is not None and not _underflowed(case.graph, value)


def _underflowed(graph: FailureGraph, value: ValueId) -> bool:
    """Whether a sum of exponentials is 0 for what an earlier such sum was: 0 by rounding, unmasked.

    Scalings that take turns, as Sinkhorn's do, make infinities of such a 0, and other zeros of
    these. The way back goes through what is infinite, and from a logarithm of 0 to the exponents.
    """
    operands, seen = [value], {value}
    while operands:
        pending = list(_exponents_under(graph, operands.pop()))
        if any(map(graph.is_finite, pending)):
            return True
        while pending:
            fact = graph.maker(pending.pop())
            if fact is None or not any(stat.nonfinite for stat in fact.outputs):
                continue
            is_of_zero = fact.type == "Log" and graph.is_finite(fact.input_ids[0])
            new = [one for one in fact.input_ids if one not in seen]
            (operands if is_of_zero else pending).extend(new)
            seen.update(new)
    return False


def _exponents_under(graph: FailureGraph, value: ValueId) -> Iterator[ValueId]:
    """Yield what the exponentials of a sum are taken of."""
    for fact in graph.upstream(value, 3):
        if fact.type == "Exp":
            yield fact.input_ids[0]
        elif fact.type not in ("AddV2", "Sum", "Const"):
            return


def summed_exponentials(case: Case, i: int) -> Values | None:
    """Return what the exponentials were taken of whose sum is 0 at the element that is told.

    None where an operand is no such sum: then a mask, say, comes between.

    Args:
        case: The incident.
        i: Which operand.
    """
    value = case.input_id(i)
    if case.graph is None or value is None:
        return None
    total = case.graph.maker(value)
    if total is None or total.type != "Sum":
        return None
    exponential = case.graph.maker(total.input_ids[0])
    if exponential is None or exponential.type != "Exp":
        return None
    sum_event, event = case.kept.get(total.serial), case.kept.get(exponential.serial)
    if sum_event is None or event is None:
        return None
    return _row_of_sum(case, sum_event, as_array(event.inputs[0]).astype(np.float64))


def underflow_in_words(case: Case, i: int) -> str:
    """Say where an operand has its 0 from: a number divided by an infinity, a sum of exponentials.

    A sum of exponentials is 0 because all of them are.
    """
    lost = case.lost_infinity(i)
    if lost is not None:
        return (
            f" `{lost.loser.type}` made it of an infinity, "
            f"which `{lost.maker.type}` of {few_digits(lost.operand)} gave."
        )
    exponents = summed_exponentials(case, i)
    if exponents is None or not exponents.size or not np.isfinite(exponents).all():
        return ""
    return (
        f" All {exponents.size} exponentials that it sums round to 0: the largest one is "
        f"exp({exponents.max():.6g})."
    )


def _row_of_sum(case: Case, event: OpEvent, terms: Values) -> Values | None:
    """Return the terms that a Sum adds up to the element that is told; None where it is unclear."""
    summed = np.shape(event.inputs[0])
    if case.mask is None or terms.shape != summed or not case.mask.any():
        return None
    axes = {int(axis) % max(len(summed), 1) for axis in as_array(event.inputs[1]).reshape(-1)}
    index: list[int | slice] = list(np.argwhere(case.mask)[0])
    if len(index) == len(summed) - len(axes):  # of a sum without the axes
        for axis in sorted(axes):
            index.insert(axis, slice(None))
    if len(index) != len(summed):
        return None
    for axis, size in enumerate(summed):
        # of a sum that was broadcast, where the axis has one element
        if axis in axes or size == 1:
            index[axis] = slice(None)
    return as_array(terms[tuple(index)]).reshape(-1)


def _softmax(case: Case) -> Cause | None:
    if case.event is None or not np.isnan(case.value):
        return None
    has_row_of_inf = _subtracts_infinities(case) if case.op == "Sub" else _has_masked_row(case)
    if not has_row_of_inf:
        return None
    why = "-inf less its largest, -inf," if case.op == "Sub" else "0 / 0"
    sentence = (
        f"`{case.op}`{case.where} gets a row of only -inf{case.place}: "
        f"everything in it is masked out, and {why} is NaN."
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
    first, second = case.told(0), case.told(1)
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
    """exp(x) * mask / sum(exp(x) * mask) of a mask that is all 0 in the row that failed."""
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
    product = case.graph.maker(weights)
    if product is None or not _is_masked_out(case, total, product):
        return None
    sentence = (
        f"All weights{case.where} are 0{case.place}: "
        "the mask leaves nothing to share out, and 0 / 0 is NaN."
    )
    return Cause("mask_all", 0.88, sentence)


def _is_masked_out(case: Case, total: Fact, product: Fact) -> bool:
    """Whether a mask beside an exponential is 0 in the whole row that a Sum adds up."""
    sum_event, event = case.kept.get(total.serial), case.kept.get(product.serial)
    if case.graph is None or sum_event is None or event is None:
        return False
    for weights, mask in _masks_of(case.graph, product, event):
        maker = case.graph.maker(weights)
        if maker is None or maker.type not in ("Exp", "Softmax", "Sigmoid"):
            continue
        whole_mask = np.broadcast_to(mask, np.shape(event.outputs[0]))
        row = _row_of_sum(case, sum_event, whole_mask)
        if row is not None and not row.any():
            return True
    return False


def _masks_of(
    graph: FailureGraph, product: Fact, event: OpEvent
) -> Iterator[tuple[ValueId, NDArray[Any]]]:
    """Yield what an op leaves of a value, and the mask: 0, or False, where it leaves nothing."""
    inputs = product.input_ids
    if product.type == "Mul":
        for position in (0, 1):
            mask = as_array(event.inputs[position]).astype(np.float64)
            yield inputs[1 - position], mask
    elif product.type in SELECTS:
        condition = as_array(event.inputs[0]).astype(bool)
        if graph.is_zero(inputs[2]):
            yield inputs[1], condition
        if graph.is_zero(inputs[1]):
            yield inputs[2], ~condition
