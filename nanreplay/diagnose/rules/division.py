"""Rules about division: by 0, 0 by 0, by the sum of no weights."""

from __future__ import annotations

from collections import Counter

import numpy as np

from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.tensor_stats import FLOATS, words
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import Case, capital, largest_number, shown
from nanreplay.diagnose.counting import Count, count_under, dropout_under
from nanreplay.diagnose.failure_graph import SEGMENTS, FailureGraph, is_count
from nanreplay.diagnose.rules.overflow import is_plain
from nanreplay.diagnose.rules.selection import underflow_in_words
from nanreplay.findings import Cause
from nanreplay.replay.provenance import ValueId

DIVISIONS = words("RealDiv Div TruncateDiv FloorDiv FloorMod Mod TruncateMod Xdivy")
"""Ops that divide their first input by their second."""
POLES = words("Reciprocal Inv Rsqrt")
"""Ops of one input that divide by it (or by its root)."""
REDUCTIONS = words("Sum Mean Max Min Prod")
_SUMMED = words("Sum AddN L2Loss")
_TINY = 1e-20
"""Denominators below this make infinities of usual float32 values."""
_EXTREMES = {
    **dict.fromkeys(("UnsortedSegmentMax", "SegmentMaxV2", "SegmentMax"), "lowest"),
    **dict.fromkeys(("UnsortedSegmentMin", "SegmentMinV2", "SegmentMin"), "highest"),
}
"""What the largest, or smallest, element of a segment is where the segment has no rows."""
_SEGMENT_DEPTH = 4
"""How many ops back such a segment is looked for."""
_NEAR_MARK = 0.1
"""An operand of less than this part of what stands for no rows comes from other rows."""
_MASK_DEPTH = 4
"""How many ops back a mask is looked for."""


def divides_by_zero(case: Case) -> bool:
    """Whether the op is a division, and by 0 at the element that is told."""
    position = 1 if case.op in DIVISIONS else 0
    return case.op in DIVISIONS | POLES and bool((case.told(position) == 0).any())


def division_by_zero(case: Case) -> Cause | None:
    """A number divided by 0."""
    if case.is_backward and case.forward not in (
        "",
        "Atan2",
        "Angle",
        *DIVISIONS,
        *POLES,
        "DivNoNan",
    ):
        return None  # the gradient of another function divides: that function's rule tells it
    if case.op in DIVISIONS:
        return _by_zero_or_tiny(case)
    if case.op in POLES and divides_by_zero(case):
        return _divided(case, 0, "1 / sqrt(0)" if case.op == "Rsqrt" else "1 / 0")
    if case.op == "RsqrtGrad" and case.is_infinite:
        return _gradient_near_pole(case)
    return None


def _gradient_near_pole(case: Case) -> Cause | None:
    """The gradient of 1 / sqrt(x), which is beyond the type long before 1 / sqrt(x) is."""
    root, upstream, largest = case.told(0), case.told(1), largest_number(case.dtype)
    if not root.size or not upstream.size or not np.isfinite(root[0]) or largest is None:
        return None
    factor, upstream_size = 0.5 * abs(float(root[0])) ** 3, abs(float(upstream[0]))
    if factor <= min(largest, upstream_size):
        return None  # what came to the root is to blame, more than the root
    overflows = "overflows"
    if factor <= largest:
        overflows = f"is {-factor:.3g}, and overflows times {upstream[0]:.3g}"
    sentence = (
        f"The operand of `Rsqrt`{case.where} is {float(root[0]) ** -2:.3g}{case.place}, "
        f"so close to 0 that the gradient of 1 / sqrt(x), -0.5 / sqrt(x)^3, {overflows}."
    )
    return Cause("division_by_zero", 0.9, sentence, (_became(case),))


def _became(case: Case) -> str:
    return f"`{case.op}`{case.where}: {case.count} became non-finite."


