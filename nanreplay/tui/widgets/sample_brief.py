"""The failing sample in few lines, for the first screen: what stands out, beside a good sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from nanreplay.explore import BatchView, Leaf
from nanreplay.records import batch_name
from nanreplay.report.numbers import index_words
from nanreplay.report.sample_choice import (
    STRANGE,
    element_order,
    good_row,
    index_in_sample,
    is_sequence,
    shown_row,
)
from nanreplay.tui.widgets.samples import SampleLook, image_lines, sequence_lines
from nanreplay.tui.widgets.tensor_table import cell_words


def brief_lines(view: BatchView, look: SampleLook, most: int) -> Iterator[Text]:
    """Each array of the failing sample beside a good one: picture, sequence, or strange elements.

    Args:
        view: The batch.
        look: How it is drawn.
        most: Elements of an array, at most.
    """
    row, good = shown_row(view), good_row(view)
    pair = replace(view, shown=tuple(view.shown))
    for leaf in view.leaves:
        if not leaf.shape or leaf.shape[0] != view.size:
            continue
        about = f"  {leaf.dtype}{index_words(leaf.shape)}  {leaf.kind}"
        yield Text.assemble((batch_name(leaf.path), "bold"), (about, look.style("text-muted")))
        if leaf.kind == "image":
            yield from image_lines(pair, leaf, row, look)
        elif is_sequence(leaf):
            yield from _two_of(sequence_lines(pair, leaf, row, look), view, row, good)
        else:
            yield from _element_lines(view, leaf, look, most)


def _two_of(lines: Iterator[Text], view: BatchView, row: int, good: int | None) -> Iterator[Text]:
    for other, line in zip(view.shown, lines, strict=True):
        if other in (row, good):
            yield line


def _element_lines(view: BatchView, leaf: Leaf, look: SampleLook, most: int) -> Iterator[Text]:
    """The strangest elements: `▲ [0]  70539.8  usual 5.6 ± 1.2  in sample 17: 5.1`."""
    row, good = shown_row(view), good_row(view)
    values, scores = view.values(leaf, row), view.scores(leaf, row)
    beside = None if good is None else view.values(leaf, good)
    order = element_order(values, scores)
    if not any(_is_strange(values[i], scores, i) for i in order[:most].tolist()):
        if len(values) > most and values.dtype.kind in "fiu":
            low, high = (cell_words(each)[0] for each in (values.min(), values.max()))
            yield Text(f"  {len(values)} elements from {low} to {high}, none stands out")
            return
        order = np.arange(len(values))
    for element in order[:most].tolist():
        yield _element_line(view, leaf, element, look, beside)
    if len(order) > most:
        yield Text(f"  and {len(order) - most} more", look.style("text-muted"))


def _is_strange(value: object, scores: NDArray[np.float64] | None, element: int) -> bool:
    """Whether an element is not finite, or far from the usual."""
    is_far = scores is not None and abs(float(scores[element])) >= STRANGE
    return is_far or cell_words(value)[1] is not None


def _element_line(
    view: BatchView, leaf: Leaf, element: int, look: SampleLook, beside: object
) -> Text:
    row, good = shown_row(view), good_row(view)
    text, colour = cell_words(view.values(leaf, row)[element])
    scores = view.scores(leaf, row)
    score = float(scores[element]) if scores is not None else 0.0
    is_strange = _is_strange(view.values(leaf, row)[element], scores, element)
    mark = "✗" if colour is not None else ("▲" if score > 0 else "▼") if is_strange else " "
    style = look.style(colour or "text-warning") if is_strange else "bold"
    index = index_words(index_in_sample(leaf, element))
    line = Text.assemble((f"{mark} ", style), f"{index:<8} ", (text, style))
    if leaf.mean is not None and leaf.deviation is not None:
        mean, deviation = (
            cell_words(each.reshape(-1)[element])[0] for each in (leaf.mean, leaf.deviation)
        )
        line.append(f"   usual {mean} ± {deviation}", look.style("text-muted"))
    if beside is not None:
        value = cell_words(np.asarray(beside)[element])[0]
        line.append(f"   sample {good}: {value}", look.style("text-muted"))
    return line
