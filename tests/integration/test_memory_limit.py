"""`memory_limit` holds for what is alive at once: the next batch is made while the last ones are
still kept."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Recorder
from nanreplay.recorder.reexecution import dense_gradient

MIB = 2**20


@pytest.mark.filterwarnings("ignore:nanreplay. memory_limit of 24.0 MiB holds a window:UserWarning")
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
