"""The columns of numbers beside the tree of ops: shape, non-finite elements, range."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rich.segment import Segment
from rich.style import Style

from nanreplay.bisect.tensor_stats import TensorStat
from nanreplay.explore import Node
from nanreplay.tui.widgets.op_words import (
    nonfinite_words,
    shape_words,
    short_number,
    value_words,
)


class OpColumn(NamedTuple):
    """One column of numbers."""

    title: str
    width: int
    text: Callable[[Node], str]
    """What stands in the column of a node."""


def _nonfinite_cell(node: Node) -> str:
    """Non-finite elements of an op; of a layer or loop how many of its ops have any."""
    if node.op is not None:
        return nonfinite_words(node.op.stat)
    return f"{node.nonfinite} of {node.ops}" if node.nonfinite else f"{node.ops} ops"


def _stat_of(node: Node) -> TensorStat | None:
    """Statistics of an op's output; a layer or loop has none."""
    return node.op.stat if node.op is not None else None


def _value_cell(node: Node) -> str:
    return value_words(node.op) if node.op is not None else ""


def _minimum_cell(node: Node) -> str:
    stat = _stat_of(node)
    return short_number(stat.minimum) if stat is not None else ""


def _maximum_cell(node: Node) -> str:
    stat = _stat_of(node)
    return short_number(stat.maximum) if stat is not None else ""


_COLUMNS = (
    OpColumn("type and shape", 24, lambda node: shape_words(_stat_of(node))),
    OpColumn("at failing", 12, _value_cell),
    OpColumn("non-finite", 15, _nonfinite_cell),
    OpColumn("min", 11, _minimum_cell),
    OpColumn("max", 11, _maximum_cell),
    OpColumn("|max|", 11, lambda node: short_number(node.absmax)),
)
_PRIORITY = (2, 1, 5, 0, 3, 4)
"""Positions of the columns; those that stay longest when it gets narrow come first."""


def fitting_columns(room: int) -> list[OpColumn]:
    """Return the columns that fit.

    Args:
        room: Terminal columns beside the names.
    """
    kept = set()
    for position in _PRIORITY:
        room -= _COLUMNS[position].width
        if room < 0:
            break
        kept.add(position)
    return [column for position, column in enumerate(_COLUMNS) if position in kept]


def cell_segment(column: OpColumn, node: Node, style: Style) -> Segment:
    """Draw one column of a node; what is too long ends in dots."""
    text, width = column.text(node), column.width - 1
    if len(text) > width:
        text = text[: width - 1] + "…"
    return Segment(f"{text.rjust(width)} ", style)
