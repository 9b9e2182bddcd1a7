"""A tensor in the tensor pane: a table of its elements with a cursor, and what is known of it.

`TensorTable` is the table. `tensor_text` says the rest in lines: operands of an element,
statistics, histogram, where it is not finite. The bisect pane takes `operand_lines` as well.
"""

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

from nanreplay.explore import OperandElement, Plane, StepView, TensorView, source_of
from nanreplay.report.numbers import index_words, readable_number
from nanreplay.tui.view_tasks import ElementRef
from nanreplay.tui.widgets.figures import histogram_text, histogram_words, map_text
from nanreplay.tui.widgets.op_words import (
    HANDLE_DTYPES,
    nonfinite_words,
    range_words,
    shape_words,
    short_number,
    source_words,
    theme_style,
)

_CELL = 11
"""Columns of an element."""
_HEADING = 8
"""Columns of the numbers of rows."""


class TensorTable(ScrollView, can_focus=True):
    """Rows and columns of the last two axes, numbered as in the tensor.

    Textual asks for the visible lines only, so that a large table is as quick as a small one.
    """

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
        """Show a tensor.

        Args:
            view: The tensor.
            at: Index of the element under the cursor; the first failing one unless given.
        """
        self.view = view
        rows, columns = view.plane.cells.shape
        self.virtual_size = Size(_HEADING + columns * _CELL, rows + 1)
        if at is None:
            at = view.failing[0] if view.failing else ()
        self.cursor = self.validate_cursor(view.plane.cell(at) or (0, 0))
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
        row, column = cursor
        return min(max(row, 0), max(rows - 1, 0)), min(max(column, 0), max(columns - 1, 0))

    def watch_cursor(self) -> None:
        """Keep the cursor visible, and tell others."""
        self._reveal()
        self.refresh()
        self._tell()

    def _tell(self) -> None:
        if self.index is not None:
            self.post_message(self.Moved(self.index))

    def _reveal(self, *, centred: bool = False) -> None:
        """Scroll no further than it takes to show the cursor, or so that it is in the middle."""
        row, column = self.cursor
        region = self.scrollable_content_region
        height = max(region.height - 1, 1)  # the first line is the heading
        width = max((region.width - _HEADING) // _CELL, 1)
        top = _scrolled(self.scroll_offset.y, row, height, centred=centred)
        left = _scrolled(self.scroll_offset.x // _CELL, column, width, centred=centred)
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
        if event.y < 1 or event.x < _HEADING:
            return
        row = event.y - 1 + self.scroll_offset.y
        column = (event.x - _HEADING) // _CELL + self.scroll_offset.x // _CELL
        self.cursor = row, column
        if event.chain > 1:
            self.action_choose()

    def on_resize(self) -> None:
        """Show the cursor: what a hidden tab was told to show could not be scrolled to."""
        self._reveal(centred=True)

    # Drawing

    def render_line(self, y: int) -> Strip:
        """Draw one line: the numbers of the columns, or a row that begins with its number."""
        base, width = self.rich_style, self.size.width
        if self.view is None or not self.view.plane.cells.size:
            return Strip.blank(width, base)
        plane, muted = self.view.plane, base + self._style("text-muted")
        left, fitting = self.scroll_offset.x // _CELL, max((width - _HEADING) // _CELL, 1)
        columns = range(left, min(left + fitting, plane.cells.shape[1]))
        if y == 0:
            heading = Segment(_heading(plane, columns), muted)
            return Strip([heading]).adjust_cell_length(width, base)
        row = y - 1 + self.scroll_offset.y
        if row >= plane.cells.shape[0]:
            return Strip.blank(width, base)
        number = str(plane.first[0] + row) if plane.rank else ""
        parts = [Segment(f"{number.rjust(_HEADING - 1)} ", muted)]
        for column in columns:
            parts += self._cell(plane, row, column, base)
        return Strip(parts).adjust_cell_length(width, base)

    def _cell(self, plane: Plane, row: int, column: int, base: Style) -> list[Segment]:
        text, colour = cell_words(plane.cells[row, column])
        style = base
        if colour is not None:
            style += self._style(colour) + Style(bold=True)
        if (row, column) == self.cursor:
            text, style = f" {text[: _CELL - 2]}", style + Style(reverse=True)
        else:
            text = text[: _CELL - 1]
        return [Segment(" " * (_CELL - len(text)), base), Segment(text, style)]

    def _style(self, name: str) -> Style:
        return theme_style(self.app.theme_variables, name)


def _scrolled(first: int, position: int, size: int, *, centred: bool) -> int:
    """The first line or column to show, so that a position is among those that fit.

    Args:
        first: The first one that is shown now.
        position: What is to be visible.
        size: How many fit.
        centred: Whether it comes to the middle, unless it is visible already.
    """
    if first <= position < first + size:
        return first
    if centred:
        return position - size // 2
    return position if position < first else position - size + 1


def _heading(plane: Plane, columns: range) -> str:
    """The numbers of the columns; a tensor of one axis has a single column without a number."""
    corner = "index" if plane.rank else ""
    titles = ""
    if plane.rank > 1:
        titles = "".join(str(plane.first[1] + column).rjust(_CELL) for column in columns)
    return f"{corner.rjust(_HEADING - 1)} {titles}"


def cell_words(value: object) -> tuple[str, str | None]:
    """One element in few characters, and a colour of the theme where it is not finite.

    Args:
        value: A scalar of numpy, or text.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", "O")  # as numpy's dtype.kind
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


# What is known of a tensor, in lines

_FIGURE_WIDTH = 50
_MAP_HEIGHT = 16
_FACT_NAME = 13


def tensor_text(
    view: StepView,
    tensor: TensorView,
    computed_from: ElementRef | None,
    colours: Mapping[str, str],
) -> Text:
    """Everything about a tensor but its values.

    Args:
        view: Its step.
        tensor: The tensor.
        computed_from: The operands of the element under the cursor, once they are known.
        colours: The theme's variables.
    """
    muted = theme_style(colours, "text-muted")
    lines = [*_maker_lines(view, tensor, muted), *operand_lines(view, computed_from, muted)]
    if tensor.opaque is not None:
        lines.append(Text(tensor.opaque))
    lines += _statistics_lines(tensor, muted)
    if tensor.histogram is not None and tensor.stat.size > 1:
        words = Text(histogram_words(tensor.histogram), muted)
        lines += [Text(""), words, histogram_text(tensor.histogram, colours, _FIGURE_WIDTH)]
    if tensor.stat.nonfinite and tensor.stat.size > 1:
        words = Text("where it is not finite", muted)
        picture = map_text(tensor.bad_share, colours, _FIGURE_WIDTH, _MAP_HEIGHT)
        lines += [Text(""), words, picture]
    return Text("\n").join(lines)


def best_operand(operands: Sequence[OperandElement]) -> OperandElement | None:
    """Return the operand to look at first; None when all are handles.

    One that is not finite comes first, else the one of which most is known: that has an index, or
    was computed in the step.
    """

    def rank(operand: OperandElement) -> tuple[bool, bool, bool]:
        value = operand.facts.value
        is_bad = isinstance(value, float) and not np.isfinite(value)
        return is_bad, operand.index is not None, operand.value.serial >= 0

    numeric = []
    for operand in operands:
        if operand.facts.dtype not in HANDLE_DTYPES:
            numeric.append(operand)
    return max(numeric, key=rank, default=None)


def operand_lines(view: StepView, element: ElementRef | None, muted: Style) -> list[Text]:
    """What an element was computed from, an operand in each line; nothing until that is known.

    Args:
        view: The step.
        element: The element with its operands; None until the worker process has told.
        muted: The style of what matters less.
    """
    if element is None or not element.operands:
        return []
    heading = Text(f"{index_words(element.at) or 'it'} was computed from", muted)
    return [heading, *(_operand_line(view, operand, muted) for operand in element.operands)]


def _operand_line(view: StepView, operand: OperandElement, muted: Style) -> Text:
    """One operand at an element: `0.0 at [18, 0]  of Softmax`."""
    facts = operand.facts
    if facts.value is not None:
        value = readable_number(facts.value)
        if operand.index:
            value += f" at {index_words(operand.index)}"
    elif facts.min is not None:
        count = f"{operand.used} values" if operand.used is not None else "values"
        value = f"{count} from {short_number(facts.min)} to {short_number(facts.max)}"
    else:
        value = shape_words(view.stat(operand.value))
    return Text.assemble(f"     {value}", (f"  of {_operand_title(view, operand)}", muted))


def _operand_title(view: StepView, operand: OperandElement) -> str:
    """The type of the op that computed an operand, or the name of what entered the step."""
    source = source_of(view, operand.value)  # past copies, casts and reshapes
    return view.name(source.value) if source.op is None else source.op.type


def _maker_lines(view: StepView, tensor: TensorView, muted: Style) -> list[Text]:
    """Which op gave the tensor, and on which line of code."""
    op = view.op(tensor.value.serial)
    if op is None:
        return [Text("entered the step", muted)]
    place = f"  {op.phase}  {op.layer_path}".rstrip()
    lines = [Text.assemble(("output of ", muted), (op.type, "bold"), (place, muted))]
    if op.source is not None:
        lines.append(Text(source_words(op.source)))
    return lines


def _statistics_lines(tensor: TensorView, muted: Style) -> list[Text]:
    stat = tensor.stat
    facts = {
        "elements": str(stat.size),
        "range": range_words(stat),
        "largest size": short_number(stat.absmax),
    }
    if stat.nonfinite:
        facts["elements"] += f", {nonfinite_words(stat)}"
    if tensor.mean is not None:
        facts["mean"] = f"{short_number(tensor.mean)} ± {short_number(tensor.deviation)}"
    if tensor.failing and stat.shape:
        first = index_words(tensor.failing[0])
        facts["failing"] = f"{tensor.failing_count}, first at {first}"
    lines = []
    for name, value in facts.items():
        if value:
            lines.append(Text.assemble((name.ljust(_FACT_NAME), muted), value))
    return lines
