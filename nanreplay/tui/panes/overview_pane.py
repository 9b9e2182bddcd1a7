"""The overview pane: the first screen, which answers.

A headline, the cause, the line of code with the values that it got, the fix as a change of that
line, the failing sample beside a good one, the loss, and the facts of the run. What the file says
is there before anything is replayed; the rest fills in as it becomes known.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from nanreplay.findings import Cause, FixResult, Origin
from nanreplay.limits import readable_size
from nanreplay.report.contents import Report
from nanreplay.report.first_look import FirstLook, first_look
from nanreplay.report.fix_patch import diff_of
from nanreplay.report.fix_words import OUTCOME_CLAUSES, fix_label, fix_remark, outcome_of
from nanreplay.report.headline import cause_sentence, headline
from nanreplay.report.history import History
from nanreplay.report.inventory import inventory_lines
from nanreplay.report.numbers import (
    readable_list,
    readable_steps,
    readable_trigger,
)
from nanreplay.report.sample_choice import blamed_words
from nanreplay.report.sentence import VERDICT_MEANINGS, certainty, kind_in_words
from nanreplay.tui.capture_state import CaptureState, outcome_mark
from nanreplay.tui.panes.base import Copyable, Pane
from nanreplay.tui.widgets.code_lines import (
    code_content,
    diff_content,
    hanging,
    highlighted,
    with_code,
)
from nanreplay.tui.widgets.figures import Facts
from nanreplay.tui.widgets.plots import LossLine
from nanreplay.tui.widgets.sample_brief import brief_lines
from nanreplay.tui.widgets.samples import SampleLook

Fact = tuple[str, Content | str]
_COMPILATIONS = {
    "xla": "XLA (jit_compile)",
    "graph": "graph, without XLA",
    "eager": "eager",
}
_HARMLESS_VERDICTS = ("healthy", "transient", "inconclusive")
_REPORT_WIDTH = 140
"""Columns of the report that is exported as text."""
_AROUND_SHORT, _AROUND_TALL = 2, 7
"""Lines of code before and after the marked one, in short and in tall terminals."""
_ELEMENTS_SHORT, _ELEMENTS_TALL = 3, 8
"""Elements of each array of the batch that are shown."""
_NARROWEST = 40
_LOSS_LINES = (5, 18)
"""Lines of the loss, at least and at most; it takes the room that is left."""


class _Look(NamedTuple):
    """What the file says, with the code in colours."""

    first: FirstLook
    code: list[Content]


class OverviewPane(Pane):
    """What a reader needs first."""

    HELP = (
        "The answer: what failed and why, the line of code with the values that it got, the fix "
        "that was tried as a change of the code, the failing sample beside a good one, the loss "
        "until it failed, and what is known of the run. `y` copies any of it."
    )
    DEFAULT_CSS = """
    OverviewPane #page { layout: vertical; padding: 0 1; }
    OverviewPane #headline { text-style: bold; padding: 0 1; background: $error 20%; }
    OverviewPane #headline.-calm { background: $panel; }
    OverviewPane #why { padding: 0 1; margin-bottom: 1; }
    OverviewPane .column { height: auto; }
    OverviewPane .section { color: $text-muted; text-style: bold; }
    OverviewPane .part { padding: 0 0 0 1; margin-bottom: 1; height: auto; }
    OverviewPane #code, OverviewPane #sample, OverviewPane .section {
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    OverviewPane #facts { margin-bottom: 1; }
    OverviewPane .run { height: auto; }
    OverviewPane LossLine { margin: 0 0 1 1; }
    OverviewPane #columns { height: auto; }
    """

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        opened = state.opened
        self.history = History(opened.timeline, opened.incident, opened.variables, opened.steps)
        self._look: _Look | None = None
        """What the file says; None until it is read."""
        self._read_for: Origin | None = None
        """The origin that was known when the file was read."""

    def compose(self) -> ComposeResult:
        """Make the widgets: what the tables say is there at once."""
        run_facts = tuple(self._run_facts())
        with VerticalScroll(id="page"):
            yield Static(self._recorded(), id="headline", classes="-calm", markup=False)
            waiting = "The op that made it is named once the step is replayed."
            yield Static(waiting, id="why", markup=False)
            with Vertical(id="columns"):
                with Vertical(id="answer", classes="column"):
                    yield Static("Source", id="code-title", classes="section", markup=False)
                    yield Static("reading the file ...", id="code", classes="part", markup=False)
                    yield Static("Fix", id="fix-title", classes="section", markup=False)
                    waiting = "Fixes are tried once the cause is known."
                    yield Static(waiting, id="fix", classes="part", markup=False)
                    yield Facts(id="facts")
                    with Vertical(id="run-left", classes="run"):
                        yield Static("Run", classes="section")
                        yield Facts(run_facts, id="run-facts")
                with Vertical(id="run", classes="column"):
                    yield Static("Batch", id="sample-title", classes="section", markup=False)
                    yield Static("reading the file ...", id="sample", classes="part", markup=False)
                    yield Static("Loss", id="loss-title", classes="section", markup=False)
                    yield LossLine(self.history, self._marked_step)
                    with Vertical(id="run-right", classes="run"):
                        yield Static("Run", classes="section")
                        yield Facts(run_facts)

    def on_mount(self) -> None:
        """Show the report if it is there, and read the file."""
        super().on_mount()
        self.app.theme_changed_signal.subscribe(self, lambda theme: self._show_batch())
        if self.state.report is None:
            self.read()

    @work(exclusive=True, group="look", exit_on_error=False)
    async def read(self) -> None:
        """Read the lines of code and the batch from the file, in a thread."""
        path, batches = self.state.opened.path, self.state.batches
        origin, step = self.origin, self.state.failing_step
        self._read_for = origin

        def look() -> _Look:
            first = first_look(path, batches, origin, step)
            return _Look(first, highlighted(first.code) if first.code is not None else [])

        self._look = await asyncio.to_thread(look)
        self._show_code()
        self._show_batch()

    def on_resize(self) -> None:
        """Show as much as there is room for."""
        self.call_after_refresh(self._show_code)
        self.call_after_refresh(self._show_fix)
        self.call_after_refresh(self._show_batch)

    def _fill(self) -> None:
        """Put the facts of the run below the shorter column; the loss takes the lines left."""
        if not self.is_attached:
            return
        page, loss = self.query_one("#page"), self.query_one(LossLine)
        answer, run = self.query_one("#answer"), self.query_one("#run")
        left, right = self.query_one("#run-left"), self.query_one("#run-right")
        facts = max(left.outer_size.height, right.outer_size.height)
        rest_left = answer.outer_size.height - left.outer_size.height * left.display
        rest_right = run.outer_size.height - right.outer_size.height * right.display
        rest_right += _LOSS_LINES[0] - loss.size.height  # as high as it would be without room
        is_beside = self.screen.has_class("-wide")
        left.display = is_beside and rest_left < rest_right
        right.display = not left.display
        room = 0
        if is_beside:
            top = self.query_one("#columns").virtual_region.y
            room = page.size.height - top - rest_right - facts * right.display
        loss.styles.height = min(_LOSS_LINES[0] + max(room, 0), _LOSS_LINES[1])

    # The parts

    @property
    def _marked_step(self) -> int | None:
        return self.state.failing_step if self.state.has_failed else None

    def _recorded(self) -> str:
        """The step and what triggered, as the capture's tables say."""
        incident = self.state.opened.incident
        return f"{readable_trigger(incident.trigger).rstrip('.')}, step {incident.step}"

    def _show_code(self) -> None:
        if self._look is None or not self.is_attached:
            return
        code = self._look.first.code
        title, box = self.query_one("#code-title", Static), self.query_one("#code", Static)
        if code is None:
            title.update("Source")
            box.update("No line of your code is known for it.")
            return
        file = code.file.replace("\\", "/").rsplit("/", 1)[-1]  # the run may be one of Windows
        title.update(f"Source  {file}, {code.function}: {code.role}")
        around = _AROUND_TALL if self.screen.has_class("-tall") else _AROUND_SHORT
        box.update(code_content(code, self._look.code, around, self.origin))

    def _show_fix(self) -> None:
        report = self.state.report
        if report is not None and self.is_attached:
            box = self.query_one("#fix", Static)
            lines = _fix_lines(report, self.state, box.size.width - 1)
            box.update(Content("\n").join(lines))

    def _show_batch(self) -> None:
        self.call_after_refresh(self._fill)
        if self._look is None or not self.is_attached:
            return
        batch = self._look.first.batch
        title, box = self.query_one("#sample-title", Static), self.query_one("#sample", Static)
        if batch is None:
            title.update("Batch")
            box.update("The file does not hold it.")
            return
        title.update(f"Batch  {blamed_words(batch)}")
        look = SampleLook(
            width=max(box.size.width - 1, _NARROWEST),
            colours=self.app.theme_variables,
            strangest_first=True,
            plain=self.app.no_color,
        )
        most = _ELEMENTS_TALL if self.screen.has_class("-tall") else _ELEMENTS_SHORT
        lines = list(brief_lines(batch, look, most)) if batch.size else []
        box.update(Text("\n").join(lines))

    def _run_facts(self) -> Iterator[Fact]:
        opened = self.state.opened
        facts, metadata = opened.facts, opened.facts["metadata"]
        packages = [name for name in ("tensorflow", "keras", "python") if name in metadata]
        yield "versions", ", ".join(f"{name} {metadata[name]}" for name in packages)
        devices = metadata.get("devices") or "not named"
        yield "devices", f"{devices} · {metadata.get('platform', '?')}"
        programs = facts["programs"]
        for program in programs:
            number = f"{program['id']}: " if len(programs) > 1 else ""
            compilation = _COMPILATIONS[program["compilation"]]
            yield "program", f"{number}{compilation}, {program['policy']}"
        keyframes = ", ".join(map(str, facts["keyframes"])) or "none"
        yield "window", f"{readable_steps(opened.steps)} · keyframes {keyframes}"
        script = metadata.get("script") or "an interactive session"
        yield "recorded", f"{_readable_time(metadata.get('created', '?'))} by {script}"
        variables = facts["variables"]
        yield "variables", f"{variables['count']} ({readable_size(variables['size_bytes'])})"
        yield "file", f"{opened.path} ({readable_size(facts['size_bytes'])})"
        for note in opened.incident.notes:
            yield "note", note

    def show_report(self, report: Report) -> None:
        """Show the answer; it comes again with each fix that was tried."""
        head = self.query_one("#headline", Static)
        head.update(headline(report))
        head.set_class(report.verdict.kind in _HARMLESS_VERDICTS, "-calm")
        self.query_one("#why", Static).update(Content("\n").join(_why(report)))
        for part in ("#fix-title", "#fix"):
            self.query_one(part).display = report.verdict.kind != "healthy"
        self.query_one("#fix-title", Static).update(_fix_title(report, self.state))
        self._show_fix()
        self.query_one("#facts", Facts).show(self._facts(report))
        self.query_one(LossLine).show(self._marked_step)
        if self._look is None or self._read_for != report.findings.origin:
            self.read()  # the origin names line and sample
        else:
            self.call_after_refresh(self._fill)

    def show_failure(self, reason: str) -> None:
        """Say why the step is not explained."""
        self.query_one("#why", Static).update(with_code(f"It could not be replayed: {reason}"))
        self.query_one("#fix", Static).update("None can be tried without a replay.")

    def _facts(self, report: Report) -> Iterator[Fact]:
        stored = self.state.stored
        if stored is not None:
            later = "" if self.state.is_complete else "; the step is being replayed"
            yield "answer", f"stored in the file by {stored.maker.words}{later}"
        for cause in report.causes[1:]:
            words = Content.assemble((kind_in_words(cause.kind), "bold"), ": ")
            yield "also", Content.assemble(words, with_code(cause.sentence))
        findings = report.findings
        if findings.origin is not None and findings.origin.op_name:
            yield "op", findings.origin.op_name
        if findings.consequence:
            yield "then", with_code(f"it {findings.consequence}")
        if findings.origin is not None and findings.origin.rows_reason:
            yield "samples", findings.origin.rows_reason
        if findings.root is not None and findings.root.step != report.incident_step:
            yield "began", f"step {findings.root.step}: {findings.root.reason}"
        for note in findings.notes:
            if note not in self.state.opened.incident.notes:  # those stand among the run's facts
                yield "note", note

    def copies(self) -> Sequence[Copyable]:
        """The headline and the cause."""
        report = self.state.report
        if report is None:
            return []
        copies = [Copyable("the headline", headline(report))]
        if report.causes:
            copies.append(Copyable("the cause", report.causes[0].sentence))
        return copies

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


