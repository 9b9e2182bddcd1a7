"""The keys of an open capture that copy and export: what leaves the interface.

`CaptureScreen` is such a screen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from textual.screen import Screen
from textual.widgets import TabbedContent

from nanreplay.tui.capture_state import CaptureState
from nanreplay.tui.panes.base import Copyable, Failed, Pane
from nanreplay.tui.screens.closed_once import ClosedOnce


class CopyKeys(ClosedOnce, Screen[None]):
    """A screen with tabs whose contents can be copied and exported.

    Args:
        state: The capture, and the worker process.
    """

    def __init__(self, state: CaptureState) -> None:
        super().__init__()
        self.state = state
        self.panes: dict[str, Pane] = {}
        """Those that were shown, by the id of their tab."""

    @property
    def shown(self) -> str:
        """Id of the tab that is shown."""
        return self.query_one(TabbedContent).active

    def copyables(self) -> Sequence[Copyable]:
        """What can be copied: what every tab offers, then what this one does."""
        from nanreplay.tui.copying import copyables

        pane = self.panes.get(self.shown)
        return [*copyables(self.state.report), *(pane.copies() if pane is not None else ())]

    def action_copy(self) -> None:
        """Ask what to copy."""
        offered = self.copyables()
        if not offered:
            message = "There is nothing to copy yet: the step is being replayed."
            self.notify(message, severity="warning")
            return
        choices = {}
        for copyable in offered:
            choices[copyable.label] = partial(self.copy_text, copyable.label, copyable.text)
        self._choose("Copy", choices)

    def copy_text(self, label: str, text: str) -> None:
        """Put a text on the clipboard of the terminal (OSC 52, which works over ssh)."""
        self.app.copy_to_clipboard(text)
        self.notify(f"Copied {label}.")

    def action_export(self) -> None:
        """Ask how to export what is shown."""
        pane = self.panes.get(self.shown)
        own = pane.exports() if pane is not None else {}
        ways = {"the screen as SVG": self.export_svg, "this tab as text": self.export_text}
        self._choose("Export", {**ways, **own})

    def _choose(self, title: str, choices: Mapping[str, Callable[[], object]]) -> None:
        """Let the user choose, and do what was chosen."""
        from nanreplay.tui.screens.dialogs import ChoiceScreen

        def run_choice(position: int | None) -> None:
            if position is not None:
                list(choices.values())[position]()

        self.app.push_screen(ChoiceScreen(title, list(choices)), run_choice)

    def export_svg(self) -> None:
        """Write a picture of the screen to the working directory."""

        def write_picture() -> None:
            picture = self.app.export_screenshot(title=self.state.opened.name)
            self._write(".svg", picture)

        # The dialog that asked is still on the screen: it is gone after the next picture.
        self.call_after_refresh(write_picture)

    def export_text(self) -> None:
        """Write the whole tab to the working directory."""
        pane = self.panes.get(self.shown)
        text = pane.as_text() if pane is not None else ""
        if not text:
            self.notify("This tab has no text yet.", severity="warning")
            return
        self._write(".txt", text)

    def _write(self, suffix: str, text: str) -> None:
        from nanreplay.tui.copying import ExportError, export_path, write_text

        path = export_path(Path.cwd(), self.state.opened.name, self.shown, suffix)
        try:
            write_text(path, text)
        except OSError as error:
            self.post_message(Failed(ExportError(f"{path}: {error.strerror or error}.")))
            return
        self.notify(f"Written to {path}.")
