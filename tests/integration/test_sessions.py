"""Trainings in sessions of TensorFlow 1: not recorded, which one line says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from trainings import data

from nanreplay import Recorder

v1 = tf.compat.v1


@pytest.fixture
def session() -> Iterator[tuple[Any, Callable[[], Any], Any]]:
    """A session, one step of a training in it, and its loss."""
    x, y = data(None)
    with tf.Graph().as_default():
        weights = v1.get_variable("w", initializer=np.full((3, 1), 5.0, "float32"))
        loss = tf.reduce_mean(tf.square(x.astype("float32") @ weights - y.astype("float32")))
        train = v1.train.AdamOptimizer(0.01).minimize(loss)
        with v1.Session() as held:
            held.run(v1.global_variables_initializer())
            yield held, lambda: held.run([train, loss])[1], loss


def test_a_wrapped_step_in_a_session_runs_as_it_is(session: Any, tmp_path: Path) -> None:
    _, train, _ = session
    recorder = Recorder(tmp_path / "run.h5")
    step = recorder.wrap(train)
    with pytest.warns(UserWarning, match=r"a training in a tf\.compat\.v1\.Session") as told:
        losses = [step(), step(), step()]
    assert losses[2] < losses[1] < losses[0]
    assert [one.filename for one in told] == [__file__]


def test_a_training_session_in_a_block_is_told_of(session: Any, tmp_path: Path) -> None:
    held, train, loss = session
    run = v1.Session.run

    def block() -> None:
        with Recorder(tmp_path / "run.h5"):
            held.run(loss)
            train()
            train()

    with pytest.warns(UserWarning, match=r"a training in a tf\.compat\.v1\.Session") as told:
        block()
    assert len(told) == 1
    assert v1.Session.run is run


@pytest.mark.filterwarnings("error")
def test_a_session_that_only_computes_is_not(tmp_path: Path) -> None:
    with tf.Graph().as_default(), v1.Session() as held, Recorder(tmp_path / "run.h5"):
        assert held.run(tf.constant(1.0) + 1.0) == 2.0
