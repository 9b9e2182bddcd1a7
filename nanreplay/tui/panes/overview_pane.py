"""The overview pane: the answer, and what speaks for it.

It shows the sentence, verdict, cause and fixes, the loss with the failing step, and facts of the
run. It is the first tab: what the capture's tables say is there before anything is replayed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from nanreplay.findings import Origin
from nanreplay.report.contents import Report
from nanreplay.report.fix_words import OUTCOME_CLAUSES, fix_label, outcome_of
from nanreplay.report.history import History
from nanreplay.report.inventory import inventory_lines
from nanreplay.report.numbers import readable_bytes, readable_steps, readable_trigger
from nanreplay.report.sentence import certainty, source_text
from nanreplay.tui.capture_state import CaptureState, outcome_mark
from nanreplay.tui.panes.base import Copyable, Pane
from nanreplay.tui.widgets.figures import Facts
from nanreplay.tui.widgets.plots import LossLine

Fact = tuple[str, Content | str]
_COMPILATIONS = {
    "xla": "XLA (jit_compile)",
    "graph": "graph, without XLA",
    "eager": "eager",
}
_HARMLESS_VERDICTS = ("healthy", "transient", "inconclusive")
_REPORT_WIDTH = 140
"""Columns of the report that is exported as text."""


class OverviewPane(Pane):
    """What a reader needs first."""

    HELP = (
        "The answer in one sentence, and what speaks for it: the verdict of the replay, the "
        "likeliest cause, the fixes that were tried on the recording, the loss until it failed, "
        "and what is known of the run. `y` copies any of it."
    )
    DEFAULT_CSS = """
    OverviewPane #page { layout: vertical; }
    OverviewPane #sentence {
        border: round $primary; border-title-color: $text-primary; padding: 0 1; margin-bottom: 1;
    }
    OverviewPane .column { height: auto; padding: 0 1; }
    OverviewPane .section { color: $text-muted; text-style: bold; margin-top: 1; }
    OverviewPane LossLine { margin-left: 0; }
    OverviewPane #columns { height: auto; }
    """

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        opened = state.opened
        self.history = History(opened.timeline, opened.incident, opened.variables, opened.steps)

    def compose(self) -> ComposeResult:
        """Make the widgets: what the tables say is there at once."""
        with VerticalScroll(id="page"):
            sentence = f"{self._recorded()} The op that made it is named once the step is replayed."
            yield Static(with_code(sentence), id="sentence", markup=False)
            with Vertical(id="columns"):
                with Vertical(id="answer", classes="column"):
                    yield Facts(id="facts")
                with Vertical(id="run", classes="column"):
                    yield Static("Loss", classes="section -first")
                    yield LossLine(self.history, self.state.failing_step)
                    yield Static("Run", classes="section")
                    yield Facts(self._run_facts())

    def on_mount(self) -> None:
        """Show the report if it is there."""
        self.query_one("#sentence").border_title = "recorded"
        super().on_mount()

    def _recorded(self) -> str:
        """The step and what triggered, as the capture's tables say."""
        incident = self.state.opened.incident
        return f"step {incident.step} · {readable_trigger(incident.trigger)}."

    def _run_facts(self) -> Iterator[Fact]:
        opened = self.state.opened
        facts, metadata = opened.facts, opened.facts["metadata"]
        packages = [name for name in ("tensorflow", "keras", "python") if name in metadata]
        yield "versions", ", ".join(f"{name} {metadata[name]}" for name in packages)
        devices = metadata.get("devices") or "not named"
        yield "devices", f"{devices} · {metadata.get('platform', '?')}"
        for program in facts["programs"]:
            compilation = _COMPILATIONS[program["compilation"]]
            yield "program", f"{program['id']}: {compilation}, policy {program['policy']}"
        keyframes = ", ".join(map(str, facts["keyframes"])) or "none"
        yield "window", f"{readable_steps(opened.steps)} · keyframes {keyframes}"
        script = metadata.get("script") or "an interactive session"
        yield "recorded", f"{metadata.get('created', '?')} by {script}"
        variables = facts["variables"]
        yield "variables", f"{variables['count']} ({readable_bytes(variables['size_bytes'])})"
        yield "file", f"{opened.path} ({readable_bytes(facts['size_bytes'])})"
        for note in opened.incident.notes:
            yield "note", note

    def show_report(self, report: Report) -> None:
        """Show the answer."""
        box = self.query_one("#sentence", Static)
        box.update(with_code(report.sentence))
        box.border_title = "answer" if self.state.is_complete else "answer, fixes are being tried"
        self.query_one("#facts", Facts).show(self._facts(report))
        self.query_one(LossLine).show(self.state.failing_step)

    def show_failure(self, reason: str) -> None:
        """Say why the step is not explained."""
        text = f"{self._recorded()} It could not be replayed: {reason}"
        self.query_one("#sentence", Static).update(with_code(text))

    def _facts(self, report: Report) -> Iterator[Fact]:
        yield "verdict", _verdict(report)
        for number, cause in enumerate(report.causes):
            sentence = Content.assemble(
                (cause.kind.replace("_", " "), "bold"),
                f" ({cause.confidence:.0%})  ",
                with_code(cause.sentence),
            )
            yield "also" if number else "cause", sentence
        if report.findings.origin is not None:
            yield from _origin_facts(report.findings.origin)
        if report.findings.root is not None:
            yield "began", f"step {report.findings.root.step}: {report.findings.root.reason}"
        yield "fixes", _fixes(report, self.state)
        for note in report.findings.notes:
            if note not in self.state.opened.incident.notes:  # those stand among the run's facts
                yield "note", note

    def copies(self) -> Sequence[Copyable]:
        """The cause."""
        report = self.state.report
        if report is None or not report.causes:
            return []
        return [Copyable("the cause", report.causes[0].sentence)]

    def as_text(self) -> str:
        """What `nanreplay bisect` prints; until there is a report, what `nanreplay info` prints."""
        report = self.state.report
        if report is None:
            return "\n".join(inventory_lines(self.state.opened.facts))
        # Imported here: the overview is what the first picture waits for.
        from rich.console import Console

        from nanreplay.report.report_text import print_report

        stream = io.StringIO()
        print_report(report, Console(file=stream, highlight=False, width=_REPORT_WIDTH))
        return stream.getvalue()