def _readable_time(created: str) -> str:
    """A time to the minute: `2026-01-31 12:00 UTC`; as it was recorded where it is no time."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = f" {time.tzname()}" if time.tzinfo is not None else ""
    return f"{time:%Y-%m-%d %H:%M}{zone}"


def _why(report: Report) -> Iterator[Content]:
    """The cause, and how sure it is that this is what happened."""
    cause: Cause | None = report.causes[0] if report.causes else None
    if cause is not None:
        yield with_code(cause_sentence(cause))
    elif report.findings.reason:
        yield with_code(report.findings.reason)
    verdict = report.verdict
    mark = ("✓ ", "bold $text-success")
    if verdict.kind in ("transient", "inconclusive"):
        mark = ("? ", "bold $text-warning")
    reason = verdict.reason if verdict.reason != report.findings.reason else None
    exact = certainty(replace(verdict, kind="reproduced"))  # the meaning says the rest
    words = " ".join(filter(None, (VERDICT_MEANINGS[verdict.kind], exact, reason)))
    yield Content.assemble(mark, (words, "dim"))


def _fix_title(report: Report, state: CaptureState) -> str:
    best = next((fix for fix in report.fixes if fix.prevents), None)
    if best is not None:
        steps = (
            ""
            if best.steps_checked is None
            else readable_steps(range(best.steps_checked[0], best.steps_checked[1] + 1))
        )
        return f"Fix  {fix_label(best)} prevents it{f' in {steps}' if steps else ''}"
    if report.fixes:
        return "Fix  none of those that were tried prevents it"
    return "Fix" if state.is_complete else "Fix  being tried ..."


def _fix_lines(report: Report, state: CaptureState, width: int) -> Iterator[Content]:
    """The verified fix as a change of the code, then what the others do, by outcome."""
    if not report.fixes:
        words = "Each is replayed on the recording."
        if state.failure is not None:
            words = "Stopped before any was tried; f5 goes on."
        elif state.is_complete:
            words = "None was tried."
        yield Content(words)
        return
    best = next((fix for fix in report.fixes if fix.prevents), None)
    if best is not None:
        yield diff_content(diff_of(best), width)
        remark = fix_remark(best)
        if remark:
            yield Content.styled(remark, "dim")
    by_outcome: dict[str, list[FixResult]] = {}
    for fix in report.fixes:
        if fix is not best:
            by_outcome.setdefault(str(outcome_of(fix)), []).append(fix)
    for fixes in by_outcome.values():
        mark, _, colour = outcome_mark(fixes[0].prevents)
        labels = readable_list(list(dict.fromkeys(map(fix_label, fixes))))
        words = OUTCOME_CLAUSES[outcome_of(fixes[0])]
        also = "also " if fixes[0].prevents else ""
        said = Content.assemble(f"{also}{words}: ", (labels, "bold"))
        yield hanging(Content.styled(f"{mark} ", f"bold {colour}"), said, width)
