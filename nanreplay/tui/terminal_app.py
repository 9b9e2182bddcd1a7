"""`TerminalApp`, the base of both interfaces: whatever comes from the terminal ends neither."""

from __future__ import annotations

import sys
from typing import cast

from textual.app import App
from textual.driver import Driver


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
        from textual.command import CommandPalette

        from nanreplay.tui.screens.palette_screen import Palette

        if self.use_command_palette and not CommandPalette.is_open(cast("App[object]", self)):
            self.push_screen(Palette(id="--command-palette"))  # the id that `is_open` asks for
