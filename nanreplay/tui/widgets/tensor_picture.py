"""A tensor as a picture out of half-block cells, with what is not finite hatched.

A library such as rich-pixels draws images; this draws numbers, of which some are not finite and
must be seen at once, also where there are no colours.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.text import Text
from textual.widgets import Static

from nanreplay.explore import TensorView
from nanreplay.explore.pictures import Picture, reduced
from nanreplay.tui.widgets.figures import image_text
from nanreplay.tui.widgets.op_words import short_number, theme_style

_WORD_LINES = 2
_AXES_OF_IMAGES = ("batch", "height", "width", "channel")


class TensorPicture(Static, can_focus=True):
    """The picture of a tensor, as large as there is room for."""

    DEFAULT_CSS = """
    TensorPicture { height: 1fr; padding: 0 1; display: none; background: $background; }
    """

    def __init__(self) -> None:
        super().__init__(markup=False)
        self.view: TensorView | None = None

    def show(self, view: TensorView) -> None:
        """Show a tensor."""
        self.view = view
        self.draw()

    def on_resize(self) -> None:
        """Draw as large as there is room for."""
        self.draw()

    def draw(self) -> None:
        """Draw in the colours of the theme."""
        if self.view is None or not self.content_size.area:
            return
        picture = self.view.picture
        if picture is None:
            self.update("This tensor has no two axes to show as a picture.")
            return
        width, height = self.content_size
        self.update(
            picture_text(
                picture,
                self.view.stat.shape,
                self.app.theme_variables,
                (width, height),
                plain=self.app.no_color,
            )
        )


def picture_text(
    picture: Picture,
    shape: tuple[int, ...],
    colours: Mapping[str, str],
    room: tuple[int, int],
    *,
    plain: bool,
) -> Text:
    """The picture, and what it is of in words.

    Args:
        picture: What is shown.
        shape: Of the tensor.
        colours: The theme's variables.
        room: Columns and lines that there are.
        plain: Whether there are no colours.
    """
    width, height = room
    cells = reduced(picture.cells, max(2 * (height - _WORD_LINES), 2), max(width, 2))
    # A small picture is drawn larger, each cell the same number of times.
    times = max(min(width // cells.shape[1], 2 * (height - _WORD_LINES) // cells.shape[0], 8), 1)
    large = cells.repeat(times, axis=0).repeat(times, axis=1)
    finite = cells[np.isfinite(cells)]
    # The 1st and 99th percentile: one outlier would make all else grey.
    low, high = np.percentile(finite, [1, 99]).tolist() if finite.size else (0.0, 1.0)
    image = image_text(large, colours, large.shape[1], low=low, high=high, plain=plain)
    muted = theme_style(colours, "text-muted")
    bad = int(np.isnan(cells).sum())
    tones = f"dark {short_number(low)}, light {short_number(high)}" if finite.size else ""
    hatched = f"✗ is not finite ({bad} of {cells.size} patches)" if bad else ""
    if not finite.size:
        hatched = "✗ not finite, all of it"
    legend = ", ".join(filter(None, (tones, hatched)))
    return Text("\n").join([Text(what_is_shown(picture, shape), muted), Text(legend, muted), image])


def what_is_shown(picture: Picture, shape: tuple[int, ...]) -> str:
    """Which axes go down and across, and where the others are, in words."""
    down, across = picture.axes
    if down < 0:
        return f"kernel of {shape[2]} inputs (down) and {shape[3]} outputs (across), a tile each"
    is_image = len(shape) == 4 and (down, across) == (1, 2)
    names = _AXES_OF_IMAGES if is_image else tuple(f"axis {axis}" for axis in range(len(shape)))
    others = ", ".join(
        f"{names[axis]} {picture.at[axis]}"
        for axis in range(len(shape))
        if axis not in picture.axes
    )
    words = f"{names[down]} down ({picture.size[0]}), {names[across]} across ({picture.size[1]})"
    return f"{words}; {others}" if others else words
