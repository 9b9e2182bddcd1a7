"""How a run got to its incident: series by step, layers by step, and the same as a picture.

The terminal interface and the pages draw from a `History`. Needs numpy alone; only `timeline_svg`
loads matplotlib.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nanreplay.findings import Root
from nanreplay.records import Incident, Timeline, VariableInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values: TypeAlias = NDArray[np.float64]
Measure: TypeAlias = Literal["gradient_norm", "weight_norm", "update_ratio"]
MEASURES: dict[Measure, str] = {
    "gradient_norm": "gradient norm",
    "weight_norm": "weight norm",
    "update_ratio": "update ratio",
}
"""What is recorded of each variable at each step, and its name for people."""
BARS = "▁▂▃▄▅▆▇█"
_STEEP = 1e3
"""Values whose largest is more than this times their smallest are drawn by magnitude."""


@dataclass(frozen=True)
class Series:
    """One number a step."""

    name: str
    """For people: `loss`, `gradient norm`, `learning rate`, `loss scale`."""
    values: Values
    """One a step of the history; NaN and infinities as they were recorded."""

    @property
    def is_steep(self) -> bool:
        """Whether it is positive and spans so many magnitudes that only a log scale shows them."""
        finite = self.values[np.isfinite(self.values)]
        return bool(finite.size and finite.min() > 0 and finite.max() / finite.min() > _STEEP)


@dataclass(frozen=True)
class LayerTable:
    """One measure of each layer at each step."""

    measure: Measure
    layers: tuple[str, ...]
    """Paths of layers that have trainable variables, in the order of the capture's variables."""
    values: Values
    """[layer, step]; the norm over the layer's variables, or the largest of their ratios."""

    @cached_property
    def levels(self) -> Values:
        """How large each value is within its layer, from 0 to 1; NaN where it is not finite.

        By magnitude: 1e-4, 1e-2 and 1.0 give 0.0, 0.5 and 1.0. A zero has no magnitude and gives
        0.0; values of a layer that are all the same give 0.5.
        """
        with np.errstate(all="ignore"):
            logs = np.log10(np.abs(self.values))
        logs[~np.isfinite(logs)] = np.nan
        low, high = _extremes(logs)
        flat = ~(high > low)  # not `high <= low`: comparisons with NaN are False
        levels = np.where(flat, 0.5, (logs - low) / np.where(flat, 1.0, high - low))
        levels = np.where(self.values == 0, 0.0, levels)
        return np.where(np.isfinite(self.values), levels, np.nan)


@dataclass(frozen=True)
class History:
    """The timeline of a capture, made ready to be shown."""

    timeline: Timeline
    incident: Incident
    variables: Sequence[VariableInfo]
    window: tuple[int, ...]
    """Steps whose batches are held."""

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """The steps, ascending."""
        return np.asarray(self.timeline.columns.get("step", ()), np.int64)

    @cached_property
    def loss(self) -> Series:
        """The loss of each step."""
        return Series("loss", self._column("loss"))

    @cached_property
    def series(self) -> tuple[Series, ...]:
        """Loss, gradient norm over all variables, learning rate, loss scale, where recorded."""
        candidates = (
            self.loss,
            Series("gradient norm", self._gradient_norm),
            Series("learning rate", self._column("learning_rate")),
            Series("loss scale", self._column("loss_scale")),
        )
        return tuple(series for series in candidates if np.isfinite(series.values).any())

    @cached_property
    def root(self) -> Root:
        """The step at which values began to grow without return; the incident's without one."""
        from nanreplay.bisect.growth import find_root

        return find_root(self.timeline, self.incident.step, [info.path for info in self.variables])

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """Measures that were recorded of the layers."""
        return tuple(name for name in MEASURES if self._is_recorded(name))

    def position(self, step: int) -> int:
        """Return the row of a step, or of the nearest one where the step is not held."""
        if not len(self.steps):
            return 0
        after = int(np.clip(np.searchsorted(self.steps, step), 0, len(self.steps) - 1))
        before = max(after - 1, 0)
        to_before = abs(int(self.steps[before]) - step)
        to_after = abs(int(self.steps[after]) - step)
        return before if to_before < to_after else after

    def table(self, measure: Measure) -> LayerTable:
        """Return one measure by layer and step."""
        matrix = self.timeline.matrix(measure)
        if not matrix.size:
            return LayerTable(measure, (), np.zeros((0, len(self.steps))))
        columns_of: dict[str, list[int]] = {}
        for column, variable in enumerate(self.timeline.variables):
            columns_of.setdefault(layer_of(self.variables[variable].path), []).append(column)
        combine = _largest_ratio if measure == "update_ratio" else _norm
        rows = []
        for columns in columns_of.values():
            rows.append(combine(matrix[:, columns]))
        return LayerTable(measure, tuple(columns_of), np.array(rows))

    @cached_property
    def _gradient_norm(self) -> Values:
        matrix = self.timeline.matrix("gradient_norm")
        return _norm(matrix) if matrix.size else np.zeros(0)

    def _is_recorded(self, name: str) -> bool:
        """Whether a matrix holds anything: what was not measured is all NaN over several steps."""
        matrix = np.asarray(self.timeline.matrices.get(name, ()), np.float64)
        return bool(matrix.size and (len(self.steps) == 1 or not np.isnan(matrix).all()))

    def _column(self, name: str) -> Values:
        return np.asarray(self.timeline.columns.get(name, ()), np.float64)


