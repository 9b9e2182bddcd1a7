"""`SteadyDriver`, which reads a terminal on Linux and macOS."""

from __future__ import annotations

from textual.drivers.linux_driver import LinuxDriver


class SteadyDriver(LinuxDriver):
    """Textual's own, which goes on where bytes come that are no text.

    Textual decodes strictly, and a single byte of another encoding, as in a paste, ends its thread
    and the program. What came together with such a byte is left out.
    """

    def run_input_thread(self) -> None:
        """Read keys until the program ends."""
        while True:
            try:
                super().run_input_thread()
            except UnicodeDecodeError:
                continue
            return
