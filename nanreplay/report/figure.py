"""The run up to the incident as one SVG picture: a curve each for loss, gradients and rates, and gradients layer by layer."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from nanreplay.report.history import MEASURES, History, LayerTable, Series, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    series = [each for each in history.series if np.unique(each.values[np.isfinite(each.values)]).size > 1 or each is history.loss]
    table = history.table("gradient_norm" if "gradient_norm" in history.measures or not history.measures else history.measures[0])
    layers = min(len(table.layers), _MOST_LAYERS)
    if not len(history.steps) or not (series or layers):
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    heights = [_CURVE_HEIGHT] * len(series) + ([0.5 + layers * _ROW_HEIGHT] if layers else [])
    look: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "nanreplay", "font.family": "sans-serif", "font.size": 8.5}
    look.update(dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK))
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
        panel.plot(bad, np.full(len(bad), 0.06), "x", transform=across, color=MARK, markersize=5, clip_on=False)
    panel.set_ylabel(series.name)
    _bare(panel)
    _marks(panel, history)


def _layers(panel: Axes, history: History, table: LayerTable, layers: int) -> None:
    """Each layer's values by their magnitude within the layer; white where they were not finite."""
    edges = np.append(history.steps, history.steps[-1] + 1) - 0.5
    panel.pcolormesh(edges, np.arange(layers + 1) - 0.5, table.levels[:layers], cmap="cividis", vmin=0, vmax=1, rasterized=True)
    panel.set_yticks(range(layers), table.layers[:layers])
    panel.invert_yaxis()
    shown = "" if layers == len(table.layers) else f", the first {layers} of {len(table.layers)} layers"
    panel.set_title(f"{MEASURES[table.measure]} within each layer, dark is small{shown}", loc="left", fontsize=8.5)
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
