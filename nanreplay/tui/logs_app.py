"""Logs and checkpoints in the terminal: the answer, the timeline, checkpoints with their variables.

`nanreplay open PATH` shows it where PATH holds no capture. All is read before the first picture;
nothing is replayed, so there is no worker process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import DataTable, Footer, Static, TabbedContent, TabPane

from nanreplay.logs.log_answer import LogAnswer
from nanreplay.logs.log_sentence import log_sentence
from nanreplay.logs.log_tables import (
    CHECKPOINT_HEADINGS,
    SERIES_HEADINGS,
    VARIABLE_HEADINGS,
    checkpoint_rows,
    series_order,
    series_rows,
    variable_rows,
)
from nanreplay.logs.logged_run import ScalarSeries
from nanreplay.logs.next_step import next_step
from nanreplay.records import Incident, Timeline, Trigger
from nanreplay.report.history import History, Series
from nanreplay.tui.app import THEMES, fitting_theme
from nanreplay.tui.terminal_app import TerminalApp
from nanreplay.tui.widgets.plots import PlotSpec, SeriesPlot

_MOST_ROWS = 2_000
_BAD = ("NaN", "inf", "-inf", "no")


class LogsApp(TerminalApp):
    """Shows what logs and checkpoints tell of one or several runs.

    Args:
        answers: The answers, at least one; that of a run which failed is shown first.
    """

    TITLE = "nanreplay"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #run { height: 1; padding: 0 1; background: $panel; text-style: bold; text-wrap: nowrap; }
    TabbedContent { height: 1fr; }
    TabPane { padding: 0; height: 1fr; }
    #text { padding: 1 2; }
    DataTable { height: 1fr; background: $background; }
    SeriesPlot { height: 2fr; }
    #variables-title { height: 1; padding: 0 1; background: $panel; text-wrap: nowrap; }
    *:nocolor .datatable--cursor { text-style: reverse; }
    *:nocolor Tab.-active { text-style: bold reverse; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "show('answer')", "Answer", tooltip="The sentence, and what to do next"),
        Binding("2", "show('timeline')", "Timeline", tooltip="Logged values, and the plot of one"),
        Binding("3", "show('checkpoints')", "Checkpoints", tooltip="Checkpoints and variables"),
        Binding("s", "scale", "Scale", tooltip="Linear or logarithmic"),
        Binding("n", "next_run", "Next run", tooltip="The next run that was found"),
        Binding("q", "quit", "Quit", tooltip="Leave nanreplay"),
    ]

    def __init__(self, answers: Sequence[LogAnswer]) -> None:
        super().__init__()
        self.answers = sorted(answers, key=lambda each: each.status != "nonfinite")
        self.shown = 0
        self.is_log: bool | None = None
        """Whether the plot is logarithmic; None: by its values."""
        self._plotted: dict[tuple[int, int], PlottedSeries] = {}
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = fitting_theme(self.console.color_system)
        self.animation_level = "none"

    @property
    def answer(self) -> LogAnswer:
        """The answer that is shown."""
        return self.answers[self.shown]

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static(id="run")
        with TabbedContent():
            with TabPane("Answer", id="answer"), VerticalScroll():
                yield Static(id="text")
            with TabPane("Timeline", id="timeline"), Vertical():
                yield SeriesPlot(id="plot")
                yield DataTable(id="series", cursor_type="row")
            with TabPane("Checkpoints", id="checkpoints"), Vertical():
                yield DataTable(id="files", cursor_type="row")
                yield Static(id="variables-title")
                yield DataTable(id="variables", cursor_type="row")
        yield Footer()

    def on_mount(self) -> None:
        """Show the first run."""
        self._show_run()

    def _show_run(self) -> None:
        answer = self.answer
        count = f"  (run {self.shown + 1} of {len(self.answers)})" if len(self.answers) > 1 else ""
        self.query_one("#run", Static).update(f"{answer.run.name}{count}")
        self.query_one("#text", Static).update(answer_text(answer))
        self._fill("#series", SERIES_HEADINGS, series_rows(answer, _MOST_ROWS))
        self._fill("#files", CHECKPOINT_HEADINGS, checkpoint_rows(answer.run.checkpoints))
        self._show_variables(0)
        self._show_series(0)

    def _fill(self, selector: str, headings: Sequence[str], rows: object) -> None:
        table = self.query_one(selector, DataTable)
        table.clear(columns=True)
        table.add_columns(*headings)
        for row in rows:  # type: ignore[attr-defined]
            table.add_row(*(_cell(cell) for cell in row))

    @on(DataTable.RowHighlighted, "#series")
    def _series_moved(self, event: DataTable.RowHighlighted) -> None:
        self._show_series(event.cursor_row)

    @on(DataTable.RowHighlighted, "#files")
    def _file_moved(self, event: DataTable.RowHighlighted) -> None:
        self._show_variables(event.cursor_row)

    def _show_series(self, row: int) -> None:
        order = series_order(self.answer)
        if row < len(order) and len(order[row]):
            key = (self.shown, row)
            if key not in self._plotted:
                self._plotted[key] = PlottedSeries(order[row], self.answer)
            self.query_one(SeriesPlot).draw(self._plotted[key].spec(self.is_log))

    def _show_variables(self, row: int) -> None:
        checkpoints = self.answer.run.checkpoints
        title = self.query_one("#variables-title", Static)
        if row >= len(checkpoints):
            title.update("No checkpoint was found.")
            self._fill("#variables", VARIABLE_HEADINGS, ())
            return
        chosen = checkpoints[row]
        before = checkpoints[row - 1] if row else None
        title.update(f"Variables of {chosen.path}")
        self._fill("#variables", VARIABLE_HEADINGS, variable_rows(chosen, before, _MOST_ROWS))

    # Keys

    def action_show(self, tab: str) -> None:
        """Show a tab."""
        self.query_one(TabbedContent).active = tab
        tables = {"timeline": "#series", "checkpoints": "#files"}
        if tab in tables:
            self.query_one(tables[tab], DataTable).focus()

    def action_scale(self) -> None:
        """Plot in the other scale."""
        row = self.query_one("#series", DataTable).cursor_row
        order = series_order(self.answer)
        if row < len(order):
            steep = Series("", order[row].values).is_steep
            self.is_log = not (steep if self.is_log is None else self.is_log)
            self._show_series(row)

    def action_next_run(self) -> None:
        """Show the next run."""
        self.shown = (self.shown + 1) % len(self.answers)
        self._show_run()


def _cell(text: str) -> Text:
    return Text(text, style="bold" if text in _BAD else "")


def answer_text(answer: LogAnswer) -> Text:
    """The sentence, the evidence, what to do next, notes."""
    text = Text(log_sentence(answer), style="bold")
    evidence = () if answer.found is None else answer.found.evidence
    for line in (*evidence, *answer.weights.growth):
        text.append(f"\n• {line}", "not bold")
    step = next_step(answer)
    if step is not None:
        text.append(f"\n\n{step.advice}\n", "not bold")
        for line in (step.shell, *step.python.splitlines()):
            if line:
                text.append(f"\n    {line}", "not bold")
        for line in step.log_more:
            text.append(f"\n• log {line}", "not bold")
    for note in answer.notes:
        text.append(f"\n\nnote: {note}", "not bold")
    return text


class PlottedSeries(History):
    """One series as the plots of a capture's timeline take it; equal to itself alone."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(self, series: ScalarSeries, answer: LogAnswer) -> None:
        last = series.chain()
        steps = last.steps.astype(np.int64)
        first, found = answer.first, answer.found
        self.failing = -1
        """The first non-finite step, -1 for none on this axis."""
        if first is not None and first.axis == series.axis:
            self.failing = int(first.step)
        anomaly = None if found is None else found.anomaly
        began = self.failing
        if anomaly is not None and anomaly.value.axis == series.axis:
            began = int(anomaly.value.step)
        self.began = min(max(int(np.searchsorted(steps, began)), 0), len(steps) - 1)
        """Position of the first anomaly; that of the first non-finite value without one."""
        self.plotted = Series(series.tag, last.values)
        incident = Incident(max(self.failing, 0), Trigger("loss", series.tag, "nan"))
        timeline = Timeline({"step": steps, "loss": last.values}, {}, ())
        super().__init__(timeline, incident, (), ())

    def spec(self, is_log: bool | None) -> PlotSpec:
        """What the plot shows.

        Args:
            is_log: Whether magnitudes are drawn; None: by the values.
        """
        has_magnitude = bool((self.plotted.values > 0).any())
        return PlotSpec(
            history=self,
            series=self.plotted,
            part=range(len(self.plotted.values)),
            cursor=self.began,
            failing=self.failing,
            logarithmic=self.plotted.is_steep if is_log is None else is_log and has_magnitude,
        )


def show_logs(answers: Sequence[LogAnswer]) -> None:
    """Show answers in the terminal until the user quits."""
    LogsApp(answers).run()
