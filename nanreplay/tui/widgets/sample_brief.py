"""The failing sample in few lines, for the first screen: what stands out, beside a good sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
    for leaf in view.leaves:
        if not leaf.shape or leaf.shape[0] != view.size:
            continue
        about = f"  {leaf.dtype}{index_words(leaf.shape)}  {leaf.kind}"
        yield Text.assemble((batch_name(leaf.path), "bold"), (about, look.style("text-muted")))
        if leaf.kind == "image":
            yield from image_lines(view, leaf, row, look, good)
        elif is_sequence(leaf):
            yield from _two_of(sequence_lines(view, leaf, row, look), view, row, good)
        else:
            yield from _element_lines(view, leaf, look, most)


def _two_of(lines: Iterator[Text], view: BatchView, row: int, good: int | None) -> Iterator[Text]:
    for other, line in zip(view.shown, lines, strict=True):
        if other in (row, good):
            yield line


def _element_lines(view: BatchView, leaf: Leaf, look: SampleLook, most: int) -> Iterator[Text]:
    """The strangest elements, a line each, beside a good sample and what is usual."""
    row, good = shown_row(view), good_row(view)
    values, scores = view.values(leaf, row), view.scores(leaf, row)
    order = element_order(values, scores)
    if not any(_is_strange(values[i], scores, i) for i in order[:most].tolist()):
        if len(values) > most and values.dtype.kind in "fiu":
            low, high = (cell_words(each)[0] for each in (values.min(), values.max()))
            yield Text(f"  {len(values)} elements from {low} to {high}, none stands out")
            return
        order = np.arange(len(values))
    shown = order[:most].tolist()
    if len(values) == 1:  # a label, most often: a table of one cell would take two lines
        own, colour = cell_words(values[0])
        line = Text.assemble("  ", (own, look.style(colour) if colour is not None else "bold"))
        if good is not None:
            words = f"   sample {good}: {cell_words(view.values(leaf, good)[0])[0]}"
            line.append(words, look.style("text-muted"))
        yield line
        return
    columns = [
        ElementColumn("", [index_words(index_in_sample(leaf, i)) or "value" for i in shown]),
        ElementColumn(f"sample {row}", [cell_words(values[i])[0] for i in shown]),
    ]
    if good is not None:
        beside = view.values(leaf, good)
        columns.append(ElementColumn(f"sample {good}", [cell_words(beside[i])[0] for i in shown]))
    if leaf.mean is not None and leaf.deviation is not None:
        pairs = zip(leaf.mean.reshape(-1), leaf.deviation.reshape(-1), strict=True)
        usual = [f"{cell_words(mean)[0]} ± {cell_words(far)[0]}" for mean, far in pairs]
        columns.append(ElementColumn("usual", [usual[i] for i in shown]))
    while len(columns) > 2 and sum(column.width for column in columns) > look.width:
        columns.pop()
    yield Text("  " + "".join(column.cell(column.title) for column in columns), "dim")
    for position, element in enumerate(shown):
        yield _element_line(columns, position, values[element], scores, element, look)
    if len(order) > most:
        yield Text(f"  and {len(order) - most} more", look.style("text-muted"))


class ElementColumn(NamedTuple):
    """A column of the table of elements."""

    title: str
    words: Sequence[str]

    @property
    def width(self) -> int:
        """Columns of the terminal, with the blanks before it."""
        return max(map(len, (self.title, *self.words))) + 2

    def cell(self, words: str) -> str:
        """A cell: names to the left, numbers to the right."""
        return words.rjust(self.width) if self.title else words.ljust(self.width)


def _is_strange(value: object, scores: NDArray[np.float64] | None, element: int) -> bool:
    """Whether an element is not finite, or far from the usual."""
    is_far = scores is not None and abs(float(scores[element])) >= STRANGE
    return is_far or cell_words(value)[1] is not None


def _element_line(
    columns: Sequence[ElementColumn],
    position: int,
    value: object,
    scores: NDArray[np.float64] | None,
    element: int,
    look: SampleLook,
) -> Text:
    """A line: `▲ [0]  7.054e+04  5.1  5.6 ± 1.2`."""
    colour, score = cell_words(value)[1], float(scores[element]) if scores is not None else 0.0
    is_strange = _is_strange(value, scores, element)
    mark = "✗" if colour is not None else ("▲" if score > 0 else "▼") if is_strange else " "
    style = look.style(colour or "text-warning") if is_strange else "bold"
    index, own, *others = (column.cell(column.words[position]) for column in columns)
    line = Text.assemble((f"{mark} ", style), index, (own, style))
    return line.append("".join(others), look.style("text-muted"))
