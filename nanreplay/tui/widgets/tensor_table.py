"""A table of numbers with a cursor: a part of a tensor. Only the cells that are visible are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from nanreplay.explore import OperandElement, StepView, TensorView, source_of
from nanreplay.report.numbers import readable_number
from nanreplay.tui.view_tasks import ElementRef
from nanreplay.tui.widgets.figures import histogram_text, histogram_words, map_text
from nanreplay.tui.widgets.op_words import (
    bad_words,
    index_words,
    number,
    range_words,
    shape_words,
    source_words,
    tone,
)

# What is known of a tensor, in lines: operands of an element, statistics, histogram, where it is
# not finite.

_WIDTH = 50


def tensor_text(
    view: StepView, tensor: TensorView, made: ElementRef | None, colours: Mapping[str, str]
) -> Text:
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
        lines += [
            Text(""),
            Text(histogram_words(tensor.histogram), muted),
            histogram_text(tensor.histogram, colours, _WIDTH),
        ]
    if tensor.stat.nonfinite and tensor.stat.size > 1:
        lines += [
            Text(""),
            Text("where it is not finite", muted),
            map_text(tensor.bad_share, colours, _WIDTH, 16),
        ]
    return Text("\n").join(lines)


def best_operand(operands: Sequence[OperandElement]) -> OperandElement | None:
    """Return the operand to look at first: one that is not finite, else the one that is known most exactly; none of a handle."""

    def rank(operand: OperandElement) -> tuple[bool, bool, bool]:
        value = operand.facts.value
        bad = isinstance(value, float) and not np.isfinite(value)
        return bad, operand.index is not None, operand.value.serial >= 0

    known = [operand for operand in operands if operand.facts.dtype not in ("resource", "variant")]
    return max(known, key=rank, default=None)


def _made_by(view: StepView, tensor: TensorView, muted: Style) -> list[Text]:
    op = view.op(tensor.value.serial)
    if op is None:
        return [Text("entered the step", muted)]
    lines = [
        Text.assemble(
            ("output of ", muted),
            (op.type, "bold"),
            (f"  {op.phase}  {op.layer_path}".rstrip(), muted),
        )
    ]
    return [*lines, Text(source_words(op.source))] if op.source is not None else lines


def _computed_from(view: StepView, made: ElementRef | None, muted: Style) -> list[Text]:
    if made is None or not made.operands:
        return []
    lines = [Text(f"{index_words(made.at) or 'it'} was computed from", muted)]
    return [*lines, *(operand_text(view, operand, muted) for operand in made.operands)]


def operand_text(view: StepView, operand: OperandElement, muted: Style) -> Text:
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


def operand_title(view: StepView, operand: OperandElement) -> str:
    """What an operand is called: the name of what entered the step, else the type of the op that computed it."""
    hop = source_of(view, operand.value)
    return view.name(hop.value) if hop.op is None else hop.op.type


def _statistics(tensor: TensorView, muted: Style) -> list[Text]:
    stat = tensor.stat
    facts = [
        ("elements", f"{stat.size}, {bad_words(stat)}" if stat.nonfinite else str(stat.size)),
        ("range", range_words(stat)),
        ("largest size", number(stat.absmax)),
        (
            "mean",
            "" if tensor.mean is None else f"{number(tensor.mean)} ± {number(tensor.deviation)}",
        ),
        (
            "failing",
            f"{tensor.failing_count}, first at {index_words(tensor.failing[0])}"
            if tensor.failing and stat.shape
            else "",
        ),
    ]
    return [Text.assemble((f"{name:<13}", muted), value) for name, value in facts if value]


# --- tui.widgets.tensor_table

_CELL = 11
_HEADING = 8


class TensorTable(ScrollView, can_focus=True):
    """Rows and columns of the last two axes, numbered as in the tensor."""

    DEFAULT_CSS = """
    TensorTable { height: 1fr; background: $background; }
    TensorTable:focus { background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1, 0)", "Up", show=False, id="cells.up", tooltip="One row up"),
        Binding(
            "down,j", "move(1, 0)", "Down", show=False, id="cells.down", tooltip="One row down"
        ),
        Binding(
            "left,h", "move(0, -1)", "Left", show=False, id="cells.left", tooltip="One column left"
        ),
        Binding(
            "right,l",
            "move(0, 1)",
            "Right",
            show=False,
            id="cells.right",
            tooltip="One column right",
        ),
        Binding(
            "pageup,ctrl+b",
            "page(-1)",
            "Page up",
            show=False,
            id="cells.page_up",
            tooltip="One page up",
        ),
        Binding(
            "pagedown,ctrl+f",
            "page(1)",
            "Page down",
            show=False,
            id="cells.page_down",
            tooltip="One page down",
        ),
        Binding(
            "home,g",
            "move(-1000000000, -1000000000)",
            "First",
            show=False,
            id="cells.first",
            tooltip="The first element",
        ),
        Binding(
            "end,G",
            "move(1000000000, 1000000000)",
            "Last",
            show=False,
            id="cells.last",
            tooltip="The last element",
        ),
        Binding(
            "enter",
            "choose",
            "Computed from",
            id="cells.choose",
            tooltip="Go to what this element was computed from",
        ),
    ]
    cursor: reactive[tuple[int, int]] = reactive((0, 0))
    """Row and column among the cells that were sent."""

    class Moved(Message):
        """The cursor is on another element."""

        def __init__(self, index: tuple[int, ...]) -> None:
            super().__init__()
            self.index = index

    class Chosen(Message):
        """The element under the cursor was chosen."""

        def __init__(self, index: tuple[int, ...]) -> None:
            super().__init__()
            self.index = index

    def __init__(self) -> None:
        super().__init__()
        self.view: TensorView | None = None

    def show(self, view: TensorView, at: tuple[int, ...] | None = None) -> None:
        """Show a tensor with the cursor on an element; on the first failing one unless given."""
        self.view = view
        rows, columns = view.plane.cells.shape
        self.virtual_size = Size(_HEADING + columns * _CELL, rows + 1)
        wanted = at if at is not None else view.failing[0] if view.failing else ()
        self.cursor = self.validate_cursor(view.plane.cell(wanted) or (0, 0))
        self.refresh()
        self.call_after_refresh(self._reveal, centred=True)
        self._tell()

    @property
    def index(self) -> tuple[int, ...] | None:
        """Index, in the tensor, of the element under the cursor; None where there is none."""
        if self.view is None or not self.view.plane.cells.size:
            return None
        return self.view.plane.index(*self.cursor)

    def validate_cursor(self, cursor: tuple[int, int]) -> tuple[int, int]:
        """Keep the cursor on the cells."""
        rows, columns = self.view.plane.cells.shape if self.view is not None else (1, 1)
        return min(max(cursor[0], 0), max(rows - 1, 0)), min(max(cursor[1], 0), max(columns - 1, 0))

    def watch_cursor(self) -> None:
        """Keep the cursor visible, and tell others."""
        self._reveal()
        self.refresh()
        self._tell()

    def _tell(self) -> None:
        if self.index is not None:
            self.post_message(self.Moved(self.index))

    def _reveal(self, *, centred: bool = False) -> None:
        row, column = self.cursor
        region = self.scrollable_content_region
        height, fitting = max(region.height - 1, 1), max((region.width - _HEADING) // _CELL, 1)
        top, left = self.scroll_offset.y, self.scroll_offset.x // _CELL
        if not top <= row < top + height:
            top = row - height // 2 if centred else row if row < top else row - height + 1
        if not left <= column < left + fitting:
            left = (
                column - fitting // 2
                if centred
                else column
                if column < left
                else column - fitting + 1
            )
        self.scroll_to(x=max(left, 0) * _CELL, y=max(top, 0), animate=False)

    def action_move(self, rows: int, columns: int) -> None:
        """Move the cursor."""
        self.cursor = self.cursor[0] + rows, self.cursor[1] + columns

    def action_page(self, by: int) -> None:
        """Move the cursor by some pages."""
        self.action_move(by * max(self.size.height - 2, 1), 0)

    def action_choose(self) -> None:
        """Choose the element under the cursor."""
        if self.index is not None:
            self.post_message(self.Chosen(self.index))

    def on_click(self, event: events.Click) -> None:
        """Put the cursor under the mouse; a double click chooses."""
        row, column = (
            event.y - 1 + self.scroll_offset.y,
            (event.x - _HEADING) // _CELL + self.scroll_offset.x // _CELL,
        )
        if event.y >= 1 and event.x >= _HEADING:
            self.cursor = row, column
            if event.chain > 1:
                self.action_choose()

    # Drawing

    def render_line(self, y: int) -> Strip:
        """Draw one line; the first one holds the numbers of the columns, each line begins with that of its row."""
        base, width = self.rich_style, self.size.width
        if self.view is None or not self.view.plane.cells.size:
            return Strip.blank(width, base)
        shown, muted = self.view.plane, base + tone(self.app.theme_variables, "text-muted")
        left, fitting = self.scroll_offset.x // _CELL, max((width - _HEADING) // _CELL, 1)
        columns = range(left, min(left + fitting, shown.cells.shape[1]))
        if y == 0:
            corner = "index" if shown.rank else ""
            titles = (
                "".join(str(shown.first[1] + column).rjust(_CELL) for column in columns)
                if shown.rank > 1
                else ""
            )
            return Strip(
                [Segment(corner.rjust(_HEADING - 1) + " " + titles, muted)]
            ).adjust_cell_length(width, base)
        row = y - 1 + self.scroll_offset.y
        if row >= shown.cells.shape[0]:
            return Strip.blank(width, base)
        number = str(shown.first[0] + row) if shown.rank else ""
        cells = [part for column in columns for part in self._cell(row, column, base)]
        return Strip([Segment(f"{number.rjust(_HEADING - 1)} ", muted), *cells]).adjust_cell_length(
            width, base
        )

    def _cell(self, row: int, column: int, base: Style) -> list[Segment]:
        assert self.view is not None
        text, colour = cell_words(self.view.plane.cells[row, column])
        style = (
            base
            if colour is None
            else base + tone(self.app.theme_variables, colour) + Style(bold=True)
        )
        shown = f" {text[: _CELL - 2]}" if (row, column) == self.cursor else text[: _CELL - 1]
        at = style + Style(reverse=True) if (row, column) == self.cursor else style
        return [Segment(" " * (_CELL - len(shown)), base), Segment(shown, at)]


def cell_words(value: object) -> tuple[str, str | None]:
    """One element in few characters, and a colour of the theme where it is not finite."""
    kind = getattr(getattr(value, "dtype", None), "kind", "O")
    if kind in "OSU":
        return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)), None
    if kind == "c":
        return f"{complex(value):.2g}", None  # type: ignore[call-overload]
    if kind in "biu":
        return str(value), None
    number = float(value)  # type: ignore[arg-type]
    if np.isnan(number):
        return "NaN", "text-error"
    return f"{number:.4g}", "text-warning" if np.isinf(number) else None
