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

from nanreplay.explore import Hop, StepView, consumers, producers, worst_producer
from nanreplay.explore.search import next_origin
from nanreplay.replay.events import ValueId
from nanreplay.tui.panes.base import Copyable, Go
from nanreplay.tui.panes.steps import StepPane, first_value, worst_output
from nanreplay.tui.state import CaptureState, Place
from nanreplay.tui.widgets.op_detail import hop_text, value_text
from nanreplay.tui.widgets.op_words import value_title

_MIDDLE = "middle"


class DataflowPane(StepPane):
    """Walks from value to value; the way is a line of names at the top."""

    HELP = (
        "Where a value came from and where it went. enter on a line goes there, backspace returns. Copies, casts and reshapes are "
        "skipped and told after `via`. The first line shows the way that you came; a value that entered the step (the batch, a "
        "variable) has no producers."
    )
    DEFAULT_CSS = """
    DataflowPane #way { height: auto; max-height: 2; padding: 0 1; background: $panel; }
    DataflowPane OptionList { height: 1fr; border: none; padding: 0; background: $background; }
    DataflowPane OptionList:focus { background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("backspace", "back", "Back", id="dataflow.back", tooltip="Back along the way"),
        Binding("j", "line(1)", "Down", show=False, id="dataflow.down", tooltip="One line down"),
        Binding("k", "line(-1)", "Up", show=False, id="dataflow.up", tooltip="One line up"),
        Binding("u", "up", "Worst input", id="dataflow.worst", tooltip="Go to what produced the worst input"),
        Binding("o", "origin", "Origin", id="dataflow.origin", tooltip="The next origin"),
        Binding("t", "elsewhere('tensor')", "Tensor", id="dataflow.tensor", tooltip="The values"),
        Binding("b", "elsewhere('bisect')", "In the tree", id="dataflow.tree", tooltip="The op among the others of its step"),
    ]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.way: list[ValueId] = []
        """Values that the user came through; the last one is shown."""
        self._hops: dict[str, Hop] = {}

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static("The step is shown once the replay has found it.", id="way", markup=False)
        yield OptionList(id="hops", markup=False, compact=True)

    @property
    def hops(self) -> OptionList:
        """The lines."""
        return self.query_one("#hops", OptionList)

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
        op = view.op(value.serial)
        above = producers(view, op) if op is not None else ()
        outputs = range(len(op.outputs)) if op is not None else ()
        below = [hop for k in outputs for hop in consumers(view, ValueId(value.serial, k))] if op is not None else consumers(view, value)
        self._hops = {**{f"from {i}": hop for i, hop in enumerate(above)}, **{f"to {i}": hop for i, hop in enumerate(below)}}
        lines = [Option(Text("came from"), disabled=True)] if above else [Option(Text("entered the step"), disabled=True)]
        lines += [self._option(f"from {i}", hop, str(hop.slot)) for i, hop in enumerate(above)]
        lines += [Option("", disabled=True), Option(value_text(view, value, colours), _MIDDLE), Option("", disabled=True)]
        lines += [Option(Text("went to" if below else "went nowhere"), disabled=True)]
        lines += [self._option(f"to {i}", hop, " ") for i, hop in enumerate(below)]
        self.hops.set_options(lines)
        worst = worst_producer(view, op) if op is not None else None
        wanted = f"from {above.index(worst)}" if worst is not None else _MIDDLE
        self.hops.highlighted = self.hops.get_option_index(wanted)
        self.query_one("#way", Static).update(self._way_text())

    def _option(self, key: str, hop: Hop, slot: str) -> Option:
        assert self.view is not None
        return Option(Text.assemble(f"  {slot:>2} ", hop_text(self.view, hop, self.app.theme_variables)), key)

    def _way_text(self) -> Text:
        assert self.view is not None
        names = [value_title(self.view, value) for value in self.way]
        shown = Text(f"step {self.view.step}  ")
        for i, name in enumerate(names):
            shown.append(name, "bold" if i == len(names) - 1 else "dim").append(" → " if i < len(names) - 1 else "")
        return shown

    # Going

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        key = event.option.id
        if key == _MIDDLE:
            self.action_elsewhere("tensor")
        elif key in self._hops:
            self._follow(self._hops[key], forward=key.startswith("to"))

    def _follow(self, hop: Hop, *, forward: bool) -> None:
        op = hop.op
        self.way.append(ValueId(op.serial, worst_output(op)) if forward and op is not None else hop.value)
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
        op = self.view.op(self.way[-1].serial) if self.view is not None and self.way else None
        hop = worst_producer(self.view, op) if self.view is not None and op is not None else None
        if hop is None:
            self.notify("This value was not computed in the step: it entered it.", timeout=3)
        else:
            self._follow(hop, forward=False)

    def action_origin(self) -> None:
        """Go to the next origin."""
        if self.view is None or not self.view.origins:
            return
        op = next_origin(self.view, self.way[-1].serial if self.way else None)
        found = [value for value in self.view.origins if op is not None and value.serial == op.serial]
        self.way.append(found[0] if found else self.view.origins[0])
        self._draw()

    def action_elsewhere(self, pane: str) -> None:
        """Show the value in another tab."""
        if self.view is not None and self.way:
            value = self.way[-1]
            if pane == "bisect" and value.serial < 0:
                self.notify("This value entered the step; no op made it.", timeout=3)
                return
            self.post_message(Go(pane, Place(self.view.step, value.serial, output=value.output)))

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
        lines = [str(self.hops.get_option_at_index(i).prompt) for i in range(self.hops.option_count)]
        return "\n".join([self._way_text().plain, "", *lines])
