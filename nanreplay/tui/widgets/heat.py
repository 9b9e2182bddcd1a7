"""A table of layers by steps for the timeline: one cell for each step of each layer.

The height and colour of a cell tell its magnitude; a cell that is not finite shows a mark.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from nanreplay.report.history import BARS, LayerTable
from nanreplay.tui.widgets.op_words import short_number

_VALUE_WIDTH = 12
"""Columns for the value at the cursor, right of the cells."""
_WIDEST_CELL = 8
_HEADING = "gradient norm"
"""The longest name of a measure, which stands above the names of the layers."""


class HeatTable(ScrollView, can_focus=True):
    """Layers as rows, steps as columns; the cursor is a step.

    Textual asks for the visible lines only, so that a table of many layers is as quick as a small
    one.
    """

    DEFAULT_CSS = """
    HeatTable { height: 1fr; background: $background; overflow-x: hidden; }
    HeatTable:focus { background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left,h", "move(-1)", "Step back", show=False, id="heat.left", tooltip="One step back"
        ),
        Binding(
            "right,l", "move(1)", "Step on", show=False, id="heat.right", tooltip="One step on"
        ),
        Binding(
            "shift+left,H",
            "move(-10)",
            "10 back",
            show=False,
            id="heat.left10",
            tooltip="Ten steps back",
        ),
        Binding(
            "shift+right,L",
            "move(10)",
            "10 on",
            show=False,
            id="heat.right10",
            tooltip="Ten steps on",
        ),
        Binding(
            "home",
            "move(-1000000000)",
            "First step",
            show=False,
            id="heat.first",
            tooltip="The first recorded step",
        ),
        Binding(
            "end",
            "move(1000000000)",
            "Last step",
            show=False,
            id="heat.last",
            tooltip="The last recorded step",
        ),
        Binding("up,k", "scroll_up", "Up", show=False, id="heat.up", tooltip="Layers further up"),
        Binding(
            "down,j",
            "scroll_down",
            "Down",
            show=False,
            id="heat.down",
            tooltip="Layers further down",
        ),
    ]
    cursor: reactive[int] = reactive(0)
    """Position of a step in the columns of the table."""

    class Moved(Message):
        """The cursor is at another step."""

        def __init__(self, position: int) -> None:
            super().__init__()
            self.position = position

    class Chosen(Message):
        """The step at the cursor was clicked a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.table: LayerTable | None = None
        self.n_steps = 0

    def show(self, table: LayerTable | None, n_steps: int) -> None:
        """Show a table.

        Args:
            table: None where nothing was recorded of layers.
            n_steps: Number of steps; the cursor moves over them with or without a table.
        """
        self.table, self.n_steps = table, n_steps
        self.virtual_size = Size(self.size.width, len(table.layers) if table is not None else 1)
        self.refresh()

    # Geometry

    @property
    def label_width(self) -> int:
        """Columns of the layers' names and a blank: a quarter of the table at most."""
        names = self.table.layers if self.table is not None else ()
        longest = max(map(len, (*names, _HEADING)))
        return min(longest, max(self.size.width // 4, len(_HEADING))) + 1

    @property
    def cell_width(self) -> int:
        """Columns of a step."""
        return max(1, min(_WIDEST_CELL, self._cells_width // max(self.n_steps, 1)))

    @property
    def _cells_width(self) -> int:
        """Columns that there are for all cells of a row."""
        return max(self.scrollable_content_region.width - self.label_width - _VALUE_WIDTH, 1)

    @property
    def in_view(self) -> range:
        """Positions of the steps that fit, the cursor among them."""
        fitting = max(self._cells_width // self.cell_width, 1)
        first = min(max(self.cursor - fitting // 2, 0), max(self.n_steps - fitting, 0))
        return range(first, min(first + fitting, self.n_steps))

    # Behaviour

    def validate_cursor(self, cursor: int) -> int:
        """Keep the cursor among the steps."""
        return min(max(cursor, 0), max(self.n_steps - 1, 0))

    def watch_cursor(self, cursor: int) -> None:
        """Tell others, and draw anew."""
        self.refresh()
        self.post_message(self.Moved(cursor))

    def action_move(self, by: int) -> None:
        """Move the cursor by some steps."""
        self.cursor += by

    def on_click(self, event: events.Click) -> None:
        """Put the cursor at the step under the mouse; a second click chooses it."""
        column = (event.x - self.label_width) // self.cell_width
        visible = self.in_view
        if event.x < self.label_width or column >= len(visible):
            return
        if visible[column] == self.cursor and event.chain > 1:  # `chain` counts quick clicks
            self.post_message(self.Chosen())
        self.cursor = visible[column]

    def on_resize(self) -> None:
        """Fit anew."""
        self.virtual_size = Size(self.size.width, self.virtual_size.height)

    # Drawing

    def render_line(self, y: int) -> Strip:
        """Draw one line."""
        row = y + self.scroll_offset.y
        width, base = self.size.width, self.rich_style
        if self.table is None:
            text = "no norms of layers were recorded" if y == 0 else ""
            return Strip([Segment(text.ljust(width)[:width], base)], width)
        if row >= len(self.table.layers):
            return Strip.blank(width, base)
        name = _name_end(self.table.layers[row], self.label_width - 1).ljust(self.label_width)
        at_cursor = float(self.table.values[row, self.cursor]) if self.n_steps else math.nan
        cells = []
        for position in self.in_view:
            cells.append(self._cell(self.table, row, position, base))
        filled = len(cells) * self.cell_width
        parts = [
            Segment(name, base),
            *cells,
            Segment(" " * max(self._cells_width - filled, 0), base),
            Segment(short_number(at_cursor).rjust(_VALUE_WIDTH - 1) + " ", base),
        ]
        return Strip(parts).adjust_cell_length(width, base).crop(0, width)

    def _cell(self, table: LayerTable, row: int, position: int, base: Style) -> Segment:
        value, colours = float(table.values[row, position]), self.app.theme_variables
        if math.isfinite(value):
            # Levels are from 0 to 1 within the layer.
            height = min(int(float(table.levels[row, position]) * len(BARS)), len(BARS) - 1)
            text = (BARS[height] if value else "·") * self.cell_width
            style = base + _bar_style(colours["primary"], colours["accent"], height)
        else:
            text = ("✗" if math.isnan(value) else "∞").center(self.cell_width)
            colour = colours["error"] if math.isnan(value) else colours["warning"]
            style = base + _colour_style(colour) + Style(bold=True)
        return Segment(text, style + Style(reverse=True) if position == self.cursor else style)


# Colours are parsed and blended once: a table has a thousand cells, and is drawn at each key.


@lru_cache(maxsize=64)
def _bar_style(low: str, high: str, height: int) -> Style:
    """The colour of a bar: between `low` for the lowest height and `high` for the highest."""
    share = height / (len(BARS) - 1)
    return Style(color=Color.parse(low).blend(Color.parse(high), share).rich_color)


@lru_cache(maxsize=64)
def _colour_style(colour: str) -> Style:
    return Style(color=Color.parse(colour).rich_color)


def _name_end(name: str, width: int) -> str:
    """The end of a name, which tells layers of one model apart."""
    return name if len(name) <= width else f"…{name[-(width - 1) :]}"
