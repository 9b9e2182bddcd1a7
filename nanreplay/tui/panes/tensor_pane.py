"""The tensor pane: the values of one tensor at its failing elements, and what is known of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Input, Static

from nanreplay.errors import MissingPartError
from nanreplay.explore import Op, StepView, TensorAtStep, TensorView
from nanreplay.replay.provenance import ValueId
from nanreplay.report.numbers import index_words
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.copying import export_path
from nanreplay.tui.panes.base import (
    CURSOR_REST_S,
    Copyable,
    Go,
    StepPane,
    first_value,
    next_beyond,
)
from nanreplay.tui.panes.tensor_keys import TENSOR_BINDINGS
from nanreplay.tui.trail import Trail, end_words
from nanreplay.tui.view_tasks import (
    ElementRef,
    FollowTensor,
    SaveTensor,
    ViewOperands,
    ViewTensor,
)
from nanreplay.tui.widgets.op_words import ORIGIN, nonfinite_words, shape_words, value_title
from nanreplay.tui.widgets.tensor_picture import TensorPicture
from nanreplay.tui.widgets.tensor_steps import both_text, steps_text
from nanreplay.tui.widgets.tensor_table import TensorTable, best_operand, cell_words, tensor_text
from nanreplay.tui.widgets.text_box import TextBox

_MOST_ROWS, _MOST_COLUMNS = 50, 20
"""Cells of an export as text, at most."""
_CELL_WIDTH = 10
_PICTURE_BESIDE = 34
"""Columns beside a table from which the picture is shown there."""


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
        "backspace returns. z shows a picture, w the tensor over the steps of the window, c beside "
        "itself in the step before; e writes it as .npy."
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
    TensorPane TensorPicture { width: 3fr; }
    TensorPane.-picture TensorTable { display: none; }
    TensorPane #index { height: 1; border: none; padding: 0 1; display: none; background: $boost; }
    TensorPane #index.-open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*TENSOR_BINDINGS]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.position: ElementPosition | None = None
        """What was last asked for; `tensor` may still be the one before."""
        self.tensor: TensorView | None = None
        self.trail: Trail[ElementPosition] = Trail()
        """Elements that the user went through."""
        self._steps: Sequence[TensorAtStep] | None = None
        """The tensor in other steps; None while its facts are shown."""
        self._is_compared = False
        """Whether two steps are shown side by side, and not all of them below each other."""
        self._computed_from: ElementRef | None = None
        """The operands of the element under the cursor, once they are known."""

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield TextBox("The step is shown once the replay has found it.", id="name", markup=False)
        with Container(id="both"):
            yield TensorTable()
            yield TensorPicture()
            with VerticalScroll(id="facts", can_focus=False):
                yield TextBox(id="words", markup=False)
        yield Input(placeholder="index, e.g. 3, 0, 17", id="index", compact=True)

    @property
    def table(self) -> TensorTable:
        """The table."""
        return self.query_one(TensorTable)

    # What is shown

    def show_theme(self) -> None:
        """Draw in other colours."""
        self._show_words()
        self.query_one(TensorPicture).draw()

    def show_view(self, view: StepView, value: ValueId | None) -> None:
        """Show a tensor of a step; the origin's unless given."""
        position = ElementPosition(value if value is not None else first_value(view), None)
        self.trail.begin(position)
        self.fetch(position)

    @work(exclusive=True, group="tensor", exit_on_error=False)
    async def fetch(self, position: ElementPosition) -> None:
        """Get a tensor, and show it."""
        if self.view is None:
            return
        self.position = position
        self.query_one("#name", Static).update(f"{self.view.name(position.value)} …")
        step, (value, at) = self.view.step, position
        known = self.state.tensors.get((step, value)) if at is None else None
        if known is None:
            known = await self.ask(ViewTensor(self.path, self.origin, step, value, at))
        self.tensor = known
        self._computed_from = self._steps = None
        self.table.show(self.tensor, position.at)
        self.query_one(TensorPicture).show(self.tensor)
        self._share_room()
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
        words = [title, shape_words(stat), count, f"step {view.step}", tensor.name]
        if len(self.trail.places) > 1:
            words.append(self.trail.text(lambda place: value_title(view, place.value)).plain)
        return " · ".join(filter(None, words))

    def _facts(self, view: StepView, tensor: TensorView) -> Text:
        at = self.table.index or ()
        if self._steps is not None and not self._is_compared:
            return steps_text(self._steps, at, self.app.theme_variables)
        if self._steps is not None and len(self._steps) > 1:
            before, now = self._steps[-2:]
            return both_text(before, now, at, self.app.theme_variables)
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
        element = self.state.elements.get((step, value))
        if element is None or element.at != index:
            await asyncio.sleep(CURSOR_REST_S)
            element = await self.ask(ViewOperands(self.path, self.origin, step, value, index))
        self._computed_from = element
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
        self.trail.places[self.trail.at] = position  # the cursor may have moved since
        self.trail.go(ElementPosition(operand.value, operand.index))
        self.fetch(ElementPosition(operand.value, operand.index))

    def action_back(self, by: int) -> None:
        """Go back to the element before, or forward again."""
        position = self.trail.move(by)
        if position is None:
            self.notify(end_words(by), timeout=3)
        else:
            self.fetch(position)

    def shown_op(self) -> Op | None:
        """The op that made the tensor."""
        if self.view is None or self.position is None:
            return None
        return self.view.op(self.position.value.serial)

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

    def action_follow(self) -> None:
        """Show the tensor over the steps of the window, or its facts again."""
        if self._steps is not None and not self._is_compared:
            self._steps = None
            self._show_words()
        else:
            self.follow(None)

    def action_compare(self) -> None:
        """Show the tensor beside itself in the step before, or its facts again."""
        if self.view is None or (self._steps is not None and self._is_compared):
            self._steps = None
            self._show_words()
            return
        before = next_beyond(self.steps, self.view.step, -1)
        if before is None:
            self.notify(f"No step before step {self.view.step} can be run.", timeout=4)
        else:
            self.follow((before, self.view.step))

    @work(exclusive=True, group="follow", exit_on_error=False)
    async def follow(self, steps: tuple[int, ...] | None) -> None:
        """Ask for the tensor in other steps.

        Args:
            steps: Two steps, which are compared; None for all of the window.
        """
        if self.view is None or self.position is None:
            return
        found: list[TensorAtStep] = []

        def take(part: TensorAtStep) -> None:
            found.append(part)
            self._show_words()

        self._steps, self._is_compared = found, steps is not None
        at, value = self.table.index or (), self.position.value
        task = FollowTensor(self.path, self.origin, self.view.step, value, at, steps)
        try:
            self._steps = await self.ask(task, partial=take)
        except MissingPartError as error:
            self._steps = None
            self.notify(str(error), severity="warning", timeout=6)
        self._show_words()
        if not self._is_compared:  # the failing step is the last one
            facts = self.query_one("#facts")
            facts.call_after_refresh(facts.scroll_end, animate=False)

    def action_picture(self) -> None:
        """Show the tensor as a picture, or as a table again."""
        picture = self.query_one(TensorPicture)
        is_alone = not self.has_class("-picture")
        self.set_class(is_alone, "-picture")
        self._share_room()
        picture.call_after_refresh(picture.draw)
        (picture if is_alone else self.table).focus()

    def on_resize(self) -> None:
        """Share the room anew, once the widgets have their new sizes."""
        self.call_after_refresh(self._share_room)

    def _share_room(self) -> None:
        """Show the picture alone, or beside a table of few columns, or not at all."""
        if not self.is_attached:
            return
        picture, table = self.query_one(TensorPicture), self.table
        is_alone = self.has_class("-picture")
        room = self.query_one("#both").size.width - self.query_one("#facts").outer_size.width
        columns = table.virtual_size.width + 1  # and the bar that scrolls it
        is_beside = (
            not is_alone
            and not self.screen.has_class("-narrow")
            and self.tensor is not None
            and self.tensor.picture is not None
            and room - columns >= _PICTURE_BESIDE
        )
        table.styles.width = columns if is_beside else None
        picture.display = is_alone or is_beside

    def action_output(self) -> None:
        """Show the next output of the same op."""
        if self.view is None or self.position is None:
            return
        value = self.position.value
        op = self.view.op(value.serial)
        if op is not None and len(op.outputs) > 1:
            next_output = (value.output + 1) % len(op.outputs)
            self.fetch(ElementPosition(ValueId(op.serial, next_output), None))
        else:
            self.notify("Its op gave no other output.", timeout=3)

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
        """Leave the escape key to the screen while the line is closed; code stands beside names."""
        if action == "names":
            return False
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

    def exports(self) -> Mapping[str, Callable[[], object]]:
        """Offer the whole tensor as a file."""
        return {"the tensor as .npy": self.save} if self.tensor is not None else {}

    @work(exclusive=True, group="save", exit_on_error=False)
    async def save(self) -> None:
        """Write the tensor to the working directory."""
        if self.view is None or self.position is None:
            return
        path = export_path(Path.cwd(), self.state.opened.name, "tensor", ".npy")
        value = self.position.value
        await self.ask(SaveTensor(self.path, self.origin, self.view.step, value, str(path)))
        self.notify(f"Written to {path}.")

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
