"""Plots over steps: one series with axes for the timeline, and the loss as bars for the overview.

Both mark the failing step. `SeriesPlot` draws with plotext, whose drawing is slow and is done by a
thread; `LossLine` draws with block characters of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.segment import Segment
from rich.text import Text
from textual import work
from textual.color import Color
from textual.content import Content
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget
from textual_plotext import Plot

from nanreplay.report.history import History, Series, bar_lines, thinned
from nanreplay.tui.widgets.op_words import short_number

_STEP_TICKS = 4
"""Parts between the ticks of the axis of steps."""
_VALUE_TICKS = 3
"""Parts between the ticks of the axis of values."""
_TICK_WIDTH = 8
"""Columns of a tick's label, so that plots above each other align."""
_LARGEST_EXPONENT = 300
"""Beyond this, 10**x may not fit into a float."""
_FEWEST_COLUMNS = 40
_REST_S = 0.15
"""How long a cursor rests before the plots follow it: longer than a key that is held takes to come
again, since a plot takes longer than all else that the key does."""


@dataclass(frozen=True)
class PlotSpec:
    """What is drawn, and how."""

    history: History
    series: Series
    part: range
    """Positions of the steps."""
    cursor: int
    """Position of the cursor."""
    failing: int
    """The failing step."""
    logarithmic: bool
    """Whether magnitudes are drawn in place of values."""