def layer_of(path: str) -> str:
    """Return the layer of a variable: its path without the last name."""
    return path.rpartition("/")[0] or path


def bar_lines(values: Sequence[float] | NDArray[Any], width: int, rows: int = 1) -> list[str]:
    """Return values as bars, one a character; `✗` where a value is not finite.

    Each bar is the last value of an equal share of the steps.

    Args:
        values: One a step.
        width: Most characters; no more than there are values.
        rows: Height of the bars in lines.
    """
    numbers = np.asarray(values, np.float64)
    if not len(numbers):
        return [""] * rows
    # one non-finite value marks its whole share: it must not disappear among hundreds of steps
    shares = np.array_split(numbers, min(width, len(numbers)))
    shown, finite = [], []
    for share in shares:
        if np.isfinite(share).all():
            shown.append(share[-1])
            finite.append(share[-1])
        else:
            shown.append(math.nan)
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    if low > 0 and high / low > _STEEP:
        low, high = math.log10(low), math.log10(high)
        shown = [math.log10(value) if math.isfinite(value) else value for value in shown]
    heights = []
    for value in shown:
        heights.append(_bar_height(value, low, high, rows * len(BARS)))
    return [_bar_line(heights, row) for row in reversed(range(rows))]


def _bar_height(value: float, low: float, high: float, most: int) -> int:
    """Height in eighths of a line, from 1 to `most`; 0 where the value is not finite."""
    if not math.isfinite(value):
        return 0
    share = (value - low) / ((high - low) or 1.0)
    return min(1 + int(share * most), most)


def _bar_line(heights: Sequence[int], row: int) -> str:
    return "".join(_bar(height, row) for height in heights)


def _bar(height: int, row: int) -> str:
    """One character of a bar `height` eighths high; `✗` at the foot of what has no height."""
    if not height:
        return "✗" if row == 0 else " "
    above = height - row * len(BARS)
    return " " if above <= 0 else BARS[min(above, len(BARS)) - 1]


