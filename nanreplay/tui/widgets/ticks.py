"""A list of names to tick, for the fixes of the what-if pane.

A tick is a sign, not a colour, so that it is seen without colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option


class TickList(OptionList):
    """Names with ticks; space, enter and the mouse toggle."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "select", "Tick", id="ticks.toggle", tooltip="Tick or untick"),
        Binding("j", "cursor_down", "Down", show=False, id="ticks.down", tooltip="Down"),
        Binding("k", "cursor_up", "Up", show=False, id="ticks.up", tooltip="Up"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, compact=True)
        self.names: list[str] = []
        """What is offered, in order."""
        self.ticked: set[str] = set()

    def offer(self, names: Iterable[str]) -> None:
        """Offer other names; ticks and the cursor stay with their names."""
        offered = list(dict.fromkeys(names))  # without duplicates, in their order
        if offered == self.names:
            return
        # A cursor on the first name stays there: what fits best comes first.
        at_cursor = self.names[self.highlighted] if self.highlighted else None
        self.names = offered
        self.ticked &= set(offered)
        self.clear_options()
        self.add_options([Option(self._prompt(name)) for name in offered])
        if at_cursor in offered:
            self.highlighted = offered.index(at_cursor)
        else:
            self.highlighted = 0 if offered else None

    def tick(self, names: Sequence[str], *, ticked: bool = True) -> None:
        """Tick or untick some names."""
        self.ticked = self.ticked | set(names) if ticked else self.ticked - set(names)
        for position, name in enumerate(self.names):
            self.replace_option_prompt_at_index(position, self._prompt(name))

    @property
    def chosen(self) -> list[str]:
        """What is ticked, in the order of the list."""
        return [name for name in self.names if name in self.ticked]

    def _prompt(self, name: str) -> Content:
        is_ticked = name in self.ticked
        return Content.assemble(
            ("[✓] " if is_ticked else "[ ] ", "bold $text-success" if is_ticked else ""),
            (name, "bold" if is_ticked else ""),
        )

    @on(OptionList.OptionSelected)
    def _toggle(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        name = self.names[event.option_index]
        self.tick([name], ticked=name not in self.ticked)
