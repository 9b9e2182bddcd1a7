"""How a run got to its incident: series by step, layers by step, the first step that was out of the ordinary. Needs numpy alone."""

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

# The run up to the incident as one SVG picture: a curve each for loss, gradients and rates, and
# gradients layer by layer.

INK = "#123456"
"""Colour of text and axes in the drawing; pages replace it by their own."""
CURVE, MARK, GROWTH = "#2f6fb3", "#c4372c", "#b07512"
_WIDTH, _CURVE_HEIGHT, _ROW_HEIGHT = 9.0, 1.45, 0.17  # inches
_POINTS = 600
_MOST_LAYERS = 40


def timeline_svg(history: History) -> str:
    """Draw the timeline; "" when it holds no numbers.

    The curves are logarithmic where they span magnitudes; steps at which a value was not finite are marked below their curve.
    """
    series = [
        each
        for each in history.series
        if np.unique(each.values[np.isfinite(each.values)]).size > 1 or each is history.loss
    ]
    table = history.table(
        "gradient_norm"
        if "gradient_norm" in history.measures or not history.measures
        else history.measures[0]
    )
    layers = min(len(table.layers), _MOST_LAYERS)
    if not len(history.steps) or not (series or layers):
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    heights = [_CURVE_HEIGHT] * len(series) + ([0.5 + layers * _ROW_HEIGHT] if layers else [])
    look: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "nanreplay",
        "font.family": "sans-serif",
        "font.size": 8.5,
    }
    look.update(
        dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
        )
    )
    with rc_context(look):
        figure = Figure(figsize=(_WIDTH, sum(heights) + 0.4), layout="constrained")
        panels = np.atleast_1d(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
        for panel, each in zip(panels, series, strict=False):
            _curve(panel, history, each)
        if layers:
            _layers(panels[-1], history, table, layers)
        panels[-1].set_xlabel("step")
        return _svg(figure)


def _curve(panel: Axes, history: History, series: Series) -> None:
    panel.plot(*thinned(history.steps, series.values, _POINTS), color=CURVE, linewidth=1.3)
    if series.is_steep:
        panel.set_yscale("log")
    bad = history.steps[~np.isfinite(series.values)]
    if 0 < len(bad) < len(history.steps):
        across = panel.get_xaxis_transform()  # x in steps, y in shares of the panel
        panel.plot(
            bad,
            np.full(len(bad), 0.06),
            "x",
            transform=across,
            color=MARK,
            markersize=5,
            clip_on=False,
        )
    panel.set_ylabel(series.name)
    _bare(panel)
    _marks(panel, history)


def _layers(panel: Axes, history: History, table: LayerTable, layers: int) -> None:
    """Each layer's values by their magnitude within the layer; white where they were not finite."""
    edges = np.append(history.steps, history.steps[-1] + 1) - 0.5
    panel.pcolormesh(
        edges,
        np.arange(layers + 1) - 0.5,
        table.levels[:layers],
        cmap="cividis",
        vmin=0,
        vmax=1,
        rasterized=True,
    )
    panel.set_yticks(range(layers), table.layers[:layers])
    panel.invert_yaxis()
    shown = (
        "" if layers == len(table.layers) else f", the first {layers} of {len(table.layers)} layers"
    )
    panel.set_title(
        f"{MEASURES[table.measure]} within each layer, dark is small{shown}",
        loc="left",
        fontsize=8.5,
    )
    _marks(panel, history)


def _marks(panel: Axes, history: History) -> None:
    panel.axvline(history.incident.step, color=MARK, linewidth=1, linestyle="--")
    if history.root.step != history.incident.step:
        panel.axvline(history.root.step, color=GROWTH, linewidth=1, linestyle=":")


def _bare(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.01)


def _svg(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


# --- report.history

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
"""Values that span more than this are drawn by magnitude."""


@dataclass(frozen=True)
class Series:
    """One number a step."""

    name: str
    """For people: `loss`, `gradient norm`, `learning rate`, `loss scale`."""
    values: Values
    """One a step of the history; NaN and infinities as they were recorded."""

    @property
    def is_steep(self) -> bool:
        """Whether it spans so many magnitudes, all of them positive, that only a logarithmic scale shows them."""
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
        """How large each value is within its layer, by magnitude, from 0 to 1; NaN where it is not finite."""
        with np.errstate(all="ignore"):
            logs = np.log10(np.abs(self.values))
        logs[~np.isfinite(logs)] = np.nan
        low, high = _extremes(logs)
        flat = ~(high > low)
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
        """Loss, gradient norm over all variables, learning rate, loss scale: those that were recorded."""
        found = (
            self.loss,
            Series("gradient norm", self._gradient_norm),
            Series("learning rate", self._column("learning_rate")),
            Series("loss scale", self._column("loss_scale")),
        )
        return tuple(each for each in found if np.isfinite(each.values).any())

    @cached_property
    def root(self) -> Root:
        """The first step that was out of the ordinary: where values began to grow without return, else the incident."""
        from nanreplay.bisect.growth import find_root

        return find_root(self.timeline, self.incident.step, [info.path for info in self.variables])

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """Measures that were recorded of the layers."""
        return tuple(name for name in MEASURES if self._is_recorded(name))

    def position(self, step: int) -> int:
        """Return where a step is in the columns; the nearest one's place for a step that is not held."""
        if not len(self.steps):
            return 0
        place = int(np.clip(np.searchsorted(self.steps, step), 0, len(self.steps) - 1))
        return (
            place - 1
            if place and abs(int(self.steps[place - 1]) - step) < abs(int(self.steps[place]) - step)
            else place
        )

    def table(self, measure: Measure) -> LayerTable:
        """Return one measure by layer and step."""
        matrix = self.timeline.matrix(measure)
        groups: dict[str, list[int]] = {}
        for column, variable in enumerate(self.timeline.variables if matrix.size else ()):
            groups.setdefault(layer_of(self.variables[variable].path), []).append(column)
        combine = _ratio if measure == "update_ratio" else _norm
        rows = [combine(matrix[:, columns]) for columns in groups.values()]
        return LayerTable(
            measure, tuple(groups), np.array(rows) if rows else np.zeros((0, len(self.steps)))
        )

    @cached_property
    def _gradient_norm(self) -> Values:
        matrix = self.timeline.matrix("gradient_norm")
        return _norm(matrix) if matrix.size else np.zeros(0)

    def _is_recorded(self, name: str) -> bool:
        """Whether a matrix holds anything: all NaN over several steps stands for what was not watched."""
        matrix = np.asarray(self.timeline.matrices.get(name, ()), np.float64)
        return bool(matrix.size and (len(self.steps) == 1 or not np.isnan(matrix).all()))

    def _column(self, name: str) -> Values:
        return np.asarray(self.timeline.columns.get(name, ()), np.float64)


def layer_of(path: str) -> str:
    """Return the layer of a variable: its path without the last name."""
    return path.rpartition("/")[0] or path


def bar_lines(values: Sequence[float] | NDArray[Any], width: int, rows: int = 1) -> list[str]:
    """Return values as bars, one a character: the last of each share of the steps; `✗` where one is not finite.

    Args:
        values: One a step.
        width: Most characters; no more than there are values.
        rows: Height of the bars in lines.
    """
    numbers = np.asarray(values, np.float64)
    if not len(numbers):
        return [""] * rows
    shares = np.array_split(numbers, min(width, len(numbers)))
    seen = [share[-1] if np.isfinite(share).all() else math.nan for share in shares]
    finite = [value for value in seen if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    if low > 0 and high / low > _STEEP:
        seen, low, high = (
            [math.log10(value) if math.isfinite(value) else value for value in seen],
            math.log10(low),
            math.log10(high),
        )
    most, span = rows * len(BARS), (high - low) or 1.0
    heights = [
        min(1 + int((value - low) / span * most), most) if math.isfinite(value) else 0
        for value in seen
    ]
    return ["".join(_bar(height, row) for height in heights) for row in reversed(range(rows))]


def _bar(height: int, row: int) -> str:
    """One character of a bar `height` eighths high; `✗` at the foot of what has no height."""
    if not height:
        return "✗" if row == 0 else " "
    above = height - row * len(BARS)
    return " " if above <= 0 else BARS[min(above, len(BARS)) - 1]


def thinned(
    steps: NDArray[np.int64], values: Values, points: int
) -> tuple[list[float], list[float]]:
    """Return at most about `points` finite points of a series: the least and the greatest of each share, in order."""
    keep = np.isfinite(values)
    steps, values = steps[keep], values[keep]
    if len(values) > points:
        kept: list[int] = []
        for share in np.array_split(np.arange(len(values)), max(points // 2, 1)):
            kept += sorted({int(share[values[share].argmin()]), int(share[values[share].argmax()])})
        steps, values = steps[kept], values[kept]
    return steps.astype(np.float64).tolist(), values.tolist()


def _norm(matrix: Values) -> Values:
    """Norm of each row, of norms; scaled, so that only what is infinite becomes infinite."""
    with np.errstate(all="ignore"):
        largest = np.abs(matrix).max(axis=1, initial=0.0)
        scale = np.where(np.isfinite(largest) & (largest > 0), largest, 1.0)
        norms: Values = np.sqrt(np.square(matrix / scale[:, None]).sum(axis=1)) * scale
    return norms


def _ratio(matrix: Values) -> Values:
    with np.errstate(all="ignore"):
        largest: Values = np.where(
            np.isnan(matrix).all(axis=1), np.nan, np.fmax.reduce(matrix, axis=1)
        )
    return largest


def _extremes(logs: Values) -> tuple[Values, Values]:
    """Least and greatest of each row, as columns; NaN in a row of NaN alone."""
    unknown = np.isnan(logs).all(axis=1)
    low = np.where(unknown, np.nan, np.fmin.reduce(logs, axis=1, initial=np.inf))
    high = np.where(unknown, np.nan, np.fmax.reduce(logs, axis=1, initial=-np.inf))
    return low[:, None], high[:, None]
