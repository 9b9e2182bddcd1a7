"""A step as a tree: phase, layer, loop, op, with health marks and numbers. Only the lines that are visible are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

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
from nanreplay.tui.widgets.op_words import (
    ORIGIN,
    bad_words,
    health_tone,
    name_tail,
    number,
    shape_words,
    tone,
)

_NARROWEST_LABEL = 30
_OPENED_MATCHES = 400


class _Column(NamedTuple):
    title: str
    width: int
    text: Callable[[Node], str]


def _bad(node: Node) -> str:
    if node.op is not None:
        return bad_words(node.op.stat)
    return f"{node.nonfinite} of {node.ops}" if node.nonfinite else f"{node.ops} ops"


_COLUMNS = (
    _Column(
        "type and shape", 24, lambda node: shape_words(node.op.stat) if node.op is not None else ""
    ),
    _Column("non-finite", 15, _bad),
    _Column(
        "min",
        11,
        lambda node: (
            number(node.op.stat.minimum) if node.op is not None and node.op.stat is not None else ""
        ),
    ),
    _Column(
        "max",
        11,
        lambda node: (
            number(node.op.stat.maximum) if node.op is not None and node.op.stat is not None else ""
        ),
    ),
    _Column("|max|", 11, lambda node: number(node.absmax)),
)
_PRIORITY = (1, 4, 0, 2, 3)
"""Columns that stay longest when it gets narrow."""


class OpTree(ScrollView, can_focus=True):
    """The ops of a step."""

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
        self.query_text = ""
        self.hides_plumbing = True
        self._roots: tuple[Node, ...] = ()
        self._opened: set[str] = set()
        self._told: str | None = None

    # What is shown

    def show(self, view: StepView) -> None:
        """Show a step, opened at its first origin."""
        self.view, self._opened = view, set()
        self.filter(self.query_text, hides_plumbing=self.hides_plumbing)
        origin = next(
            (op for value in view.origins if (op := view.op(value.serial)) is not None), None
        )
        first = origin or next((op for op in self.ops if op.health in ("inf", "nan")), None)
        if first is not None:
            self.go_to(first)

    def filter(self, text: str, *, hides_plumbing: bool) -> None:
        """Show only the ops that fit a query; see `explore.search.matcher`."""
        if self.view is None:
            return
        at, self.query_text, self.hides_plumbing = self.node, text, hides_plumbing
        shown = (op for op in self.view.ops if not (hides_plumbing and op.is_plumbing))
        self.ops = search(shown, text) if text.strip() else tuple(shown)
        self._roots = grow(self.ops)
        if text.strip() and len(self.ops) <= _OPENED_MATCHES:
            self._opened |= {key for op in self.ops for key in keys_of(op)[:-1]}
        self._lay_out(at.key if at is not None else None)
        if (
            text.strip()
            and self.ops
            and (at is None or self.node is None or self.node.key != at.key)
        ):
            self.go_to(self.ops[0])

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
        """Serial of the op under the cursor, or just before the first one of a layer; -1 in an empty tree."""
        if self.node is None:
            return -1
        return self.node.first if self.node.op is not None else self.node.first - 1

    def go_to(self, op: Op) -> None:
        """Put the cursor on an op, and open what is around it."""
        if self.ops and not any(other.serial == op.serial for other in self.ops):
            self.filter("", hides_plumbing=self.hides_plumbing and not op.is_plumbing)
        *around, key = keys_of(op)
        self._opened |= set(around)
        self._lay_out(key)
        self.call_after_refresh(self._centre)

    def _lay_out(self, key: str | None) -> None:
        """Lay the lines out anew, with the cursor on the node of a key where there is one."""
        self.rows = list(rows_of(self._roots, self._opened))
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        found = next((i for i, row in enumerate(self.rows) if row.node.key == key), None)
        self.cursor = self.cursor if found is None else found
        self.cursor = self.validate_cursor(self.cursor)
        self._tell()
        self.refresh()

    def _centre(self) -> None:
        above = self.cursor - self.scroll_offset.y
        if not 1 <= above < self.size.height - 3:
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
        for line in (before, cursor):
            self.refresh(Region(0, line + 1 - self.scroll_offset.y, self.size.width, 1))
        self._tell()

    def _tell(self) -> None:
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
        if self.rows:
            self.action_fold() if self.rows[self.cursor].is_open else self.action_unfold()

    def action_fold(self) -> None:
        """Close what the cursor is on; where nothing is open, go to what it is in."""
        if not self.rows:
            return
        row = self.rows[self.cursor]
        if row.is_open and row.node.key in self._opened:
            self._opened.discard(row.node.key)
            self._lay_out(row.node.key)
        else:
            self.cursor = next(
                (i for i in range(self.cursor, -1, -1) if self.rows[i].depth < row.depth),
                self.cursor,
            )

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
        """Put the cursor under the mouse; a second click chooses, one on an arrow opens or closes."""
        line = event.y - 1 + self.scroll_offset.y
        if event.y < 1 or not 0 <= line < len(self.rows):
            return
        was, self.cursor = self.cursor, line
        row, arrow = self.rows[line], 1 + 2 * self.rows[line].depth
        if row.node.children and (arrow <= event.x < arrow + 2 or was == line):
            self.action_open_or_close()
        elif event.chain > 1:
            self.action_choose()

    def on_resize(self) -> None:
        """Fit anew."""
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)

    # Drawing

    @property
    def _columns(self) -> list[_Column]:
        room, kept = self.size.width - _NARROWEST_LABEL, set()
        for i in _PRIORITY:
            if room < _COLUMNS[i].width:
                break
            room -= _COLUMNS[i].width
            kept.add(i)
        return [column for i, column in enumerate(_COLUMNS) if i in kept]

    def render_line(self, y: int) -> Strip:
        """Draw one line; the first one is the heading."""
        base, colours = self.rich_style, self.app.theme_variables
        columns, width = self._columns, self.scrollable_content_region.width or self.size.width
        label_width = width - sum(column.width for column in columns)
        if y == 0:
            muted = base + tone(colours, "text-muted")
            titles = "".join(column.title.rjust(column.width - 1) + " " for column in columns)
            return Strip([Segment("  op".ljust(label_width) + titles, muted)]).adjust_cell_length(
                width, base
            )
        line = y - 1 + self.scroll_offset.y
        if line >= len(self.rows):
            text = "nothing fits the filter" if not self.rows and y == 1 and self.query_text else ""
            return Strip([Segment(f"  {text}", base)]).adjust_cell_length(width, base)
        row = self.rows[line]
        at = line == self.cursor
        if at:
            base += Style(
                bgcolor=Color.parse(colours["primary"])
                .blend(Color.parse(colours["background"]), 0.65)
                .rich_color,
                bold=True,
            )
        label = Strip(_label(row, at, base, colours)).adjust_cell_length(label_width, base)
        health = base + health_tone(colours, row.node.health)
        cells = [
            _cell(column, row.node, health if column.title == "non-finite" else base)
            for column in columns
        ]
        return Strip.join([label, Strip(cells)]).adjust_cell_length(width, base)


def _label(row: Row, at: bool, base: Style, colours: Mapping[str, str]) -> list[Segment]:
    node = row.node
    arrow = "▾ " if row.is_open else "▸ " if node.children else "  "
    mark = MARKS[node.health][0]
    parts = [
        Segment("▌" if at else " ", base),
        Segment("  " * row.depth + arrow, base + tone(colours, "text-muted")),
        Segment(mark, base + health_tone(colours, node.health)),
        Segment(ORIGIN if node.has_origin else " ", base + tone(colours, "text-accent")),
        Segment(
            " " + node.label,
            base + Style(bold=node.kind == "phase" or at or node.health in ("inf", "nan")),
        ),
    ]
    if node.op is not None:
        parts.append(Segment(f"  {name_tail(node.op)}", base + tone(colours, "text-muted")))
    return parts


def _cell(column: _Column, node: Node, style: Style) -> Segment:
    text, width = column.text(node), column.width - 1
    return Segment(
        (text.rjust(width) if len(text) <= width else text[: width - 1] + "…") + " ", style
    )
