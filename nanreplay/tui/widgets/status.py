"""The status line: what runs in the background, how far it is, and which key stops it."""

from __future__ import annotations

import time

from rich.text import Text
from textual.reactive import reactive
from textual.widgets import Static

from nanreplay.tui.engine import Progress

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_BAR = 16


class StatusLine(Static):
    """One line above the footer; gone while nothing runs."""

    DEFAULT_CSS = """
    StatusLine { height: 1; padding: 0 1; background: $panel; color: $foreground; display: none; }
    StatusLine.-busy { display: block; }
    """
    progress: reactive[Progress | None] = reactive(None)

    def on_mount(self) -> None:
        """Let the mark turn while something runs."""
        self.ticking = self.set_interval(1 / 8, self._draw, pause=True)

    def watch_progress(self, progress: Progress | None) -> None:
        """Show other progress."""
        self.set_class(progress is not None, "-busy")
        if not self.is_mounted:
            return
        if progress is None:
            self.ticking.pause()
        else:
            self.ticking.resume()
        self._draw()

    def _draw(self) -> None:
        if self.progress is not None:
            self.update(status_text(self.progress, _FRAMES[int(time.monotonic() * 8) % len(_FRAMES)]))


def status_text(progress: Progress, frame: str) -> Text:
    """The line: `⠋ replaying ━━━━──── 12 of 25 · esc stops it`."""
    line = Text.assemble((f"{frame} ", "bold"), progress.line)
    if progress.done is not None and progress.total:
        filled = round(_BAR * progress.done / progress.total)
        line.append(" " + "━" * filled + "╌" * (_BAR - filled))
        line.append(f" {progress.done} of {progress.total}")
    if progress.waiting:
        line.append(f" · {progress.waiting} more waiting", "dim")
    return line.append(" · esc stops it", "dim")
