"""A list of names to tick, in groups, for the fixes of the what-if pane.

A tick is a sign, not a colour, so that it is seen without colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from nanreplay.tui.widgets.steady_list import SteadyList


class TickList(SteadyList):
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
        self.marks: Mapping[str, Content] = {}
        """What stands behind a name, such as the outcome of a fix that was tried."""

    def offer(self, groups: Mapping[str, Sequence[str]]) -> None:
        """Offer other names; ticks and the cursor stay with their names.

        Args:
            groups: Names by the heading above them, each name once.
        """
        offered = list(chain.from_iterable(groups.values()))
        if offered == self.names:
            return
        # A cursor on the first name stays there: what fits best comes first.
        at_cursor = self.at_cursor if self.at_cursor != next(iter(self.names), None) else None
        self.names = offered
        self.ticked &= set(offered)
        self.clear_options()
        for heading, names in groups.items():
            if names:
                self.add_option(Option(Content.styled(heading, "bold $text-muted"), disabled=True))
            self.add_options([Option(self._prompt(name), id=name) for name in names])
        if offered:
            self.go_to(at_cursor if at_cursor in offered else offered[0])

    @property
    def at_cursor(self) -> str | None:
        """The name under the cursor."""
        if self.highlighted is None or not self.names:
            return None
        return self.get_option_at_index(self.highlighted).id

    def go_to(self, name: str) -> None:
        """Put the cursor on a name."""
        self.highlighted = self.get_option_index(name)

    def mark(self, marks: Mapping[str, Content]) -> None:
        """Show something behind some names."""
        self.marks = marks
        self._draw_anew()

    def tick(self, names: Sequence[str], *, ticked: bool = True) -> None:
        """Tick or untick some names."""
        self.ticked = self.ticked | set(names) if ticked else self.ticked - set(names)
        self._draw_anew()

    def _draw_anew(self) -> None:
        for name in self.names:
            self.replace_option_prompt(name, self._prompt(name))

    @property
    def chosen(self) -> list[str]:
        """What is ticked, in the order of the list."""
        return [name for name in self.names if name in self.ticked]

    def _prompt(self, name: str) -> Content:
        is_ticked = name in self.ticked
        return Content.assemble(
            ("[✓] " if is_ticked else "[ ] ", "bold $text-success" if is_ticked else ""),
            (name, "bold" if is_ticked else ""),
            " ",
            self.marks.get(name, ""),
        )

    @on(OptionList.OptionSelected)
    def _toggle(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        name = event.option.id
        if name is not None:
            self.tick([name], ticked=name not in self.ticked)
