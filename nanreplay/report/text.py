"""The report for people: the sentence, then the facts behind it. Colour only repeats what the words say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nanreplay.findings import Cause, ChainLink, Evidence, OperandFacts, Origin, OutputFacts, Report
from nanreplay.report.fixes import fix_parts
from nanreplay.report.meanings import difference_lines
from nanreplay.report.numbers import readable_list, readable_number, readable_steps, readable_trigger, readable_ulp
from nanreplay.report.sentence import source_text
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
        yield from _titled("Operands, at the element that failed", _operands(origin.operands))
    if findings.upstream:
        yield from _titled("Where they came from, nearest first", _links(findings.upstream))
    if findings.chain:
        yield from _titled("How it spread", _links(findings.chain))
    if findings.other_origins:
        yield from _titled("Other origins", _other_origins(findings.other_origins))
    for note in findings.notes:
        yield Text()
        yield Text.assemble(("note: ", "yellow"), note)


def _titled(title: str, *bodies: RenderableType) -> Iterator[RenderableType]:
    yield Text()
    yield Text(title, style="underline")
    for body in bodies:
        yield Text.assemble("  ", body) if isinstance(body, Text) else Padding(body, (0, 0, 0, 2))


def _facts(report: Report) -> Table:
    origin = report.findings.origin
    table = _table()
    for name, value in (*_capture_facts(report), *(_origin_facts(origin) if origin else ())):
        if value:
            table.add_row(Text(name, style="cyan"), Text(value))
    if report.findings.root is not None:
        table.add_row(Text("began", style="cyan"), Text(f"step {report.findings.root.step}: {report.findings.root.reason}"))
    return table


def _capture_facts(report: Report) -> Iterator[tuple[str, str]]:
    trigger = report.trigger
    yield "capture", f"{report.path}, {readable_steps(range(report.steps[0], report.steps[1] + 1))}"
    yield "trigger", f"step {report.incident_step}: {readable_trigger(trigger)}"
    yield "verdict", report.verdict.kind.replace("_", " ") + (f": {report.verdict.reason}" if report.verdict.reason else "")
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
    yield "layer", origin.layer_path or ""
    yield "loop", ", ".join(f"{loop.op} iteration {loop.iteration}" for loop in origin.loop)
    if origin.source is not None:
        yield "source", f"{source_text(origin.source.file, origin.source.line, origin.source.code)} in {origin.source.function}"
    for output in origin.outputs:
        if output.nonfinite or output.indices:
            yield "output", _output(output)
    samples = "" if origin.rows is None else readable_list(origin.rows, limit=10)
    yield "samples", " ".join(part for part in (samples, f"({origin.rows_reason})" if origin.rows_reason else "") if part)


def _output(output: OutputFacts) -> str:
    at = " ".join(_index(index) for index in output.indices[:5])
    more = " ..." if len(output.indices) > 5 or output.nonfinite > len(output.indices) else ""
    count = f"{output.dtype}{_index(output.shape)}: {output.nonfinite} of {output.size} non-finite"
    return f"{count}, first at {at}{more}" if at else count


def _index(index: Sequence[int]) -> str:
    return f"[{', '.join(map(str, index))}]"


def _causes(causes: Sequence[Cause]) -> Iterator[Text]:
    for cause in causes:
        yield Text.assemble((cause.kind, "cyan"), f" ({cause.confidence:.0%})  {cause.sentence}")
        yield from (Text(f"  {line}") for line in cause.evidence)


def _operands(operands: Sequence[OperandFacts]) -> Table:
    table = _table("tensor", "type", "value", "min", "max")
    for each in operands:
        value = "many" if each.value is None else readable_number(each.value)
        bounds = ["" if bound is None else readable_number(bound) for bound in (each.min, each.max)]
        table.add_row(*map(Text, (each.name, f"{each.dtype}{_index(each.shape)}", value, *bounds)))
    return table


def _links(links: Sequence[ChainLink]) -> Table:
    table = _table("op", "layer", "phase", "worst", "non-finite", "largest finite")
    for each in links:
        worst = Text(readable_number(each.value), style="" if each.value == "finite" else "red")
        largest = "" if each.absmax is None else readable_number(each.absmax)
        table.add_row(Text(each.op_type), Text(each.layer_path or ""), each.phase, worst, str(each.nonfinite), largest)
    return table


def _other_origins(origins: Sequence[Origin]) -> Table:
    table = _table("op", "layer", "phase", "name")
    for each in origins:
        table.add_row(*map(Text, (each.op_type or "batch", each.layer_path or "", each.phase, each.op_name or "")))
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, show_header=bool(headings), header_style="dim", pad_edge=False)
    for heading in headings or ("", ""):
        table.add_column(heading, overflow="fold")
    return table
