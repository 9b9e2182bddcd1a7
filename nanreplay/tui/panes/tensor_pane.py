"""One tensor: a table at its failing elements, statistics, histogram, where it is not finite, what an element was computed from."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Input, Static

from nanreplay.explore import StepView, TensorView
from nanreplay.replay.provenance import ValueId
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.panes.base import Copyable, Go, StepPane, first_value
from nanreplay.tui.view_tasks import ElementRef, ViewOperands, ViewTensor
from nanreplay.tui.widgets.op_words import ORIGIN, bad_words, index_words, shape_words, value_title
from nanreplay.tui.widgets.tensor_table import TensorTable, best_operand, cell_words, tensor_text

_DELAY_S = 0.1


class Spot(NamedTuple):
    """An element of a tensor that the user looked at."""

    value: ValueId
    at: tuple[int, ...] | None


class TensorPane(StepPane):
    """Table on one side, facts on the other."""

    HELP = (
        "The values of a tensor, with the cursor on the first element that failed. The table shows the last two axes; x and X go "
        "through the slices of the others, i goes to an index such as 3, 0, 17. enter goes to what the element was computed from, "
        "at that very element; backspace returns."
    )
    DEFAULT_CSS = """
    TensorPane #name { height: 1; padding: 0 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis; }
    TensorPane #both { layout: horizontal; height: 1fr; }
    TensorPane TensorTable { width: 3fr; }
    TensorPane #facts { width: 54; padding: 0 1; background: $background; border-left: vkey $panel; }
    TensorPane #facts Static { height: auto; }
    TensorPane #index { height: 1; border: none; padding: 0 1; display: none; background: $boost; }
    TensorPane #index.-open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "backspace", "back", "Back", id="tensor.back", tooltip="Back to the element before"
        ),
        Binding(
            "n", "failing(1)", "Next bad", id="tensor.next", tooltip="The next element that failed"
        ),
        Binding(
            "N",
            "failing(-1)",
            "Bad before",
            show=False,
            id="tensor.before",
            tooltip="The element before that failed",
        ),
        Binding(
            "x",
            "slice(1)",
            "Slice",
            id="tensor.slice",
            tooltip="The next slice along the axes before the last two",
        ),
        Binding(
            "X",
            "slice(-1)",
            "Slice before",
            show=False,
            id="tensor.slice_before",
            tooltip="The slice before",
        ),
        Binding("i", "index", "Index", id="tensor.index", tooltip="Go to an element by its index"),
        Binding(
            "v",
            "output",
            "Output",
            show=False,
            id="tensor.output",
            tooltip="The next output of the same op",
        ),
        Binding(
            "d",
            "elsewhere('dataflow')",
            "Dataflow",
            id="tensor.dataflow",
            tooltip="Where it came from and went",
        ),
        Binding(
            "b",
            "elsewhere('bisect')",
            "In the tree",
            id="tensor.tree",
            tooltip="The op among the others of its step",
        ),
        Binding(
            "escape",
            "no_index",
            "Close",
            show=False,
            id="tensor.no_index",
            tooltip="Close the line for an index",
        ),
    ]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.spot: Spot | None = None
        self.tensor: TensorView | None = None
        self._trail: list[Spot] = []
        self._made: ElementRef | None = None

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static("The step is shown once the replay has found it.", id="name", markup=False)
        with Container(id="both"):
            yield TensorTable()
            with VerticalScroll(id="facts", can_focus=False):
                yield Static(id="words", markup=False)
        yield Input(placeholder="index, e.g. 3, 0, 17", id="index", compact=True)

    @property
    def table(self) -> TensorTable:
        """The table."""
        return self.query_one(TensorTable)

    # What is shown

    def show_theme(self) -> None:
        """Draw in other colours."""
        self._show_words()

    def show_view(self, view: StepView, value: ValueId | None) -> None:
        """Show a tensor of a step; the origin's unless given."""
        self._trail.clear()
        self.fetch(Spot(value if value is not None else first_value(view), None))

    @work(exclusive=True, group="tensor", exit_on_error=False)
    async def fetch(self, spot: Spot) -> None:
        """Get a tensor, and show it."""
        if self.view is None:
            return
        self.spot = spot
        self.query_one("#name", Static).update(f"{self.view.name(spot.value)} …")
        self.tensor = await self.ask(
            ViewTensor(self.path, self.origin, self.view.step, spot.value, spot.at)
        )
        self._made = None
        self.table.show(self.tensor, spot.at)
        self._show_words()

    def _show_words(self) -> None:
        view, tensor, spot = self.view, self.tensor, self.spot
        if view is None or tensor is None or spot is None:
            return
        element = ""
        if self.table.index is not None:
            element = f"{index_words(self.table.index)} = {cell_words(tensor.plane.cells[self.table.cursor])[0]}".strip()
        count = f"{bad_words(tensor.stat)} of {tensor.stat.size}" if tensor.stat.nonfinite else ""
        mark = f"{ORIGIN} " if spot.value in view.origins else ""
        words = (
            f"{mark}{value_title(view, spot.value)} {element}",
            shape_words(tensor.stat),
            count,
            f"step {view.step}",
            tensor.name,
        )
        line = " · ".join(filter(None, words))
        self.query_one("#name", Static).update(line)
        self.query_one("#words", Static).update(
            tensor_text(view, tensor, self._made, self.app.theme_variables)
        )

    @on(TensorTable.Moved)
    def _moved(self, event: TensorTable.Moved) -> None:
        event.stop()
        self._show_words()
        if self.view is not None and self.spot is not None and self.spot.value.serial >= 0:
            self.find_operands(self.view.step, self.spot.value, event.index)

    @work(exclusive=True, group="operands", exit_on_error=False)
    async def find_operands(self, step: int, value: ValueId, index: tuple[int, ...]) -> None:
        """Ask what an element was computed from, once the cursor rests."""
        await asyncio.sleep(_DELAY_S)
        self._made = await self.ask(ViewOperands(self.path, self.origin, step, value, index))
        self._show_words()

    # Keys

    @on(TensorTable.Chosen)
    def _chosen(self, event: TensorTable.Chosen) -> None:
        """Go to what the element was computed from."""
        event.stop()
        if self.spot is not None and self.spot.value.serial < 0:
            self.notify("This value entered the step.", timeout=3)
        elif self.spot is not None:
            self.go_back_from(Spot(self.spot.value, event.index))

    @work(exclusive=True, group="tensor", exit_on_error=False)
    async def go_back_from(self, spot: Spot) -> None:
        """Go to the worst of what an element was computed from."""
        if self.view is None:
            return
        made = self._made
        if made is None or made.at != spot.at:
            made = await self.ask(
                ViewOperands(self.path, self.origin, self.view.step, spot.value, spot.at)
            )
        operand = best_operand(made.operands)
        if operand is None:
            self.notify("It was not computed from other values.", timeout=3)
            return
        self._trail.append(spot)
        self.fetch(Spot(operand.value, operand.index))

    def action_back(self) -> None:
        """Go back to the element before."""
        if self._trail:
            self.fetch(self._trail.pop())
        else:
            self.notify("This is where you began.", timeout=3)

    def action_failing(self, by: int) -> None:
        """Go to the next, or the previous, failing element."""
        index, tensor = self.table.index, self.tensor
        if tensor is None or index is None or not tensor.failing:
            self.notify("No element of this tensor is non-finite.", timeout=3)
            return
        beyond = [each for each in tensor.failing if (each > index if by > 0 else each < index)]
        self._see(beyond[0 if by > 0 else -1] if beyond else tensor.failing[0 if by > 0 else -1])

    def action_slice(self, by: int) -> None:
        """Go to the next, or the previous, slice."""
        if self.tensor is None or self.table.index is None:
            return
        shape = self.tensor.stat.shape[:-2]
        if not shape:
            self.notify("This tensor has no axes beyond the two that are shown.", timeout=3)
            return
        flat = (int(np.ravel_multi_index(self.tensor.plane.leading, shape)) + by) % int(
            np.prod(shape)
        )
        self._see((*(int(i) for i in np.unravel_index(flat, shape)), *self.table.index[-2:]))

    def _see(self, index: tuple[int, ...]) -> None:
        """Put the cursor on an element; asks for its part of the tensor when it is elsewhere."""
        if self.tensor is None or self.spot is None:
            return
        cell = self.tensor.plane.cell(index)
        if cell is not None:
            self.table.cursor = cell
        else:
            self.fetch(Spot(self.spot.value, index))

    def action_output(self) -> None:
        """Show the next output of the same op."""
        op = (
            self.view.op(self.spot.value.serial)
            if self.view is not None and self.spot is not None
            else None
        )
        if op is not None and self.spot is not None and len(op.outputs) > 1:
            self.fetch(
                Spot(ValueId(op.serial, (self.spot.value.output + 1) % len(op.outputs)), None)
            )

    def action_index(self) -> None:
        """Open the line for an index."""
        line = self.query_one("#index", Input)
        line.add_class("-open")
        line.focus()

    @on(Input.Submitted, "#index")
    def _index_given(self, event: Input.Submitted) -> None:
        event.stop()
        numbers = tuple(int(number) for number in re.findall(r"\d+", event.value))
        rank = len(self.tensor.stat.shape) if self.tensor is not None else 0
        self.action_no_index()
        if len(numbers) == rank:
            self._see(numbers)
        else:
            self.notify(f"This tensor takes {rank} numbers.", severity="warning", timeout=4)

    def action_no_index(self) -> None:
        """Close the line for an index."""
        self.query_one("#index", Input).remove_class("-open")
        self.table.focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave the escape key to the screen while the line is closed."""
        return action != "no_index" or self.query_one("#index", Input).has_class("-open")

    def action_elsewhere(self, pane: str) -> None:
        """Show the tensor, or its op, in another tab."""
        if self.view is not None and self.spot is not None:
            self.post_message(
                Go(
                    pane,
                    ViewPosition(
                        self.view.step, self.spot.value.serial, output=self.spot.value.output
                    ),
                )
            )

    def copies(self) -> Sequence[Copyable]:
        """Offer the tensor's name, the element, and the statistics."""
        if self.tensor is None:
            return ()
        return (
            Copyable("the tensor's name", self.tensor.name),
            Copyable("this element", str(self.query_one("#name", Static).content)),
            Copyable("what is known of the tensor", self._words().plain),
        )

    def as_text(self) -> str:
        """Statistics, and the cells around the cursor."""
        if self.tensor is None:
            return ""
        cells = self.tensor.plane.cells[:50, :20]
        lines = ["  ".join(cell_words(value)[0].rjust(10) for value in row) for row in cells]
        return "\n".join(
            [str(self.query_one("#name", Static).content), "", self._words().plain, "", *lines]
        )

    def _words(self) -> Text:
        assert self.view is not None
        assert self.tensor is not None
        return tensor_text(self.view, self.tensor, self._made, self.app.theme_variables)
