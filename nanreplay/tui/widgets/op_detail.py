"""One op in full: what it gave, from what, for whom, on which line of code."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from nanreplay.explore import Health, Hop, Op, StepView, consumers, producers
from nanreplay.replay.provenance import ValueId
from nanreplay.tui.capture_state import MARKS
from nanreplay.tui.view_tasks import ElementRef
from nanreplay.tui.widgets.op_words import (
    bad_words,
    index_words,
    mark_text,
    place_words,
    range_words,
    shape_words,
    source_words,
    tone,
)
from nanreplay.tui.widgets.tensor_table import operand_text

_CONSUMERS = 6


def op_text(
    view: StepView, op: Op, colours: Mapping[str, str], made: ElementRef | None = None
) -> Text:
    """Everything about an op, in lines.

    Args:
        view: Its step.
        op: The op.
        colours: The theme's variables.
        made: What its first failing element was computed from, once that is known.
    """
    muted = tone(colours, "text-muted")
    lines = _head(op, colours)
    lines += [_output(op, k, colours) for k in range(len(op.outputs))]
    if made is not None and made.operands:
        lines.append(Text(f"{index_words(made.at) or 'it'} was computed from", muted))
        lines += [operand_text(view, operand, muted) for operand in made.operands]
    lines += [_hop("from", view, hop, colours) for hop in producers(view, op)]
    used = [hop for k in range(len(op.outputs)) for hop in consumers(view, ValueId(op.serial, k))]
    lines += [_hop("to  ", view, hop, colours) for hop in used[:_CONSUMERS]]
    if len(used) > _CONSUMERS:
        lines.append(Text(f"     and {len(used) - _CONSUMERS} more", muted))
    return Text("\n").join(lines)


def value_text(view: StepView, value: ValueId, colours: Mapping[str, str]) -> Text:
    """A value and the op that made it, without the ops beside it."""
    op, feed = view.op(value.serial), view.feed(value)
    if op is not None:
        return Text("\n").join(
            [*_head(op, colours), *(_output(op, k, colours) for k in range(len(op.outputs)))]
        )
    muted, stat = tone(colours, "text-muted"), view.stat(value)
    head = mark_text(
        view.health(value), colours, is_origin=feed is not None and feed.is_origin
    ).append(f" {view.name(value)}", "bold")
    words = "  ".join(filter(None, (shape_words(stat), bad_words(stat), range_words(stat))))
    return Text("\n").join([head, Text.assemble(("holds ", muted), words)])


def hop_text(view: StepView, hop: Hop, colours: Mapping[str, str], room: int = 0) -> Text:
    """The other end of a hop on one line: mark, op, tensor, what is skipped.

    Args:
        view: The step.
        hop: The hop.
        colours: The theme's variables.
        room: Columns of mark and name, so that lines align; as many as they take unless given.
    """
    muted, feed = tone(colours, "text-muted"), view.feed(hop.value)
    is_origin = hop.op.is_origin if hop.op is not None else feed is not None and feed.is_origin
    health = hop.op.health if hop.op is not None else view.health(hop.value)
    title = hop.op.type if hop.op is not None else view.name(hop.value)
    if room and len(title) > room - 4:
        title = f"…{title[-(room - 5) :]}"
    line = mark_text(health, colours, is_origin=is_origin).append(
        f" {title}".ljust(room - 2), "bold"
    )
    stat = (
        view.stat(hop.value) if hop.op is None or hop.op.serial == hop.value.serial else hop.op.stat
    )
    line.append(f"  {shape_words(stat)}".ljust(19 if room else 0), muted)
    line.append("".join(f"  {words}" for words in (bad_words(stat), range_words(stat)) if words))
    return (
        line.append(f"  via {' '.join(op.type for op in hop.skipped)}", muted)
        if hop.skipped
        else line
    )


def _head(op: Op, colours: Mapping[str, str]) -> list[Text]:
    """Type and name, place, line of code, what the kernel raised."""
    muted = tone(colours, "text-muted")
    lines = [
        mark_text(op.health, colours, is_origin=op.is_origin)
        .append(f" {op.type}", "bold")
        .append(f"  {op.name}", muted),
        Text(place_words(op), muted),
    ]
    if op.source is not None:
        lines.append(Text(source_words(op.source)))
    if op.error is not None:
        lines.append(Text.assemble(("raises ", "bold"), op.error))
    return lines


def _hop(title: str, view: StepView, hop: Hop, colours: Mapping[str, str]) -> Text:
    return Text.assemble((f"{title} ", tone(colours, "text-muted")), hop_text(view, hop, colours))


def _output(op: Op, output: int, colours: Mapping[str, str]) -> Text:
    stat = op.outputs[output]
    line = Text.assemble(("gave ", tone(colours, "text-muted")), shape_words(stat))
    if stat.nonfinite:
        health: Health = "contained" if op.health == "contained" else "nan" if stat.nan else "inf"
        line.append(f"  {bad_words(stat)} of {stat.size}", tone(colours, MARKS[health][2]))
    if stat.minimum is not None:
        line.append(f"  {'' if not stat.nonfinite else 'else '}{range_words(stat)}")
    return line
