"""The first line of an open capture: which file, which step, and what the replay says of it."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from nanreplay.report.numbers import readable_trigger
from nanreplay.tui.state import CaptureState

_LONGEST = 36
"""Columns of what triggered."""


class TitleBar(Static):
    """File, step, trigger; the verdict once it is known.

    Args:
        state: The capture.
    """

    DEFAULT_CSS = (
        "TitleBar { height: 1; padding: 0 1; background: $panel; color: $foreground; text-wrap: nowrap; text-overflow: ellipsis; }"
    )

    def __init__(self, state: CaptureState) -> None:
        super().__init__()
        self.state = state

    def on_mount(self) -> None:
        """Show the line."""
        self.show()

    def show(self) -> None:
        """Show the line anew."""
        opened, report = self.state.opened, self.state.report
        line = Text.assemble(
            ("nanreplay", "bold"),
            ("  ", ""),
            opened.name,
            ("  ·  ", "dim"),
            f"step {opened.incident.step}: {_shortened(readable_trigger(opened.incident.trigger))}",
        )
        if report is not None:
            line.append("  ·  ", "dim").append(report.verdict.kind.replace("_", " "), "bold")
        self.update(line)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
