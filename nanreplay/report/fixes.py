"""Fixes for people: a table of what was tried, and the lines of code of what helps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from nanreplay.findings import FixResult, Report
from nanreplay.report.numbers import readable_number, readable_steps, readable_trigger
from nanreplay.report.sentence import source_text
from nanreplay.report.terminal import print_parts
from nanreplay.report.words import fix_label


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
    for heading in ("fix", "prevents it", "replayed", "loss before changes by", "last loss", "remark"):
        table.add_column(heading, overflow="fold")
    for fix in fixes:
        table.add_row(*_cells(fix))
    yield table
    helpful = [fix for fix in fixes if fix.prevents and fix.code]
    if helpful:
        yield Text()
        yield Text("How to write it", style="underline")
    for fix in helpful:
        where = f"   # {source_text(fix.source.file, fix.source.line, None)}" if fix.source is not None else ""
        code = str(fix.code).replace("\n", "\n    ")
        yield Text.assemble("  ", (fix_label(fix), "cyan"), f": {code}{where}")


def _cells(fix: FixResult) -> Sequence[Text | str]:
    outcome = {True: Text("yes", style="green"), False: Text("no", style="red"), None: Text("not tried")}[fix.prevents]
    steps = "" if fix.steps_checked is None else readable_steps(range(fix.steps_checked[0], fix.steps_checked[1] + 1))
    change = "" if fix.loss_change is None else f"{fix.loss_change:.2g}" if fix.loss_change else "0"
    last = "" if fix.final_loss is None else readable_number(fix.final_loss)
    remarks = [fix.note] if fix.note else []
    if fix.nonfinite is not None:
        remarks.insert(0, f"step {fix.nonfinite_step}: {readable_trigger(fix.nonfinite)}")
    return Text(fix_label(fix)), outcome, steps, change, last, Text("; ".join(remarks))
