"""The batch beside the others: what arrays are, which samples stand out."""

from __future__ import annotations

import numpy as np
import pytest

from nanreplay.explore.batch import kind_of_leaf, view_batch


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
def test_kinds_are_guessed_from_place_type_and_shape(path: str, shape: tuple[int, ...], dtype: str, kind: str) -> None:
    assert kind_of_leaf(path, np.zeros(shape, dtype)) == kind


def test_scores_are_against_the_other_batches() -> None:
    others = [[np.array([[0.0, 10.0], [2.0, 10.0]])], [np.array([[1.0, 10.0], [1.0, np.nan]])]]
    view = view_batch(3, [np.array([[1.0, 10.0], [9.0, 11.0]])], ["0"], others)
    scores = view.leaves[0].scores(1)
    assert scores is not None
    assert scores[0] == pytest.approx(8 / np.sqrt(0.5))
    assert np.isnan(scores[1])  # a column that never changed has no scale
    healthy = view.leaves[0].scores(0)
    assert healthy is not None
    assert healthy.tolist() == [0.0, 0.0]
    assert view.compared == 2


def test_a_lonely_batch_is_compared_with_itself() -> None:
    view = view_batch(0, [np.array([[1.0], [3.0]])], ["0"], [])
    scores = view.leaves[0].scores(0)
    assert scores is not None
    assert scores.tolist() == [-1.0]


def test_samples_with_nan_are_marked_unless_better_is_known() -> None:
    leaves = [np.array([[1.0], [np.nan], [2.0]]), np.zeros(3)]
    assert view_batch(0, leaves, ["0", "1"], []).rows == (1,)
    known = view_batch(0, leaves, ["0", "1"], [], (2,), "Proved by replay.")
    assert (known.rows, known.reason) == ((2,), "Proved by replay.")


def test_neighbours_stay_within_the_batch() -> None:
    view = view_batch(0, [np.zeros((6, 1))], ["0"], [])
    assert view.neighbours(0) == (0, 1, 2, 3, 4)
    assert view.neighbours(3) == (1, 2, 3, 4, 5)
    assert view_batch(0, [np.zeros((2, 1))], ["0"], []).neighbours(1) == (0, 1)


def test_a_scalar_in_the_batch_has_no_rows() -> None:
    view = view_batch(0, [np.float32(0.5), np.zeros((4, 2))], ["0", "1"], [])
    assert view.size == 4
    assert view.leaves[0].scores is not None
    assert view.leaves[0].mean is None
