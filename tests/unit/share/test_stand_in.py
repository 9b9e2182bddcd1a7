"""Random arrays in the place of data keep what failures depend on, and no number of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from nanreplay.export.stand_ins import stand_in

FLOATS = arrays(np.float32, array_shapes(max_dims=3), elements=st.floats(width=32))
INTEGERS = arrays(np.int64, array_shapes(max_dims=2), elements=st.integers(-(2**40), 2**40))


def made(array: Any) -> Any:
    return stand_in(array, np.random.default_rng(0))


@given(FLOATS)
def test_special_values_stay_in_their_places(array: Any) -> None:
    found = made(array)
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    assert np.array_equal(np.isnan(found).sum(), np.isnan(array).sum())
    ordinary = array[np.isfinite(array) & (array != 0)]
    if len(np.unique(ordinary)) > 1:
        assert np.array_equal(np.isnan(found), np.isnan(array))
        assert np.array_equal(found == np.inf, array == np.inf)
        assert np.all(found[array == 0] == 0)


@given(INTEGERS)
def test_integers_stay_in_their_range(array: Any) -> None:
    found = made(array)
    assert found.dtype == array.dtype
    assert found.min() >= array.min()
    assert found.max() <= array.max()


def test_statistics_are_those_of_the_data() -> None:
    data = np.random.default_rng(1).normal(5.0, 2.0, (400, 8)).astype(np.float32)
    found = made(data)
    assert found.mean() == pytest.approx(data.mean(), abs=0.1)
    assert found.std() == pytest.approx(data.std(), abs=0.1)
    assert (found.min(), found.max()) == pytest.approx((data.min(), data.max()), rel=1e-2)
    assert not np.isin(found, data).any()


def test_a_number_of_its_own_is_not_given_away() -> None:
    data = np.array([[0.0, 1234.5678], [0.0, 0.0]], np.float32)
    assert 1234.5678 not in made(data)
    assert made(data).max() == pytest.approx(1230.0)


def test_labels_are_shuffled_and_texts_keep_their_length() -> None:
    labels = np.eye(6, dtype=np.float32)
    assert made(labels).sum(axis=0).tolist() == [1.0] * 6
    assert not np.array_equal(made(labels), labels)
    assert made(np.array([b"Ada", b"Grace"], object)).tolist() == [b"xxx", b"xxxxx"]
