"""What a page about one capture shows: the report, the run up to the incident, the user's lines, what was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanreplay.findings import Report
from nanreplay.report.facts import LINK_HEADINGS, OPERAND_HEADINGS, ORIGIN_HEADINGS, link_row, operand_row, origin_row
from nanreplay.report.history import History
from nanreplay.report.inventory import fact_lines, inventory
from nanreplay.report.sources import SourceFile, Sources, sources_of

if TYPE_CHECKING:
    from nanreplay.capture import Capture

_LINES_AROUND = 6
"""Known lines of the user's file that are shown before and after the failing one."""


@dataclass(frozen=True)
class PageTable:
    """One table."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """A report with what stands around it, for writers of pages."""

    report: Report
    history: History
    tables: Sequence[PageTable]
    """Operands, the way to the origin, the way to the trigger, other origins: those that are not empty."""
    source: SourceFile | None
    """Lines around the failing one; None when no line is known."""
    sources: Sources
    recorded: Sequence[tuple[str, str]]
    """What the capture holds: versions, machine, window, programs, variables."""

    @property
    def title(self) -> str:
        """Name of the capture and the step."""
        return f"{self.report.path.replace(chr(92), '/').rpartition('/')[2]}, step {self.report.incident_step}"


def page_of(report: Report, capture: Capture) -> Page:
    """Gather a page about an open capture and its report; replays nothing."""
    sources = sources_of(capture, report.findings.origin)
    return Page(
        report, history_of(capture), tuple(_tables(report)), _failing_lines(sources), sources, tuple(fact_lines(inventory(capture)))
    )


def history_of(capture: Capture) -> History:
    """Return the timeline of an open capture, ready to be shown."""
    return History(capture.timeline_record(), capture.incident, capture.variables_info, tuple(capture.steps))


def _tables(report: Report) -> Iterator[PageTable]:
    findings = report.findings
    if findings.origin is not None and findings.origin.operands:
        yield PageTable("Operands, at the element that failed", OPERAND_HEADINGS, [*map(operand_row, findings.origin.operands)])
    if findings.upstream:
        yield PageTable("Where they came from, nearest first", LINK_HEADINGS, [*map(link_row, findings.upstream)])
    if findings.chain:
        yield PageTable("How it spread", LINK_HEADINGS, [*map(link_row, findings.chain)])
    if findings.other_origins:
        yield PageTable("Other origins", ORIGIN_HEADINGS, [*map(origin_row, findings.other_origins)])


def _failing_lines(sources: Sources) -> SourceFile | None:
    for file in sources.files:
        for place, line in enumerate(file.lines):
            if line.is_failing:
                return SourceFile(file.file, file.lines[max(0, place - _LINES_AROUND) : place + _LINES_AROUND + 1])
    return None
