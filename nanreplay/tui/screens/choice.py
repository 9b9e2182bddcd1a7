"""A short list to choose from: what to copy, how to export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option


class ChoiceScreen(ModalScreen[int | None]):
    """Returns the index of what was chosen, None when nothing was.

    Args:
        title: What is asked.
        labels: What can be chosen; the digits choose, too.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "Close", id="choice.close", tooltip="Choose nothing"),
        Binding("j", "move(1)", "Down", show=False, id="choice.down", tooltip="Down"),
        Binding("k", "move(-1)", "Up", show=False, id="choice.up", tooltip="Up"),
        *(Binding(str(number), f"take({number - 1})", show=False, id=f"choice.{number}") for number in range(1, 10)),
    ]

    def __init__(self, title: str, labels: Sequence[str]) -> None:
        super().__init__()
        self.heading = title
        self.labels = tuple(labels)

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with Vertical(classes="dialog"):
            yield Static(self.heading, classes="dialog-title", markup=False)
            yield OptionList(*(Option(f"{number}  {label}") for number, label in enumerate(self.labels, 1)), markup=False, compact=True)

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_index)

    def action_take(self, place: int) -> None:
        """Choose by number."""
        if place < len(self.labels):
            self.dismiss(place)

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        choice = self.query_one(OptionList)
        choice.action_cursor_down() if by > 0 else choice.action_cursor_up()

    def action_leave(self) -> None:
        """Choose nothing."""
        self.dismiss(None)
