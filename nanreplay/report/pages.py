"""A page about one capture as Markdown that reads well where issues are written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from nanreplay import __version__
from nanreplay.findings import Cause, Origin
from nanreplay.records import Frame
from nanreplay.report.contents import Report
from nanreplay.report.history import History, bar_lines, timeline_svg
from nanreplay.report.inventory import fact_lines, inventory
from nanreplay.report.numbers import readable_number, readable_trigger
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

if TYPE_CHECKING:
    from nanreplay.capture import Capture
    from nanreplay.report.contents import Report


# The user's lines that a capture holds, file by file, and the calls that led to the origin.
# Imports no TensorFlow.


@dataclass(frozen=True)
class SourceLine:
    """One line of the user's code that made ops, or called what did."""

    line: int
    code: str | None
    """None when sources were left out of the capture."""
    function: str
    ops: int
    """How many ops of the programs it made itself."""
    is_failing: bool
    """Whether the origin was made here."""
    is_on_the_way: bool
    """Whether it is one of the calls that led to the origin."""


@dataclass(frozen=True)
class SourceFile:
    """Known lines of one file, ascending."""

    file: str
    lines: tuple[SourceLine, ...]


@dataclass(frozen=True)
class Sources:
    """What a capture knows of the user's code."""

    files: tuple[SourceFile, ...]
    """That of the origin first."""
    calls: tuple[Frame, ...]
    """Calls that led to the origin, outermost first; empty when it is not known."""

    @property
    def is_left_out(self) -> bool:
        """Whether the capture names lines without their text."""
        return bool(self.files) and all(
            line.code is None for file in self.files for line in file.lines
        )


def sources_of(capture: Capture, origin: Origin | None) -> Sources:
    """Return the user's lines of an open capture.

    Args:
        capture: The capture.
        origin: Where the non-finite value was born, when it is known.
    """
    frames, stacks = capture.frames, capture.stacks
    ops = [op for name in capture.programs for op in capture.program(name).ops]
    made: dict[int, int] = {}
    for op in ops:
        if 0 <= op.stack < len(stacks) and stacks[op.stack]:
            made[stacks[op.stack][-1]] = made.get(stacks[op.stack][-1], 0) + 1
    calls: Sequence[int] = ()
    if origin is not None and origin.source is not None:
        named = [
            stacks[op.stack]
            for op in ops
            if op.name == origin.op_name and 0 <= op.stack < len(stacks)
        ]
        ends = [
            stack
            for stack in (*named, *stacks)
            if stack and _is_at(frames[stack[-1]], origin.source)
        ]
        calls = ends[0] if ends else ()
    return Sources(_files(frames, made, calls, origin), tuple(frames[index] for index in calls))


def _files(
    frames: Sequence[Frame], made: dict[int, int], calls: Sequence[int], origin: Origin | None
) -> tuple[SourceFile, ...]:
    found: dict[str, dict[int, SourceLine]] = {}
    failing = origin.source if origin is not None else None
    for index, frame in enumerate(frames):
        line = SourceLine(
            frame.line,
            frame.code,
            frame.function,
            made.get(index, 0),
            failing is not None and _is_at(frame, failing),
            index in calls,
        )
        found.setdefault(frame.file, {}).setdefault(frame.line, line)
    files = [
        SourceFile(file, tuple(line for _, line in sorted(lines.items())))
        for file, lines in found.items()
    ]
    return tuple(sorted(files, key=lambda each: not any(line.is_failing for line in each.lines)))


def _is_at(frame: Frame, place: Frame) -> bool:
    return (frame.file, frame.line) == (place.file, place.line)


# What a page about one capture shows: the report, the run up to the incident, the user's lines,
# what was recorded.

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
        report,
        history_of(capture),
        tuple(_tables(report)),
        _failing_lines(sources),
        sources,
        tuple(fact_lines(inventory(capture))),
    )


def history_of(capture: Capture) -> History:
    """Return the timeline of an open capture, ready to be shown."""
    return History(
        capture.timeline_record(), capture.incident, capture.variables_info, tuple(capture.steps)
    )


def _tables(report: Report) -> Iterator[PageTable]:
    findings = report.findings
    if findings.origin is not None and findings.origin.operands:
        yield PageTable(
            "Operands, at the element that failed",
            OPERAND_HEADINGS,
            [*map(operand_row, findings.origin.operands)],
        )
    if findings.upstream:
        yield PageTable(
            "Where they came from, nearest first",
            LINK_HEADINGS,
            [*map(link_row, findings.upstream)],
        )
    if findings.chain:
        yield PageTable("How it spread", LINK_HEADINGS, [*map(link_row, findings.chain)])
    if findings.other_origins:
        yield PageTable(
            "Other origins", ORIGIN_HEADINGS, [*map(origin_row, findings.other_origins)]
        )


def _failing_lines(sources: Sources) -> SourceFile | None:
    for file in sources.files:
        for place, line in enumerate(file.lines):
            if line.is_failing:
                return SourceFile(
                    file.file, file.lines[max(0, place - _LINES_AROUND) : place + _LINES_AROUND + 1]
                )
    return None


# A page about one capture as one HTML file that needs no network, and the same in a notebook.

_CODE = re.compile(r"`([^`]*)`")


def html_page(page: Page) -> str:
    """Write a whole HTML document: no scripts, styles and pictures inside."""
    return (
        _environment()
        .get_template("page.html")
        .render(page=page, style=_style(), body=_body(page), version=__version__)
    )


def report_fragment(report: Report) -> str:
    """Write the page of a report as one element, for a notebook; what stands around it is read from its capture."""
    from nanreplay.capture import Capture

    with Capture(report.path) as capture:
        return _fragment(_body(page_of(report, capture)))


def capture_fragment(capture: Capture) -> str:
    """Write what an open capture holds as one element, for a notebook; nothing is replayed."""
    facts = inventory(capture)
    body = (
        _environment()
        .get_template("recorded.html")
        .render(
            title=f"{capture.path.name}: step {capture.incident.step}, {readable_trigger(capture.incident.trigger)}",
            figure=Markup(timeline_svg(history_of(capture))),
            recorded=list(fact_lines(facts)),
            notes=capture.incident.notes,
        )
    )
    return _fragment(body)


def _fragment(body: str) -> str:
    return f'<style>{_style()}</style><div class="nanreplay">{body}</div>'


def _body(page: Page) -> Markup:
    report = page.report
    return Markup(
        _environment()
        .get_template("body.html")
        .render(
            page=page,
            report=report,
            figure=Markup(timeline_svg(page.history)),
            root_step=report.findings.root.step if report.findings.root is not None else None,
            facts=list(fact_rows(report)),
            fix_headings=FIX_HEADINGS,
            fix_rows=[fix_row(fix) for fix in report.fixes],
            advice=advice(report.fixes),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("nanreplay.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["code"] = _with_code
    return environment


def _style() -> Markup:
    environment = _environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, "style.css")[0])


def _with_code(text: str) -> Markup:
    """Text whose parts between backticks are code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


# --- report.markdown

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
    yield from _folded(
        "Facts",
        _table(("what", "value"), [(name.strip(), value) for name, value in fact_rows(report)]),
    )
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
    yield from _code(
        "\n".join(
            f"{line.line:5} {'>' if line.is_failing else ' '} {line.code or ''}"
            for line in page.source.lines
        ),
        "text",
    )


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
    return "`".join(
        part if balanced and place % 2 else _escaped(part) for place, part in enumerate(parts)
    )


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", text)
