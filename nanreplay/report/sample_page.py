"""The failing sample beside a good one, array by array, for pages.

Numbers are a table of the elements that stand out, images are pictures, tokens and texts are lines.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.explore import BatchView, Leaf
from nanreplay.records import batch_name
from nanreplay.report.numbers import index_words, readable_number
from nanreplay.report.sample_choice import (
    STRANGE,
    element_order,
    good_row,
    index_in_sample,
    is_sequence,
    shown_row,
)

_MOST_ELEMENTS = 8
"""Elements of an array in a table, at most."""
_LONGEST_TEXT = 400
"""Characters of a sequence, at most."""
_LARGEST_PICTURE = 256
"""Pixels of a side, at most; larger images lose pixels."""
_NONFINITE = np.array([255, 0, 170], np.uint8)
"""Colour of pixels that are not finite."""


@dataclass(frozen=True)
class SampleRow:
    """One element of a sample."""

    cells: tuple[str, ...]
    is_strange: bool


@dataclass(frozen=True)
class SamplePicture:
    """One image."""

    title: str
    source: str
    """A PNG as a `data:` URI."""


@dataclass(frozen=True)
class SamplePart:
    """One array of the batch; of table, pictures and texts, two are empty."""

    title: str
    about: str
    headings: tuple[str, ...] = ()
    rows: tuple[SampleRow, ...] = ()
    pictures: tuple[SamplePicture, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    """Sample, and its values in a line."""
    remark: str = ""


def sample_parts(view: BatchView) -> Iterator[SamplePart]:
    """Yield each array that has a row for each sample.

    Args:
        view: The batch, with the failing sample and its neighbours.
    """
    for leaf in view.leaves:
        if not leaf.shape or leaf.shape[0] != view.size:
            continue
        title, about = batch_name(leaf.path), f"{leaf.dtype}{index_words(leaf.shape)} {leaf.kind}"
        if leaf.kind == "image":
            yield _pictures(view, leaf, title, about)
        elif is_sequence(leaf):
            texts = tuple(_texts(view, leaf))
            yield SamplePart(title, about, texts=texts)
        else:
            yield _table(view, leaf, title, about)


def _both(view: BatchView) -> list[int]:
    """The failing sample, then a good one where one was read."""
    good = good_row(view)
    return [shown_row(view), *([] if good is None else [good])]


def _texts(view: BatchView, leaf: Leaf) -> Iterator[tuple[str, str]]:
    for row in _both(view):
        words = " ".join(map(value_words, view.values(leaf, row)))
        if len(words) > _LONGEST_TEXT:
            words = f"{words[:_LONGEST_TEXT]} …"
        yield f"sample {row}", words


# Tables of numbers


def _table(view: BatchView, leaf: Leaf, title: str, about: str) -> SamplePart:
    """The elements of a sample that stand out; all of few that do not."""
    row, others = _both(view)[0], _both(view)[1:]
    values, scores = view.values(leaf, row), view.scores(leaf, row)
    beside = [view.values(leaf, other) for other in others]
    order = element_order(values, scores)
    if not any(_is_strange(values[i], scores, i) for i in order[:_MOST_ELEMENTS].tolist()):
        if len(values) > _MOST_ELEMENTS and values.dtype.kind in "fiu":
            low, high = value_words(values.min()), value_words(values.max())
            remark = f"{len(values)} elements from {low} to {high}; none stands out"
            return SamplePart(title, about, remark=remark)
        order = np.arange(len(values))
    shown = order[:_MOST_ELEMENTS].tolist()
    usual = ("usual",) if leaf.mean is not None else ()
    headings = ("element", f"sample {row}", *usual, *(f"sample {other}" for other in others))
    rows = []
    for i in shown:
        rows.append(SampleRow(_cells(leaf, i, values, beside), _is_strange(values[i], scores, i)))
    more = len(order) - len(shown)
    return SamplePart(
        title, about, headings, tuple(rows), remark=f"and {more} more" if more else ""
    )


def _cells(
    leaf: Leaf, element: int, values: NDArray[Any], beside: Sequence[NDArray[Any]]
) -> tuple[str, ...]:
    cells = [index_words(index_in_sample(leaf, element)) or "value", value_words(values[element])]
    if leaf.mean is not None and leaf.deviation is not None:
        mean, deviation = leaf.mean.reshape(-1), leaf.deviation.reshape(-1)
        cells.append(f"{value_words(mean[element])} ± {value_words(deviation[element])}")
    return (*cells, *(value_words(other[element]) for other in beside))


def _is_strange(value: object, scores: NDArray[np.float64] | None, element: int) -> bool:
    """Whether an element is not finite, or far from the usual."""
    if scores is not None and abs(float(scores[element])) >= STRANGE:
        return True
    is_number = getattr(getattr(value, "dtype", None), "kind", "O") in "fc"
    return is_number and not np.isfinite(value)  # type: ignore[call-overload]


def value_words(value: object) -> str:
    """One element in few characters: text, a whole number, or four digits.

    Args:
        value: A scalar of numpy, or text.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", "O")
    if kind in "OSU":
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if kind == "c":
        return f"{complex(value):.2g}"  # type: ignore[call-overload]
    if kind in "biu":
        return str(value)
    return readable_number(float(f"{float(value):.4g}"))  # type: ignore[arg-type]


# Pictures


def _pictures(view: BatchView, leaf: Leaf, title: str, about: str) -> SamplePart:
    """The images as pictures that share black and white, so that they can be compared.

    Black and white are the 1st and 99th percentile: one outlier would make all else grey.
    """
    rows = _both(view)
    images = []
    for row in rows:
        images.append(np.asarray(leaf.samples[view.shown.index(row)], np.float64))
    finite = np.concatenate([image[np.isfinite(image)] for image in images])
    low, high = np.percentile(finite, [1, 99]).tolist() if finite.size else (0.0, 1.0)
    pictures = []
    for row, image in zip(rows, images, strict=True):
        pictures.append(SamplePicture(f"sample {row}", _picture(image, low, high)))
    first = images[0]
    n_bad = int(first.size - np.isfinite(first).sum())
    kept = first[np.isfinite(first)]
    words = ""
    if kept.size:
        low_words, high_words = value_words(kept.min()), value_words(kept.max())
        is_even = kept.min() == kept.max()
        words = f"{low_words} everywhere" if is_even else f"from {low_words} to {high_words}"
    bad = f"{n_bad} of {first.size} values not finite" if n_bad else ""
    remark = ", ".join(filter(None, (words, bad)))
    return SamplePart(title, about, pictures=tuple(pictures), remark=remark)


def _picture(image: NDArray[np.float64], low: float, high: float) -> str:
    """A PNG of [height, width] or [height, width, channels] as a `data:` URI."""
    from matplotlib.image import imsave

    stride = max(-(-max(image.shape[:2]) // _LARGEST_PICTURE), 1)
    small = image[::stride, ::stride]
    small = small[..., None] if small.ndim == 2 else small
    is_bad = ~np.isfinite(small).all(axis=-1)
    with np.errstate(all="ignore"):
        shades = np.clip((small - low) / ((high - low) or 1.0), 0.0, 1.0)
    shades = np.nan_to_num(shades)
    colours = shades[..., :3] if small.shape[-1] >= 3 else shades[..., :1].repeat(3, axis=-1)
    pixels = (colours * 255).astype(np.uint8)
    pixels[is_bad] = _NONFINITE
    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
