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
from textual.containers import Container
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from nanreplay.explore import Hop, Op, StepView, Stop, downstream, upstream, worst_producer
from nanreplay.explore.dataflow import next_origin
from nanreplay.replay.provenance import ValueId
from nanreplay.report.numbers import readable_number
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.panes.base import Copyable, Go, StepPane, first_value, worst_output
from nanreplay.tui.trail import Trail, end_words
from nanreplay.tui.widgets.code_view import CodeView
from nanreplay.tui.widgets.op_detail import hop_text, value_text
from nanreplay.tui.widgets.op_words import theme_style, value_title
from nanreplay.tui.widgets.steady_list import SteadyList
from nanreplay.tui.widgets.text_box import TextBox

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
        "the input of the op that it leads to. A line tells the code that made a value, the value "
        "at the failing element, and the op; m shows names. enter goes there, backspace returns, + "
        "goes forward again. Copies, casts and reshapes are skipped and told after `via`. The top "
        "line shows the way that you came; a value that entered the step came from nowhere. The "
        "code beside the lines follows the cursor."
    )
    DEFAULT_CSS = """
    DataflowPane #way { height: auto; max-height: 2; padding: 0 1; background: $panel; }
    DataflowPane #both { layout: horizontal; height: 1fr; }
    DataflowPane CodeView { width: 2fr; border-left: vkey $panel; }
    DataflowPane OptionList {
        width: 3fr;
        height: 1fr; border: none; background: $background;
        &.-textual-compact { padding: 0 1; }
        text-wrap: nowrap; text-overflow: ellipsis;
        &:focus { background: $surface; }
        & > .option-list--option-disabled { color: $text-muted; }
        & > .option-list--option-highlighted, &:focus > .option-list--option-highlighted {
            background: $primary 30%; color: $foreground; text-style: bold;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "line(1)", "Down", show=False, id="dataflow.down", tooltip="One line down"),
        Binding("k", "line(-1)", "Up", show=False, id="dataflow.up", tooltip="One line up"),
        Binding(
            "u",
            "up",
            "Worst input",
            id="dataflow.worst",
            tooltip="Go to what produced the worst input",
        ),
        Binding("O", "origin", "Origin", id="dataflow.origin", tooltip="The next origin"),
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
        self.trail: Trail[ValueId] = Trail()
        """Values that the user went through."""
        self.shows_names = False
        """Whether ops are told by their names, and not by the code that made them."""
        self._stops: dict[str, tuple[Sequence[Stop], int]] = {}
        """By key of a line: the producers or consumers that it is one of, and its position."""

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield TextBox("The step is shown once the replay has found it.", id="way", markup=False)
        with Container(id="both"):
            yield SteadyList(id="hops", markup=False, compact=True)
            yield CodeView()

    @property
    def hops(self) -> OptionList:
        """The lines."""
        return self.query_one("#hops", OptionList)

    def show_theme(self) -> None:
        """Draw in other colours."""
        self._draw()

    def show_view(self, view: StepView, value: ValueId | None) -> None:
        """Begin a way at a value; at the origin unless given."""
        self.trail.begin(value if value is not None else first_value(view))
        self._draw()

    def _draw(self) -> None:
        """Show the last value of the way, with the cursor on what produced its worst input."""
        view = self.view
        value = self.trail.place
        if view is None or value is None:
            return
        room = max((self.hops.size.height - _OTHER_LINES) // 2, _FEWEST_HOPS)
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
        room = min(self.hops.size.width // 2, _WIDEST_LABEL) - len(lead)
        hop = hop_text(
            self.view,
            stop.hop,
            self.app.theme_variables,
            room,
            names=self.shows_names,
            value=self._operand_value(stop) if key.startswith("from") else "",
        )
        return Option(Text.assemble(lead, hop), key)

    def _operand_value(self, stop: Stop) -> str:
        """What the failing element of the value in the middle took from one of its inputs."""
        view, value = self.view, self.trail.place
        if view is None or value is None or stop.level:
            return ""
        op, element = view.op(value.serial), self.state.elements.get((view.step, value))
        if op is None or element is None or stop.hop.slot >= len(op.inputs):
            return ""
        source = op.inputs[stop.hop.slot]
        values = [each.facts.value for each in element.operands if each.value == source]
        return readable_number(values[0]) if values and values[0] is not None else ""

    def _way_text(self) -> Text:
        assert self.view is not None
        view, shown = self.view, Text(f"step {self.view.step}  ")
        return shown.append_text(self.trail.text(lambda value: value_title(view, value)))

    def shown_op(self) -> Op | None:
        """The op at the line of the cursor, else that of the value in the middle."""
        view, value = self.view, self.trail.place
        if view is None or value is None:
            return None
        position = self.hops.highlighted
        key = self.hops.get_option_at_index(position).id if position is not None else None
        if key in self._stops:
            stops, i = self._stops[key]
            return stops[i].hop.op
        return view.op(value.serial)

    def action_names(self) -> None:
        """Show ops by name, or by the code that made them."""
        self.shows_names = not self.shows_names
        self._draw()

    def on_resize(self) -> None:
        """Show as many hops as there is room for, once the widgets have their new sizes."""
        self.call_after_refresh(self._draw)

    @on(OptionList.OptionHighlighted)
    def _moved(self, event: OptionList.OptionHighlighted) -> None:
        """Let the code beside follow the cursor."""
        event.stop()
        self.show_code()

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
        for stop in passed:
            self.trail.go(_target(stop.hop, forward=forward))
        self._draw()

    def action_back(self, by: int) -> None:
        """Go back along the way, or forward again."""
        if self.trail.move(by) is None:
            self.notify(end_words(by), timeout=3)
        else:
            self._draw()

    def action_line(self, by: int) -> None:
        """Move by a line."""
        if by > 0:
            self.hops.action_cursor_down()
        else:
            self.hops.action_cursor_up()

    def action_up(self) -> None:
        """Go to what produced the worst input."""
        hop, value = None, self.trail.place
        if self.view is not None and value is not None:
            op = self.view.op(value.serial)
            hop = worst_producer(self.view, op) if op is not None else None
        if hop is None:
            self.notify("This value was not computed in the step: it entered it.", timeout=3)
        else:
            self.trail.go(hop.value)
            self._draw()

    def action_origin(self) -> None:
        """Go to the next origin."""
        if self.view is None or not self.view.origins:
            return
        origins, value = self.view.origins, self.trail.place
        op = next_origin(self.view, value.serial if value is not None else None)
        # No op: the origin is a value that entered the step.
        of_op = [value for value in origins if op is not None and value.serial == op.serial]
        self.trail.go(of_op[0] if of_op else origins[0])
        self._draw()

    def action_elsewhere(self, pane: str) -> None:
        """Show the value in another tab."""
        value = self.trail.place
        if self.view is not None and value is not None:
            if pane == "bisect" and value.serial < 0:
                self.notify("This value entered the step; no op made it.", timeout=3)
                return
            place = ViewPosition(self.view.step, value.serial, output=value.output)
            self.post_message(Go(pane, place))

    def copies(self) -> Sequence[Copyable]:
        """Offer the value's name and the way."""
        if self.view is None or self.trail.place is None:
            return ()
        name, way = self.view.name(self.trail.place), self._way_text().plain
        return (Copyable("the tensor's name", name), Copyable("the way", way))

    def as_text(self) -> str:
        """All lines."""
        if self.view is None or self.trail.place is None:
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
