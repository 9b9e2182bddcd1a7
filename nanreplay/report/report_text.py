"""The report for people: the sentence, then the facts behind it. Colour only repeats what the words say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
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
from nanreplay.report.numbers import (
    readable_list,
    readable_number,
    readable_steps,
    readable_trigger,
    readable_ulp,
)
from nanreplay.report.sentence import difference_lines, fix_label, owner, source_text

# Writing a report to a terminal or a file.


def print_parts(parts: Iterable[RenderableType], console: Console) -> None:
    """Write `parts` one below the other; a file gets neither colour nor padding."""
    if console.is_terminal:
        console.print(Group(*parts))
        return
    with console.capture() as captured:
        for part in parts:
            console.print(
                part, soft_wrap=isinstance(part, Text)
            )  # a line of text is not broken, a table is
    for line in captured.get().splitlines():
        console.file.write(f"{line.rstrip()}\n")


# The facts of a report as rows of text, for the terminal, for pages and for issues alike. Needs
# no terminal and no TensorFlow.

FIX_HEADINGS = ("fix", "prevents it", "replayed", "loss before changes by", "last loss", "remark")
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
    """Names and values of what is known; the modes of the verdict are named with two spaces before them."""
    origin, root = report.findings.origin, report.findings.root
    for name, value in (*_capture_facts(report), *(_origin_facts(origin) if origin else ())):
        if value:
            yield name, value
    if root is not None:
        yield "began", f"step {root.step}: {root.reason}"


def _capture_facts(report: Report) -> Iterator[tuple[str, str]]:
    yield "capture", f"{report.path}, {readable_steps(range(report.steps[0], report.steps[1] + 1))}"
    yield "trigger", f"step {report.incident_step}: {readable_trigger(report.trigger)}"
    yield (
        "verdict",
        report.verdict.kind.replace("_", " ")
        + (f": {report.verdict.reason}" if report.verdict.reason else ""),
    )
    for each in report.verdict.evidence:
        yield f"  {each.mode}", ("finite" if each.finite else "non-finite") + _exactness(each)
    if report.verdict.difference is not None:
        yield "modes part", " ".join(difference_lines(report.verdict.difference))


def _exactness(evidence: Evidence) -> str:
    if evidence.bit_exact is None:
        return ""
    return ", bit for bit" if evidence.bit_exact else f", {readable_ulp(evidence.max_ulp)}"


def _origin_facts(origin: Origin) -> Iterator[tuple[str, str]]:
    yield "op", f"{origin.op_type} {origin.op_name}" if origin.op_type else ""
    yield "phase", origin.phase
    yield "ran in", ", ".join(owner(origin))
    yield "layer", origin.layer_path or ""
    yield "loop", ", ".join(f"{loop.op} iteration {loop.iteration}" for loop in origin.loop)
    if origin.source is not None:
        yield (
            "source",
            f"{source_text(origin.source.file, origin.source.line, origin.source.code)} in {origin.source.function}",
        )
    for output in origin.outputs:
        if output.nonfinite or output.indices:
            yield "output", _output(output)
    samples = "" if origin.rows is None else readable_list(origin.rows, limit=10)
    yield (
        "samples",
        " ".join(
            part
            for part in (samples, f"({origin.rows_reason})" if origin.rows_reason else "")
            if part
        ),
    )


def _output(output: OutputFacts) -> str:
    at = " ".join(_index(index) for index in output.indices[:5])
    more = " ..." if len(output.indices) > 5 or output.nonfinite > len(output.indices) else ""
    count = f"{output.dtype}{_index(output.shape)}: {output.nonfinite} of {output.size} non-finite"
    return f"{count}, first at {at}{more}" if at else count


def _index(index: Sequence[int]) -> str:
    return f"[{', '.join(map(str, index))}]"


def operand_row(operand: OperandFacts) -> tuple[str, ...]:
    """An operand, under `OPERAND_HEADINGS`."""
    value = "many" if operand.value is None else readable_number(operand.value)
    bounds = [
        "" if bound is None else readable_number(bound) for bound in (operand.min, operand.max)
    ]
    return (operand.name, f"{operand.dtype}{_index(operand.shape)}", value, *bounds)


def link_row(link: ChainLink) -> tuple[str, ...]:
    """An op of the chain, under `LINK_HEADINGS`."""
    largest = "" if link.absmax is None else readable_number(link.absmax)
    return (
        link.op_type,
        link.layer_path or "",
        link.phase,
        readable_number(link.value),
        str(link.nonfinite),
        largest,
    )


def origin_row(origin: Origin) -> tuple[str, ...]:
    """Another origin, under `ORIGIN_HEADINGS`."""
    return (origin.op_type or "batch", origin.layer_path or "", origin.phase, origin.op_name or "")


def fix_row(fix: FixResult) -> tuple[str, ...]:
    """What a fix gave, under `FIX_HEADINGS`."""
    outcome = {True: "yes", False: "no", None: "not tried"}[fix.prevents]
    steps = (
        ""
        if fix.steps_checked is None
        else readable_steps(range(fix.steps_checked[0], fix.steps_checked[1] + 1))
    )
    change = "" if fix.loss_change is None else f"{fix.loss_change:.2g}" if fix.loss_change else "0"
    last = "" if fix.final_loss is None else readable_number(fix.final_loss)
    remarks = [fix.note] if fix.note else []
    if fix.nonfinite is not None:
        remarks.insert(0, f"step {fix.nonfinite_step}: {readable_trigger(fix.nonfinite)}")
    return fix_label(fix), outcome, steps, change, last, "; ".join(remarks)


def advice(fixes: Sequence[FixResult]) -> list[Advice]:
    """How to write the fixes that helped."""
    helpful = [fix for fix in fixes if fix.prevents and fix.code]
    return [
        Advice(
            fix_label(fix),
            str(fix.code),
            "" if fix.source is None else source_text(fix.source.file, fix.source.line, None),
        )
        for fix in helpful
    ]


# Fixes for people: a table of what was tried, and the lines of code of what helps.

_OUTCOME_STYLES = {True: "green", False: "red", None: ""}


def print_fixes(report: Report, console: Console) -> None:
    """Write the sentence, the cause and the table of fixes."""
    print_parts(_fix_parts(report), console)


def _fix_parts(report: Report) -> Iterator[RenderableType]:
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


# --- report.text


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
        yield from _titled(
            "Operands, at the element that failed",
            _table(OPERAND_HEADINGS, map(operand_row, origin.operands)),
        )
    if findings.upstream:
        yield from _titled("Where they came from, nearest first", _links(findings.upstream))
    if findings.chain:
        yield from _titled("How it spread", _links(findings.chain))
    if findings.other_origins:
        yield from _titled(
            "Other origins", _table(ORIGIN_HEADINGS, map(origin_row, findings.other_origins))
        )
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
