"""Small pictures out of characters: histograms, a map of non-finite elements, images, bars.

The panes of a step draw tensors and batches with them. `Facts`, a list of names and values, stands
here as well; the overview and the verdict show it.
"""

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
from nanreplay.tui.widgets.op_words import short_number, theme_style

_FACT_NAME = 11
"""Columns of the names of facts."""
_NARROWEST_VALUE = 10


class Facts(Widget):
    """Names to the left, values to the right; a value may take several lines.

    One widget, however many facts there are: a widget for each would be slow to lay out.
    """

    DEFAULT_CSS = "Facts { height: auto; }"

    def __init__(
        self, facts: Iterable[tuple[str, Content | str]] = (), *, id: str | None = None
    ) -> None:
        super().__init__(id=id)
        self.facts = _with_values(facts)

    def show(self, facts: Iterable[tuple[str, Content | str]]) -> None:
        """Show other facts; those without a value are left out."""
        self.facts = _with_values(facts)
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
            parts = value.wrap(max(width - _FACT_NAME, _NARROWEST_VALUE))
            lines.append(Content.assemble((name.ljust(_FACT_NAME), "$text-primary"), *parts[:1]))
            lines += [Content.assemble(" " * _FACT_NAME, part) for part in parts[1:]]
        return lines


def _with_values(facts: Iterable[tuple[str, Content | str]]) -> Sequence[tuple[str, Content]]:
    """Facts that have a value, as Content."""
    return tuple(
        (name, Content(value) if isinstance(value, str) else value)
        for name, value in facts
        if value
    )


# Pictures

_EIGHTHS = " ▁▂▃▄▅▆▇█"
"""Bars by their height in eighths of a line."""
_SHADES = "░▒▓█"
"""Cells of a map by quarters of non-finite elements."""
_BRIGHTNESS = " .:-=+*#%@"
"""Characters from black to white, for terminals without colours."""


