"""The report for people: the sentence, then the facts behind it. Colour only repeats what the words say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nanreplay.findings import Cause, ChainLink, Report
from nanreplay.report.facts import LINK_HEADINGS, OPERAND_HEADINGS, ORIGIN_HEADINGS, fact_rows, link_row, operand_row, origin_row
from nanreplay.report.fixes import fix_parts
from nanreplay.report.terminal import print_parts


def print_report(report: Report, console: Console) -> None:
    """Write `report` to a terminal or a file; a file gets neither colour nor padding."""
    print_parts(_parts(report), console)


def _parts(report: Report) -> Iterator[RenderableType]:
    findings, origin = report.findings, report.findings.origin
    yield Text(report.sentence, style="bold")
    yield Text()
    yield _facts(report)
    if report.causes:
        yield from _titled("Why", *_causes(report.causes))
    if report.fixes:
        yield from _titled("Fixes that were tried on the recording", *fix_parts(report.fixes))
    if origin is not None and origin.operands:
        yield from _titled("Operands, at the element that failed", _table(OPERAND_HEADINGS, map(operand_row, origin.operands)))
    if findings.upstream:
        yield from _titled("Where they came from, nearest first", _links(findings.upstream))
    if findings.chain:
        yield from _titled("How it spread", _links(findings.chain))
    if findings.other_origins:
        yield from _titled("Other origins", _table(ORIGIN_HEADINGS, map(origin_row, findings.other_origins)))
    for note in findings.notes:
        yield Text()
        yield Text.assemble(("note: ", "yellow"), note)


def _titled(title: str, *bodies: RenderableType) -> Iterator[RenderableType]:
    yield Text()
    yield Text(title, style="underline")
    for body in bodies:
        yield Text.assemble("  ", body) if isinstance(body, Text) else Padding(body, (0, 0, 0, 2))


def _facts(report: Report) -> Table:
    table = _empty_table()
    for name, value in fact_rows(report):
        table.add_row(Text(name, style="cyan"), Text(value))
    return table


def _causes(causes: Sequence[Cause]) -> Iterator[Text]:
    for cause in causes:
        yield Text.assemble((cause.kind, "cyan"), f" ({cause.confidence:.0%})  {cause.sentence}")
        yield from (Text(f"  {line}") for line in cause.evidence)


def _links(links: Sequence[ChainLink]) -> Table:
    table = _empty_table(*LINK_HEADINGS)
    for link in links:
        cells = [Text(cell) for cell in link_row(link)]
        cells[LINK_HEADINGS.index("worst")].stylize("" if link.value == "finite" else "red")
        table.add_row(*cells)
    return table


def _table(headings: Sequence[str], rows: Iterator[Sequence[str]]) -> Table:
    table = _empty_table(*headings)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _empty_table(*headings: str) -> Table:
    table = Table(box=None, show_header=bool(headings), header_style="dim", pad_edge=False)
    for heading in headings or ("", ""):
        table.add_column(heading, overflow="fold")
    return table
