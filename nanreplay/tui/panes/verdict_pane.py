"""The verdict pane: the modes of replaying side by side.

It shows the failing step in each mode at once, and every step of the window when the user asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Button, DataTable, Static

from nanreplay.errors import UnsupportedOpError
from nanreplay.report.contents import Report
from nanreplay.report.numbers import readable_number, readable_ulp
from nanreplay.report.sentence import MODE_MEANINGS, VERDICT_MEANINGS, difference_lines, exactness
from nanreplay.tui.capture_state import CaptureState, cell_style, outcome_mark
from nanreplay.tui.engine import ReplayedStep, ReplayedSteps, ReplaySteps
from nanreplay.tui.panes.base import Pane
from nanreplay.tui.widgets.figures import Facts

_BROAD = 90
"""Columns of the terminal from which the table also says how each mode runs."""


class VerdictPane(Pane):
    """What each way of replaying says."""

    HELP = (
        "The failing step in each way of replaying it: compiled as it was trained, compiled "
        "without XLA, op by op, and op by op in float64. Where one is finite and another is not, "
        "the op at which they part is named. `r` replays every step of the window in every mode, "
        "so that the first step that differs from the recording is seen."
    )
    DEFAULT_CSS = """
    VerdictPane #body { padding: 0 1; }
    VerdictPane DataTable { height: auto; max-height: 24; margin: 1 0; background: $background; }
    VerdictPane #run-all { margin-top: 1; }
    VerdictPane #steps { display: none; }
    VerdictPane #steps.-filled { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "r",
            "replay",
            "Replay all",
            id="verdict.replay",
            tooltip="Replay every step of the window in every mode",
        ),
    ]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.replayed: dict[str, ReplayedSteps | str] = {}
        """Steps by mode; why they could not be replayed, where they could not."""

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with VerticalScroll(id="body"):
            yield Static("The step is being replayed ...", id="kind", markup=False)
            yield DataTable(id="modes", cursor_type="row", zebra_stripes=True)
            yield Facts(id="parting")
            yield Button("Replay every step in every mode", id="run-all", compact=True)
            yield DataTable(id="steps", cursor_type="row", zebra_stripes=True)

    def on_resize(self) -> None:
        """Show as many columns as fit."""
        if self.state.report is not None:
            self.call_after_refresh(self.show_report, self.state.report)

    def show_report(self, report: Report) -> None:
        """Show the failing step in each mode."""
        if not self.is_attached:  # a report may arrive while the pane is taken down
            return
        is_broad = self.size.width >= _BROAD
        verdict = report.verdict
        kind, meaning = verdict.kind.replace("_", " "), VERDICT_MEANINGS[verdict.kind]
        self.query_one("#kind", Static).update(Content.assemble((kind, "bold"), "  ", meaning))
        table = self.query_one("#modes", DataTable)
        titles = ("mode", *["how it runs"] * is_broad, "failing step", "recording")
        rows = [
            (
                Text(evidence.mode, style="bold"),
                *[Text(MODE_MEANINGS.get(evidence.mode, ""))] * is_broad,
                self._outcome(evidence.finite),
                Text(exactness(evidence)),
            )
            for evidence in verdict.evidence
        ]
        table.clear(columns=True)
        for position, title in enumerate(titles):
            widest = max((len(row[position]) for row in rows), default=0)
            table.add_column(title, width=max(widest, len(title)))
        for row in rows:
            table.add_row(*row)
        modes = [] if is_broad else [evidence.mode for evidence in verdict.evidence]
        meanings = [(mode, MODE_MEANINGS.get(mode, "")) for mode in modes]
        self.query_one("#parting", Facts).show([*meanings, *self._facts(report)])

    def show_failure(self, reason: str) -> None:
        """Say why there is no verdict."""
        self.query_one("#kind", Static).update(f"There is no verdict. {reason}")

    def _facts(self, report: Report) -> Iterator[tuple[str, str]]:
        if report.verdict.reason:
            yield "why", report.verdict.reason
        if report.verdict.difference is not None:
            yield "they part", "\n".join(difference_lines(report.verdict.difference))

    def _outcome(self, finite: bool) -> Text:
        mark, _, colour = outcome_mark(finite)
        style = cell_style(colour, self.app.theme_variables)
        return Text.assemble((f"{mark} ", style), "finite" if finite else "non-finite")

    def on_button_pressed(self) -> None:
        """Replay every step."""
        self.action_replay()

    def action_replay(self) -> None:
        """Replay every step of the window in every mode."""
        self.replay_all()

    @work(exclusive=True, group="modes", exit_on_error=False)
    async def replay_all(self) -> None:
        """Replay mode after mode; each fills its column."""
        self.replayed.clear()
        for mode in self._modes():
            try:
                steps = await self.ask(ReplaySteps(self.path, mode))
                self.replayed[mode] = steps
            except UnsupportedOpError as error:  # an op that one mode lacks, the others may have
                self.replayed[mode] = str(error)
            self._show_steps()

    def _modes(self) -> list[str]:
        """Modes that differ: a program without XLA is the same in `graph` as it was recorded."""
        programs = self.state.opened.facts["programs"]
        has_xla = any(program["compilation"] == "xla" for program in programs)
        return [mode for mode in MODE_MEANINGS if has_xla or mode != "graph"]

    def _show_steps(self) -> None:
        """Fill the table of steps, a column for each mode that was replayed, and tell the notes."""
        table = self.query_one("#steps", DataTable)
        table.clear(columns=True)
        table.add_class("-filled")
        columns = self._steps_by_mode()
        table.add_columns("step", *columns)
        colours = self.app.theme_variables
        for step in sorted(set().union(*columns.values())):
            cells = [_cell(steps.get(step), colours, mode) for mode, steps in columns.items()]
            table.add_row(str(step), *cells)
        for mode, replayed in self.replayed.items():
            notes = replayed.notes if isinstance(replayed, ReplayedSteps) else (replayed,)
            for note in notes:
                if note not in self.state.opened.incident.notes:
                    self.notify(note, title=mode)

    def _steps_by_mode(self) -> dict[str, dict[int, ReplayedStep]]:
        """Steps by number, by mode; without the modes that could not be replayed."""
        return {
            mode: {step.step: step for step in replayed.steps}
            for mode, replayed in self.replayed.items()
            if isinstance(replayed, ReplayedSteps)
        }

    def as_text(self) -> str:
        """The modes, and the steps that were replayed."""
        report = self.state.report
        if report is None:
            return ""
        verdict = report.verdict
        lines = [f"{verdict.kind}: {VERDICT_MEANINGS[verdict.kind]}"]
        for evidence in verdict.evidence:
            outcome = "finite" if evidence.finite else "non-finite"
            lines.append(f"{evidence.mode}\t{outcome}\t{exactness(evidence)}")
        lines += [f"{name}\t{value}" for name, value in self._facts(report)]
        for mode, replayed in self.replayed.items():
            if isinstance(replayed, ReplayedSteps):
                for step in replayed.steps:
                    lines.append(f"{mode}\tstep {step.step}\t{_cell(step, {}, mode).plain}")
        return "\n".join(lines)


def _cell(step: ReplayedStep | None, colours: Mapping[str, str], mode: str) -> Text:
    """One step in one mode: whether it is finite, its loss, how near it is to the recording."""
    if step is None:
        return Text("")
    mark, _, colour = outcome_mark(step.finite)
    loss = readable_number(step.loss) if step.loss is not None else ""
    nearness = ""
    if step.bit_exact is not None and mode != "float64":  # float64 never has the recorded bits
        nearness = "  bit for bit" if step.bit_exact else f"  {readable_ulp(step.max_ulp)}"
    return Text.assemble((f"{mark} ", cell_style(colour, colours)), loss, (nearness, "dim"))
