"""`Report`: everything that nanreplay says of one capture.

`explain` makes it; the command line, the terminal interface, pages and notebooks show it. Its parts
are in `nanreplay.findings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nanreplay import notebook
from nanreplay.findings import Cause, Findings, FixResult, Verdict
from nanreplay.records import Trigger


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is said of one capture."""

    path: str
    """The capture."""
    steps: tuple[int, int]
    """First and last step of the recorded window."""
    incident_step: int
    trigger: Trigger
    """What made the recorder write the file."""
    verdict: Verdict
    """What replaying says of the incident."""
    findings: Findings
    """What bisecting found."""
    sentence: str
    """All of it in one sentence or two."""
    causes: tuple[Cause, ...] = ()
    """The likeliest first; empty when nothing was non-finite."""
    fixes: tuple[FixResult, ...] = ()
    """What was tried, in the order in which it was."""
    state_bytes: int | None = None
    """Size of all variables of the recorded program: weights, optimizer slots, metrics, seeds."""
    peak_bytes: int | None = None
    """The most memory that the process had in use until the report was made."""

    def _repr_html_(self) -> str:
        """Show the page of the report in a notebook."""
        return notebook.html_of(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the sentence in IPython and in notebooks without HTML, not all fields."""
        printer.text(self.sentence)
