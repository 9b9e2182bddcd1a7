"""The answer: the sentence, verdict, cause, fixes, the loss with the failing step, facts of the run."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widgets import Static

from nanreplay.findings import Report
from nanreplay.tui.panes.base import Pane


class OverviewPane(Pane):
    """What a reader needs first."""

    HELP = "The answer in one sentence, and what speaks for it."

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static(id="sentence")

    def show_report(self, report: Report) -> None:
        """Show the sentence."""
        self.query_one("#sentence", Static).update(report.sentence)
