"""`SteadyDriver`, which reads a terminal on Linux and macOS."""

from __future__ import annotations

import select
import threading

from textual.drivers.linux_driver import LinuxDriver

_LOOK_EVERY_MS = 1000


class SteadyDriver(LinuxDriver):
    """Textual's own, which goes on where bytes come that are no text, and ends with the terminal.

    Textual decodes strictly, and a single byte of another encoding, as in a paste, ends its thread
    and the program. What came together with such a byte is left out. Where SIGHUP is ignored, as
    under `nohup`, Textual reads a terminal that is gone again and again, at full speed.
    """

    def start_application_mode(self) -> None:
        """Take over the terminal."""
        super().start_application_mode()  # type: ignore[no-untyped-call]
        threading.Thread(target=self._wait_for_hang_up, daemon=True).start()

    def run_input_thread(self) -> None:
        """Read keys until the program ends."""
        while True:
            try:
                super().run_input_thread()
            except UnicodeDecodeError:
                continue
            return

    def _wait_for_hang_up(self) -> None:
        """End the program when its terminal goes away."""
        poll = select.poll()
        poll.register(self.fileno, 0)  # a hang-up is told in any case
        while not self.exit_event.is_set():
            if any(event & select.POLLHUP for _, event in poll.poll(_LOOK_EVERY_MS)):
                self.exit_event.set()
                self._loop.call_soon_threadsafe(self._app.exit)
                return
