"""The headline: what failed and where, in one short line.

For example `log(0.0) = -inf in the loss, step 12, sample 18`. The sentence of `sentence` says the
same with its way to the trigger, the line of code, the cause and the fixes.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanreplay.errors import without_node_names
from nanreplay.findings import Cause, Origin, OutputFacts
from nanreplay.report.contents import Report
from nanreplay.report.numbers import readable_list, readable_number, readable_trigger
from nanreplay.report.sentence import bad_output, kind_in_words, owner

_OPERATORS = {
    "Sub": "-",
    "Add": "+",
    "AddV2": "+",
    "Mul": "*",
    "MulNoNan": "*",
    "RealDiv": "/",
    "Div": "/",
    "DivNoNan": "/",
    "FloorDiv": "//",
    "Pow": "**",
}
"""Operators of Python by op type."""
_MOST_SAMPLES = 3
"""Samples that are named; of more the number is told."""
_FEW_OPERANDS = 3
"""Operands whose values are told one by one."""
_WORDS_IN_SMALL = ("The ", "A ", "An ", "It ", "All ", "No ")
"""Words that are written small after a colon."""
_WITHOUT_ORIGIN = {
    "healthy": "Nothing non-finite in the recorded steps",
    "transient": "{event} in training, finite in every replay",
    "inconclusive": "{event}; what made it could not be decided",
}
"""Headlines by kind of verdict; `event` is what triggered."""


def headline(report: Report) -> str:
    """Say in one short line what failed, where, at which step, for which samples.

    Args:
        report: What is known.
    """
    origin = report.findings.origin
    if report.verdict.kind in _WITHOUT_ORIGIN or origin is None:
        event = readable_trigger(report.trigger).rstrip(".")
        pattern = _WITHOUT_ORIGIN.get(report.verdict.kind, "{event}; no op could be named")
        return f"{pattern.format(event=event)}, step {report.incident_step}"
    parts = [f"{event_of(origin)}{_place(origin)}", *owner(origin), f"step {origin.step}"]
    if origin.rows:
        parts.append(_samples(origin.rows))
    return ", ".join(parts)


def event_of(origin: Origin) -> str:
    """What the op did to the values of its operands: `0.0 / 0.0 = NaN`, `log(0.0) = -inf`."""
    output = bad_output(origin)
    value = _value(output)
    if origin.op_type is None:
        name = origin.op_name or (origin.operands[0].name if origin.operands else "the batch")
        return f"{value} in {name}{_index(output)}"
    if origin.message is not None and origin.kind == "raised":
        return f"{origin.op_type}: {without_node_names(origin.message).rstrip('.')}"
    expression = _expression(origin)
    return f"{origin.op_type} gave {value}" if expression is None else f"{expression} = {value}"


def _expression(origin: Origin) -> str | None:
    """The op with the values of its operands; None where there are too many."""
    op_type, operands = origin.op_type or "", origin.operands
    values = []
    for operand in operands:
        if not operand.dtype.lstrip("b").startswith(("float", "complex")):
            continue  # axes and shapes are no numbers that the op computes with
        if operand.value is None:
            return None
        values.append(readable_number(operand.value))
    if not 0 < len(values) <= _FEW_OPERANDS:
        return None
    if op_type in _OPERATORS and len(values) == 2:
        return f" {_OPERATORS[op_type]} ".join(values)
    return f"{op_type.lower()}({', '.join(values)})"


def _value(output: OutputFacts | None) -> str:
    if output is None or output.value is None:
        return "a non-finite value"
    return readable_number(output.value)


def _index(output: OutputFacts | None) -> str:
    if output is None or not output.indices or not output.indices[0]:
        return ""
    return f"[{', '.join(map(str, output.indices[0]))}]"


def _place(origin: Origin) -> str:
    """Where it is, as the end of a clause: ` in layer contrast`, ` in the loss`."""
    layer = origin.layer_path or origin.layer
    if origin.op_type is None:
        return ""
    if origin.phase == "update":
        return " in the optimizer"
    if origin.phase == "backward":
        if layer:
            return f" in the gradient of layer {layer}"
        return " in the gradient of the loss" if origin.where == "loss" else " in the gradient"
    if layer:
        return f" in layer {layer}"
    return " in the loss" if origin.where == "loss" or origin.phase == "loss" else ""


def _samples(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"sample {rows[0]}"
    if len(rows) > _MOST_SAMPLES:
        return f"{len(rows)} samples"
    return f"samples {readable_list(rows)}"


def cause_sentence(cause: Cause) -> str:
    """A cause in one plain sentence, with the kind in words where the sentence lacks it."""
    if cause.kind == "other":
        return cause.sentence
    kind, sentence = kind_in_words(cause.kind), cause.sentence
    if sentence.startswith(_WORDS_IN_SMALL):
        sentence = f"{sentence[0].lower()}{sentence[1:]}"
    return f"{kind[0].upper()}{kind[1:]}: {sentence}"
