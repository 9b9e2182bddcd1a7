"""The report for people: the sentence, then the facts behind it.

The facts are rows of text, which the terminal, pages and issues show alike. Printing them to a
terminal or a file is here too; colour only repeats what the words say. Needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nanreplay.findings import (
    Cause,
    ChainLink,
    Evidence,
    FixResult,
    OperandFacts,
    Origin,
    OutputFacts,
)
from nanreplay.report.contents import Report
from nanreplay.report.fix_words import OUTCOME_WORDS, fix_label, fix_remark, outcome_of
from nanreplay.report.numbers import (
    readable_list,
    readable_number,
    readable_steps,
    readable_trigger,
)
from nanreplay.report.sentence import difference_lines, exactness, owner, source_text

# The facts of a report as rows of text.

FIX_HEADINGS = ("fix", "prevents it", "replayed", "loss before changes by", "last loss", "remark")
_WIDE = 110
"""Columns of a terminal from which what was tried is a table."""
OPERAND_HEADINGS = ("tensor", "type", "value", "min", "max")
LINK_HEADINGS = ("op", "layer", "phase", "worst", "non-finite", "largest finite")
ORIGIN_HEADINGS = ("op", "layer", "phase", "name")


@dataclass(frozen=True)
class Advice:
    """How to write a fix that helped."""

    label: str
    """The fix as `--fix` takes it."""
    code: str
    """One line of Python or several."""
    place: str
    """The line that it belongs to, `train.py:88`; "" where it belongs to none."""


def fact_rows(report: Report) -> Iterator[tuple[str, str]]:
    """Names and values of what is known.

    Names of the verdict's modes begin with two spaces, since they belong to the row before.
    """
    origin, root = report.findings.origin, report.findings.root
    facts = [*_capture_facts(report)]
    if origin is not None:
        facts += _origin_facts(origin)
    for name, value in facts:
        if value:
            yield (name, value)
    if root is not None:
        yield "began", f"step {root.step}: {root.reason}"


def _capture_facts(report: Report) -> Iterator[tuple[str, str]]:
    verdict = report.verdict
    first, last = report.steps
    yield "capture", f"{report.path}, {readable_steps(range(first, last + 1))}"
    yield "trigger", f"step {report.incident_step}: {readable_trigger(report.trigger)}"
    reason = f": {verdict.reason}" if verdict.reason else ""
    yield "verdict", verdict.kind.replace("_", " ") + reason
    for evidence in verdict.evidence:
        yield f"  {evidence.mode}", _evidence_in_words(evidence)
    if verdict.difference is not None:
        yield "modes part", " ".join(difference_lines(verdict.difference))


def _evidence_in_words(evidence: Evidence) -> str:
    outcome = "finite" if evidence.finite else "non-finite"
    return outcome if evidence.bit_exact is None else f"{outcome}, {exactness(evidence)}"


def _origin_facts(origin: Origin) -> Iterator[tuple[str, str]]:
    yield "op", f"{origin.op_type} {origin.op_name}" if origin.op_type else ""
    yield "phase", origin.phase
    yield "ran in", ", ".join(owner(origin))
    yield "layer", origin.layer_path or ""
    if origin.part is not None:
        yield "set to", origin.part.code
    yield "loop", ", ".join(f"{loop.op} iteration {loop.iteration}" for loop in origin.loop)
    source = origin.source
    if source is not None:
        yield "source", f"{source_text(source.file, source.line, source.code)} in {source.function}"
    for output in origin.outputs:
        if output.nonfinite or output.indices:
            yield "output", _output_in_words(output)
    samples = "" if origin.rows is None else readable_list(origin.rows, limit=10)
    if origin.replica_rows is not None:
        samples += f", in the replica's part {readable_list(origin.replica_rows, limit=10)}"
    reason = f"({origin.rows_reason})" if origin.rows_reason else ""
    yield "samples", " ".join(filter(None, (samples, reason)))


def _output_in_words(output: OutputFacts) -> str:
    type_and_shape = f"{output.dtype}{_bracketed(output.shape)}"
    count = f"{type_and_shape}: {output.nonfinite} of {output.size} non-finite"
    indices = " ".join(map(_bracketed, output.indices[:5]))
    if not indices:
        return count
    are_more = len(output.indices) > 5 or output.nonfinite > len(output.indices)
    return f"{count}, first at {indices}{' ...' if are_more else ''}"


def _bracketed(numbers: Sequence[int]) -> str:
    return f"[{', '.join(map(str, numbers))}]"


def operand_row(operand: OperandFacts) -> tuple[str, ...]:
    """An operand, under `OPERAND_HEADINGS`."""
    value = "many" if operand.value is None else readable_number(operand.value)
    low = "" if operand.min is None else readable_number(operand.min)
    high = "" if operand.max is None else readable_number(operand.max)
    return (operand.name, f"{operand.dtype}{_bracketed(operand.shape)}", value, low, high)


def link_row(link: ChainLink) -> tuple[str, ...]:
    """An op of the chain, under `LINK_HEADINGS`."""
    largest = "" if link.absmax is None else readable_number(link.absmax)
    hidden = "" if link.hides is None else f", hides the {readable_number(link.hides)}"
    return (
        link.op_type,
        link.layer_path or "",
        link.phase,
        readable_number(link.value) + hidden,
        str(link.nonfinite),
        largest,
    )


_NO_OP: dict[str | None, str] = {"set": "variable", "constant": "constant"}
"""What an origin is that is neither an op nor of the batch, by its kind."""


def origin_row(origin: Origin) -> tuple[str, ...]:
    """Another origin, under `ORIGIN_HEADINGS`."""
    what = origin.op_type or ("batch" if origin.is_of_batch else _NO_OP[origin.kind])
    return (what, origin.layer_path or "", origin.phase, origin.op_name or "")


def fix_row(fix: FixResult) -> tuple[str, ...]:
    """What a fix gave, under `FIX_HEADINGS`."""
    steps = change = ""
    if fix.steps_checked is not None:
        first_step, last_step = fix.steps_checked
        steps = readable_steps(range(first_step, last_step + 1))
    if fix.loss_change is not None:
        change = f"{fix.loss_change:.2g}" if fix.loss_change else "0"
    last = "" if fix.final_loss is None else readable_number(fix.final_loss)
    return fix_label(fix), OUTCOME_WORDS[outcome_of(fix)], steps, change, last, fix_remark(fix)


def advice(fixes: Sequence[FixResult]) -> list[Advice]:
    """How to write the fixes that helped."""
    return [_advice_of(fix) for fix in fixes if fix.prevents and fix.code]


def _advice_of(fix: FixResult) -> Advice:
    place = "" if fix.source is None else source_text(fix.source.file, fix.source.line, None)
    return Advice(fix_label(fix), str(fix.code), place)


# Printing.

_OUTCOME_STYLES = {True: "green", False: "red", None: ""}


def print_parts(parts: Iterable[RenderableType], console: Console) -> None:
    """Write `parts` one below the other; a file gets neither colour nor padding."""
    if console.is_terminal:
        console.print(Group(*parts))
        return
    with console.capture() as captured:
        for part in parts:
            # a line of text is not broken, since programs may read it; a table is
            console.print(part, soft_wrap=isinstance(part, Text))
    for line in captured.get().splitlines():
        console.file.write(f"{line.rstrip()}\n")


def print_fixes(report: Report, console: Console) -> None:
    """Write the sentence, the cause and the table of fixes."""
    print_parts(_fix_page(report), console)


def _fix_page(report: Report) -> Iterator[RenderableType]:
    yield Text(report.sentence, style="bold")
    yield Text()
    yield from _fix_parts(report.fixes)
    for note in report.findings.notes:
        yield Text.assemble(("note: ", "yellow"), note)


def _fix_parts(fixes: Sequence[FixResult]) -> Iterator[RenderableType]:
    """A table of what was tried, and how to write what helped."""
    if not fixes:
        yield Text("No fix was tried.")
        return
    yield _Fixes(fixes)
    helpful = advice(fixes)
    if helpful:
        yield Text()
        yield Text("How to write it", style="underline")
    for advised in helpful:
        place = f"   # {advised.place}" if advised.place else ""
        code = advised.code.replace("\n", "\n    ")
        yield Text.assemble("  ", (advised.label, "cyan"), f": {code}{place}")


@dataclass(frozen=True)
class _Fixes:
    """What was tried: a table, or a paragraph each where a table would break every word."""

    fixes: Sequence[FixResult]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= _WIDE:
            yield self._table()
            return
        for fix in self.fixes:
            label, prevents, *facts, remark = fix_row(fix)
            style = _OUTCOME_STYLES[fix.prevents]
            yield Text.assemble(f"{label}  {FIX_HEADINGS[1]}: ", (prevents, style))
            told = [
                f"{heading} {fact}"
                for heading, fact in zip(FIX_HEADINGS[2:-1], facts, strict=True)
                if fact
            ]
            yield Padding(Text(f"{', '.join(told)}. {remark}".strip()), (0, 0, 0, 4))

    def _table(self) -> Table:
        table = Table(box=None, header_style="dim", pad_edge=False)
        for heading in FIX_HEADINGS:
            table.add_column(heading, overflow="fold")
        for fix in self.fixes:
            cells = list(map(Text, fix_row(fix)))
            cells[FIX_HEADINGS.index("prevents it")].stylize(_OUTCOME_STYLES[fix.prevents])
            table.add_row(*cells)
        return table


def print_report(report: Report, console: Console) -> None:
    """Write `report` to a terminal or a file; a file gets neither colour nor padding."""
    print_parts(_report_parts(report), console)


def _report_parts(report: Report) -> Iterator[RenderableType]:
    findings, origin = report.findings, report.findings.origin
    yield Text(report.sentence, style="bold")
    yield Text()
    yield _fact_table(report)
    if report.causes:
        yield from _titled("Why", *_cause_lines(report.causes))
    if report.fixes:
        yield from _titled("Fixes that were tried on the recording", *_fix_parts(report.fixes))
    if origin is not None and origin.operands:
        operands = _table(OPERAND_HEADINGS, map(operand_row, origin.operands))
        yield from _titled("Operands, at the element that failed", operands)
    if findings.upstream:
        yield from _titled("Where they came from, nearest first", _link_table(findings.upstream))
    if findings.chain:
        yield from _titled("How it spread", _link_table(findings.chain))
    if findings.other_origins:
        origins = _table(ORIGIN_HEADINGS, map(origin_row, findings.other_origins))
        yield from _titled("Other origins", origins)
    for note in findings.notes:
        yield Text()
        yield Text.assemble(("note: ", "yellow"), note)


def _titled(title: str, *bodies: RenderableType) -> Iterator[RenderableType]:
    yield Text()
    yield Text(title, style="underline")
    for body in bodies:
        yield Text.assemble("  ", body) if isinstance(body, Text) else Padding(body, (0, 0, 0, 2))


def _fact_table(report: Report) -> Table:
    table = _empty_table()
    for name, value in fact_rows(report):
        table.add_row(Text(name, style="cyan"), Text(value))
    return table


def _cause_lines(causes: Sequence[Cause]) -> Iterator[Text]:
    for cause in causes:
        yield Text.assemble((cause.kind, "cyan"), f" ({cause.confidence:.0%})  {cause.sentence}")
        for line in cause.evidence:
            yield Text(f"  {line}")


def _link_table(links: Sequence[ChainLink]) -> Table:
    table = _empty_table(*LINK_HEADINGS)
    for link in links:
        cells = list(map(Text, link_row(link)))
        cells[LINK_HEADINGS.index("worst")].stylize("" if link.value == "finite" else "red")
        table.add_row(*cells)
    return table


def _table(headings: Sequence[str], rows: Iterator[Sequence[str]]) -> Table:
    table = _empty_table(*headings)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _empty_table(*headings: str) -> Table:
    """A table of these columns; without headings one of names and values."""
    table = Table(box=None, show_header=bool(headings), header_style="dim", pad_edge=False)
    for heading in headings or ("", ""):
        table.add_column(heading, overflow="fold")
    return table
