"""Plots over steps: one series with axes for the timeline, and the loss alone for the overview.

Both mark the failing step. `SeriesPlot` draws with plotext, whose drawing is slow and is done by a
thread; `LossLine`, which the first picture shows, draws its few dots itself.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
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

from nanreplay.report.history import History, Series, thinned
from nanreplay.tui.widgets.op_words import short_number

_STEP_TICKS = 4
"""Parts between the ticks of the axis of steps."""
_VALUE_TICKS = 4
"""Parts between the ticks of the axis of values, about."""
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
    failing: int | None
    """The failing step; None where none failed."""
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
    plot.yaxes(True, False)  # no axis to the right: the failing step, often the last, hides in it
    return plot


def _value_ticks(low: float, high: float) -> list[float]:
    """Round values within a range: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not 0 < span < math.inf:
        return [low]
    least = span / _VALUE_TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next((factor * power for factor in (1, 2, 5, 10) if factor * power >= least), span)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)] or [low]


def _draw_steps(
    plot: Plot, spec: PlotSpec, first: int, last: int, colours: Mapping[str, str]
) -> None:
    """Ticks of the steps, the failing step and the cursor."""
    plot.xlim(first, max(last, first + 1))  # plotext divides by the length of the axis
    ticks = sorted({round(tick) for tick in _value_ticks(first, last)} | {first, last})
    # The ends are always told; a tick too near to one would write over it.
    least = (last - first) / (2 * _STEP_TICKS)
    ticks = [
        tick for tick in ticks if tick in (first, last) or min(tick - first, last - tick) >= least
    ]
    plot.xticks([float(tick) for tick in ticks], list(map(str, ticks)))
    at_cursor = int(spec.history.steps[spec.cursor])
    if spec.failing is not None and first <= spec.failing <= last:
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


# The loss as a curve


class LossLine(Widget):
    """The recorded losses as a curve, as large as there is room.

    Args:
        history: The capture's timeline.
        failing: The failing step; None where none failed.
    """

    DEFAULT_CSS = "LossLine { height: 5; width: 1fr; }"

    def __init__(self, history: History, failing: int | None) -> None:
        super().__init__()
        self.history = history
        self.failing = failing

    def show(self, failing: int | None) -> None:
        """Mark another step."""
        self.failing = failing
        self.refresh()

    def render(self) -> Content:
        """Draw the curve, its highest and lowest loss, and the step below."""
        return Content("\n").join(loss_lines(self.history, self.failing, self.size))


def loss_lines(history: History, failing: int | None, size: Size) -> list[Content]:
    """The curve with the failing step as a line, the mark below, and the first and last loss.

    Args:
        history: The timeline.
        failing: The step that is marked; None for none.
        size: The room.
    """
    losses = history.loss.values
    if not len(losses):
        return [Content("no losses were recorded")]
    finite = losses[np.isfinite(losses)]
    ends = [f"{short_number(float(losses[0]))} at step {history.steps[0]}"]
    if len(losses) > 1:
        ends.append(f"{short_number(float(losses[-1]))} at step {history.steps[-1]}")
    summary = Content.styled(", ".join(ends), "dim")
    if len(finite) < 2:
        return [_failing_mark(failing, 0, size.width), summary]
    steep = history.loss.is_steep and finite.min() > 0
    labels = short_number(float(finite.max())), short_number(float(finite.min()))
    margin = max(map(len, labels)) + 1
    width, height = max(size.width - margin, 2), max(size.height - 2, 1)
    with np.errstate(all="ignore"):  # what is not finite leaves a gap
        heights = np.log10(losses) if steep else losses
    at = history.position(failing) if failing is not None else None
    column = None if at is None else at * (width - 1) // max(len(losses) - 1, 1)
    lines = []
    for row, cells in enumerate(braille_curve(heights, width, height)):
        label = labels[0] if row == 0 else labels[1] if row == height - 1 else ""
        lines.append(_curve_line(label.rjust(margin - 1) + " ", cells, column))
    return [*lines, _failing_mark(failing, margin + (column or 0), size.width), summary]


def _failing_mark(failing: int | None, column: int, width: int) -> Content:
    words = "" if failing is None else _mark_line(f"▲ step {failing}", column, width)
    return Content.styled(words, "$text-error")


def _curve_line(label: str, cells: str, column: int | None) -> Content:
    """A line of the curve, with the line of the failing step where the curve leaves room."""
    if column is None:
        return Content.assemble((label, "dim"), (cells, "$text-primary"))
    at = cells[column] if cells[column] != " " else "┊"
    return Content.assemble(
        (label, "dim"),
        (cells[:column], "$text-primary"),
        (at, "$text-error"),
        (cells[column + 1 :], "$text-primary"),
    )


_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a braille character, by line and column (Unicode 15, section 21.1)."""


def braille_curve(values: NDArray[np.float64], width: int, height: int) -> list[str]:
    """A curve through values at equal distances, two by four dots a character.

    Args:
        values: At least two finite ones; the curve has a gap where one is not finite.
        width: Columns.
        height: Lines.
    """
    if len(values) > 2 * width:  # of many steps the highest counts: a jump must not disappear
        shares = np.array_split(np.where(np.isfinite(values), values, -np.inf), 2 * width)
        values = np.array([share.max() for share in shares])
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    # Between two values the curve is a straight line; a gap on one side stays a gap.
    at = np.linspace(0, len(values) - 1, 2 * width)
    before = np.floor(at).astype(int)
    after = np.minimum(before + 1, len(values) - 1)
    share = at - before
    with np.errstate(all="ignore"):
        between = np.where(
            share == 0, values[before], values[before] * (1 - share) + values[after] * share
        )
    rows = (1 - (between - low) / ((high - low) or 1.0)) * (4 * height - 1)
    bits = np.zeros((height, width), int)
    last: int | None = None
    for x, y in enumerate(rows):
        if not np.isfinite(y):
            last = None
            continue
        row = round(y)
        # A steep part is filled from the dot before, so that it is one line and no cloud of dots.
        first = row if last is None else last + (row > last) - (row < last)
        for dot in range(min(first, row), max(first, row) + 1):
            bits[dot // 4, x // 2] |= _DOTS[dot % 4][x % 2]
        last = row
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in line) for line in bits]


def _mark_line(label: str, column: int, width: int) -> str:
    """A label that begins with its mark, the mark at a column; left of it where the room ends."""
    if column + len(label) <= width:
        return " " * column + label
    mark, _, words = label.partition(" ")
    return f"{words.rjust(column - 1)} {mark}"
