"""From flat arrays with paths to what a step takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nanreplay import ReplayError
from nanreplay.rerun.model_factory import arguments_for, batch_of
from nanreplay.tensorflow_internals.tf_datasets import flatten_with_paths

X, Y = np.ones([2, 3], np.float32), np.zeros([2], np.int64)


@pytest.mark.parametrize(
    "batch",
    [
        X, (X, Y), ({"a": X, "b": {"c": Y}}, Y), ((X, X), Y), {"words": np.array([b"a", b"b"])},
        (tf.RaggedTensor.from_row_splits([1, 2, 3], [0, 1, 3]), tf.SparseTensor([[0, 1]], [5], [2,
        2])),
    ],
)  # fmt: skip
def test_a_batch_is_what_it_was_before_it_was_flattened(batch: Any) -> None:
    pairs = flatten_with_paths(batch)
    rebuilt = batch_of([path for path, _ in pairs], [np.asarray(leaf) for _, leaf in pairs])
    tf.nest.assert_same_structure(rebuilt, batch, check_types=True, expand_composites=True)
    for one, other in zip(
        tf.nest.flatten(rebuilt, expand_composites=True),
        tf.nest.flatten(batch, expand_composites=True),
        strict=True,
    ):
        assert np.array_equal(one, other)


def test_what_was_none_is_none_again() -> None:
    data, labels, weight = batch_of(["0", "2"], [X, Y])
    assert data.shape == (2, 3)
    assert labels is None
    assert weight.shape == (2,)


def test_arrays_that_a_step_made_by_itself_are_not_its_arguments() -> None:
    assert batch_of(["", "made outside TensorFlow 1"], [X, Y]).shape == (2, 3)


def test_the_signature_tells_two_arguments_from_one_pair() -> None:
    pair = batch_of(["0", "1"], [X, Y])
    assert len(arguments_for(lambda x, y: None, pair)[0]) == 2
    assert arguments_for(lambda batch: None, pair)[0] == (pair,)


def test_named_arguments_are_named_again() -> None:
    def step(x: Any, *, weight: Any) -> None:
        pass

    args, kwargs = arguments_for(step, batch_of(["0/0", "1/weight"], [X, Y]))
    assert (len(args), list(kwargs)) == (1, ["weight"])


def test_an_argument_that_was_no_array_is_missed() -> None:
    with pytest.raises(
        ReplayError, match="Argument 1 of the recorded step was no array, and is not in the capture"
    ):
        arguments_for(lambda x, flag, y: None, batch_of(["0", "2"], [X, Y]))