class SeriesPlot(Widget):
    """One series. It is drawn by a thread, so that keys are answered meanwhile."""

    DEFAULT_CSS = "SeriesPlot { height: 1fr; width: 1fr; background: $background; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._spec: PlotSpec | None = None
        self._strips: list[Strip] = []
        """What was drawn last, as wide as the widget."""
        self._blank: Strip | None = None
        self.is_drawn = False
        """Whether the picture shows what was last asked for."""

    def draw(self, spec: PlotSpec) -> None:
        """Draw something else, once nothing newer is asked for during a moment."""
        if self._spec is None or spec != self._spec:
            self._spec = spec
            self._redraw()

    def on_resize(self) -> None:
        """Draw for another size."""
        self._redraw()

    def notify_style_update(self) -> None:
        """Draw in other colours; Textual calls this when the theme changes."""
        super().notify_style_update()
        self._redraw()

    def _redraw(self) -> None:
        self.is_drawn = False
        self._draw_soon()

    @work(exclusive=True)
    async def _draw_soon(self) -> None:
        # exclusive=True: a newer call cancels this one while it sleeps.
        await asyncio.sleep(_REST_S)
        if self._spec is not None and self.size.area:
            drawn = await asyncio.to_thread(
                plot_strips, self._spec, self.size, self.app.theme_variables
            )
            # Once, not at each line that is drawn: to ask for the style takes longer than the line.
            width, style = self.size.width, self.rich_style
            self._strips = [strip.adjust_cell_length(width, style) for strip in drawn]
            self._blank = Strip.blank(width, style)
            self.is_drawn = True
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return a line of what was drawn last."""
        if y < len(self._strips):
            return self._strips[y]
        return self._blank or Strip.blank(self.size.width, self.rich_style)


def plot_strips(spec: PlotSpec, size: Size, colours: Mapping[str, str]) -> list[Strip]:
    """The plot, ready to be put on the screen; the arguments are those of `plot_text`."""
    lines = Segment.split_lines(plot_text(spec, size, colours).render(Console()))
    return [Strip(Segment.simplify(line)) for line in lines]


def plot_text(spec: PlotSpec, size: Size, colours: Mapping[str, str]) -> Text:
    """The plot as text.

    Args:
        spec: What to draw.
        size: The room for it.
        colours: The theme's variables.
    """
    plot = _empty_plot(size, colours)
    shown = slice(spec.part.start, spec.part.stop)
    steps, values = spec.history.steps[shown], spec.series.values[shown]
    if spec.logarithmic:
        with np.errstate(all="ignore"):  # values that are not finite stay so, and leave a gap
            values = np.log10(np.where(values > 0, values, np.nan))
    # Braille has two dots a column: more points than that cannot be told apart.
    x, y = thinned(steps, values, 2 * max(size.width, _FEWEST_COLUMNS))
    name = f"{spec.series.name} (log)" if spec.logarithmic else spec.series.name
    if x:
        plot.title(name)
        plot.plot(x, y, marker="braille" if len(x) > 1 else "dot", color=_rgb(colours["primary"]))
        ticks = _value_ticks(min(y), max(y))
        plot.yticks(ticks, [_tick_label(tick, spec.logarithmic) for tick in ticks])
    else:
        plot.title(f"{name}: no finite value here")
    _draw_steps(plot, spec, int(steps[0]), int(steps[-1]), colours)
    return Text.from_ansi(plot.build())


def _empty_plot(size: Size, colours: Mapping[str, str]) -> Plot:
    plot = Plot()
    plot.plotsize(size.width, size.height)
    # plotext makes a plot no larger than the terminal, whose size it cannot know in a thread of
    # Textual. textual-plotext sets the size behind its back, and so does this.
    plot._set_size(size.width, size.height)
    plot.canvas_color(_rgb(colours["background"]))
    plot.axes_color(_rgb(colours["background"]))
    plot.ticks_color(_rgb(colours["foreground"]))
    return plot


def _value_ticks(low: float, high: float) -> list[float]:
    if low == high:
        return [low]
    return [low + (high - low) * part / _VALUE_TICKS for part in range(_VALUE_TICKS + 1)]


def _draw_steps(
    plot: Plot, spec: PlotSpec, first: int, last: int, colours: Mapping[str, str]
) -> None:
    """Ticks of the steps, the failing step and the cursor."""
    plot.xlim(first, max(last, first + 1))  # plotext divides by the length of the axis
    ticks = {
        first + round((last - first) * part / _STEP_TICKS) for part in range(_STEP_TICKS + 1)
    }  # a set: in a short range, several ticks fall on one step
    plot.xticks([float(tick) for tick in sorted(ticks)], [str(tick) for tick in sorted(ticks)])
    at_cursor = int(spec.history.steps[spec.cursor])
    if first <= spec.failing <= last:
        plot.vline(spec.failing, _rgb(colours["error"]))
    if at_cursor != spec.failing and first <= at_cursor <= last:
        plot.vline(at_cursor, _rgb(colours["accent"]))


def _tick_label(value: float, logarithmic: bool) -> str:
    if not logarithmic:
        label = f"{value:.3g}"
    elif abs(value) < _LARGEST_EXPONENT:
        label = f"{10**value:.2g}"
    else:
        label = f"1e{value:.0f}"
    return label.rjust(_TICK_WIDTH)


def _rgb(colour: str) -> tuple[int, int, int]:
    return Color.parse(colour).rgb


# The loss as bars

_WIDEST_BAR = 4


class LossLine(Widget):
    """Bars of the recorded losses, as wide as there is room.

    Args:
        history: The capture's timeline.
        failing: The failing step.
    """

    DEFAULT_CSS = "LossLine { height: 3; width: 1fr; }"

    def __init__(self, history: History, failing: int) -> None:
        super().__init__()
        self.history = history
        self.failing = failing

    def show(self, failing: int) -> None:
        """Mark another step."""
        self.failing = failing
        self.refresh()

    def render(self) -> Content:
        """Draw bars, mark and ends."""
        return Content("\n").join(loss_lines(self.history, self.failing, self.size))


def loss_lines(history: History, failing: int, size: Size) -> list[Content]:
    """The bars, the mark below, and the first and the last loss.

    Args:
        history: The timeline.
        failing: The step that is marked.
        size: The room.
    """
    losses = history.loss.values
    if not len(losses):
        return [Content("no losses were recorded")]
    # Few losses take several columns each; of many, `bar_lines` joins as many as needed in a bar.
    bar_width = max(min(size.width // len(losses), _WIDEST_BAR), 1)
    bars = max(min(size.width, len(losses)), 1)
    lines = [
        _coloured_bars("".join(bar * bar_width for bar in line))
        for line in bar_lines(losses, bars, max(size.height - 2, 1))
    ]
    width = bars * bar_width
    bar_of_failing = history.position(failing) * bars // len(losses)
    column = min(bar_of_failing * bar_width + bar_width // 2, width - 1)
    mark = _mark_line(f"▲ step {failing}", column, max(size.width, width))
    ends = [f"{short_number(float(losses[0]))} at step {history.steps[0]}"]
    if len(losses) > 1:
        ends.append(f"{short_number(float(losses[-1]))} at step {history.steps[-1]}")
    return [
        *lines,
        Content.styled(mark, "$text-error"),
        Content.styled(", ".join(ends), "dim"),
    ]


def _coloured_bars(line: str) -> Content:
    """A line of bars; ✗ stands for a loss that is not finite."""
    return Content.assemble(
        *((bar, "bold $text-error" if bar == "✗" else "$text-primary") for bar in line)
    )


def _mark_line(label: str, column: int, width: int) -> str:
    """A label that begins with its mark, the mark at a column; left of it where the room ends."""
    if column + len(label) <= width:
        return " " * column + label
    mark, _, words = label.partition(" ")
    return f"{words.rjust(column - 1)} {mark}"
