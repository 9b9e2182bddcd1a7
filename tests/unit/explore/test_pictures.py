"""Tensors as pictures: which axes are shown, and what averaging does to non-finite elements."""

from __future__ import annotations

import numpy as np
import pytest

from nanreplay.explore.pictures import picture_axes, picture_of, reduced


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((32, 28, 28, 64), (1, 2)),  # feature maps
        ((32, 24, 40, 3), (1, 2)),  # images that are not square
        ((8, 4, 50, 50), (2, 3)),  # attention
        ((8, 50, 64), (1, 2)),  # embeddings of a sequence
        ((1000, 64), (0, 1)),  # a table of embeddings
    ],
)
def test_the_axes_are_those_that_people_would_look_at(
    shape: tuple[int, ...], axes: tuple[int, int]
) -> None:
    assert picture_axes(shape) == axes


def test_a_picture_is_of_the_slice_that_holds_the_element() -> None:
    images = np.zeros((4, 6, 6, 3), np.float32)
    images[2, 1, 5, 1] = np.nan
    picture = picture_of(images, (2, 1, 5, 1))
    assert picture is not None
    assert np.argwhere(np.isnan(picture.cells)).tolist() == [[1, 5]]
    other = picture_of(images, (2, 1, 5, 0))
    assert other is not None
    assert np.isfinite(other.cells).all()


def test_a_kernel_is_tiles_of_its_filters() -> None:
    kernel = np.arange(3 * 3 * 2 * 4, dtype=np.float32).reshape(3, 3, 2, 4)
    picture = picture_of(kernel)
    assert picture is not None
    assert picture.size == (2 * 4 - 1, 4 * 4 - 1)
    assert picture.cells[4:7, 8:11].tolist() == kernel[:, :, 1, 2].tolist()


def test_one_bad_element_is_seen_however_large_the_tensor_is() -> None:
    table = np.ones((1000, 700))
    table[517, 3] = np.inf
    cells = reduced(table, 40, 30)
    assert cells.shape == (40, 30)
    assert int(np.isnan(cells).sum()) == 1
    assert np.nanmin(cells) == np.nanmax(cells) == 1.0


def test_what_has_no_two_axes_has_no_picture() -> None:
    assert picture_of(np.ones(5)) is None
    assert picture_of(np.array([["a", "b"]])) is None
    assert picture_of(np.ones((5, 1))) is None
