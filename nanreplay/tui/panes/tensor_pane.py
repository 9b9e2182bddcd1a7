"""The tensor pane: the values of one tensor at its failing elements, and what is known of it."""

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
from nanreplay.report.numbers import index_words
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.panes.base import CURSOR_REST_S, Copyable, Go, StepPane, first_value
from nanreplay.tui.view_tasks import ElementRef, ViewOperands, ViewTensor
from nanreplay.tui.widgets.op_words import ORIGIN, nonfinite_words, shape_words, value_title
from nanreplay.tui.widgets.tensor_table import TensorTable, best_operand, cell_words, tensor_text

_MOST_ROWS, _MOST_COLUMNS = 50, 20
"""Cells of an export as text, at most."""
_CELL_WIDTH = 10


class ElementPosition(NamedTuple):
    """An element of a tensor that the user looked at."""

    value: ValueId
    at: tuple[int, ...] | None
    """Its index; None for the first failing one."""


class TensorPane(StepPane):
    """Table on one side, facts on the other."""

    HELP = (
        "The values of a tensor, with the cursor on the first element that failed. The table shows "
        "the last two axes; x and X go through the slices of the others, i goes to an index such "
        "as 3, 0, 17. enter goes to what the element was computed from, at that very element; "
        "backspace returns."
    )
    DEFAULT_CSS = """
    TensorPane #name {
        height: 1; padding: 0 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis;
    }
    TensorPane #both { layout: horizontal; height: 1fr; }
    TensorPane TensorTable { width: 3fr; }
    TensorPane #facts {
        width: 54; padding: 0 1; background: $background; border-left: vkey $panel;
    }
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
        self.position: ElementPosition | None = None
        """What was last asked for; `tensor` may still be the one before."""
        self.tensor: TensorView | None = None
        self._trail: list[ElementPosition] = []
        """Elements that the user came through."""
        self._computed_from: ElementRef | None = None
        """The operands of the element under the cursor, once they are known."""

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
        self.fetch(ElementPosition(value if value is not None else first_value(view), None))

    @work(exclusive=True, group="tensor", exit_on_error=False)
    async def fetch(self, position: ElementPosition) -> None:
        """Get a tensor, and show it."""
        if self.view is None:
            return
        self.position = position
        self.query_one("#name", Static).update(f"{self.view.name(position.value)} …")
        task = ViewTensor(self.path, self.origin, self.view.step, position.value, position.at)
        self.tensor = await self.ask(task)
        self._computed_from = None
        self.table.show(self.tensor, position.at)
        self._show_words()

    def _show_words(self) -> None:
        view, tensor, position = self.view, self.tensor, self.position
        if view is None or tensor is None or position is None:
            return
        line = self._title(view, tensor, position.value)
        self.query_one("#name", Static).update(line)
        self.query_one("#words", Static).update(self._facts(view, tensor))

    def _title(self, view: StepView, tensor: TensorView, value: ValueId) -> str:
        """The first line: `◆ Log [18, 0] = -inf · float32[32, 3] · 2 inf of 96 · step 12 · ...`."""
        title = f"{ORIGIN} " if value in view.origins else ""
        title += f"{value_title(view, value)} "
        index = self.table.index
        if index is not None:
            element, _ = cell_words(tensor.plane.cells[self.table.cursor])
            title += f"{index_words(index)} = {element}".strip()
        stat = tensor.stat
        count = f"{nonfinite_words(stat)} of {stat.size}" if stat.nonfinite else ""
        words = (title, shape_words(stat), count, f"step {view.step}", tensor.name)
        return " · ".join(filter(None, words))

    def _facts(self, view: StepView, tensor: TensorView) -> Text:
        return tensor_text(view, tensor, self._computed_from, self.app.theme_variables)

    @on(TensorTable.Moved)
    def _moved(self, event: TensorTable.Moved) -> None:
        event.stop()
        self._show_words()
        if self.view is None or self.position is None:
            return
        if self.position.value.serial >= 0:  # negative: it entered the step, no op computed it
            self.find_operands(self.view.step, self.position.value, event.index)

    @work(exclusive=True, group="operands", exit_on_error=False)
    async def find_operands(self, step: int, value: ValueId, index: tuple[int, ...]) -> None:
        """Ask what an element was computed from, once the cursor rests."""
        await asyncio.sleep(CURSOR_REST_S)
        task = ViewOperands(self.path, self.origin, step, value, index)
        self._computed_from = await self.ask(task)
        self._show_words()

    # Keys

    @on(TensorTable.Chosen)
    def _chosen(self, event: TensorTable.Chosen) -> None:
        """Go to what the element was computed from."""
        event.stop()
        if self.position is not None and self.position.value.serial < 0:
            self.notify("This value entered the step.", timeout=3)
        elif self.position is not None:
            self.go_to_operand(ElementPosition(self.position.value, event.index))

    @work(exclusive=True, group="tensor", exit_on_error=False)
    async def go_to_operand(self, position: ElementPosition) -> None:
        """Go to the worst of what an element was computed from."""
        if self.view is None:
            return
        element = self._computed_from
        if element is None or element.at != position.at:  # the cursor did not rest long enough
            value, at = position
            task = ViewOperands(self.path, self.origin, self.view.step, value, at)
            element = await self.ask(task)
        operand = best_operand(element.operands)
        if operand is None:
            self.notify("It was not computed from other values.", timeout=3)
            return
        self._trail.append(position)
        self.fetch(ElementPosition(operand.value, operand.index))

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
        # Indices compare as tuples do, in the order of the elements in memory. At the end it goes
        # on from the other end.
        if by > 0:
            beyond = [other for other in tensor.failing if other > index]
            self._go_to(beyond[0] if beyond else tensor.failing[0])
        else:
            beyond = [other for other in tensor.failing if other < index]
            self._go_to(beyond[-1] if beyond else tensor.failing[-1])

    def action_slice(self, by: int) -> None:
        """Go to the next, or the previous, slice."""
        if self.tensor is None or self.table.index is None:
            return
        shape = self.tensor.stat.shape[:-2]
        if not shape:
            self.notify("This tensor has no axes beyond the two that are shown.", timeout=3)
            return
        # Slices are numbered as they lie in memory, the last axis fastest; after the last one
        # comes the first. Of shape (2, 3, ...), slice 4 is (1, 1).
        number = int(np.ravel_multi_index(self.tensor.plane.leading, shape)) + by
        leading = np.unravel_index(number % int(np.prod(shape)), shape)
        self._go_to((*(int(axis) for axis in leading), *self.table.index[-2:]))

    def _go_to(self, index: tuple[int, ...]) -> None:
        """Put the cursor on an element; ask for its part of the tensor when it is elsewhere."""
        if self.tensor is None or self.position is None:
            return
        cell = self.tensor.plane.cell(index)
        if cell is not None:
            self.table.cursor = cell
        else:
            self.fetch(ElementPosition(self.position.value, index))

    def action_output(self) -> None:
        """Show the next output of the same op."""
        if self.view is None or self.position is None:
            return
        value = self.position.value
        op = self.view.op(value.serial)
        if op is not None and len(op.outputs) > 1:
            next_output = (value.output + 1) % len(op.outputs)
            self.fetch(ElementPosition(ValueId(op.serial, next_output), None))

    def action_index(self) -> None:
        """Open the line for an index."""
        line = self.query_one("#index", Input)
        line.add_class("-open")
        line.focus()

    @on(Input.Submitted, "#index")
    def _index_given(self, event: Input.Submitted) -> None:
        event.stop()
        numbers = tuple(int(number) for number in re.findall(r"-?\d+", event.value))
        shape = self.tensor.stat.shape if self.tensor is not None else ()
        self.action_no_index()
        if len(numbers) != len(shape):
            message = f"This tensor takes {len(shape)} numbers."
        elif not all(0 <= number < size for number, size in zip(numbers, shape, strict=True)):
            message = f"The shape is {index_words(shape)}: there is no {index_words(numbers)}."
        else:
            self._go_to(numbers)
            return
        self.notify(message, severity="warning", timeout=4)

    def action_no_index(self) -> None:
        """Close the line for an index."""
        self.query_one("#index", Input).remove_class("-open")
        self.table.focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave the escape key to the screen while the line is closed."""
        return action != "no_index" or self.query_one("#index", Input).has_class("-open")

    def action_elsewhere(self, pane: str) -> None:
        """Show the tensor, or its op, in another tab."""
        if self.view is not None and self.position is not None:
            value = self.position.value
            place = ViewPosition(self.view.step, value.serial, output=value.output)
            self.post_message(Go(pane, place))

    def copies(self) -> Sequence[Copyable]:
        """Offer the tensor's name, the element, and the statistics."""
        if self.view is None or self.tensor is None:
            return ()
        facts = self._facts(self.view, self.tensor)
        return (
            Copyable("the tensor's name", self.tensor.name),
            Copyable("this element", str(self.query_one("#name", Static).content)),
            Copyable("what is known of the tensor", facts.plain),
        )

    def as_text(self) -> str:
        """Statistics, and the cells around the cursor."""
        if self.view is None or self.tensor is None:
            return ""
        title = str(self.query_one("#name", Static).content)
        lines = [title, "", self._facts(self.view, self.tensor).plain, ""]
        for row in self.tensor.plane.cells[:_MOST_ROWS, :_MOST_COLUMNS]:
            cells = (cell_words(value)[0].rjust(_CELL_WIDTH) for value in row)
            lines.append("  ".join(cells))
        return "\n".join(lines)
