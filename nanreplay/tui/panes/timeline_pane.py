"""The timeline pane: how the run got to its incident.

Loss, gradient norm, learning rate and loss scale are plots; norms of layers by step are a table.
One cursor moves over both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid
from textual.reactive import reactive
from textual.widgets import Static

from nanreplay.findings import Root
from nanreplay.report.contents import Report
from nanreplay.report.history import MEASURES, History
from nanreplay.report.numbers import readable_number, readable_steps
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.panes.base import Copyable, Go, Pane
from nanreplay.tui.widgets.heat import HeatTable
from nanreplay.tui.widgets.plots import PlotSpec, SeriesPlot
from nanreplay.tui.widgets.text_box import TextBox


class TimelinePane(Pane):
    """Plots above, the table of layers below; one cursor for both."""

    HELP = (
        "How the run got to its incident. The plots show every recorded step; the table shows a "
        "measure of each layer, one column a step, as high as the value is large within its layer; "
        "✗ is NaN, ∞ infinite, · zero. The red line is the failing step. What is the same in every "
        "step has no plot."
    )
    DEFAULT_CSS = """
    TimelinePane #plots { grid-size: 2; grid-gutter: 0 1; height: 1fr; }
    TimelinePane #no-curve { height: auto; padding: 1 1; display: none; }
    TimelinePane.-no-curve #plots { display: none; }
    TimelinePane.-no-curve #no-curve { display: block; }
    TimelinePane #reading {
        height: 1; padding: 0 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis;
    }
    TimelinePane #heading { height: 1; padding: 0 1; color: $text-muted; text-wrap: nowrap; }
    TimelinePane HeatTable { height: auto; max-height: 45%; min-height: 2; margin: 0 0 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "a",
            "anomaly",
            "Anomaly",
            id="timeline.anomaly",
            tooltip="Go to the first step that was out of the ordinary",
        ),
        Binding(
            "f",
            "failing",
            "Failing",
            show=False,
            id="timeline.failing",
            tooltip="Go to the failing step",
        ),
        Binding(
            "enter", "open", "Open", id="timeline.open", tooltip="Look at the ops of this step"
        ),
        Binding(
            "m",
            "measure",
            "Measure",
            id="timeline.measure",
            tooltip="Gradient norm, weight norm or update ratio in the table",
        ),
        Binding(
            "p", "plot", "Plot", id="timeline.plot", tooltip="Another plot, where only one fits"
        ),
        Binding(
            "z",
            "zoom",
            "Zoom",
            show=False,
            id="timeline.zoom",
            tooltip="Plot all steps, or those of the table",
        ),
        Binding(
            "s",
            "scale",
            "Scale",
            show=False,
            id="timeline.scale",
            tooltip="Linear or logarithmic; by itself where values span magnitudes",
        ),
    ]
    # init=False: Textual would call the watchers before the widgets are there.
    measure: reactive[int] = reactive(0, init=False)
    """How often the user took the next measure; the number of measures is the modulus."""
    plot: reactive[int] = reactive(0, init=False)
    """How often the user took the next plot, in the same way."""
    is_zoomed: reactive[bool] = reactive(False, init=False)
    """Whether the plots show only the steps of the table."""
    is_log: reactive[bool | None] = reactive(None, init=False)
    """Whether the scale is logarithmic; None: each plot by its own values."""

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        opened = state.opened
        self.history = History(opened.timeline, opened.incident, opened.variables, opened.steps)

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with Grid(id="plots"):
            for index in range(len(self.history.series)):
                yield SeriesPlot(id=f"plot-{index}")
        yield Static(id="no-curve", markup=False)
        yield TextBox(id="reading")
        yield TextBox(id="heading")
        yield HeatTable()

    def on_mount(self) -> None:
        """Start at the failing step."""
        super().on_mount()
        self.heat = self.query_one(HeatTable)
        no_curve = _why_no_curve(self.history)
        self.set_class(bool(no_curve), "-no-curve")
        self.query_one("#no-curve", Static).update(no_curve)
        self._show_measure()
        self.heat.cursor = self.history.position(self.state.failing_step)
        self.call_after_refresh(self._draw)

    def show_report(self, report: Report) -> None:
        """Mark the origin's step."""
        if self.is_mounted:
            self._draw()

    def show_place(self, place: ViewPosition) -> None:
        """Put the cursor at a step."""
        self.heat.cursor = self.history.position(place.step)

    # What is drawn

    def on_resize(self) -> None:
        """Fit anew, once the widgets have their new sizes."""
        self.call_after_refresh(self._draw)

    def watch_measure(self) -> None:
        """Show another measure."""
        self._show_measure()
        self._draw()

    def _show_measure(self) -> None:
        measures = self.history.measures
        table = self.history.table(measures[self.measure % len(measures)]) if measures else None
        self.heat.show(table, len(self.history.steps))
        self.heat.styles.height = len(table.layers) if table is not None else 1

    def watch_plot(self) -> None:
        """Show another plot."""
        self._draw()

    def watch_is_zoomed(self) -> None:
        """Plot more or fewer steps."""
        self._draw()

    def watch_is_log(self) -> None:
        """Plot in another scale."""
        self._draw()

    @on(HeatTable.Moved)
    def _moved(self) -> None:
        self._draw()

    def _draw(self) -> None:
        if not len(self.history.steps) or not self.is_attached:
            self.query_one("#reading", Static).update("No timeline was recorded.")
            return
        self.query_one("#reading", Static).update(self.reading())
        self.query_one("#heading", Static).update(self.heading())
        visible = self.heat.in_view
        part = visible if self.is_zoomed and len(visible) else range(len(self.history.steps))
        self._draw_plots(part)

    def _draw_plots(self, part: range) -> None:
        """Draw each plot that fits: all of them, or one where there is little room.

        Args:
            part: Positions of the steps to draw.
        """
        plots, drawn = list(self.query(SeriesPlot)), _worth_a_plot(self.history)
        is_alone = self.screen.has_class("-narrow") or self.screen.has_class("-short")
        grid = self.query_one("#plots", Grid)
        grid.styles.grid_size_columns = 1 if is_alone else _plot_columns(len(drawn))
        for position, (plot, series) in enumerate(zip(plots, self.history.series, strict=True)):
            chosen = drawn[self.plot % len(drawn) :][:1] if is_alone else drawn
            plot.display = position in chosen
            if plot.display:
                spec = PlotSpec(
                    history=self.history,
                    series=series,
                    part=part,
                    cursor=self.heat.cursor,
                    failing=self.state.failing_step if self.state.has_failed else None,
                    logarithmic=series.is_steep if self.is_log is None else self.is_log,
                )
                plot.draw(spec)

    def reading(self) -> Text:
        """The numbers at the cursor."""
        step = self.step
        line = Text.assemble((f"step {step}", "bold"))
        if step == self.state.failing_step and self.state.has_failed:
            line = Text.assemble((f"✗ the failing step {step}", "bold"))
        elif step == self.anomaly.step:
            line = Text.assemble((f"▲ the first anomaly, step {step}", "bold"))
        drawn = _worth_a_plot(self.history)
        for position, series in enumerate(self.history.series):
            value = readable_number(float(f"{series.values[self.heat.cursor]:.5g}"))
            line.append(" · ", "dim").append(f"{series.name} {value}")
            if position not in drawn and len(self.history.steps) > 1:
                line.append(" in every step", "dim")
        if step not in self.history.window:
            line.append(" · ", "dim").append("not in the window: cannot be replayed", "dim")
        return line

    def heading(self) -> Text:
        """Name of the measure, and which steps the table shows."""
        measures, visible = self.history.measures, self.heat.in_view
        name = MEASURES[measures[self.measure % len(measures)]] if measures else "layers"
        if not len(visible):
            return Text(name)
        first = str(self.history.steps[visible[0]])
        last = str(self.history.steps[visible[-1]])
        columns = len(visible) * self.heat.cell_width
        ends = first
        if first != last and columns > len(first + last):
            ends += last.rjust(columns - len(first))
        return Text(name.ljust(self.heat.label_width) + ends)

    # Keys

    @property
    def step(self) -> int:
        """The step at the cursor."""
        return int(self.history.steps[self.heat.cursor])

    @property
    def anomaly(self) -> Root:
        """The first step that was out of the ordinary, as the report says, else the timeline."""
        root = self.state.report.findings.root if self.state.report is not None else None
        return root or self.history.root

    def action_anomaly(self) -> None:
        """Go to the first anomaly and say what it is."""
        anomaly = self.anomaly
        self.heat.cursor = self.history.position(anomaly.step)
        self.notify(anomaly.reason, title=f"Step {anomaly.step}")

    def action_failing(self) -> None:
        """Go to the failing step."""
        self.heat.cursor = self.history.position(self.state.failing_step)

    @on(HeatTable.Chosen)
    def action_open(self) -> None:
        """Look at the ops of the step."""
        if self.step not in self.history.window:
            window = readable_steps(self.history.window)
            self.notify(f"Only {window} can be replayed.", severity="warning")
            return
        self.post_message(Go("bisect", ViewPosition(self.step)))

    def action_measure(self) -> None:
        """Take the next measure."""
        self.measure += 1

    def action_plot(self) -> None:
        """Take the next plot."""
        self.plot += 1

    def action_zoom(self) -> None:
        """Plot all steps, or those of the table."""
        self.is_zoomed = not self.is_zoomed

    def action_scale(self) -> None:
        """Take the other scale."""
        is_log = self.history.series[0].is_steep if self.is_log is None else self.is_log
        self.is_log = not is_log

    def copies(self) -> Sequence[Copyable]:
        """The numbers at the cursor, and why the first anomaly is one."""
        root = self.history.root
        return (
            Copyable("the numbers at the cursor", self.reading().plain),
            Copyable("the first anomaly", f"step {root.step}: {root.reason}"),
        )

    def as_text(self) -> str:
        """Every recorded step in columns, with nine digits, which tell float32 numbers apart."""
        all_series = self.history.series
        rows = [["step", *(series.name.replace(" ", "_") for series in all_series)]]
        for position, step in enumerate(self.history.steps.tolist()):
            rows.append([str(step), *(f"{series.values[position]:.9g}" for series in all_series)])
        return "\n".join("\t".join(row) for row in rows)


def _worth_a_plot(history: History) -> list[int]:
    """Positions of the series that change; the first one where none does.

    One that is the same in every step, as most learning rates are, is told in words.
    """
    changing = [
        position
        for position, series in enumerate(history.series)
        if len(np.unique(series.values[np.isfinite(series.values)])) > 1
    ]
    return changing or [0]


def _plot_columns(plots: int) -> int:
    """Plots side by side: up to three, and four as two by two."""
    return 2 if plots == 4 else min(plots, 3)


def _why_no_curve(history: History) -> str:
    """Why there is no curve to draw, with the numbers there are; "" where there is one."""
    if any(np.isfinite(series.values).sum() > 1 for series in history.series):
        return ""
    if not len(history.steps):
        return "No timeline was recorded."
    steps = readable_steps([int(step) for step in history.steps])
    verb = "is" if len(history.steps) == 1 else "are"
    numbers = [f"{series.name} {readable_number(series.values[-1])}" for series in history.series]
    if history.loss not in history.series and len(history.loss.values):
        numbers.insert(0, f"loss {readable_number(float(history.loss.values[-1]))}")
    lines = [f"{steps} {verb} all that was recorded: there is no curve to draw.", *numbers]
    return "\n".join(lines)