def _by_zero_or_tiny(case: Case) -> Cause | None:
    numerator, denominator = case.told(0), case.told(1)
    if not denominator.size:
        return None
    if (denominator == 0).any() and not _is_zero_over_zero(case):
        dividend = shown(float(numerator[0])) if numerator.size else "a number"
        return _divided(case, 1, f"{dividend} / 0")
    is_tiny = np.abs(denominator) < _TINY
    if case.is_infinite and is_tiny.any():
        sentence = (
            f"{capital(case.subject_at(1))} is {float(denominator[is_tiny][0]):.3g}, "
            "so close to 0 that dividing by it overflows."
        )
        return Cause("division_by_zero", 0.75, sentence)
    return None


def _divided(case: Case, i: int, formula: str) -> Cause:
    """The cause of a division by an operand that is 0."""
    atan2 = _atan2(case)
    if atan2 is not None:
        return atan2
    sentence = (
        f"{capital(case.subject_at(i))} is exactly 0.0, and `{case.op}` divides by it ({formula})."
    )
    sentence += _why_zero(case) if i == 1 else ""
    return Cause("division_by_zero", 0.84, sentence, (_became(case),))


def _atan2(case: Case) -> Cause | None:
    if not (case.is_backward and case.forward == "Atan2"):
        return None
    sentence = (
        f"The gradient of `Atan2`{case.where} divides by x^2 + y^2, which is 0.0{case.place}."
    )
    return Cause("division_by_zero", 0.9, sentence)


def _is_zero_over_zero(case: Case) -> bool:
    numerator, denominator = case.told(0), case.told(1)
    if not numerator.size or numerator.shape != denominator.shape:
        return False
    return bool(((numerator == 0) & (denominator == 0)).any()) and bool(np.isnan(case.value))


def zero_over_zero(case: Case) -> Cause | None:
    """0 divided by 0."""
    if case.op not in DIVISIONS or not _is_zero_over_zero(case) or case.forward == "Atan2":
        return None
    sentence = f"Numerator and denominator are both exactly 0.0{case.place}: 0 / 0 is NaN."
    sentence += _why_zero(case)
    evidence = (
        f"Numerator: {case.subject(0)}. Denominator: {case.subject(1)}.",
        f"`{case.op}`{case.where}: {case.count} became NaN.",
    )
    return Cause("zero_over_zero", 0.86, sentence, evidence)


def _why_zero(case: Case) -> str:
    """Say what made a denominator 0, "" where that is not known: dropout, or no epsilon."""
    value = case.input_id(1)
    if case.graph is None or value is None:
        return ""
    if case.origin is not None and case.origin.where == "optimizer":
        return _without_epsilon(case.graph, value)
    if _dropout(case) is not None:
        return " Dropout kept nothing of what the denominator sums."
    return underflow_in_words(case, 1)


def _without_epsilon(graph: FailureGraph, value: ValueId) -> str:
    """Say that an optimizer divides by a root that is 0, with no epsilon."""
    makers = list(graph.upstream(value, 4))
    if makers and makers[0].type == "Sub":
        is_rate, is_exponent = _why_power_is_one(graph, makers[0])
        if is_exponent:
            return " The denominator is 1 less a power, and that power has the exponent 0."
        if is_rate:
            return " The denominator is 1 less a power of a decay rate, and that rate is 1."
    if not any(fact.type in ("Sqrt", "Rsqrt") for fact in makers[:3]):
        return ""
    if any(fact.type in _SUMMED for fact in makers):
        reason = " The denominator is the root of a sum of squares: all of them are 0, and "
    elif graph.reads_variable(value, "optimizer"):
        reason = (
            " The denominator is the root of squared gradients that are summed up: "
            "the gradient was 0 (or its square too small) there so far, and "
        )
    else:
        return ""
    for fact in makers:
        constants = []
        for operand in fact.input_ids:
            if graph.is_zero_constant(operand):
                constants.append(operand)
        if fact.type in ("AddV2", "Add", "Maximum") and constants:
            return f"{reason}the epsilon that is added is 0."
    return f"{reason}no epsilon is added."


