"""Two axes of a tensor as a picture: an image, a kernel, an attention matrix, an embedding.

Pure numpy. A patch with one non-finite element is not finite, however large the tensor is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = tuple[int, ...]
MOST_CELLS = 160
"""Rows and columns of a picture, at most; patches of a larger tensor are averaged."""
_LARGEST_KERNEL = 11
_FEWEST_CELLS = 2


@dataclass(frozen=True)
class Picture:
    """Two axes of a tensor at given indices of the others."""

    cells: NDArray[np.float64]
    """Shape [rows, columns], averages of patches; NaN for a patch with a non-finite element."""
    axes: tuple[int, int]
    """Which axes of the tensor go down and across; (-1, -1) for the tiles of a kernel."""
    at: Index
    """Indices of all axes; those of `axes` say nothing."""
    size: tuple[int, int]
    """Rows and columns before patches were averaged."""


def index_within(shape: tuple[int, ...], at: tuple[int, ...]) -> tuple[int, ...]:
    """Return the element nearest to a wanted one, which may lie outside or leave axes out."""
    index = []
    for wanted, size in zip((*at, *[0] * len(shape)), shape, strict=False):
        index.append(min(max(wanted, 0), max(size - 1, 0)))
    return tuple(index)


def picture_of(array: NDArray[Any], at: Index = ()) -> Picture | None:
    """Return a tensor as people would look at it; None for one without two axes to show.

    Args:
        array: Of any rank.
        at: The element whose picture it is; the first one where left out.
    """
    if array.ndim < 2 or array.dtype.kind not in "fiub" or not array.size:
        return None
    index = index_within(array.shape, at)
    if _is_kernel(array.shape):
        table = _tiles(array)
        return Picture(reduced(table), (-1, -1), index, (table.shape[0], table.shape[1]))
    down, across = picture_axes(array.shape)
    chosen: list[Any] = list(index)
    chosen[down] = chosen[across] = slice(None)
    table = array[tuple(chosen)]
    if min(table.shape) < _FEWEST_CELLS:
        return None
    return Picture(reduced(table), (down, across), index, (table.shape[0], table.shape[1]))


def picture_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the axes that go down and across.

    Of [batch, height, width, channels] the middle two, where the image is as high as it is wide or
    has few channels; else the last two, as of attention [batch, heads, queries, keys].
    """
    if len(shape) == 4:
        _, height, width, last = shape
        is_square_at_end = width == last and height != width
        if not is_square_at_end and (height == width or last in (1, 3, 4)):
            return 1, 2
    return len(shape) - 2, len(shape) - 1


def _is_kernel(shape: tuple[int, ...]) -> bool:
    """Whether it has the shape of a kernel of a convolution: [height, width, in, out]."""
    if len(shape) != 4 or max(shape[2:]) == 1:
        return False
    return shape[0] == shape[1] and 1 < shape[0] <= _LARGEST_KERNEL


def _tiles(kernel: NDArray[Any]) -> NDArray[Any]:
    """All filters of a kernel: inputs downwards, outputs across, a line of zeros between them."""
    height, width, inputs, outputs = kernel.shape
    padded = np.zeros((height + 1, width + 1, inputs, outputs), kernel.dtype)
    padded[:height, :width] = kernel
    rows = inputs * (height + 1)
    return padded.transpose(2, 0, 3, 1).reshape(rows, outputs * (width + 1))[:-1, :-1]


def reduced(
    table: NDArray[Any], most_rows: int = MOST_CELLS, most_columns: int = MOST_CELLS
) -> NDArray[np.float64]:
    """Return averages of patches, so that a table has no more rows and columns than fit.

    Args:
        table: Shape [rows, columns].
        most_rows: Rows that fit.
        most_columns: Columns that fit.
    """
    wide = table.astype(np.float64)
    # One mark for all that is not finite: a patch with one such element is NaN, not sometimes inf.
    wide[~np.isfinite(wide)] = np.nan
    for axis, most in enumerate((most_rows, most_columns)):
        size = wide.shape[axis]
        if size > most:
            starts = np.arange(most) * size // most
            widths = np.diff(np.append(starts, size))
            sums = np.add.reduceat(wide, starts, axis=axis)  # one NaN makes the patch NaN
            wide = sums / (widths[:, None] if axis == 0 else widths)
    return wide
