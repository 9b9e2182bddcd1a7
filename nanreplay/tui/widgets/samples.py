"""One sample of a batch beside its neighbours, array by array, for the batch pane.

Numbers are a table with distances from the usual; images, token ids and texts stand side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.containers import Lines
from rich.style import Style
from rich.text import Text

from nanreplay.explore import BatchView, Leaf
from nanreplay.records import batch_name
from nanreplay.report.numbers import index_words
from nanreplay.report.sample_choice import STRANGE, element_order, index_in_sample, is_sequence
from nanreplay.tui.widgets.figures import image_text
from nanreplay.tui.widgets.op_words import theme_style
from nanreplay.tui.widgets.tensor_table import cell_words

_CELL = 11
"""Columns of a number in a table."""
_INDEX = 10
"""Columns of an element's index."""
_MOST_LINES = 200
_WIDEST_IMAGE = 32
"""Columns of an image, at most; larger ones lose pixels."""


@dataclass(frozen=True)
class SampleLook:
    """How samples are drawn."""

    width: int
    """Columns that there are."""
    colours: Mapping[str, str]
    """The theme's variables."""
    strangest_first: bool
    """Whether the elements of tables are in the order of their distance."""
    plain: bool
    """Whether there are no colours."""

    def style(self, name: str) -> Style:
        """A colour of the theme, e.g. `text-muted`."""
        return theme_style(self.colours, name)


def sample_text(view: BatchView, row: int, look: SampleLook) -> Text:
    """Every array of a batch, for one sample.

    Args:
        view: The batch, with the sample and its neighbours.
        row: The sample.
        look: How it is drawn.
    """
    lines: list[Text] = []
    for leaf in view.leaves:
        about = f"  {leaf.dtype}{index_words(leaf.shape)}  {leaf.kind}"
        heading = ((batch_name(leaf.path), "bold"), (about, look.style("text-muted")))
        lines += [Text.assemble(*heading), *_leaf_lines(view, leaf, row, look), Text("")]
    return Text("\n").join(lines)


def _leaf_lines(view: BatchView, leaf: Leaf, row: int, look: SampleLook) -> Iterator[Text]:
    has_samples = bool(leaf.shape) and leaf.shape[0] == view.size
    if not has_samples and leaf.samples.size == 1:
        yield Text(f"  {cell_words(leaf.samples.reshape(-1)[0])[0]} for all samples")
    elif not has_samples:
        yield Text("  not of samples")
    elif leaf.kind == "image":
        yield from image_lines(view, leaf, row, look)
    elif is_sequence(leaf):
        yield from sequence_lines(view, leaf, row, look)
    else:
        yield from _element_lines(view, leaf, row, look)


def _neighbours(view: BatchView, row: int, most: int) -> list[int]:
    """The nearest neighbours of a sample, as many as fit, in the order of the batch."""
    others = [other for other in view.shown if other != row]
    others.sort(key=lambda other: (abs(other - row), other))
    return sorted(others[: max(most, 0)])


# Tables of numbers: an element in each line, with value, distance, what is usual, and the
# neighbours' values.


