"""Frozen dataclasses of what bisecting finds and a report tells. Pure data: imports nothing but records.

A report's JSON is these classes, field by field; see `docs/report-format.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanreplay import notebook
from nanreplay.findings import Cause, Findings, FixResult, Verdict
from nanreplay.records import Trigger


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is said of one capture."""

    path: str
    steps: tuple[int, int]
    """First and last step of the recorded window."""
    incident_step: int
    trigger: Trigger
    verdict: Verdict
    findings: Findings
    sentence: str
    causes: tuple[Cause, ...] = ()
    """The likeliest first; empty when nothing was non-finite."""
    fixes: tuple[FixResult, ...] = ()
    """What was tried, in the order in which it was."""

    def _repr_html_(self) -> str:
        """Show the page of the report in a notebook."""
        return notebook.page_of(self)
