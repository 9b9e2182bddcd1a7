"""Masks that take no memory, put together, and outlines asked where they are bad."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nanreplay.bisect.tensor_stats import (
    Outline,
    both,
    either,
    first_indices,
    inf_mask,
    is_some,
    nan_mask,
    none_of,
    nonfinite,
    without,
)

SHAPE = (3, 4)
SOME, OTHER = np.arange(12).reshape(SHAPE) % 2 == 0, np.arange(12).reshape(SHAPE) % 3 == 0
MASKS = [
    SOME,
    OTHER,
    SOME & OTHER,
    np.zeros(SHAPE, bool),
    np.ones(SHAPE, bool),
    none_of(SHAPE),
    np.broadcast_to(np.True_, SHAPE),
]


@pytest.mark.parametrize(
    ("join", "dense"),
    [(both, np.logical_and), (either, np.logical_or), (without, np.greater)],
    ids=["both", "either", "without"],
)
def test_masks_without_memory_are_put_together_as_dense_ones_are(
    join: Callable[[Any, Any], Any], dense: Callable[[Any, Any], Any]
) -> None:
    for left, right in itertools.product(MASKS, MASKS):
        before = left.copy(), right.copy()
        assert np.array_equal(join(left, right), dense(left, right))
        assert np.array_equal(left, before[0])
        assert np.array_equal(right, before[1])
    scalar, empty = np.ones((), bool), np.ones((0, 2), bool)
    assert join(scalar, scalar).shape == ()
    assert join(empty, none_of((0, 2))).shape == (0, 2)


def test_whether_a_mask_marks_anything() -> None:
    assert [is_some(mask) for mask in MASKS] == [bool(mask.any()) for mask in MASKS]
    assert not is_some(none_of((0,)))


class Tensor(np.ndarray[Any, Any]):
    """An array that can be referred to weakly, as a tensor can."""


@pytest.mark.parametrize(
    "bad",
    [[], [np.nan], [np.inf], [-np.inf, np.nan], [np.nan] * 12, [np.inf] * 12],
    ids=["finite", "nan", "inf", "both", "all-nan", "all-inf"],
)
@pytest.mark.parametrize("test", [nonfinite, nan_mask, inf_mask], ids=lambda test: test.__name__)
def test_an_outline_is_bad_where_the_tensor_is(bad: list[float], test: Any) -> None:
    array = np.arange(12, dtype=np.float32)
    array[: len(bad)] = bad
    tensor = array.reshape(SHAPE).view(Tensor)
    is_nan, is_finite = len(bad) == 12 and bool(np.isnan(bad).all()), not bad
    outline = Outline(tensor, all_nan=is_nan, all_finite=is_finite)
    assert np.array_equal(test(outline), test(np.asarray(outline)))
    assert np.array_equal(test(outline), test(tensor))


@pytest.mark.parametrize("shape", [(), (3,), (70_000,), (5, 40, 1000), (0, 3)], ids=str)
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.5, 1.0])
def test_the_first_marked_elements_are_those_that_argwhere_tells(
    shape: tuple[int, ...], share: float
) -> None:
    mask = np.asarray(np.random.default_rng(0).random(shape) < share)
    told = [tuple(map(int, index)) for index in np.argwhere(mask)[:10]]
    assert first_indices(mask, 10) == told
