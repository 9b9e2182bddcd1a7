"""`TerminalApp`, the base of both interfaces, and its palette: no key and no byte ends them."""

from __future__ import annotations

import sys
from typing import Any, cast

from textual.app import App
from textual.await_complete import AwaitComplete
from textual.command import CommandList, CommandPalette
from textual.driver import Driver

from nanreplay.tui.screens.closed_once import ClosedOnce


class TerminalApp(App[None]):
    """An application that garbage from the terminal, and fast keys, do not end."""

    def get_driver_class(self) -> type[Driver]:
        """Return what reads the terminal: bytes that are no text do not end it."""
        driver = super().get_driver_class()
        if sys.platform != "win32":
            from textual.drivers.linux_driver import LinuxDriver

            from nanreplay.tui.steady_driver import SteadyDriver

            if driver is LinuxDriver:
                return SteadyDriver
        return driver

    def action_command_palette(self) -> None:
        """Show the palette."""
        if self.use_command_palette and not CommandPalette.is_open(cast("App[object]", self)):
            self.push_screen(Palette(id="--command-palette"))  # the id that `is_open` asks for


class Palette(ClosedOnce, CommandPalette):
    """Textual's own; keys that come before its list is drawn do not end the program."""

    def dismiss(self, result: Any = None) -> AwaitComplete:
        """Close it; the search ends first, since it asks for styles that are gone then.

        Args:
            result: Nothing.
        """
        self._cancel_gather_commands()
        return super().dismiss(result)

    def _gather_commands(self, search_value: str) -> Any:
        """Search, unless the palette is closed and a key was on its way.

        Args:
            search_value: What was typed.
        """
        return super()._gather_commands(search_value) if self.is_active else None

    def _watch__list_visible(self) -> None:
        """Show or hide the list, which is gone where another key has closed the palette."""
        if self.query(CommandList):
            super()._watch__list_visible()

    def _action_command_list(self, action: str) -> None:
        """Move within the list, or choose; the keys of the palette call this.

        Textual counts pages in lines, and knows none before it has drawn the list.
        """
        if self.query_one(CommandList).size.height:
            super()._action_command_list(action)