def histogram_text(
    histogram: Histogram, colours: Mapping[str, str], width: int, height: int = 4
) -> Text:
    """Bars over their range: `height` lines of bars, then the ends of the range.

    A bar of 11 eighths is one full line, and 3 eighths in the line above. A count that is not 0
    gets at least one eighth, so that a single element is seen beside many.

    Args:
        histogram: What is shown.
        colours: The theme's variables.
        width: Columns that there are.
        height: Lines of bars.
    """
    counts, most = histogram.counts, max(histogram.counts)
    bar_width = max(min(width // len(counts), 2), 1)
    levels = [max(round(count / most * height * 8), 1) if count else 0 for count in counts]
    lines = [
        Text(_bar_line(levels, line, bar_width), theme_style(colours, "text-primary"))
        for line in reversed(range(height))
    ]
    low, high = _edge_words(histogram, 0), _edge_words(histogram, -1)
    axis = low + high.rjust(max(bar_width * len(counts) - len(low), len(high) + 1))
    return Text("\n").join([*lines, Text(axis, theme_style(colours, "text-muted"))])


def _bar_line(levels: Sequence[int], line: int, bar_width: int) -> str:
    """One line of bars.

    Args:
        levels: Heights of the bars in eighths of a line.
        line: The line, counted from the bottom.
        bar_width: Columns of a bar.
    """
    eighths = (min(max(level - 8 * line, 0), 8) for level in levels)
    return "".join(_EIGHTHS[eighth] * bar_width for eighth in eighths)


def _edge_words(histogram: Histogram, end: int) -> str:
    """One end of the range; edges of a logarithmic histogram are exponents of ten."""
    edge = histogram.edges[end]
    return f"1e{edge:.0f}" if histogram.scale == "log" else short_number(edge)


def histogram_words(histogram: Histogram) -> str:
    """What a histogram is of: `|x| in powers of ten, 12 of them 0, 40 below 0`."""
    parts = ["|x| in powers of ten" if histogram.scale == "log" else "values"]
    if histogram.zeros:
        parts.append(f"{histogram.zeros} of them 0")
    if histogram.negative:
        parts.append(f"{histogram.negative} below 0")
    return ", ".join(parts)


def map_text(
    share: NDArray[np.float64], colours: Mapping[str, str], width: int, height: int
) -> Text:
    """Where a tensor is not finite: `·` nowhere in a patch, darker the more of it is.

    Args:
        share: Share of non-finite elements, from 0 to 1, by patch of the tensor.
        colours: The theme's variables.
        width: Columns that there are.
        height: Lines that there are.
    """
    picture = Text()
    bad, muted = theme_style(colours, "text-error"), theme_style(colours, "text-disabled")
    for i, line in enumerate(share[: max(height, 1), : max(width, 1)]):
        picture.append("\n" if i else "")
        for part in line:
            shade = _SHADES[min(int(part * 4), 3)] if part else "·"
            picture.append(shade, bad if part else muted)
    return picture


def image_text(
    image: NDArray[Any],
    colours: Mapping[str, str],
    width: int,
    *,
    low: float,
    high: float,
    plain: bool,
) -> Text:
    """An image, two pixels in each cell; a cell with a pixel that is not finite is ✗.

    A cell is about twice as high as wide. The upper half block takes the colour of the upper
    pixel, and its background that of the pixel below: pixels are square then.

    Args:
        image: Shape [height, width] or [height, width, channels].
        colours: The theme's variables.
        width: Columns that there are; larger images lose pixels.
        low: Value that is black.
        high: Value that is white.
        plain: Whether there are no colours: then brightness is told by characters.
    """
    pixels = image[..., None] if image.ndim == 2 else image
    step = max(-(-pixels.shape[1] // max(width, 1)), 1)  # columns by width, rounded up
    pixels = pixels[::step, ::step].astype(np.float64)
    bad = ~np.isfinite(pixels).all(axis=-1)
    brightness = np.clip((np.nan_to_num(pixels) - low) / ((high - low) or 1.0), 0, 1)
    picture = Text()
    for y in range(0, pixels.shape[0], 2):
        picture.append("\n" if y else "")
        for x in range(pixels.shape[1]):
            pair = brightness[y : y + 2, x]  # one pixel alone in the last line of an odd image
            if bad[y : y + 2, x].any():
                picture.append("✗", theme_style(colours, "text-error"))
            elif plain:
                position = min(int(pair.mean() * len(_BRIGHTNESS)), len(_BRIGHTNESS) - 1)
                picture.append(_BRIGHTNESS[position])
            else:
                style = Style(color=_hex_colour(pair[0]), bgcolor=_hex_colour(pair[-1]))
                picture.append("▀", style)
    return picture


def _hex_colour(pixel: NDArray[np.float64]) -> str:
    """A pixel of one channel (grey) or at least three, from 0 to 1, as `#rrggbb`."""
    channels = np.repeat(pixel[:1], 3) if len(pixel) < 3 else pixel[:3]
    return "#" + "".join(f"{round(channel * 255):02x}" for channel in channels.tolist())


def sample_bars(strangeness: NDArray[np.float64]) -> str:
    """One character a sample: how strange it is, or `✗` where it is not finite.

    The height grows by one eighth for each power of two: ▁ is a quarter of a standard deviation or
    less, ▃ is 1, ▅ is 4, █ is 32 or more.

    Args:
        strangeness: Standard deviations from the usual, by sample; inf for a non-finite sample.
    """
    deviations = np.maximum(np.nan_to_num(strangeness, posinf=1.0), 0.25)
    levels = np.clip(np.log2(deviations) + 2, 0, 7).round().astype(int)
    bars = (_EIGHTHS[1 + level] for level in levels)
    return "".join(
        "✗" if np.isinf(value) else bar for value, bar in zip(strangeness, bars, strict=True)
    )
