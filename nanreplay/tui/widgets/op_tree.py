"""A step as a tree for the bisect pane: phase, layer, loop, op, with health marks and numbers.

Lines are drawn one by one as Textual asks for those that are visible, so that ten thousand ops
answer keys as quickly as ten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from nanreplay.explore import Node, Op, Row, StepView, grow, keys_of, rows_of
from nanreplay.explore.dataflow import search
from nanreplay.tui.capture_state import MARKS
from nanreplay.tui.widgets.op_columns import OpColumn, cell_segment, fitting_columns
from nanreplay.tui.widgets.op_words import (
    ORIGIN,
    fitted,
    health_style,
    op_title,
    theme_style,
)

_NARROWEST_LABEL = 44
"""Columns that the names keep; columns of numbers give way before them."""
_MOST_OPENED_MATCHES = 400
"""Matches of a filter up to which the tree is opened at each of them."""
_CURSOR_BLEND = 0.65
"""How much of the background is in the colour of the line at the cursor."""
_MARGIN = 3
"""Lines that an op keeps from the lower end when the user is led to it."""


class OpTree(ScrollView, can_focus=True):
    """The ops of a step.

    `rows` are the lines that are open; `cursor` is a position among them. A node is known by its
    key, which stays the same when lines open and close.
    """

    DEFAULT_CSS = """
    OpTree { height: 1fr; background: $background; overflow-x: hidden; }
    OpTree:focus { background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False, id="tree.up", tooltip="One line up"),
        Binding("down,j", "move(1)", "Down", show=False, id="tree.down", tooltip="One line down"),
        Binding(
            "pageup,ctrl+b",
            "page(-1)",
            "Page up",
            show=False,
            id="tree.page_up",
            tooltip="One page up",
        ),
        Binding(
            "pagedown,ctrl+f",
            "page(1)",
            "Page down",
            show=False,
            id="tree.page_down",
            tooltip="One page down",
        ),
        Binding(
            "home,g",
            "move(-1000000000)",
            "First",
            show=False,
            id="tree.first",
            tooltip="To the first line",
        ),
        Binding(
            "end,G",
            "move(1000000000)",
            "Last",
            show=False,
            id="tree.last",
            tooltip="To the last line",
        ),
        Binding(
            "left,h",
            "fold",
            "Close",
            show=False,
            id="tree.fold",
            tooltip="Close, or go to what it is in",
        ),
        Binding(
            "right,l",
            "unfold",
            "Open",
            show=False,
            id="tree.unfold",
            tooltip="Open, or go to its first line",
        ),
        Binding(
            "space",
            "open_or_close",
            "Open or close",
            show=False,
            id="tree.toggle",
            tooltip="Open or close a layer or loop",
        ),
        Binding(
            "enter",
            "choose",
            "Produced by",
            id="tree.choose",
            tooltip="Go to what produced the worst input; open a layer",
        ),
    ]
    cursor: reactive[int] = reactive(0)
    """Line of the cursor."""

    class Moved(Message):
        """The cursor is on another line."""

        def __init__(self, node: Node | None) -> None:
            super().__init__()
            self.node = node

    class Chosen(Message):
        """An op was chosen."""

        def __init__(self, op: Op) -> None:
            super().__init__()
            self.op = op

    def __init__(self) -> None:
        super().__init__()
        self.view: StepView | None = None
        self.ops: tuple[Op, ...] = ()
        """Ops that are in the tree, in the order of execution."""
        self.rows: list[Row] = []
        """Lines of the tree, the heading excepted."""
        self.query_text = ""
        """The filter; "" for none."""
        self.hides_plumbing = True
        """Whether ops that compute nothing are left out."""
        self.shows_names = False
        """Whether ops are shown by type and name, and not by the code that made them."""
        self._roots: tuple[Node, ...] = ()
        self._opened: set[str] = set()
        """Keys of the nodes that the user has opened."""
        self._before_filter: int | None = None
        """Serial of the op under the cursor, or of a layer's first one, when the filter came."""
        self._told: str | None = None
        """Key of the node of the last `Moved`."""
        self._opens_what_fits = False
        """Whether phases and layers are to be opened once the room is known."""

    # What is shown

    def show(self, view: StepView) -> None:
        """Show a step, opened at its first origin."""
        self.view, self._opened = view, set()
        self.filter(self.query_text, hides_plumbing=self.hides_plumbing)
        origins = (view.op(value.serial) for value in view.origins)
        # An origin that entered the step (a batch, a variable) has no op.
        first = next((op for op in origins if op is not None), None)
        if first is None:
            first = next((op for op in self.ops if op.health in ("inf", "nan")), None)
        if first is not None:
            self.go_to(first)
        self._opens_what_fits = True
        self.call_after_refresh(self._open_what_fits)

    def _open_what_fits(self) -> None:
        """Open phases and layers while all lines fit: a small step is seen whole, at once."""
        if not self._opens_what_fits or not self.size.height:  # a hidden tab has no height yet
            return
        self._opens_what_fits = False
        key = self.node.key if self.node is not None else None
        room, is_changed = self.size.height - 1, True
        while is_changed:
            is_changed = False
            for row in sorted(self.rows, key=lambda row: row.depth):
                node = row.node
                if (
                    node.children
                    and not row.is_open
                    and len(self.rows) + len(node.children) <= room
                ):
                    self._opened.add(node.key)
                    self.rows = list(rows_of(self._roots, self._opened))
                    is_changed = True
        self._lay_out(key)

    def filter(self, text: str, *, hides_plumbing: bool) -> None:
        """Show only the ops that fit a query, and put the cursor on one of them.

        Args:
            text: The query, see `explore.dataflow.search`; "" shows all.
            hides_plumbing: Whether ops that compute nothing are left out.
        """
        if self.view is None:
            return
        before, is_query = self.node, bool(text.strip())
        if is_query and not self.query_text.strip():
            self._before_filter = before.first if before is not None else None
        is_taken_away = bool(self.query_text.strip()) and not is_query
        self.query_text, self.hides_plumbing = text, hides_plumbing
        shown = (op for op in self.view.ops if not (hides_plumbing and op.is_plumbing))
        self.ops = search(shown, text) if is_query else tuple(shown)
        self._roots = grow(self.ops)
        if is_query and len(self.ops) <= _MOST_OPENED_MATCHES:
            self._opened |= {key for op in self.ops for key in keys_of(op)[:-1]}
        self._lay_out(before.key if before is not None else None)
        stayed = before is not None and self.node is not None and self.node.key == before.key
        if is_query and self.ops and not stayed:
            self.go_to(self.ops[0])
        elif is_taken_away and not stayed:
            # Lines that only the filter had opened are closed again: open those around the op.
            serial = before.first if before is not None else self._before_filter
            kept = next((op for op in self.ops if op.serial == serial), None)
            if kept is not None:
                self.go_to(kept)

    @property
    def node(self) -> Node | None:
        """What the cursor is on."""
        return self.rows[self.cursor].node if 0 <= self.cursor < len(self.rows) else None

    @property
    def op(self) -> Op | None:
        """The op under the cursor, None on a layer."""
        return self.node.op if self.node is not None else None

    @property
    def serial(self) -> int:
        """Where the cursor is in the order of execution.

        The serial of the op under it; on a layer that of its first op less one, so that the next op
        is its first one; -1 in an empty tree.
        """
        if self.node is None:
            return -1
        return self.node.first if self.node.op is not None else self.node.first - 1

    def go_to(self, op: Op) -> None:
        """Put the cursor on an op, and open what is around it."""
        if self.ops and all(other.serial != op.serial for other in self.ops):
            # The filter hides the op: take it away.
            self.filter("", hides_plumbing=self.hides_plumbing and not op.is_plumbing)
        *around, key = keys_of(op)
        self._opened |= set(around)
        self._lay_out(key)
        # The new size is known after the next refresh; scrolling before would stop at the old end.
        self.call_after_refresh(self._centre)

    def _lay_out(self, key: str | None) -> None:
        """Lay the lines out anew, with the cursor on the node of a key where there is one."""
        self.rows = list(rows_of(self._roots, self._opened))
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        position = next((i for i, row in enumerate(self.rows) if row.node.key == key), self.cursor)
        self.cursor = self.validate_cursor(position)
        self._tell()
        self.refresh()

    def _centre(self) -> None:
        """Scroll so that the cursor is in the middle, unless it is well within view."""
        above = self.cursor - self.scroll_offset.y
        if not 1 <= above < self.size.height - _MARGIN:
            self.scroll_to(y=max(self.cursor - self.size.height // 2, 0), animate=False)

    # Behaviour

    def validate_cursor(self, cursor: int) -> int:
        """Keep the cursor on the lines."""
        return min(max(cursor, 0), max(len(self.rows) - 1, 0))

    def watch_cursor(self, before: int, cursor: int) -> None:
        """Keep the cursor visible, and tell others."""
        top, height = self.scroll_offset.y, self.size.height - 1
        if height > 0 and not top <= cursor < top + height:
            self.scroll_to(y=cursor if cursor < top else cursor - height + 1, animate=False)
        # Two lines change, and no others are drawn anew; the heading takes the first line.
        for line in (before, cursor):
            self.refresh(Region(0, line + 1 - self.scroll_offset.y, self.size.width, 1))
        self._tell()

    def _tell(self) -> None:
        """Say that the cursor is on another node; laying lines out anew may keep the node."""
        key = self.node.key if self.node is not None else None
        if key != self._told:
            self._told = key
            self.post_message(self.Moved(self.node))

    def action_move(self, by: int) -> None:
        """Move the cursor by some lines."""
        self.cursor += by

    def action_page(self, by: int) -> None:
        """Move the cursor by some pages."""
        self.cursor += by * max(self.size.height - 2, 1)

    def action_open_or_close(self) -> None:
        """Open or close what the cursor is on."""
        if not self.rows:
            return
        if self.rows[self.cursor].is_open:
            self.action_fold()
        else:
            self.action_unfold()

    def action_fold(self) -> None:
        """Close what the cursor is on; where nothing is open, go to what it is in."""
        if not self.rows:
            return
        row = self.rows[self.cursor]
        if row.is_open and row.node.key in self._opened:
            self._opened.discard(row.node.key)
            self._lay_out(row.node.key)
        else:
            above = range(self.cursor, -1, -1)
            parent = next((i for i in above if self.rows[i].depth < row.depth), self.cursor)
            self.cursor = parent

    def action_unfold(self) -> None:
        """Open what the cursor is on; where it is open, go to its first line."""
        if not self.rows or not self.rows[self.cursor].node.children:
            return
        row = self.rows[self.cursor]
        if row.is_open:
            self.cursor += 1
        else:
            self._opened.add(row.node.key)
            self._lay_out(row.node.key)

    def action_choose(self) -> None:
        """Choose the op, or open the layer, under the cursor."""
        if self.op is not None:
            self.post_message(self.Chosen(self.op))
        else:
            self.action_open_or_close()

    def on_click(self, event: events.Click) -> None:
        """Put the cursor under the mouse; a second click chooses, one on an arrow opens."""
        line = event.y - 1 + self.scroll_offset.y
        if event.y < 1 or not 0 <= line < len(self.rows):
            return
        before, self.cursor = self.cursor, line
        row = self.rows[line]
        arrow = 1 + 2 * row.depth  # its first column, as `_label` draws it
        is_on_arrow = arrow <= event.x < arrow + 2
        if row.node.children and (is_on_arrow or before == line):
            self.action_open_or_close()
        elif event.chain > 1:
            self.action_choose()

    def on_resize(self) -> None:
        """Fit anew; the op at the cursor stays on the screen."""
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        self.call_after_refresh(self._open_what_fits)
        self.call_after_refresh(self._centre)

    # Drawing

    @property
    def _columns(self) -> list[OpColumn]:
        """The columns of numbers that fit beside the names."""
        return fitting_columns(self.size.width - _NARROWEST_LABEL)

    def render_line(self, y: int) -> Strip:
        """Draw one line; the first one is the heading."""
        base, columns = self.rich_style, self._columns
        width = self.scrollable_content_region.width or self.size.width
        label_width = self._label_width
        if y == 0:
            muted = base + theme_style(self.app.theme_variables, "text-muted")
            titles = "".join(column.title.rjust(column.width - 1) + " " for column in columns)
            heading = Segment("  op".ljust(label_width) + titles, muted)
            return Strip([heading]).adjust_cell_length(width, base)
        line = y - 1 + self.scroll_offset.y
        if line >= len(self.rows):
            is_no_match = not self.rows and y == 1 and self.query_text
            text = "nothing fits the filter" if is_no_match else ""
            return Strip([Segment(f"  {text}", base)]).adjust_cell_length(width, base)
        return self._row_strip(line, base, columns, label_width).adjust_cell_length(width, base)

    def _words(self, line: int, base: Style) -> list[Segment]:
        """What a line says of its node: the code, or the name."""
        row = self.rows[line]
        node, before = row.node, self.rows[line - 1].node if line else None
        title, about = op_title(node, before, shows_names=self.shows_names)
        room = self._label_width - 6 - 2 * row.depth
        title, about = fitted(title, about, room)
        is_at_cursor = line == self.cursor
        is_bold = node.kind == "phase" or is_at_cursor or node.health in ("inf", "nan")
        muted = base + theme_style(self.app.theme_variables, "text-muted")
        return [Segment(f" {title}", base + Style(bold=is_bold)), Segment(about, muted)]

    @property
    def _label_width(self) -> int:
        width = self.scrollable_content_region.width or self.size.width
        return width - sum(column.width for column in self._columns)

    def show_names(self, shows_names: bool) -> None:
        """Show ops by type and name, or by the code that made them."""
        self.shows_names = shows_names
        self.refresh()

    def _row_strip(
        self, line: int, base: Style, columns: list[OpColumn], label_width: int
    ) -> Strip:
        row, colours = self.rows[line], self.app.theme_variables
        is_at_cursor = line == self.cursor
        if is_at_cursor:
            base += _cursor_style(colours)
        label = Strip([*_marks(row, is_at_cursor, base, colours), *self._words(line, base)])
        health = base + health_style(colours, row.node.health)
        cells = [
            cell_segment(column, row.node, health if column.title == "non-finite" else base)
            for column in columns
        ]
        return Strip.join([label.adjust_cell_length(label_width, base), Strip(cells)])


def _cursor_style(colours: Mapping[str, str]) -> Style:
    background = Color.parse(colours["background"])
    colour = Color.parse(colours["primary"]).blend(background, _CURSOR_BLEND)
    return Style(bgcolor=colour.rich_color, bold=True)


def _marks(row: Row, is_at_cursor: bool, base: Style, colours: Mapping[str, str]) -> list[Segment]:
    """Bar of the cursor, arrow, health, mark of an origin."""
    node = row.node
    arrow = "  "
    if node.children:
        arrow = "▾ " if row.is_open else "▸ "
    muted = base + theme_style(colours, "text-muted")
    return [
        Segment("▌" if is_at_cursor else " ", base),
        Segment("  " * row.depth + arrow, muted),
        Segment(MARKS[node.health][0], base + health_style(colours, node.health)),
        Segment(ORIGIN if node.has_origin else " ", base + theme_style(colours, "text-accent")),
    ]
