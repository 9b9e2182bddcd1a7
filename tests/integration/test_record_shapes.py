"""Batches of many shapes and structures: how many programs they make, and that each replays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import record, replayed

from nanreplay import Capture, NonFiniteError, Recorder


def assert_exact(path: Path, steps: int) -> None:
    assert [step.bit_exact for step in replayed(path)] == [True] * steps


def compiled(model: Any) -> Any:
    model.compile("sgd", "mse", jit_compile=False)
    return model


def test_many_sequence_lengths_are_one_program(tmp_path: Path) -> None:
    """As Keras does: the generator says that the length is open."""
    random = np.random.default_rng(0)

    def batches() -> Any:
        for length in range(3, 43):
            yield (
                random.integers(0, 20, (4, length)),
                np.full((4, 1), np.nan if length == 42 else 1.0, "float32"),
            )

    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Embedding(20, 4),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(1),
    ]
    recorder = Recorder(tmp_path / "run.h5", window=100, keyframe_every=100)
    assert (
        record(
            tmp_path / "run.h5", compiled(keras.Sequential(layers)), batches(), recorder=recorder
        )
        == 39
    )
    with Capture(tmp_path / "run.h5") as capture:
        assert len(capture.programs) == 1
        assert capture.batch(30).leaves[0].shape == (4, 33)
    assert_exact(tmp_path / "run.h5", 40)


def test_a_loop_that_retraces_each_shape_writes_the_programs_of_its_window(tmp_path: Path) -> None:
    weight = tf.Variable(1.0)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(weight * x))
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    recorded = Recorder(tmp_path / "run.h5", window=3, keyframe_every=1).wrap(step)
    for length in range(1, 10):
        recorded(tf.ones([length]))
    with pytest.raises(NonFiniteError):
        recorded(tf.fill([10], np.nan))
    with Capture(tmp_path / "run.h5") as capture:
        assert len(capture.programs) == len(capture.steps) == 3
    assert_exact(tmp_path / "run.h5", 3)


class Ragged(keras.Model):
    """Embeds ragged ids and takes their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = keras.layers.Embedding(10, 4)
        self.out = keras.layers.Dense(1)

    def call(self, ids: Any) -> Any:
        return self.out(tf.reduce_mean(tf.ragged.map_flat_values(self.embedding, ids), 1))


def sparse_model() -> Any:
    given = keras.Input((6,), sparse=True)
    return keras.Model(given, keras.layers.Dense(1)(given))


def ragged_rows() -> Any:
    return tf.ragged.constant([[1, 2], [3], [4, 5, 6], [1]] * 6)


def sparse_rows() -> Any:
    random = np.random.default_rng(0)
    return tf.sparse.from_dense(
        random.normal(size=(24, 6)).astype("float32") * (random.random((24, 6)) > 0.7)
    )


@pytest.mark.parametrize(("model", "rows"), [(Ragged, ragged_rows), (sparse_model, sparse_rows)])
def test_ragged_and_sparse_batches_with_a_short_last_one(
    tmp_path: Path, model: Any, rows: Any
) -> None:
    y = np.ones((24, 1), "float32")
    y[23] = np.nan
    given = tf.data.Dataset.from_tensor_slices((rows(), y)).batch(5)
    assert record(tmp_path / "run.h5", compiled(model()), given) == 4
    with Capture(tmp_path / "run.h5") as capture:
        assert len(capture.batch(4).leaves) in (
            3,
            4,
        )  # values and row splits; indices, values and shape; the labels
    assert_exact(tmp_path / "run.h5", 5)


def test_nested_inputs_and_outputs_keep_their_paths(tmp_path: Path) -> None:
    one, two, three = keras.Input((3,), name="one"), keras.Input((2,)), keras.Input((2,))
    out = keras.layers.Dense(1)(keras.layers.Concatenate()([one, two, three]))
    model = keras.Model({"one": one, "others": (two, three)}, {"out": out})
    random = np.random.default_rng(0)
    x = {
        "one": random.normal(size=(22, 3)),
        "others": (random.normal(size=(22, 2)), random.normal(size=(22, 2))),
    }
    y = np.ones((22, 1), "float32")
    y[21] = np.nan
    assert record(tmp_path / "run.h5", compiled(model), x, {"out": y}) == 5
    with Capture(tmp_path / "run.h5") as capture:
        assert [path.partition("/")[2] for path in capture.batch(0).paths] == [
            "one",
            "others/0",
            "others/1",
            "out",
        ]
        assert len(capture.programs) == 1
    assert_exact(tmp_path / "run.h5", 6)
