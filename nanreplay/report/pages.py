"""What a page about one capture shows, and the page as HTML.

`nanreplay report --html` writes one file that needs no network; notebooks show the same as an
element. `markdown` writes a `Page` for issues. Text is escaped by jinja2, so what a capture from
somebody else holds cannot become markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from nanreplay import __version__
from nanreplay.report.contents import Report
from nanreplay.report.history import History, timeline_svg
from nanreplay.report.inventory import fact_lines, inventory
from nanreplay.report.numbers import readable_trigger
from nanreplay.report.page_answer import PageAnswer, answer_of, recorded_answer
from nanreplay.report.report_text import (
    FIX_HEADINGS,
    LINK_HEADINGS,
    OPERAND_HEADINGS,
    ORIGIN_HEADINGS,
    advice,
    fact_rows,
    fix_row,
    link_row,
    operand_row,
    origin_row,
)
from nanreplay.report.sentence import kind_in_words
from nanreplay.report.user_sources import SourceFile, Sources, sources_of

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
    """Operands, the ways to the origin and the trigger, other origins; empty ones left out."""
    source: SourceFile | None
    """Lines around the failing one; None when no line is known."""
    sources: Sources
    recorded: Sequence[tuple[str, str]]
    """What the capture holds: versions, machine, window, programs, variables."""
    answer: PageAnswer
    """What stands at the top."""

    @property
    def title(self) -> str:
        """Name of the capture and the step."""
        # the path may be one of another system, so pathlib does not know its separators
        name = self.report.path.replace("\\", "/").rpartition("/")[2]
        return f"{name}, step {self.report.incident_step}"


def page_of(report: Report, capture: Capture) -> Page:
    """Gather a page about an open capture and its report; replays nothing."""
    sources = sources_of(capture, report.findings.origin)
    return Page(
        report,
        history_of(capture),
        tuple(_tables(report)),
        _failing_lines(sources),
        sources,
        tuple(fact_lines(inventory(capture))),
        answer_of(report, capture),
    )


def history_of(capture: Capture) -> History:
    """Return the timeline of an open capture, ready to be shown."""
    return History(
        capture.timeline_record(), capture.incident, capture.variables_info, tuple(capture.steps)
    )


def _tables(report: Report) -> Iterator[PageTable]:
    findings = report.findings
    if findings.origin is not None and findings.origin.operands:
        rows = []
        for operand in findings.origin.operands:
            rows.append(operand_row(operand))
        yield PageTable("Operands, at the element that failed", OPERAND_HEADINGS, rows)
    if findings.upstream:
        rows = list(map(link_row, findings.upstream))
        yield PageTable("Where they came from, nearest first", LINK_HEADINGS, rows)
    if findings.chain:
        rows = list(map(link_row, findings.chain))
        yield PageTable("How it spread", LINK_HEADINGS, rows)
    if findings.other_origins:
        rows = list(map(origin_row, findings.other_origins))
        yield PageTable("Other origins", ORIGIN_HEADINGS, rows)


def _failing_lines(sources: Sources) -> SourceFile | None:
    for file in sources.files:
        for place, line in enumerate(file.lines):
            if line.is_failing:
                first = max(0, place - _LINES_AROUND)
                return SourceFile(file.file, file.lines[first : place + _LINES_AROUND + 1])
    return None


# The page as HTML, in a file and in a notebook.

_CODE = re.compile(r"`([^`]*)`")


def html_page(page: Page) -> str:
    """Write a whole HTML document, without scripts and with its styles and pictures inside."""
    return whole_page(page.title, _body(page), "a replay of the capture")


def report_fragment(report: Report) -> str:
    """Write the page of a report as one element, for a notebook; its capture is read again.

    What is not part of the answer is folded.
    """
    from nanreplay.capture import Capture

    with Capture(report.path) as capture:
        return fragment(_body(page_of(report, capture), is_folded=True))


def capture_fragment(capture: Capture, *, has_answer_top: bool = False) -> str:
    """Write what an open capture holds as one element, for a notebook; nothing is replayed.

    Args:
        capture: The capture.
        has_answer_top: Whether the line of code is shown above, as the page of an answer has it.
    """
    incident = capture.incident
    trigger = readable_trigger(incident.trigger)
    body = (
        page_environment()
        .get_template("recorded.html")
        .render(
            answer=recorded_answer(capture) if has_answer_top else None,
            title=f"{capture.path.name}: step {incident.step}, {trigger}",
            figure=Markup(timeline_svg(history_of(capture))),
            recorded=list(fact_lines(inventory(capture))),
            notes=incident.notes,
            folded=has_answer_top,
        )
    )
    return fragment(body)


def fragment(body: str) -> str:
    """Put the style beside the body of a page, for a notebook.

    Args:
        body: HTML.
    """
    return f'<style>{_style("style.css")}</style><div class="nanreplay cell">{body}</div>'


def _body(page: Page, *, is_folded: bool = False) -> Markup:
    report, root = page.report, page.report.findings.root
    body = (
        page_environment()
        .get_template("body.html")
        .render(
            page=page,
            answer=page.answer,
            folded=is_folded,
            report=report,
            figure=Markup(timeline_svg(page.history)),
            root_step=None if root is None else root.step,
            facts=list(fact_rows(report)),
            fix_headings=FIX_HEADINGS,
            fix_rows=list(map(fix_row, report.fixes)),
            advice=advice(report.fixes),
        )
    )
    return Markup(body)


def page_environment() -> Environment:
    """Templates of pages; what is filled in is escaped."""
    environment = Environment(
        loader=PackageLoader("nanreplay.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["code"] = _with_code
    environment.filters["kind"] = kind_in_words
    return environment


def whole_page(title: str, body: Markup, source: str) -> str:
    """Write a whole HTML document; `source` completes "the numbers are those of ..."."""
    template = page_environment().get_template("page.html")
    return template.render(
        title=title, body=body, source=source, style=page_style(), version=__version__
    )


def page_style() -> Markup:
    """The style sheet of whole pages."""
    return Markup("").join((_style("style.css"), _style("page_style.css")))


def _style(name: str) -> Markup:
    return Markup(page_environment().get_template(name).render())


def _with_code(text: str) -> Markup:
    """Text whose parts between backticks are code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))
