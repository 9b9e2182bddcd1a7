"""What is known of a tensor, in lines: operands of an element, statistics, histogram, where it is not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.style import Style
from rich.text import Text

from nanreplay.explore import Operand, StepView, TensorView, source_of
from nanreplay.report.numbers import readable_number
from nanreplay.tui.exploring import Element
from nanreplay.tui.widgets.figures import histogram_text, histogram_words, map_text
from nanreplay.tui.widgets.op_words import bad_words, index_words, number, range_words, shape_words, source_words, tone

_WIDTH = 50


def tensor_text(view: StepView, tensor: TensorView, made: Element | None, colours: Mapping[str, str]) -> Text:
    """Everything about a tensor but its values.

    Args:
        view: Its step.
        tensor: The tensor.
        made: What the element under the cursor was computed from, once that is known.
        colours: The theme's variables.
    """
    muted = tone(colours, "text-muted")
    lines = [*_made_by(view, tensor, muted), *_computed_from(view, made, muted)]
    if tensor.opaque is not None:
        lines.append(Text(tensor.opaque))
    lines += _statistics(tensor, muted)
    if tensor.histogram is not None and tensor.stat.size > 1:
        lines += [Text(""), Text(histogram_words(tensor.histogram), muted), histogram_text(tensor.histogram, colours, _WIDTH)]
    if tensor.stat.nonfinite and tensor.stat.size > 1:
        lines += [Text(""), Text("where it is not finite", muted), map_text(tensor.bad_share, colours, _WIDTH, 16)]
    return Text("\n").join(lines)


def best_operand(operands: Sequence[Operand]) -> Operand | None:
    """Return the operand to look at first: one that is not finite, else the one that is known most exactly; none of a handle."""

    def rank(operand: Operand) -> tuple[bool, bool, bool]:
        value = operand.facts.value
        bad = isinstance(value, float) and not np.isfinite(value)
        return bad, operand.index is not None, operand.value.serial >= 0

    known = [operand for operand in operands if operand.facts.dtype not in ("resource", "variant")]
    return max(known, key=rank, default=None)


def _made_by(view: StepView, tensor: TensorView, muted: Style) -> list[Text]:
    op = view.op(tensor.value.serial)
    if op is None:
        return [Text("entered the step", muted)]
    lines = [Text.assemble(("output of ", muted), (op.type, "bold"), (f"  {op.phase}  {op.layer_path}".rstrip(), muted))]
    return [*lines, Text(source_words(op.source))] if op.source is not None else lines


def _computed_from(view: StepView, made: Element | None, muted: Style) -> list[Text]:
    if made is None or not made.operands:
        return []
    lines = [Text(f"{index_words(made.at) or 'it'} was computed from", muted)]
    return [*lines, *(operand_text(view, operand, muted) for operand in made.operands)]


def operand_text(view: StepView, operand: Operand, muted: Style) -> Text:
    """One operand at an element: `0.0 at [18, 0]  of Softmax`."""
    facts = operand.facts
    if facts.value is not None:
        value = f"{readable_number(facts.value)}{f' at {index_words(operand.index)}' if operand.index else ''}"
    elif facts.min is not None:
        many = f"{operand.used} values " if operand.used is not None else "values "
        value = f"{many}from {number(facts.min)} to {number(facts.max)}"
    else:
        value = shape_words(view.stat(operand.value))
    return Text.assemble(f"     {value}", (f"  of {operand_title(view, operand)}", muted))


def operand_title(view: StepView, operand: Operand) -> str:
    """What an operand is called: the name of what entered the step, else the type of the op that computed it."""
    hop = source_of(view, operand.value)
    return view.name(hop.value) if hop.op is None else hop.op.type


def _statistics(tensor: TensorView, muted: Style) -> list[Text]:
    stat = tensor.stat
    facts = [
        ("elements", f"{stat.size}, {bad_words(stat)}" if stat.nonfinite else str(stat.size)),
        ("range", range_words(stat)),
        ("largest size", number(stat.absmax)),
        ("mean", "" if tensor.mean is None else f"{number(tensor.mean)} ± {number(tensor.deviation)}"),
        ("failing", f"{tensor.failing_count}, first at {index_words(tensor.failing[0])}" if tensor.failing and stat.shape else ""),
    ]
    return [Text.assemble((f"{name:<13}", muted), value) for name, value in facts if value]
