"""Small pictures out of characters: histograms, a map of non-finite elements, images in half cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from rich.text import Text
from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget

from nanreplay.explore import Histogram
from nanreplay.tui.widgets.op_words import number, tone

# Facts in two columns: a name, and what is said of it.

_NAME = 11
"""Columns of the names."""


class Facts(Widget):
    """Names to the left, values to the right; a value may take several lines. One widget, however many facts there are."""

    DEFAULT_CSS = "Facts { height: auto; }"

    def __init__(
        self, facts: Iterable[tuple[str, Content | str]] = (), *, id: str | None = None
    ) -> None:
        super().__init__(id=id)
        self.facts: Sequence[tuple[str, Content]] = _kept(facts)

    def show(self, facts: Iterable[tuple[str, Content | str]]) -> None:
        """Show other facts; those without a value are left out."""
        self.facts = _kept(facts)
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return how many lines the facts take at a width."""
        return len(self._lines(width))

    def render(self) -> Content:
        """Draw the facts."""
        return Content("\n").join(self._lines(self.size.width))

    def _lines(self, width: int) -> list[Content]:
        lines = []
        for name, value in self.facts:
            parts = value.wrap(max(width - _NAME, 10))
            lines.append(Content.assemble((name.ljust(_NAME), "$text-primary"), *parts[:1]))
            lines += [Content.assemble(" " * _NAME, part) for part in parts[1:]]
        return lines


def _kept(facts: Iterable[tuple[str, Content | str]]) -> Sequence[tuple[str, Content]]:
    return tuple(
        (name, Content(value) if isinstance(value, str) else value)
        for name, value in facts
        if value
    )


# --- tui.widgets.figures

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_SHADES = "░▒▓█"
_RAMP = " .:-=+*#%@"


def histogram_text(
    histogram: Histogram, colours: Mapping[str, str], width: int, height: int = 4
) -> Text:
    """Bars over their range: `height` lines of bars, then the ends of the range.

    Args:
        histogram: What is shown.
        colours: The theme's variables.
        width: Columns that there are.
        height: Lines of bars.
    """
    wide = max(min(width // len(histogram.counts), 2), 1)
    counts, most = histogram.counts, max(histogram.counts)
    levels = [0 if not count else max(round(count / most * height * 8), 1) for count in counts]
    bars = [
        "".join(_EIGHTHS[min(max(level - 8 * line, 0), 8)] * wide for level in levels)
        for line in reversed(range(height))
    ]
    ends = [
        f"1e{edge:.0f}" if histogram.scale == "log" else number(edge)
        for edge in (histogram.edges[0], histogram.edges[-1])
    ]
    axis = ends[0] + ends[1].rjust(max(wide * len(counts) - len(ends[0]), len(ends[1]) + 1))
    return Text("\n").join(
        [
            *(Text(line, tone(colours, "text-primary")) for line in bars),
            Text(axis, tone(colours, "text-muted")),
        ]
    )


def histogram_words(histogram: Histogram) -> str:
    """What a histogram is of: `absolute values, powers of ten, 12 of them 0, 40 below 0`."""
    kind = "absolute values, powers of ten" if histogram.scale == "log" else "values"
    signs = [
        f"{histogram.zeros} of them 0" if histogram.zeros else "",
        f"{histogram.negative} below 0" if histogram.negative else "",
    ]
    return ", ".join(filter(None, (kind, *signs)))


def map_text(
    share: NDArray[np.float64], colours: Mapping[str, str], width: int, height: int
) -> Text:
    """Where a tensor is not finite: `·` nowhere in a patch, darker the more of it is."""
    table = share[: max(height, 1), : max(width, 1)]
    shown, bad, muted = Text(), tone(colours, "text-error"), tone(colours, "text-disabled")
    for i, line in enumerate(table):
        shown.append("\n" if i else "")
        for part in line:
            shown.append(_SHADES[min(int(part * 4), 3)] if part else "·", bad if part else muted)
    return shown


def image_text(
    image: NDArray[Any],
    colours: Mapping[str, str],
    width: int,
    *,
    low: float,
    high: float,
    plain: bool,
) -> Text:
    """An image, two pixels in each cell; a pixel that is not finite as ✗.

    Args:
        image: Shape [height, width] or [height, width, channels].
        colours: The theme's variables.
        width: Columns that there are; larger images lose pixels.
        low: Value that is black.
        high: Value that is white.
        plain: Whether there are no colours: then brightness is told by characters.
    """
    pixels = image[..., None] if image.ndim == 2 else image
    step = max(-(-pixels.shape[1] // max(width, 1)), 1)
    pixels = pixels[::step, ::step].astype(np.float64)
    bad = ~np.isfinite(pixels).all(axis=-1)
    grey = np.clip((np.nan_to_num(pixels) - low) / ((high - low) or 1.0), 0, 1)
    shown = Text()
    for y in range(0, pixels.shape[0], 2):
        shown.append("\n" if y else "")
        for x in range(pixels.shape[1]):
            if bad[y : y + 2, x].any():
                shown.append("✗", tone(colours, "text-error"))
            elif plain:
                shown.append(
                    _RAMP[min(int(grey[y : y + 2, x].mean() * len(_RAMP)), len(_RAMP) - 1)]
                )
            else:
                shown.append(
                    "▀",
                    Style(color=_rgb(grey[y, x]), bgcolor=_rgb(grey[min(y + 1, len(grey) - 1), x])),
                )
    return shown


def _rgb(pixel: NDArray[np.float64]) -> str:
    channels = np.repeat(pixel[:1], 3) if len(pixel) < 3 else pixel[:3]
    return "#" + "".join(f"{round(channel * 255):02x}" for channel in channels.tolist())


def sample_bars(strangeness: NDArray[np.float64]) -> str:
    """One character a sample: how strange it is, in powers of two up to 32 standard deviations; `✗` non-finite."""
    levels = (
        np.clip(np.log2(np.maximum(np.nan_to_num(strangeness, posinf=1.0), 0.25)) + 2, 0, 7)
        .round()
        .astype(int)
    )
    return "".join(
        "✗" if np.isinf(value) else _EIGHTHS[1 + level]
        for value, level in zip(strangeness, levels, strict=True)
    )
