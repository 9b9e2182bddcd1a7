"""A plot of one series over steps, with the failing step and the cursor as vertical lines."""

from __future__ import annotations

import math

import numpy as np
from textual.color import Color
from textual_plotext import PlotextPlot

from nanreplay.report.history import History, Series, thinned

_TICKS = 4


class SeriesPlot(PlotextPlot):
    """One series. Which part of the history is drawn, and how, is set by `draw`."""

    DEFAULT_CSS = "SeriesPlot { height: 1fr; width: 1fr; }"

    def draw(self, history: History, series: Series, part: range, *, cursor: int, failing: int, logarithmic: bool) -> None:
        """Draw a part of a series.

        Args:
            history: Where the series comes from.
            series: What to draw.
            part: Positions of the steps.
            cursor: Position of the cursor.
            failing: The failing step.
            logarithmic: Whether magnitudes are drawn in place of values.
        """
        colours, plot = self.app.theme_variables, self.plt
        plot.clear_figure()
        steps, values = history.steps[part.start : part.stop], series.values[part.start : part.stop]
        if logarithmic:
            with np.errstate(all="ignore"):
                values = np.log10(np.where(values > 0, values, np.nan))
        x, y = thinned(steps, values, 2 * max(self.size.width, 40))
        name = f"{series.name}, logarithmic" if logarithmic else series.name
        if not x:
            plot.title(f"{name}: no finite value here")
        else:
            plot.title(f"{name}: {_now(series, cursor)} at step {int(history.steps[cursor])}")
            plot.plot(x, y, marker="braille" if len(x) > 1 else "dot", color=_rgb(colours["primary"]))
            low, high = min(y), max(y)
            ticks = [low] if low == high else [low + (high - low) * i / 3 for i in range(4)]
            plot.yticks(ticks, [_label(tick, logarithmic) for tick in ticks])
        first, last = int(steps[0]), int(steps[-1])
        plot.xlim(first, max(last, first + 1))
        marks = sorted({first + round((last - first) * i / _TICKS) for i in range(_TICKS + 1)})
        plot.xticks([float(mark) for mark in marks], [str(mark) for mark in marks])
        if first <= failing <= last:
            plot.vline(failing, _rgb(colours["error"]))
        if history.steps[cursor] != failing and first <= history.steps[cursor] <= last:
            plot.vline(int(history.steps[cursor]), _rgb(colours["accent"]))
        self.refresh()


def _now(series: Series, cursor: int) -> str:
    value = float(series.values[cursor])
    return "NaN" if math.isnan(value) else f"{value:.4g}"


def _label(value: float, logarithmic: bool) -> str:
    if not logarithmic:
        return f"{value:.3g}".rjust(8)
    return (f"{10**value:.2g}" if abs(value) < 300 else f"1e{value:.0f}").rjust(8)


def _rgb(colour: str) -> tuple[int, int, int]:
    return Color.parse(colour).rgb
