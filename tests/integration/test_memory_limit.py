"""`memory_limit` holds for what is alive at once: the next batch is made while the last ones are
still kept."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Recorder
from nanreplay.program.nonfinite_values import VariableSums, read_variable
from nanreplay.recorder.step_sizes import change, dense_gradient

MIB = 2**20


@pytest.mark.filterwarnings(
    "ignore:nanreplay. memory_limit of 24.0 MiB holds 3 batches:UserWarning"
)
def test_kept_batches_and_the_next_one_fit_the_limit(tmp_path: Path) -> None:
    weight = tf.Variable(tf.ones([MIB // 4]))

    def step(x: tf.Tensor) -> tf.Tensor:
        weight.assign_sub(0.001 * weight)
        return tf.reduce_mean(x) + weight[0]

    batches: list[weakref.ref[tf.Tensor]] = []
    most = 0
    with Recorder(tmp_path / "run.h5", memory_limit="24MiB") as recorder:
        recorded = recorder.wrap(tf.function(step))
        for number in range(12):
            batch = tf.fill([MIB], float(number))  # 4 MiB
            batches.append(weakref.ref(batch))
            most = max(most, sum(each() is not None for each in batches))
            recorded(batch)
            del batch
    assert 2 < most <= 5, "so many batches, and a copy of the state, are at most 24 MiB"


def test_a_gradient_goes_to_the_file_without_a_copy() -> None:
    gradient = tf.ones([8])
    assert np.shares_memory(dense_gradient(gradient), np.asarray(gradient))


WIDTH = 256
TABLE = 16 * MIB
"""Bytes of an embedding."""


def embedding() -> Any:
    return tf.Variable(tf.reshape(tf.range(TABLE / 4), [-1, WIDTH]))


def update_rows(table: Any) -> None:
    """TensorFlow copies a variable each time it is read after an op that scatters into it."""
    table.scatter_sub(tf.IndexedSlices(tf.ones([2, WIDTH]), tf.constant([1, 5])))


def is_shared(left: Any, right: Any) -> bool:
    return np.shares_memory(np.asarray(left), np.asarray(right))


def test_an_embedding_is_read_without_a_copy_and_what_was_read_stays() -> None:
    table = embedding()
    update_rows(table)
    assert not is_shared(table.read_value(), table.read_value()), "TensorFlow copies it"
    held = read_variable(table.handle)
    assert is_shared(held, read_variable(table.handle))
    before = np.array(held[:8])
    update_rows(table)
    assert np.array_equal(held[:8], before)
    assert np.array_equal(table[:8], before - np.isin(np.arange(8), [1, 5])[:, None])


def peak_bytes(call: Any) -> int:
    """The most bytes of TensorFlow's that a call takes beside those that are there before it."""
    device = "CPU:0"
    before = tf.config.experimental.get_memory_info(device)["current"]
    if before < TABLE:
        pytest.skip("TensorFlow's allocator counts nothing here")
    tf.config.experimental.reset_memory_stats(device)
    call()
    return int(tf.config.experimental.get_memory_info(device)["peak"]) - before


def test_looking_at_an_embedding_takes_no_memory() -> None:
    table = embedding()
    sums = VariableSums([table.handle])
    expected = sums()
    update_rows(table)
    assert peak_bytes(sums) < TABLE / 4
    assert np.isclose(sums(), expected)


def train(table: Any, recorder: Recorder | None) -> None:
    """Twelve steps that update a few rows, with their gradients."""

    def step(ids: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.gather(table, ids)))
        gradient = tape.gradient(loss, table)
        table.scatter_sub(tf.IndexedSlices(0.1 * gradient.values, gradient.indices))
        return loss

    function = tf.function(step)
    called = function if recorder is None else recorder.wrap(function)
    for number in range(12):
        called(tf.constant([number, 3 * number + 1]))


def test_keyframes_of_an_embedding_that_go_to_disk_take_no_memory(tmp_path: Path) -> None:
    bare, table = embedding(), embedding()
    bare_bytes = peak_bytes(lambda: train(bare, None))
    with Recorder(tmp_path / "run.h5", memory_limit="4MiB", keyframe_every=4) as recorder:
        recorded_bytes = peak_bytes(lambda: train(table, recorder))
        assert recorder.dump() is not None
    assert recorded_bytes - bare_bytes <= 1.1 * 4 * MIB
    assert np.array_equal(table, bare)


def test_weights_that_a_step_left_as_they_were_have_their_norm_and_no_change() -> None:
    random = np.random.default_rng(1)
    before = random.normal(size=(600, WIDTH)).astype("float32")
    after = before.copy()
    after[-1] += 1
    ratio, norm = change(before, after)
    assert ratio == pytest.approx(16 / np.linalg.norm(before.astype("float64")), rel=1e-6)
    assert norm == pytest.approx(np.linalg.norm(after.astype("float64")), rel=1e-6)
    assert change(before, before) == (0.0, pytest.approx(np.linalg.norm(before), rel=1e-5))
