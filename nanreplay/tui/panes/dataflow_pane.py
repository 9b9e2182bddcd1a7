"""From a value to what it was made of, and on: producers above, the op in the middle, consumers below."""

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
from nanreplay.tui.widgets.op_words import tone, value_title

_MIDDLE = "middle"
_LABEL = 56
"""Columns, at most, before the facts of a line."""


class DataflowPane(StepPane):
    """Walks from value to value; the way is a line of names at the top."""

    HELP = (
        "Where a value came from and where it went, several hops deep; the number before a line is the input of the op that it leads "
        "to. enter on a line goes there, backspace returns. Copies, casts and reshapes are skipped and told after `via`. The first "
        "line shows the way that you came; a value that entered the step (the batch, a variable) came from nowhere."
    )
    DEFAULT_CSS = """
    DataflowPane #way { height: auto; max-height: 2; padding: 0 1; background: $panel; }
    DataflowPane OptionList {
        height: 1fr; border: none; padding: 0; background: $background; text-wrap: nowrap; text-overflow: ellipsis;
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
        """By key of a line: the stops that it is one of, and which."""

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
        """Show the last value of the way."""
        view = self.view
        if view is None or not self.way:
            return
        value, colours = self.way[-1], self.app.theme_variables
        room = max((self.size.height - 8) // 2, 6)
        above, below = upstream(view, value, room), downstream(view, value, room)
        self._stops = {
            **{f"from {i}": (above, i) for i in range(len(above))},
            **{f"to {i}": (below, i) for i in range(len(below))},
        }
        muted = tone(colours, "text-muted")
        lines = [
            Option(
                Text("came from" if above else "entered the step, or was made of nothing", muted),
                disabled=True,
            )
        ]
        lines += [
            self._option(f"from {i}", stop, str(stop.hop.slot)) for i, stop in enumerate(above)
        ]
        lines += [
            Option("", disabled=True),
            Option(value_text(view, value, colours), _MIDDLE),
            Option("", disabled=True),
        ]
        lines += [Option(Text("went to" if below else "went nowhere", muted), disabled=True)]
        lines += [self._option(f"to {i}", stop, "→") for i, stop in enumerate(below)]
        self.hops.set_options(lines)
        op = view.op(value.serial)
        worst = worst_producer(view, op) if op is not None else None
        wanted = next(
            (
                i
                for i, stop in enumerate(above)
                if worst is not None and stop.level == 0 and stop.hop.slot == worst.slot
            ),
            None,
        )
        self.hops.highlighted = self.hops.get_option_index(
            _MIDDLE if wanted is None else f"from {wanted}"
        )
        self.query_one("#way", Static).update(self._way_text())

    def _option(self, key: str, stop: Stop, slot: str) -> Option:
        assert self.view is not None
        lead = "  " * stop.level + f"{slot:>3} "
        room = min(self.size.width // 2, _LABEL) - len(lead)
        return Option(
            Text.assemble(lead, hop_text(self.view, stop.hop, self.app.theme_variables, room)), key
        )

    def _way_text(self) -> Text:
        assert self.view is not None
        names = [value_title(self.view, value) for value in self.way]
        shown = Text(f"step {self.view.step}  ")
        for i, name in enumerate(names):
            shown.append(name, "bold" if i == len(names) - 1 else "dim").append(
                " → " if i < len(names) - 1 else ""
            )
        return shown

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
        """Go to a stop, by way of those before it."""
        ways: list[Stop] = []
        following: int | None = position
        while following is not None:
            ways.insert(0, stops[following])
            following = stops[following].before
        self.way += [self._target(stop.hop, forward=forward) for stop in ways]
        self._draw()

    def _target(self, hop: Hop, *, forward: bool) -> ValueId:
        return (
            ValueId(hop.op.serial, worst_output(hop.op))
            if forward and hop.op is not None
            else hop.value
        )

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
        op = self.view.op(self.way[-1].serial) if self.view is not None and self.way else None
        hop = worst_producer(self.view, op) if self.view is not None and op is not None else None
        if hop is None:
            self.notify("This value was not computed in the step: it entered it.", timeout=3)
        else:
            self.way.append(hop.value)
            self._draw()

    def action_origin(self) -> None:
        """Go to the next origin."""
        if self.view is None or not self.view.origins:
            return
        op = next_origin(self.view, self.way[-1].serial if self.way else None)
        found = [
            value for value in self.view.origins if op is not None and value.serial == op.serial
        ]
        self.way.append(found[0] if found else self.view.origins[0])
        self._draw()

    def action_elsewhere(self, pane: str) -> None:
        """Show the value in another tab."""
        if self.view is not None and self.way:
            value = self.way[-1]
            if pane == "bisect" and value.serial < 0:
                self.notify("This value entered the step; no op made it.", timeout=3)
                return
            self.post_message(
                Go(pane, ViewPosition(self.view.step, value.serial, output=value.output))
            )

    def copies(self) -> Sequence[Copyable]:
        """Offer the value's name and the way."""
        if self.view is None or not self.way:
            return ()
        name, way = self.view.name(self.way[-1]), self._way_text().plain
        return (Copyable("the tensor's name", name), Copyable("the way", way))

    def as_text(self) -> str:
        """All lines."""
        if self.view is None:
            return ""
        lines = [
            str(self.hops.get_option_at_index(i).prompt) for i in range(self.hops.option_count)
        ]
        return "\n".join([self._way_text().plain, "", *lines])