def thinned(
    steps: NDArray[np.int64], values: Values, points: int
) -> tuple[list[float], list[float]]:
    """Return at most about `points` finite points of a series, as steps and values.

    They are the least and the greatest of each share of the steps, in order, so that a peak of a
    single step stays in the plot.
    """
    keep = np.isfinite(values)
    steps, values = steps[keep], values[keep]
    if len(values) > points:
        kept: list[int] = []
        for share in np.array_split(np.arange(len(values)), max(points // 2, 1)):
            least, greatest = share[values[share].argmin()], share[values[share].argmax()]
            kept += sorted({int(least), int(greatest)})
        steps, values = steps[kept], values[kept]
    return steps.astype(np.float64).tolist(), values.tolist()


def _norm(matrix: Values) -> Values:
    """Norm of each row, of norms."""
    # scaled by the largest, since the square of a large finite norm is infinite in float64
    with np.errstate(all="ignore"):
        largest = np.abs(matrix).max(axis=1, initial=0.0)
        scale = np.where(np.isfinite(largest) & (largest > 0), largest, 1.0)
        norms: Values = np.sqrt(np.square(matrix / scale[:, None]).sum(axis=1)) * scale
    return norms


def _largest_ratio(matrix: Values) -> Values:
    """Largest of each row, NaN left out; NaN for a row of NaN alone."""
    with np.errstate(all="ignore"):
        largest: Values = np.fmax.reduce(matrix, axis=1)
        unknown = np.isnan(matrix).all(axis=1)
        result: Values = np.where(unknown, np.nan, largest)
    return result


def _extremes(logs: Values) -> tuple[Values, Values]:
    """Least and greatest of each row, as columns; NaN in a row of NaN alone."""
    unknown = np.isnan(logs).all(axis=1)
    low = np.where(unknown, np.nan, np.fmin.reduce(logs, axis=1, initial=np.inf))
    high = np.where(unknown, np.nan, np.fmax.reduce(logs, axis=1, initial=-np.inf))
    return low[:, None], high[:, None]


# The run up to the incident as one SVG picture: a curve each for loss, gradients and rates, and
# gradients layer by layer below them.

INK = "#123456"
"""Colour of text and axes in the drawing; pages replace it by their own."""
CURVE, MARK, GROWTH = "#2f6fb3", "#c4372c", "#b07512"
_WIDTH, _CURVE_HEIGHT, _ROW_HEIGHT = 9.0, 1.45, 0.17  # inches
_POINTS = 600
"""Points of a curve."""
_MOST_LAYERS = 40
LOOK: dict[Any, Any] = {
    "text.parse_math": False,  # a name with a dollar is no formula
    "svg.fonttype": "none",  # text stays text, and takes the font of the page
    "svg.hashsalt": "nanreplay",  # the same ids in each run, so that pages can be compared
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
"""Settings of matplotlib."""


def timeline_svg(history: History) -> str:
    """Draw the timeline; "" when it holds no numbers, or a single step: one point is no curve.

    The curves are logarithmic where they span magnitudes. Steps at which a value was not finite are
    marked below their curve.
    """
    curves = []
    for series in history.series:
        # A learning rate that stays as it is needs no curve; the loss is always looked for.
        if series is history.loss or _changes(series.values):
            curves.append(series)
    table = history.table(_measure_of_layers(history))
    n_layers = min(len(table.layers), _MOST_LAYERS)
    if len(history.steps) < 2 or not (curves or n_layers):
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    heights = [_CURVE_HEIGHT] * len(curves)
    if n_layers:
        heights.append(0.5 + n_layers * _ROW_HEIGHT)
    with rc_context(LOOK):
        figure = Figure(figsize=(_WIDTH, sum(heights) + 0.4), layout="constrained")
        panels = np.atleast_1d(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
        for panel, series in zip(panels, curves, strict=False):
            _draw_curve(panel, history, series)
        if n_layers:
            _draw_layers(panels[-1], history, table, n_layers)
        panels[-1].set_xlabel("step")
        return figure_svg(figure)


def _changes(values: Values) -> bool:
    return np.unique(values[np.isfinite(values)]).size > 1


def _measure_of_layers(history: History) -> Measure:
    if "gradient_norm" in history.measures or not history.measures:
        return "gradient_norm"
    return history.measures[0]


def _draw_curve(panel: Axes, history: History, series: Series) -> None:
    panel.plot(*thinned(history.steps, series.values, _POINTS), color=CURVE, linewidth=1.3)
    if series.is_steep:
        scale_by_magnitude(panel)
    bad = history.steps[~np.isfinite(series.values)]
    if 0 < len(bad) < len(history.steps):
        across = panel.get_xaxis_transform()  # x in steps, y in shares of the panel
        heights = np.full(len(bad), 0.06)
        panel.plot(bad, heights, "x", transform=across, color=MARK, markersize=5, clip_on=False)
    panel.set_ylabel(series.name)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.01)
    _mark_steps(panel, history)


def _draw_layers(panel: Axes, history: History, table: LayerTable, n_layers: int) -> None:
    """Each layer's values by their magnitude within the layer; white where they were not finite."""
    # edges of the cells, half a step to each side of the steps
    edges = np.append(history.steps, history.steps[-1] + 1) - 0.5
    panel.pcolormesh(
        edges,
        np.arange(n_layers + 1) - 0.5,
        table.levels[:n_layers],
        cmap="cividis",
        vmin=0,
        vmax=1,
        rasterized=True,
    )
    panel.set_yticks(range(n_layers), table.layers[:n_layers])
    panel.invert_yaxis()
    title = f"{MEASURES[table.measure]} within each layer, dark is small"
    if n_layers < len(table.layers):
        title += f", the first {n_layers} of {len(table.layers)} layers"
    panel.set_title(title, loc="left", fontsize=8.5)
    _mark_steps(panel, history)


def _mark_steps(panel: Axes, history: History) -> None:
    """Mark the incident, and the step at which values began to grow."""
    panel.axvline(history.incident.step, color=MARK, linewidth=1, linestyle="--")
    if history.root.step != history.incident.step:
        panel.axvline(history.root.step, color=GROWTH, linewidth=1, linestyle=":")


def scale_by_magnitude(panel: Axes) -> None:
    """Give a panel a logarithmic axis, with numbers as numbers."""
    panel.set_yscale("log")
    # matplotlib writes formulas, which `text.parse_math` would show as they are written
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def figure_svg(figure: Any) -> str:
    """Write a figure as an SVG element in the colours of the page that it stands in."""
    file = io.StringIO()
    # A notebook that is not trusted shows the text of an SVG alone: its metadata would be read.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    for name, colour in (("curve", CURVE), ("mark", MARK), ("growth", GROWTH)):
        # a page has other colours on a dark ground; a picture alone has these
        text = text.replace(f": {colour}", f": var(--{name}, {colour})")
    return text
