"""A page about one capture as Markdown that reads well where issues are written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from nanreplay import __version__
from nanreplay.findings import Cause, Report
from nanreplay.report.facts import FIX_HEADINGS, advice, fact_rows, fix_row
from nanreplay.report.history import History, bar_lines
from nanreplay.report.numbers import readable_number
from nanreplay.report.page import Page, PageTable

_BARS = 60
_FENCE = re.compile(r"`{3,}")
_MARKUP = re.compile(r"[\\*<>~$]|(?<!\w)_|_(?!\w)|[@#](?=\w)|\](?=[(\[:])")
"""Emphasis, HTML, strikes, formulas, names and numbers that become links, and what makes square brackets a link."""


def markdown_page(page: Page) -> str:
    """Write a Markdown document: the sentence, why, what helps, the line; facts and tables are folded."""
    return "\n".join(_lines(page)).rstrip() + "\n"


def _lines(page: Page) -> Iterator[str]:
    report = page.report
    yield f"### {page.title}"
    yield ""
    yield f"> {_inline(report.sentence)}"
    yield ""
    yield from _causes(report.causes)
    yield from _fixes(report)
    yield from _source(page)
    yield from _loss(page.history)
    yield from _folded("Facts", _table(("what", "value"), [(name.strip(), value) for name, value in fact_rows(report)]))
    for table in page.tables:
        yield from _folded(table.title, _page_table(table))
    yield from _folded("What was recorded", _table(("what", "value"), page.recorded))
    if report.findings.notes:
        yield from _folded("Notes", [f"- {_inline(note)}" for note in report.findings.notes])
    yield f"<sub>nanreplay {__version__}</sub>"


def _causes(causes: Sequence[Cause]) -> Iterator[str]:
    for cause in causes:
        yield f"**{cause.kind.replace('_', ' ')}** ({cause.confidence:.0%}): {_inline(cause.sentence)}"
        yield ""
        yield from (f"- {_inline(line)}" for line in cause.evidence)
        if cause.evidence:
            yield ""


def _fixes(report: Report) -> Iterator[str]:
    if not report.fixes:
        return
    yield from _table(FIX_HEADINGS, [fix_row(fix) for fix in report.fixes])
    yield ""
    for each in advice(report.fixes):
        yield f"`{each.label}`" + (f" at {each.place}" if each.place else "") + ":"
        yield from _code(each.code, "python")


def _source(page: Page) -> Iterator[str]:
    if page.source is None or page.sources.is_left_out:
        return
    failing = next(line.line for line in page.source.lines if line.is_failing)
    yield f"{page.source.file}, line {failing}:"
    yield from _code("\n".join(f"{line.line:5} {'>' if line.is_failing else ' '} {line.code or ''}" for line in page.source.lines), "text")


def _loss(history: History) -> Iterator[str]:
    values = history.loss.values
    if not len(values):
        return
    yield f"Loss, steps {history.steps[0]} to {history.steps[-1]} ({readable_number(values[0])} to {readable_number(values[-1])}):"
    yield from _code("\n".join(bar_lines(values, _BARS, 3)), "text")


def _page_table(table: PageTable) -> Iterator[str]:
    return _table(table.headings, table.rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{' --- |' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"


def _folded(title: str, lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    yield f"<details><summary>{title}</summary>"
    yield ""
    yield from lines
    yield ""
    yield "</details>"
    yield ""


def _code(text: str, language: str) -> Iterator[str]:
    """A fenced block; the fence is longer than any within it."""
    fence = "`" * max([3, *(len(found) + 1 for found in _FENCE.findall(text))])
    yield f"{fence}{language}"
    yield from text.splitlines()
    yield fence
    yield ""


def _cell(text: str) -> str:
    return _inline(text).replace("|", r"\|").replace("\n", " ")


def _inline(text: str) -> str:
    """Text as it stands: outside of backticks, what Markdown or HTML would take for markup is escaped."""
    parts = text.replace("\n", " ").split("`")
    balanced = len(parts) % 2 == 1
    return "`".join(part if balanced and place % 2 else _escaped(part) for place, part in enumerate(parts))


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", text)
