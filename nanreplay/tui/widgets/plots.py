"""The loss in one line of bars, with the failing step marked below."""

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
from nanreplay.report.numbers import readable_number

# A plot of one series over steps, with the failing step and the cursor as vertical lines.

_TICKS = 4
_PAUSE_S = 0.08
"""How long a cursor rests before the plots follow it."""


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
        self._drawn: list[Strip] = []
        self.is_drawn = False
        """Whether the picture is that of the last wish."""

    def draw(self, spec: PlotSpec) -> None:
        """Draw something else, once no newer wish has come for a moment."""
        if self._spec is None or spec != self._spec:
            self._spec = spec
            self._make()

    def on_resize(self) -> None:
        """Draw for another size."""
        self._make()

    def notify_style_update(self) -> None:
        """Draw in other colours."""
        super().notify_style_update()
        self._make()

    def _make(self) -> None:
        self.is_drawn = False
        self._draw_soon()

    @work(exclusive=True)
    async def _draw_soon(self) -> None:
        await asyncio.sleep(_PAUSE_S)
        if self._spec is not None and self.size.area:
            self._drawn = await asyncio.to_thread(
                strips_of, self._spec, self.size, self.app.theme_variables
            )
            self.is_drawn = True
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return a line of what was drawn last."""
        width = self.size.width
        return (
            self._drawn[y].adjust_cell_length(width, self.rich_style)
            if y < len(self._drawn)
            else Strip.blank(width, self.rich_style)
        )


def strips_of(spec: PlotSpec, size: Size, colours: Mapping[str, str]) -> list[Strip]:
    """The plot, ready to be put on the screen; as `drawn`."""
    lines = Segment.split_lines(drawn(spec, size, colours).render(Console()))
    return [Strip(Segment.simplify(line)) for line in lines]


def drawn(spec: PlotSpec, size: Size, colours: Mapping[str, str]) -> Text:
    """The plot as text.

    Args:
        spec: What to draw.
        size: The room for it.
        colours: The theme's variables.
    """
    history, series = spec.history, spec.series
    plot = Plot()
    plot.plotsize(size.width, size.height)
    plot._set_size(
        size.width, size.height
    )  # as textual-plotext does: else no larger than the terminal that plotext believes to be in
    for paint, name in (
        (plot.canvas_color, "background"),
        (plot.axes_color, "background"),
        (plot.ticks_color, "foreground"),
    ):
        paint(_rgb(colours[name]))
    steps, values = (
        history.steps[spec.part.start : spec.part.stop],
        series.values[spec.part.start : spec.part.stop],
    )
    if spec.logarithmic:
        with np.errstate(all="ignore"):
            values = np.log10(np.where(values > 0, values, np.nan))
    x, y = thinned(steps, values, 2 * max(size.width, 40))
    name = f"{series.name} (log)" if spec.logarithmic else series.name
    if x:
        plot.title(name)
        plot.plot(x, y, marker="braille" if len(x) > 1 else "dot", color=_rgb(colours["primary"]))
        low, high = min(y), max(y)
        ticks = [low] if low == high else [low + (high - low) * part / 3 for part in range(4)]
        plot.yticks(ticks, [_label(tick, spec.logarithmic) for tick in ticks])
    else:
        plot.title(f"{name}: no finite value here")
    _draw_steps(plot, spec, int(steps[0]), int(steps[-1]), colours)
    return Text.from_ansi(plot.build())


def _draw_steps(
    plot: Plot, spec: PlotSpec, first: int, last: int, colours: Mapping[str, str]
) -> None:
    """Ticks of the steps, the failing step and the cursor."""
    plot.xlim(first, max(last, first + 1))
    marks = sorted({first + round((last - first) * part / _TICKS) for part in range(_TICKS + 1)})
    plot.xticks([float(mark) for mark in marks], [str(mark) for mark in marks])
    at = int(spec.history.steps[spec.cursor])
    if first <= spec.failing <= last:
        plot.vline(spec.failing, _rgb(colours["error"]))
    if at != spec.failing and first <= at <= last:
        plot.vline(at, _rgb(colours["accent"]))


def _label(value: float, logarithmic: bool) -> str:
    if not logarithmic:
        return f"{value:.3g}".rjust(8)
    return (f"{10**value:.2g}" if abs(value) < 300 else f"1e{value:.0f}").rjust(8)


def _rgb(colour: str) -> tuple[int, int, int]:
    return Color.parse(colour).rgb


# --- tui.widgets.lossline


class LossLine(Widget):
    """Bars of the recorded losses; as wide as there is room.

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
    values = history.loss.values
    if not len(values):
        return [Content("no losses were recorded")]
    each = max(min(size.width // len(values), 4), 1)
    shown = max(min(size.width, len(values)), 1)
    bars = [
        "".join(bar * each for bar in line)
        for line in bar_lines(values, shown, max(size.height - 2, 1))
    ]
    width = shown * each
    place = min(history.position(failing) * shown // len(values) * each + each // 2, width - 1)
    finite = [
        f"{readable_number(float(f'{value:.4g}'))} at step {step}"
        for step, value in zip(history.steps, values, strict=True)
    ]
    label = f"▲ step {failing}"
    mark = (
        " " * place + label
        if place + len(label) <= max(size.width, width)
        else label[2:].rjust(place - 1) + " ▲"
    )
    ends = f"{finite[0]}, {finite[-1]}" if len(finite) > 1 else finite[0]
    return [
        *(
            Content.assemble(
                *((bar, "bold $text-error" if bar == "✗" else "$text-primary") for bar in line)
            )
            for line in bars
        ),
        Content.styled(mark, "$text-error"),
        Content.styled(ends, "dim"),
    ]