def _element_lines(view: BatchView, leaf: Leaf, row: int, look: SampleLook) -> Iterator[Text]:
    values, scores = view.values(leaf, row), view.scores(leaf, row)
    fixed_width = 2 + _INDEX + 4 * _CELL  # mark, index, value, z, mean, deviation
    others = _neighbours(view, row, (look.width - fixed_width) // _CELL)
    usual_titles = ("z", "mean", "deviation") if scores is not None else ()
    titles = (f"sample {row}", *usual_titles, *map(str, others))
    heading = "  " + "element".ljust(_INDEX) + "".join(title.rjust(_CELL) for title in titles)
    yield Text(heading, look.style("text-muted"))
    neighbour_values = [view.values(leaf, other) for other in others]
    order = element_order(values, scores if look.strangest_first else None)
    for element in order[:_MOST_LINES].tolist():
        line = _element_line(leaf, element, values, scores, look)
        for other in neighbour_values:
            line.append(cell_words(other[element])[0].rjust(_CELL))
        yield line
    if len(order) > _MOST_LINES:
        yield Text(f"  and {len(order) - _MOST_LINES} more elements", look.style("text-muted"))


def _element_line(
    leaf: Leaf,
    element: int,
    values: NDArray[Any],
    scores: NDArray[np.float64] | None,
    look: SampleLook,
) -> Text:
    """Mark, index and value of one element; its distance and what is usual where that is known."""
    text, colour = cell_words(values[element])
    score = float(scores[element]) if scores is not None else 0.0
    is_strange = colour is not None or abs(score) >= STRANGE
    mark = " "
    if colour is not None:  # cell_words colours what is not finite
        mark = "✗"
    elif is_strange:
        mark = "▲" if score > 0 else "▼"
    strange_style = look.style(colour or "text-warning")
    index = index_in_sample(leaf, element)
    line = Text.assemble((f"{mark} ", strange_style), (index_words(index) or "value").ljust(_INDEX))
    line.append(text.rjust(_CELL), strange_style if is_strange else "bold")
    if scores is not None and leaf.mean is not None and leaf.deviation is not None:
        z = "" if np.isnan(score) else f"{score:+.3g}"
        line.append(z.rjust(_CELL), look.style("text-warning") if is_strange else "")
        usual = (leaf.mean.reshape(-1)[element], leaf.deviation.reshape(-1)[element])
        words = "".join(cell_words(value)[0].rjust(_CELL) for value in usual)
        line.append(words, look.style("text-muted"))
    return line


# Sequences and images


def sequence_lines(view: BatchView, leaf: Leaf, row: int, look: SampleLook) -> Iterator[Text]:
    """One sample in each line, cut at the width."""
    room = max(look.width - 14, 10)
    for other in view.shown:
        words = " ".join(cell_words(value)[0] for value in view.values(leaf, other))
        if len(words) > room:
            words = words[: room - 1] + "…"
        is_chosen = other == row
        yield Text.assemble(
            ("▌ " if is_chosen else "  ", look.style("text-accent")),
            (f"{other:>6}  {words}", "bold" if is_chosen else ""),
        )


def image_lines(
    view: BatchView, leaf: Leaf, row: int, look: SampleLook, good: int | None = None
) -> Iterator[Text]:
    """The sample and as many neighbours as fit, side by side, then the range of its values.

    Args:
        view: The batch.
        leaf: Its images.
        row: The sample.
        look: How it is drawn.
        good: The one other sample to show, made small enough to fit; the neighbours unless given.
    """
    pixels = leaf.shape[2]
    widest = _WIDEST_IMAGE if good is None else min(_WIDEST_IMAGE, look.width // 2 - 2)
    scale = max(widest // pixels, 1)
    # Of a larger image, each second or third pixel is shown.
    width = pixels * scale if pixels <= widest else -(-pixels // -(-pixels // widest))
    others = [good] if good is not None else _neighbours(view, row, look.width // (width + 2) - 1)
    shown = [leaf.samples[view.shown.index(other)] for other in (row, *others)]
    titles = [f"sample {row}", *(f"sample {other}" for other in others)]
    line = Text("  ")
    for title, style in zip(titles, ("bold", *["dim"] * len(others)), strict=True):
        line.append(title[:width].ljust(width + 2), style)
    yield line
    for lines in zip(*_pictures(leaf, shown, scale, width, look), strict=True):
        line = Text("  ")
        for part in lines:
            line.append_text(part).append("  ")
        yield line
    yield _range_line(leaf, view, row, look)


def _pictures(
    leaf: Leaf, images: Sequence[NDArray[Any]], scale: int, width: int, look: SampleLook
) -> list[Lines]:
    """The lines of each image. All share black and white, so that they can be compared.

    Black and white are the 1st and 99th percentile of all samples that are known, shown or not:
    one outlier would make all else grey, and an even image would be black beside none.
    """
    known = leaf.samples.astype(np.float64)
    finite = known[np.isfinite(known)]
    low, high = np.percentile(finite, [1, 99]).tolist() if finite.size else (0.0, 1.0)
    larger = (
        image.astype(np.float64).repeat(scale, axis=0).repeat(scale, axis=1) for image in images
    )
    return [
        image_text(image, look.colours, width, low=low, high=high, plain=look.plain).split("\n")
        for image in larger
    ]


def _range_line(leaf: Leaf, view: BatchView, row: int, look: SampleLook) -> Text:
    values = view.values(leaf, row).astype(np.float64)
    finite = values[np.isfinite(values)]
    words = "nothing finite"
    if finite.size:
        low, high = float(finite.min()), float(finite.max())
        words = f"{low:.4g} everywhere"
        if low < high:
            words = f"from {low:.4g} to {high:.4g}, mean {finite.mean():.4g}"
    scores = view.scores(leaf, row)
    known = np.abs(scores[np.isfinite(scores)]) if scores is not None else np.zeros(0)
    if known.size and known.max() >= STRANGE:
        words = f"{words.partition(',')[0]}, {known.max():.3g} deviations from the usual"
    return Text(f"  {words}", look.style("text-muted"))