def _why_power_is_one(graph: FailureGraph, difference: Fact) -> tuple[bool, bool]:
    """Whether 1 - beta ** step is 0 for a beta of 1, and whether it is for a step of 0."""
    power = graph.maker(difference.input_ids[1]) if len(difference.input_ids) > 1 else None
    if power is None or power.type != "Pow" or power.outputs[0].minimum != 1:
        return False, False
    base = graph.stat(power.input_ids[0])
    return base is not None and base.minimum == 1, graph.is_zero(power.input_ids[1])


def _dropout(case: Case) -> Fact | None:
    """Return the random mask that left nothing of the denominator."""
    value = case.input_id(1)
    if case.graph is None or value is None or case.event is None:
        return None
    zeros = as_array(case.event.inputs[1]) == 0
    return dropout_under(case.graph, value, case.kept, np.asarray(zeros))


def empty_reduction(case: Case) -> Cause | None:
    """A reduction over nothing.

    Of an empty tensor or segment, or a sum divided by a count or by weights that are all 0.
    """
    if case.op in REDUCTIONS and case.event is not None:
        return _of_empty_tensor(case)
    value = case.input_id(1)
    if case.op not in DIVISIONS or case.graph is None or value is None:
        return _of_empty_segment(case)
    if case.is_backward or not divides_by_zero(case):
        return None
    count = count_under(case.graph, value)
    weights = _zero_weights(case)
    is_mean = _is_reduced(case)
    if count is not None and (count.condition is not None or is_mean):
        sentence = _count_in_words(case, count)
    elif weights is not None and is_mean:
        divisor = "count" if is_count(weights) else "sum of weights (or of a mask)"
        if "Segment" in weights.type:
            divisor = "sum over the rows of a segment"
        sentence = (
            f"The {divisor} that `{case.op}` divides by{case.where} is 0{case.place}: "
            "nothing is left to average."
        )
        if _dropout(case) is not None:
            sentence += " Dropout kept nothing of it."
    else:
        return None
    evidence = [f"Numerator: {case.subject(0)}."]
    if weights is not None:
        evidence.insert(0, f"Denominator: `{weights.type}` (`{weights.name}`) is 0.0.")
    if case.origin is not None and case.origin.rows_reason:
        evidence.append(case.origin.rows_reason)
    return Cause("empty_reduction", 0.92, sentence, tuple(evidence))


def _of_empty_segment(case: Case) -> Cause | None:
    """A segment without rows: its largest (smallest) element is the lowest (highest) number."""
    if case.graph is None or case.fact is None or case.is_backward or not is_plain(case):
        return None
    for i, value in enumerate(case.fact.input_ids):
        told = np.abs(case.told(i))
        for fact in case.graph.upstream(value, _SEGMENT_DEPTH):
            mark = _mark_of_nothing(fact)
            if mark is not None and (told >= _NEAR_MARK * abs(mark)).any():
                sentence = (
                    f"`{fact.type}` (`{fact.name}`) gives {mark:.6g}, which stands for a segment "
                    f"without rows, and `{case.op}`{case.where} overflows on it{case.place}."
                )
                evidence = f"`{case.op}`: {case.count} became non-finite."
                return Cause("empty_reduction", 0.93, sentence, (evidence,))
    return None


def _mark_of_nothing(fact: Fact) -> float | None:
    """Return what a reduction of segments gives for one without rows, where it gave that."""
    if fact.type not in _EXTREMES or not fact.outputs or fact.outputs[0].dtype not in FLOATS:
        return None
    stat = fact.outputs[0]
    limit = largest_number(stat.dtype)
    if limit is None:
        return None
    if _EXTREMES[fact.type] == "lowest":
        return stat.minimum if stat.minimum is not None and stat.minimum <= -limit else None
    return stat.maximum if stat.maximum is not None and stat.maximum >= limit else None


