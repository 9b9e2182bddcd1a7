"""The verdict: the modes of replaying side by side, for the failing step and, when asked, for every step of the window."""

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


class VerdictPane(Pane):
    """What each way of replaying says."""

    HELP = (
        "The failing step in each way of replaying it: compiled as it was trained, compiled without XLA, op by op, and op by op in "
        "float64. Where one is finite and another is not, the op at which they part is named. `r` replays every step of the window in "
        "every mode, so that the first step that differs from the recording is seen."
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

    def on_mount(self) -> None:
        """Name the columns."""
        modes = self.query_one("#modes", DataTable)
        modes.add_columns("mode", "how it runs", "failing step", "recording")
        super().on_mount()

    def show_report(self, report: Report) -> None:
        """Show the failing step in each mode."""
        if not self.is_attached:
            return
        verdict = report.verdict
        said = Content.assemble(
            (verdict.kind.replace("_", " "), "bold"), "  ", VERDICT_MEANINGS[verdict.kind]
        )
        self.query_one("#kind", Static).update(said)
        table = self.query_one("#modes", DataTable)
        table.clear()
        for each in verdict.evidence:
            row = [
                Text(each.mode, style="bold"),
                Text(MODE_MEANINGS.get(each.mode, "")),
                self._outcome(each.finite),
                Text(exactness(each)),
            ]
            table.add_row(*row)
        self.query_one("#parting", Facts).show(self._facts(report))

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
        return Text.assemble(
            (f"{mark} ", cell_style(colour, self.app.theme_variables)),
            "finite" if finite else "non-finite",
        )

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
            except UnsupportedOpError as error:  # the other modes may do
                self.replayed[mode] = str(error)
            self._show_steps()

    def _modes(self) -> list[str]:
        """Modes that differ: a program without XLA is the same in `graph` as it was recorded."""
        jit = any(
            program["compilation"] == "xla" for program in self.state.opened.facts["programs"]
        )
        return [mode for mode in MODE_MEANINGS if jit or mode != "graph"]

    def _show_steps(self) -> None:
        table = self.query_one("#steps", DataTable)
        table.clear(columns=True)
        table.add_class("-filled")
        columns = {
            mode: {each.step: each for each in found.steps}
            for mode, found in self.replayed.items()
            if isinstance(found, ReplayedSteps)
        }
        table.add_columns("step", *columns)
        for step in sorted({step for found in columns.values() for step in found}):
            table.add_row(
                str(step),
                *(
                    _cell(found.get(step), self.app.theme_variables, mode)
                    for mode, found in columns.items()
                ),
            )
        for mode, found in self.replayed.items():
            notes = found.notes if isinstance(found, ReplayedSteps) else (found,)
            for note in notes:
                if note not in self.state.opened.incident.notes:
                    self.notify(note, title=mode)

    def as_text(self) -> str:
        """The modes, and the steps that were replayed."""
        report = self.state.report
        if report is None:
            return ""
        verdict = report.verdict
        lines = [f"{verdict.kind}: {VERDICT_MEANINGS[verdict.kind]}"]
        lines += [
            f"{each.mode}\t{'finite' if each.finite else 'non-finite'}\t{exactness(each)}"
            for each in verdict.evidence
        ]
        lines += [f"{name}\t{value}" for name, value in self._facts(report)]
        for mode, found in self.replayed.items():
            if isinstance(found, ReplayedSteps):
                lines += [
                    f"{mode}\tstep {each.step}\t{_cell(each, {}, mode).plain}"
                    for each in found.steps
                ]
        return "\n".join(lines)


def _cell(step: ReplayedStep | None, colours: Mapping[str, str], mode: str) -> Text:
    if step is None:
        return Text("")
    mark, _, colour = outcome_mark(step.finite)
    loss = readable_number(step.loss) if step.loss is not None else ""
    exact = (
        ""
        if step.bit_exact is None or mode == "float64"
        else "  bit for bit"
        if step.bit_exact
        else f"  {readable_ulp(step.max_ulp)}"
    )
    return Text.assemble((f"{mark} ", cell_style(colour, colours)), loss, (exact, "dim"))
