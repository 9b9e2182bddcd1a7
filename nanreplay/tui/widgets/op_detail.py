"""One op or value in full: what it gave, from what, for whom, on which line of code.

The bisect pane shows `op_text` beside its tree, the dataflow pane `value_text` and `hop_text`.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from nanreplay.explore import Health, Hop, Op, StepView, consumers, producers
from nanreplay.replay.provenance import ValueId
from nanreplay.report.numbers import index_words
from nanreplay.tui.capture_state import MARKS
from nanreplay.tui.view_tasks import ElementRef
from nanreplay.tui.widgets.op_words import (
    code_words,
    mark_text,
    nonfinite_words,
    place_words,
    range_words,
    shape_words,
    source_words,
    theme_style,
    value_words,
)
from nanreplay.tui.widgets.tensor_table import operand_lines

_MOST_CONSUMERS = 6
_VALUE_WIDTH = 12
"""Columns of the value at the failing element, where the lines of several hops align."""


def op_text(
    view: StepView,
    op: Op,
    colours: Mapping[str, str],
    computed_from: ElementRef | None = None,
    *,
    with_code: bool = True,
    width: int = 0,
) -> Text:
    """Everything about an op, in lines.

    Args:
        view: Its step.
        op: The op.
        colours: The theme's variables.
        computed_from: What its first failing element was computed from, once that is known.
        with_code: Whether to name the line of code; not where it stands beside.
        width: Columns at which a line of another op is cut; 0 for no limit.
    """
    muted = theme_style(colours, "text-muted")
    outputs = range(len(op.outputs))
    lines = _head(op, colours, with_code=with_code)
    lines += [_output_line(op, output, colours) for output in outputs]
    lines += operand_lines(view, computed_from, muted)
    hops = [_hop_line("from", view, hop, colours) for hop in producers(view, op)]
    users = [hop for output in outputs for hop in consumers(view, ValueId(op.serial, output))]
    hops += [_hop_line("to  ", view, hop, colours) for hop in users[:_MOST_CONSUMERS]]
    if width:
        for line in hops:
            line.truncate(width, overflow="ellipsis")
    if len(users) > _MOST_CONSUMERS:
        hops.append(Text(f"     and {len(users) - _MOST_CONSUMERS} more", muted))
    return Text("\n").join([*lines, Text(""), *hops] if hops else lines)


def value_text(view: StepView, value: ValueId, colours: Mapping[str, str]) -> Text:
    """A value and the op that made it, without the ops beside it.

    Args:
        view: Its step.
        value: The value; one that entered the step has no op.
        colours: The theme's variables.
    """
    op = view.op(value.serial)
    if op is not None:
        outputs = [_output_line(op, output, colours) for output in range(len(op.outputs))]
        return Text("\n").join([*_head(op, colours), *outputs])
    feed, stat = view.feed(value), view.stat(value)
    is_origin = feed is not None and feed.is_origin
    head = mark_text(view.health(value), colours, is_origin=is_origin)
    head.append(f" {view.name(value)}", "bold")
    words = filter(None, (shape_words(stat), nonfinite_words(stat), range_words(stat)))
    holds = Text.assemble(("holds ", theme_style(colours, "text-muted")), "  ".join(words))
    return Text("\n").join([head, holds])


def hop_text(
    view: StepView,
    hop: Hop,
    colours: Mapping[str, str],
    room: int = 0,
    *,
    names: bool = False,
    value: str = "",
) -> Text:
    """The other end of a hop on one line: mark, op, tensor, what is skipped.

    Args:
        view: The step.
        hop: The hop.
        colours: The theme's variables.
        room: Columns of mark and name, so that lines align; as many as they take unless given.
        names: Whether an op is told by its name, and not by the code that made it.
        value: What the failing element beside it took of it; "" where that is not known.
    """
    muted, op = theme_style(colours, "text-muted"), hop.op
    if op is not None:
        is_origin, health, title = op.is_origin, op.health, op.type
        title = _op_title(op, names=names) if room else op.type
    else:
        feed = view.feed(hop.value)
        is_origin = feed is not None and feed.is_origin
        health, title = view.health(hop.value), view.name(hop.value)
    if room and len(title) > room - 4:
        code, colon, number = title.rpartition("  :")
        title = f"{code[: room - 5 - len(number) - 3]}…{colon}{number}" if colon else title
        title = title if len(title) <= room - 4 else f"…{title[-(room - 5) :]}"
    line = mark_text(health, colours, is_origin=is_origin)
    line.append(f" {title}".ljust(room - 2), "bold")  # the two marks take two columns
    # A hop to a consumer names the value that it leads from; what counts is what the consumer gave.
    is_producer = op is None or op.serial == hop.value.serial
    stat = view.stat(hop.value) if op is None or is_producer else op.stat
    if op is not None and op.failing_at is not None:
        colour = theme_style(colours, MARKS[op.health][2])
        line.append(f"  {value_words(op)}".ljust(_VALUE_WIDTH if room else 0), colour)
    elif room:
        line.append(f"  {value}".ljust(_VALUE_WIDTH))
    if room and op is not None and op.type not in title:
        line.append(f"  {op.type}", muted)
    # In the order of what a narrow terminal should still show.
    for words in filter(None, (nonfinite_words(stat), range_words(stat))):
        line.append(f"  {words}")
    line.append(f"  {shape_words(stat)}", muted)
    if room and op is not None and op.layer_path:
        line.append(f"  {op.layer_path}", muted)
    if hop.skipped:
        line.append(f"  via {' '.join(skipped.type for skipped in hop.skipped)}", muted)
    return line


def _op_title(op: Op, *, names: bool) -> str:
    if names:
        return f"{op.type}  {op.name}"
    return code_words(op.source) or op.type


def _head(op: Op, colours: Mapping[str, str], *, with_code: bool = True) -> list[Text]:
    """Type and name, place, line of code, what the kernel raised."""
    muted = theme_style(colours, "text-muted")
    title = mark_text(op.health, colours, is_origin=op.is_origin)
    title.append(f" {op.type}", "bold").append(f"  {op.name}", muted)
    lines = [title, Text(place_words(op), muted)]
    if op.source is not None and with_code:
        lines.append(Text(source_words(op.source)))
    if op.failing_at is not None:
        colour = theme_style(colours, MARKS[op.health][2])
        at = f" at {index_words(op.failing_at)}" if op.failing_at else ""
        lines.append(Text.assemble(("is ", muted), (f"{value_words(op)}{at}", colour)))
    if op.error is not None:
        lines.append(Text.assemble(("raises ", "bold"), op.error))
    return lines


def _hop_line(label: str, view: StepView, hop: Hop, colours: Mapping[str, str]) -> Text:
    muted = theme_style(colours, "text-muted")
    return Text.assemble((f"{label} ", muted), hop_text(view, hop, colours))


def _output_line(op: Op, output: int, colours: Mapping[str, str]) -> Text:
    """What an output of an op is: `gave float32[32, 3]  2 NaN of 96  else -1.2 to 3.4`."""
    stat = op.outputs[output]
    line = Text.assemble(("gave ", theme_style(colours, "text-muted")), shape_words(stat))
    if stat.nonfinite:
        health: Health = "nan" if stat.nan else "inf"
        if op.health == "contained":
            health = "contained"
        colour = theme_style(colours, MARKS[health][2])
        line.append(f"  {nonfinite_words(stat)} of {stat.size}", colour)
    if stat.minimum is not None:
        line.append(f"  {'else ' if stat.nonfinite else ''}{range_words(stat)}")
    return line
