"""The batch beside the others: what arrays are, which samples stand out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanreplay.explore.batch_view import BatchView, kind_of_leaf, spread_of, view_batch


@pytest.mark.parametrize(
    ("path", "shape", "dtype", "kind"),
    [
        ("0", (32, 6), "float32", "table"),
        ("1", (32, 1), "float32", "labels"),
        ("2", (32,), "float32", "weights"),
        ("0", (32, 28, 28), "float32", "image"),
        ("0", (32, 32, 32, 3), "uint8", "image"),
        ("0/ids", (32, 128), "int32", "tokens"),
        ("0", (32, 16, 3), "float32", "array"),
        ("x/sample_weight", (32,), "float32", "weights"),
        ("labels", (32,), "int64", "labels"),
    ],
)
def test_kinds_are_guessed_from_place_type_and_shape(
    path: str, shape: tuple[int, ...], dtype: str, kind: str
) -> None:
    assert kind_of_leaf(path, np.zeros(shape, dtype)) == kind


def viewed(leaves: Sequence[Any], others: Sequence[Sequence[Any]] = (), **known: Any) -> BatchView:
    paths = [str(i) for i in range(len(leaves))]
    return view_batch(0, leaves, paths, spread_of(leaves, paths, others), **known)


def scores(view: BatchView, row: int) -> NDArray[np.float64]:
    found = view.scores(view.leaves[0], row)
    assert found is not None
    return found


def test_scores_are_against_the_other_batches() -> None:
    others = [[np.array([[0.0, 10.0], [2.0, 10.0]])], [np.array([[1.0, 10.0], [1.0, np.nan]])]]
    view = viewed([np.array([[1.0, 10.0], [9.0, 11.0]])], others)
    assert scores(view, 1)[0] == pytest.approx(8 / np.sqrt(0.5))
    assert np.isnan(scores(view, 1)[1])  # a column that never changed has no scale
    assert scores(view, 0).tolist() == [0.0, 0.0]
    assert view.strangeness == (0.0, pytest.approx(8 / np.sqrt(0.5)))
    assert view.compared == 2


def test_a_lonely_batch_is_compared_with_itself() -> None:
    assert scores(viewed([np.array([[1.0], [3.0]])]), 0).tolist() == [-1.0]


def test_samples_with_nan_are_marked_unless_better_is_known() -> None:
    leaves = [np.array([[1.0], [np.nan], [2.0]]), np.zeros(3)]
    assert (viewed(leaves).rows, viewed(leaves).strangeness[1]) == ((1,), np.inf)
    known = viewed(leaves, rows=(2,), reason="Proved by replay.")
    assert (known.rows, known.reason) == ((2,), "Proved by replay.")
    assert viewed(leaves, rows=()).rows == ()


def test_neighbours_stay_within_the_batch() -> None:
    leaves = [np.arange(6)[:, None]]
    assert viewed(leaves, row=0).shown == (0, 1, 2, 3, 4)
    assert viewed(leaves, row=3).shown == (1, 2, 3, 4, 5)
    assert viewed(leaves, row=3, around=0).shown == (3,)
    assert viewed([np.zeros((2, 1))], row=1).shown == (0, 1)
    last = viewed(leaves, row=5)
    assert last.values(last.leaves[0], 5).tolist() == [5]


def test_a_scalar_in_the_batch_has_no_rows() -> None:
    view = viewed([np.float32(0.5), np.zeros((4, 2))])
    assert view.size == 4
    assert (view.leaves[0].mean, view.leaves[0].samples.shape) == (None, ())
