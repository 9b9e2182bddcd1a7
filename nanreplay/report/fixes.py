"""Fixes for people: a table of what was tried, and the lines of code of what helps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from nanreplay.findings import FixResult, Report
from nanreplay.report.facts import FIX_HEADINGS, advice, fix_row
from nanreplay.report.terminal import print_parts

_OUTCOME_STYLES = {True: "green", False: "red", None: ""}


def print_fixes(report: Report, console: Console) -> None:
    """Write the sentence, the cause and the table of fixes."""
    print_parts(_parts(report), console)


def _parts(report: Report) -> Iterator[RenderableType]:
    yield Text(report.sentence, style="bold")
    yield Text()
    yield from fix_parts(report.fixes)
    for note in report.findings.notes:
        yield Text.assemble(("note: ", "yellow"), note)


def fix_parts(fixes: Sequence[FixResult]) -> Iterator[RenderableType]:
    """A table of what was tried, and how to write what helped."""
    if not fixes:
        yield Text("No fix was tried.")
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in FIX_HEADINGS:
        table.add_column(heading, overflow="fold")
    for fix in fixes:
        cells = [Text(cell) for cell in fix_row(fix)]
        cells[FIX_HEADINGS.index("prevents it")].stylize(_OUTCOME_STYLES[fix.prevents])
        table.add_row(*cells)
    yield table
    written = advice(fixes)
    if written:
        yield Text()
        yield Text("How to write it", style="underline")
    for each in written:
        place = f"   # {each.place}" if each.place else ""
        code = each.code.replace("\n", "\n    ")
        yield Text.assemble("  ", (each.label, "cyan"), f": {code}{place}")
