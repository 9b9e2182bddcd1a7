"""A page about one capture as Markdown that reads well where issues are written.

`nanreplay report --md` writes it. GitHub and GitLab fold its tables and show no plots, so the loss
is drawn in block characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from nanreplay import __version__
from nanreplay.findings import Cause
from nanreplay.report.contents import Report
from nanreplay.report.history import History, bar_lines
from nanreplay.report.numbers import readable_number
from nanreplay.report.pages import Page
from nanreplay.report.report_text import FIX_HEADINGS, advice, fact_rows, fix_row
from nanreplay.report.sentence import kind_in_words

_BARS = 60
"""Characters of a line of bars."""
_FENCE = re.compile(r"`{3,}")
_MARKUP = re.compile(r"[\\*<>~$]|(?<!\w)_|_(?!\w)|[@#](?=\w)|\](?=[(\[:])")
"""What Markdown or GitHub would take for markup.

Emphasis, HTML, strikes, formulas, names and numbers that become links (`@user`, `#12`), and what
makes square brackets a link.
"""


def markdown_page(page: Page) -> str:
    """Write a Markdown document: the sentence, why, what helps, the line of code.

    Facts and tables are folded.
    """
    return "\n".join(_lines(page)).rstrip() + "\n"


def _lines(page: Page) -> Iterator[str]:
    report = page.report
    yield f"### {page.title}"
    yield ""
    yield f"> {inline_text(report.sentence)}"
    yield ""
    yield from _causes(report.causes)
    yield from _fixes(report)
    yield from _source(page)
    yield from _loss(page.history)
    facts = []
    for name, value in fact_rows(report):
        facts.append((name.strip(), value))
    yield from folded_lines("Facts", table_lines(("what", "value"), facts))
    for table in page.tables:
        yield from folded_lines(table.title, table_lines(table.headings, table.rows))
    yield from folded_lines("What was recorded", table_lines(("what", "value"), page.recorded))
    if report.findings.notes:
        yield from folded_lines(
            "Notes", [f"- {inline_text(note)}" for note in report.findings.notes]
        )
    yield f"<sub>nanreplay {__version__}</sub>"


def _causes(causes: Sequence[Cause]) -> Iterator[str]:
    for cause in causes:
        kind = kind_in_words(cause.kind)
        yield f"**{kind}** ({cause.confidence:.0%}): {inline_text(cause.sentence)}"
        yield ""
        for line in cause.evidence:
            yield f"- {inline_text(line)}"
        if cause.evidence:
            yield ""


def _fixes(report: Report) -> Iterator[str]:
    if not report.fixes:
        return
    yield from table_lines(FIX_HEADINGS, list(map(fix_row, report.fixes)))
    yield ""
    for fix in advice(report.fixes):
        place = f" at {fix.place}" if fix.place else ""
        yield f"`{fix.label}`{place}:"
        yield from code_lines(fix.code, "python")


def _source(page: Page) -> Iterator[str]:
    if page.source is None or page.sources.is_left_out:
        return
    failing = next(line.line for line in page.source.lines if line.is_failing)
    yield f"{page.source.file}, line {failing}:"
    lines = []
    for line in page.source.lines:
        mark = ">" if line.is_failing else " "
        lines.append(f"{line.line:5} {mark} {line.code or ''}")
    yield from code_lines("\n".join(lines), "text")


def _loss(history: History) -> Iterator[str]:
    values = history.loss.values
    if not len(values):
        return
    steps = f"{history.steps[0]} to {history.steps[-1]}"
    losses = f"{readable_number(values[0])} to {readable_number(values[-1])}"
    yield f"Loss, steps {steps} ({losses}):"
    yield from code_lines("\n".join(bar_lines(values, _BARS, 3)), "text")


def table_lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table; its cells are escaped."""
    yield f"| {' | '.join(headings)} |"
    yield f"|{' --- |' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def folded_lines(title: str, lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    """Lines under a title that unfolds them."""
    yield f"<details><summary>{title}</summary>"
    yield ""
    yield from lines
    yield ""
    yield "</details>"
    yield ""


def code_lines(text: str, language: str) -> Iterator[str]:
    """A fenced block; the fence is longer than any within it."""
    inner = list(map(len, _FENCE.findall(text)))
    fence = "`" * (max(inner) + 1 if inner else 3)
    yield f"{fence}{language}"
    yield from text.splitlines()
    yield fence
    yield ""


def _cell(text: str) -> str:
    return inline_text(text).replace("|", r"\|").replace("\n", " ")


def inline_text(text: str) -> str:
    """Text as it stands: what would be taken for markup is escaped, but inside backticks."""
    # Split at backticks, parts with odd numbers are inside: "see `a_b`" gives "see ", "a_b", "".
    # An odd number of backticks has no inside, and all of it is escaped.
    parts = text.replace("\n", " ").split("`")
    is_balanced = len(parts) % 2 == 1
    for place, part in enumerate(parts):
        if not is_balanced or place % 2 == 0:
            parts[place] = _escaped(part)
    return "`".join(parts)


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", text)
