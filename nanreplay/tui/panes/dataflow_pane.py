"""The dataflow pane: from a value to what it was made of, and on.

Producers stand above, the op in the middle, consumers below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from nanreplay.explore import Hop, StepView, Stop, downstream, upstream, worst_producer
from nanreplay.explore.dataflow import next_origin
from nanreplay.replay.provenance import ValueId
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.panes.base import Copyable, Go, StepPane, first_value, worst_output
from nanreplay.tui.widgets.op_detail import hop_text, value_text
from nanreplay.tui.widgets.op_words import theme_style, value_title

_MIDDLE = "middle"
"""Key of the lines of the value itself."""
_WIDEST_LABEL = 56
"""Columns, at most, before the facts of a line."""
_OTHER_LINES = 8
"""Lines that the way, the headings and the value itself take."""
_FEWEST_HOPS = 6


class DataflowPane(StepPane):
    """Walks from value to value; the way is a line of names at the top."""

    HELP = (
        "Where a value came from and where it went, several hops deep; the number before a line is "
        "the input of the op that it leads to. enter on a line goes there, backspace returns. "
        "Copies, casts and reshapes are skipped and told after `via`. The first line shows the way "
        "that you came; a value that entered the step (the batch, a variable) came from nowhere."
    )
    DEFAULT_CSS = """
    DataflowPane #way { height: auto; max-height: 2; padding: 0 1; background: $panel; }
    DataflowPane OptionList {
        height: 1fr; border: none; padding: 0; background: $background;
        text-wrap: nowrap; text-overflow: ellipsis;
        &:focus { background: $surface; }
        & > .option-list--option-disabled { color: $text-muted; }
        & > .option-list--option-highlighted, &:focus > .option-list--option-highlighted {
            background: $primary 30%; color: $foreground; text-style: bold;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("backspace", "back", "Back", id="dataflow.back", tooltip="Back along the way"),
        Binding("j", "line(1)", "Down", show=False, id="dataflow.down", tooltip="One line down"),
        Binding("k", "line(-1)", "Up", show=False, id="dataflow.up", tooltip="One line up"),
        Binding(
            "u",
            "up",
            "Worst input",
            id="dataflow.worst",
            tooltip="Go to what produced the worst input",
        ),
        Binding("o", "origin", "Origin", id="dataflow.origin", tooltip="The next origin"),
        Binding("t", "elsewhere('tensor')", "Tensor", id="dataflow.tensor", tooltip="The values"),
        Binding(
            "b",
            "elsewhere('bisect')",
            "In the tree",
            id="dataflow.tree",
            tooltip="The op among the others of its step",
        ),
    ]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.way: list[ValueId] = []
        """Values that the user came through; the last one is shown."""
        self._stops: dict[str, tuple[Sequence[Stop], int]] = {}
        """By key of a line: the producers or consumers that it is one of, and its position."""

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static("The step is shown once the replay has found it.", id="way", markup=False)
        yield OptionList(id="hops", markup=False, compact=True)

    @property
    def hops(self) -> OptionList:
        """The lines."""
        return self.query_one("#hops", OptionList)

    def show_theme(self) -> None:
        """Draw in other colours."""
        self._draw()

    def show_view(self, view: StepView, value: ValueId | None) -> None:
        """Begin a way at a value; at the origin unless given."""
        self.way = [value if value is not None else first_value(view)]
        self._draw()

    def _draw(self) -> None:
        """Show the last value of the way, with the cursor on what produced its worst input."""
        view = self.view
        if view is None or not self.way:
            return
        value = self.way[-1]
        room = max((self.size.height - _OTHER_LINES) // 2, _FEWEST_HOPS)
        above, below = upstream(view, value, room), downstream(view, value, room)
        self._stops = {f"from {i}": (above, i) for i in range(len(above))}
        self._stops |= {f"to {i}": (below, i) for i in range(len(below))}
        self.hops.set_options(
            [
                self._heading("came from" if above else "entered the step, or was made of nothing"),
                *(
                    self._option(f"from {i}", stop, str(stop.hop.slot))
                    for i, stop in enumerate(above)
                ),
                Option("", disabled=True),
                Option(value_text(view, value, self.app.theme_variables), _MIDDLE),
                Option("", disabled=True),
                self._heading("went to" if below else "went nowhere"),
                *(self._option(f"to {i}", stop, "→") for i, stop in enumerate(below)),
            ]
        )
        self.hops.highlighted = self.hops.get_option_index(_worst_key(view, value, above))
        self.query_one("#way", Static).update(self._way_text())

    def _heading(self, title: str) -> Option:
        muted = theme_style(self.app.theme_variables, "text-muted")
        return Option(Text(title, muted), disabled=True)

    def _option(self, key: str, stop: Stop, slot: str) -> Option:
        """One hop as a line, indented by how far it is away.

        Args:
            key: Of the line.
            stop: The hop.
            slot: Which input of the op it leads to, or an arrow.
        """
        assert self.view is not None
        lead = "  " * stop.level + f"{slot:>3} "
        room = min(self.size.width // 2, _WIDEST_LABEL) - len(lead)
        hop = hop_text(self.view, stop.hop, self.app.theme_variables, room)
        return Option(Text.assemble(lead, hop), key)

    def _way_text(self) -> Text:
        assert self.view is not None
        *before, last = [value_title(self.view, value) for value in self.way]
        shown = Text(f"step {self.view.step}  ")
        for title in before:
            shown.append(title, "dim").append(" → ")
        return shown.append(last, "bold")

    def on_resize(self) -> None:
        """Show as many hops as there is room for."""
        self._draw()

    # Going

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        key = event.option.id
        if key == _MIDDLE:
            self.action_elsewhere("tensor")
        elif key in self._stops:
            stops, i = self._stops[key]
            self._follow(stops, i, forward=key.startswith("to"))

    def _follow(self, stops: Sequence[Stop], position: int, *, forward: bool) -> None:
        """Go to a stop, by way of those between.

        Each stop names the one before it on the way from the middle. Where Softmax stands above
        the middle and MatMul above Softmax, choosing MatMul adds Softmax, then MatMul.
        """
        passed: list[Stop] = []
        next_position: int | None = position
        while next_position is not None:
            passed.insert(0, stops[next_position])
            next_position = stops[next_position].before
        self.way += [_target(stop.hop, forward=forward) for stop in passed]
        self._draw()

    def action_back(self) -> None:
        """Go back along the way."""
        if len(self.way) > 1:
            self.way.pop()
            self._draw()
        else:
            self.notify("This is where you began.", timeout=3)

    def action_line(self, by: int) -> None:
        """Move by a line."""
        if by > 0:
            self.hops.action_cursor_down()
        else:
            self.hops.action_cursor_up()

    def action_up(self) -> None:
        """Go to what produced the worst input."""
        hop = None
        if self.view is not None and self.way:
            op = self.view.op(self.way[-1].serial)
            hop = worst_producer(self.view, op) if op is not None else None
        if hop is None:
            self.notify("This value was not computed in the step: it entered it.", timeout=3)
        else:
            self.way.append(hop.value)
            self._draw()

    def action_origin(self) -> None:
        """Go to the next origin."""
        if self.view is None or not self.view.origins:
            return
        origins = self.view.origins
        op = next_origin(self.view, self.way[-1].serial if self.way else None)
        # No op: the origin is a value that entered the step.
        of_op = [value for value in origins if op is not None and value.serial == op.serial]
        self.way.append(of_op[0] if of_op else origins[0])
        self._draw()

    def action_elsewhere(self, pane: str) -> None:
        """Show the value in another tab."""
        if self.view is not None and self.way:
            value = self.way[-1]
            if pane == "bisect" and value.serial < 0:
                self.notify("This value entered the step; no op made it.", timeout=3)
                return
            place = ViewPosition(self.view.step, value.serial, output=value.output)
            self.post_message(Go(pane, place))

    def copies(self) -> Sequence[Copyable]:
        """Offer the value's name and the way."""
        if self.view is None or not self.way:
            return ()
        name, way = self.view.name(self.way[-1]), self._way_text().plain
        return (Copyable("the tensor's name", name), Copyable("the way", way))

    def as_text(self) -> str:
        """All lines."""
        if self.view is None or not self.way:
            return ""
        options = map(self.hops.get_option_at_index, range(self.hops.option_count))
        lines = [str(option.prompt) for option in options]
        return "\n".join([self._way_text().plain, "", *lines])


def _worst_key(view: StepView, value: ValueId, above: Sequence[Stop]) -> str:
    """Key of the line of the worst input of a value's op; that of the value if there is none."""
    op = view.op(value.serial)
    worst = worst_producer(view, op) if op is not None else None
    if worst is not None:
        for position, stop in enumerate(above):
            if stop.level == 0 and stop.hop.slot == worst.slot:
                return f"from {position}"
    return _MIDDLE


def _target(hop: Hop, *, forward: bool) -> ValueId:
    """The value to show at the other end of a hop: of a consumer it is the worst that it gave."""
    if forward and hop.op is not None:
        return ValueId(hop.op.serial, worst_output(hop.op))
    return hop.value