def with_code(text: str) -> Content:
    """A text whose parts in backticks stand out."""
    parts: list[str | tuple[str, str]] = []
    for position, part in enumerate(text.split("`")):
        if part:
            # Every second part stands between two backticks.
            parts.append((f"`{part}`", "bold $text-accent") if position % 2 else part)
    return Content.assemble(*parts)


def _verdict(report: Report) -> Content:
    verdict = report.verdict
    if verdict.kind not in _HARMLESS_VERDICTS:
        mark = ("✗ ", "bold $text-error")
    elif verdict.kind == "healthy":
        mark = ("✓ ", "bold $text-success")
    else:
        mark = ("? ", "bold $text-warning")
    reasons = " ".join(filter(None, (certainty(verdict), verdict.reason)))
    return Content.assemble(mark, (verdict.kind.replace("_", " "), "bold"), f"  {reasons}")


def _origin_facts(origin: Origin) -> Iterator[Fact]:
    yield "op", f"{origin.op_type} {origin.op_name}" if origin.op_type else "the batch itself"
    yield "layer", f"{origin.layer_path or origin.where}, {origin.phase}"
    if origin.source is not None:
        source = origin.source
        yield "source", source_text(source.file, source.line, source.code)


def _fixes(report: Report, state: CaptureState) -> Content:
    if not report.fixes and state.failure is not None:
        return Content("stopped before any was tried; f5 goes on")
    if not report.fixes:
        return Content("none was tried" if state.is_complete else "being tried ...")
    lines = []
    for fix in report.fixes:
        mark, word, colour = outcome_mark(fix.prevents)
        outcome = word if fix.prevents is None else OUTCOME_CLAUSES[outcome_of(fix)]
        label = (fix_label(fix), "bold")
        lines.append(Content.assemble((f"{mark} ", f"bold {colour}"), label, f"  {outcome}"))
    return Content("\n").join(lines)
