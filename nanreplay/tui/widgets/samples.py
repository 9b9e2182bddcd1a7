"""One sample of a batch beside its neighbours, array by array: tables with distances, images, token ids, labels and weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from nanreplay.explore import BatchView, Leaf
from nanreplay.tui.widgets.figures import image_text
from nanreplay.tui.widgets.op_words import index_words, tone
from nanreplay.tui.widgets.tensor_table import cell_words

STRANGE = 3.0
"""Standard deviations from which a value is marked."""
_CELL = 11
_LINES = 200
_WIDEST_IMAGE = 32


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


def sample_text(view: BatchView, row: int, look: SampleLook) -> Text:
    """Every array of a batch, for one sample."""
    parts = [
        part
        for leaf in view.leaves
        for part in (_heading(leaf, look), *_leaf_lines(view, leaf, row, look), Text(""))
    ]
    return Text("\n").join(parts)


def _heading(leaf: Leaf, look: SampleLook) -> Text:
    about = f"  {leaf.dtype}{index_words(leaf.shape)}  {leaf.kind}"
    return Text.assemble((f"batch[{leaf.path}]", "bold"), (about, tone(look.colours, "text-muted")))


def _leaf_lines(view: BatchView, leaf: Leaf, row: int, look: SampleLook) -> Iterator[Text]:
    if not leaf.shape or leaf.shape[0] != view.size:
        yield Text(
            f"  {cell_words(leaf.samples.reshape(-1)[0])[0]} for all samples"
            if leaf.samples.size == 1
            else "  not of samples"
        )
    elif leaf.kind == "image":
        yield from _images(view, leaf, row, look)
    elif leaf.kind in ("tokens", "text") or (
        leaf.kind == "labels" and leaf.mean is None and len(leaf.shape) > 1
    ):
        yield from _sequences(view, leaf, row, look)
    else:
        yield from _table(view, leaf, row, look)


def _neighbours(view: BatchView, row: int, fitting: int) -> list[int]:
    """The sample's neighbours, nearest first, as many as fit, in the order of the batch."""
    others = sorted(
        (other for other in view.shown if other != row), key=lambda other: (abs(other - row), other)
    )
    return sorted(others[: max(fitting, 0)])


def _table(view: BatchView, leaf: Leaf, row: int, look: SampleLook) -> Iterator[Text]:
    """Elements downwards: value, distance, what is usual, the neighbours' values."""
    values, scores = view.values(leaf, row), view.scores(leaf, row)
    others = _neighbours(view, row, (look.width - 12 - 4 * _CELL) // _CELL)
    titles = [f"sample {row}", *(("z", "mean", "deviation") if scores is not None else ())]
    heading = "".join(title.rjust(_CELL) for title in (*titles, *(f"{other}" for other in others)))
    yield Text("  " + "element".ljust(10) + heading, tone(look.colours, "text-muted"))
    order = np.arange(len(values))
    if look.strangest_first and scores is not None:
        order = np.argsort(
            -np.where(
                np.isfinite(values.astype(np.float64)), np.abs(np.nan_to_num(scores)), np.inf
            ),
            kind="stable",
        )
    beside = [view.values(leaf, other) for other in others]
    for i in order[:_LINES].tolist():
        index = (
            [int(axis) for axis in np.unravel_index(i, leaf.shape[1:])]
            if len(leaf.shape) > 1
            else []
        )
        text, colour = cell_words(values[i])
        score = float(scores[i]) if scores is not None else 0.0
        is_strange = colour is not None or abs(score) >= STRANGE
        mark = ("✗" if colour is not None else "▲" if score > 0 else "▼") if is_strange else " "
        line = Text.assemble(
            (f"{mark} ", tone(look.colours, colour or "text-warning")),
            (index_words(index) or "value").ljust(10),
        )
        line.append(
            text.rjust(_CELL),
            tone(look.colours, colour or "text-warning") if is_strange else "bold",
        )
        if scores is not None and leaf.mean is not None and leaf.deviation is not None:
            line.append(
                ("" if np.isnan(score) else f"{score:+.3g}").rjust(_CELL),
                tone(look.colours, "text-warning") if is_strange else "",
            )
            usual = (leaf.mean.reshape(-1)[i], leaf.deviation.reshape(-1)[i])
            line.append(
                "".join(cell_words(each)[0].rjust(_CELL) for each in usual),
                tone(look.colours, "text-muted"),
            )
        yield line.append("".join(cell_words(other[i])[0].rjust(_CELL) for other in beside))
    if len(order) > _LINES:
        yield Text(f"  and {len(order) - _LINES} more elements", tone(look.colours, "text-muted"))


def _sequences(view: BatchView, leaf: Leaf, row: int, look: SampleLook) -> Iterator[Text]:
    """A line a sample, cut at the width."""
    for other in view.shown:
        words = " ".join(cell_words(value)[0] for value in view.values(leaf, other))
        room = max(look.width - 14, 10)
        words = words if len(words) <= room else words[: room - 1] + "…"
        at = other == row
        yield Text.assemble(
            ("▌ " if at else "  ", tone(look.colours, "text-accent")),
            (f"{other:>6}  {words}", "bold" if at else ""),
        )


def _images(view: BatchView, leaf: Leaf, row: int, look: SampleLook) -> Iterator[Text]:
    """The sample and as many neighbours as fit, side by side; black and white are the values that nearly all of them lie between."""
    scale = 2 if leaf.shape[2] * 2 <= _WIDEST_IMAGE else 1
    width = min(leaf.shape[2] * scale, _WIDEST_IMAGE)
    shown = [row, *_neighbours(view, row, (look.width - 2) // (width + 2) - 1)]
    values = np.stack([leaf.samples[view.shown.index(other)] for other in shown]).astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [1, 99]).tolist() if finite.size else (0.0, 1.0)
    titles = ["▌ " + f"{row}".ljust(width), *(f"  {other}".ljust(width + 2) for other in shown[1:])]
    yield Text("".join(titles), tone(look.colours, "text-muted"))
    larger = values.repeat(scale, axis=1).repeat(scale, axis=2)
    pictures = [
        image_text(image, look.colours, width, low=low, high=high, plain=look.plain).split("\n")
        for image in larger
    ]
    for lines in zip(*pictures, strict=True):
        yield Text.assemble("  ", *(part for line in lines for part in (line, "  ")))
    yield _range(leaf, view, row, look)


def _range(leaf: Leaf, view: BatchView, row: int, look: SampleLook) -> Text:
    values = view.values(leaf, row).astype(np.float64)
    finite = values[np.isfinite(values)]
    words = (
        "nothing finite"
        if not finite.size
        else f"from {finite.min():.4g} to {finite.max():.4g}, mean {finite.mean():.4g}"
    )
    scores = view.scores(leaf, row)
    known = np.abs(scores[np.isfinite(scores)]) if scores is not None else np.zeros(0)
    far = f"; at most {known.max():.1f} deviations from the usual" if known.size else ""
    return Text(f"  {words}{far}", tone(look.colours, "text-muted"))