def _count_in_words(case: Case, count: Count) -> str:
    """What there is none of."""
    begin = f"`{case.op}`{case.where} divides by"
    if count.condition is None:
        # The length of a ragged row is the difference of the places where rows begin.
        difference = "a difference of whole numbers (such as n - 1, or the length of a ragged row)"
        divisor = difference if count.is_reduced else "a count"
        return f"{begin} {divisor}, and that is 0{case.place}: nothing is left to average."
    if _dropout(case) is not None:
        return f"{begin} what dropout kept, and it kept nothing{case.place}."
    what = "pairs of elements" if count.is_of_pairs else "elements"
    condition = f"`{count.condition.type}` (`{count.condition.name}`)"
    if not count.is_reduced and count.is_combined:
        return (
            f"{begin} the sum of a mask, made of conditions such as {condition}, "
            f"and that is 0{case.place}: nothing is left to average."
        )
    if not count.is_reduced:
        return (
            f"{begin} the number of {what} for which {condition} holds, "
            f"and it holds for none{case.place}."
        )
    return (
        f"{begin} the number of {what} for which {condition} holds, less what is subtracted "
        f"(such as each element with itself), and that is 0{case.place}: none is left."
    )


def _of_empty_tensor(case: Case) -> Cause | None:
    assert case.event is not None
    sizes = list(map(int, case.event.inputs[0].shape))
    if 0 not in sizes:
        return None
    sentence = f"`{case.op}`{case.where} reduces an empty tensor of shape {sizes}"
    reason = _nothing_came(case) or _kept_nothing(case)
    sentence += f": {reason}." if reason else "."
    if case.leaves_weights_finite:
        sentence += " Gradients and weights stay finite."
    return Cause("empty_reduction", 0.97, sentence, ())


def _nothing_came(case: Case) -> str:
    """Say so where the batch, or a replica's part of it, has no rows."""
    batch, origin = case.replay.batch(case.step), case.origin
    rows: Counter[str] = Counter()
    for path, leaf in zip(batch.paths, batch.leaves, strict=True):
        array = as_array(leaf)
        replica = path.partition("/")[0] if path.startswith("replica_") else ""
        if array.ndim:
            rows[replica] = max(rows[replica], len(array))
    own = origin.batch_prefix.rstrip("/") if origin is not None else ""
    if own not in rows or rows[own]:
        return ""
    if not own:
        return "the batch has no rows"
    total = rows.total()
    return (
        f"the batch has {total} row{'' if total == 1 else 's'} for {len(rows)} replicas, "
        f"and none came to {own.replace('_', ' ')}"
    )


def _kept_nothing(case: Case) -> str:
    """Say so where a boolean mask made the tensor: TensorFlow writes it as Where and a gather."""
    if case.graph is None or case.fact is None:
        return ""
    level = list(case.fact.input_ids[:1])
    for _ in range(_MASK_DEPTH):
        facts = []
        for value in level:
            facts.append(case.graph.trace.facts.get(value.serial))
        for fact in facts:
            if fact is not None and fact.type == "Where" and not fact.outputs[0].size:
                return "a mask kept no element"
        level = []
        for fact in facts:
            if fact is not None:
                level.extend(fact.input_ids)
    return ""


def _zero_weights(case: Case) -> Fact | None:
    """Return the sum of weights that is 0 and that the origin divides by."""
    denominator = case.input_id(1)
    if case.graph is None or denominator is None:
        return None
    total = case.graph.weights_under(denominator)
    # x / sum(x) brings x to a sum of 1, it averages nothing.
    is_normalization = total is not None and case.input_id(0) in total.input_ids[:1]
    return None if is_normalization else total


def _is_reduced(case: Case) -> bool:
    """Whether the numerator is a sum as well, not the very weights that are normalized."""
    value = case.input_id(0)
    if case.graph is None or value is None:
        return False
    for fact in case.graph.upstream(value, 2):
        if fact.type in REDUCTIONS or fact.type in SEGMENTS:
            return True
        if fact.type not in ("Neg", "Mul", "AddV2", "Sub"):
            return False
    return False
