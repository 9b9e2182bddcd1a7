"""A `fit` that raised leaves nothing for the next one of the model, though somebody keeps its
exception, and with it all frames, as notebooks do; of several recorders of one `fit`, one records.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import BATCH, data, mlp

from nanreplay import Capture, NonFiniteError, Recorder

slow = pytest.mark.slow
compiled_first = pytest.mark.parametrize(
    "is_eager", [pytest.param(False, id="compiled"), pytest.param(True, id="eager", marks=slow)]
)
eager_first = pytest.mark.parametrize(
    "is_eager", [pytest.param(True, id="eager"), pytest.param(False, id="compiled", marks=slow)]
)


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    yield
    gc.collect()  # the frames of a failed `fit`, and with them its recorder, which hears signals


def fit(model: Any, bad_step: int | None, *recorders: Recorder, **given: Any) -> None:
    x, y = data(bad_step)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[*recorders], **given)


def fit_that_fails_in_validation(model: Any, recorder: Recorder) -> Exception:
    x, y = data(None)
    try:
        fit(model, None, recorder, validation_data=(x[:, :2], y))
    except ValueError as error:
        return error
    raise AssertionError("the validation data fit the model")


@compiled_first
def test_the_next_fit_is_recorded_by_its_own_recorder(is_eager: bool, tmp_path: Path) -> None:
    model = mlp(run_eagerly=is_eager)
    first, second = Recorder(tmp_path / "first.h5"), Recorder(tmp_path / "second.h5")
    kept = fit_that_fails_in_validation(model, first)
    n_steps = first.steps
    with pytest.raises(NonFiniteError) as raised:
        fit(model, 3, second)
    assert raised.value.path == str(second.path) == str(tmp_path / "second.h5")
    assert second.steps == 4
    with Capture(tmp_path / "second.h5") as capture:
        assert capture.incident.step == 3
    assert first.steps == n_steps
    assert not first.paths
    del kept


@eager_first
def test_the_next_fit_without_a_recorder_is_left_alone(is_eager: bool, tmp_path: Path) -> None:
    model = mlp(run_eagerly=is_eager)
    recorder = Recorder(tmp_path / "run.h5")
    kept = fit_that_fails_in_validation(model, recorder)
    n_steps = recorder.steps
    fit(model, 3)
    assert recorder.steps == n_steps
    assert not recorder.paths
    del kept


@slow
@pytest.mark.parametrize("is_eager", [False, True], ids=["compiled", "eager"])
def test_the_same_recorder_counts_a_step_once(is_eager: bool, tmp_path: Path) -> None:
    model = mlp(run_eagerly=is_eager)
    recorder = Recorder(tmp_path / "run.h5")
    kept = fit_that_fails_in_validation(model, recorder)
    n_steps = recorder.steps
    with pytest.raises(NonFiniteError) as raised:
        fit(model, 3, recorder)
    assert raised.value.step == n_steps + 3
    assert recorder.steps == n_steps + 4
    del kept


@slow  # as Keras 3, above
@pytest.mark.parametrize("is_eager", [False, True], ids=["compiled", "eager"])
def test_keras_2(is_eager: bool, tmp_path: Path) -> None:
    keras_2 = pytest.importorskip("tf_keras")
    model = keras_2.Sequential([keras_2.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=is_eager)
    first, second = Recorder(tmp_path / "first.h5"), Recorder(tmp_path / "second.h5")
    kept = fit_that_fails_in_validation(model, first)
    n_steps = first.steps
    with pytest.raises(NonFiniteError) as raised:
        fit(model, 3, second)
    assert (raised.value.path, second.steps) == (str(second.path), 4)
    assert first.steps == n_steps
    del kept


@eager_first
def test_of_two_recorders_the_last_records(is_eager: bool, tmp_path: Path) -> None:
    first, second = Recorder(tmp_path / "first.h5"), Recorder(tmp_path / "second.h5")
    with (
        pytest.warns(UserWarning, match=r"first\.h5 records nothing: .*second\.h5") as told,
        pytest.raises(NonFiniteError) as raised,
    ):
        fit(mlp(run_eagerly=is_eager), 3, first, second)
    assert told[0].filename == __file__
    assert (raised.value.path, second.steps) == (str(second.path), 4)
    assert (first.paths, first.steps) == ((), 0)


def test_a_model_that_is_nan_on_purpose_is_no_incident_of_the_next_one(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.h5")
    earlier = mlp()
    fit(earlier, None, recorder)
    n_steps = recorder.steps
    kernel = earlier.trainable_variables[0]
    kernel.assign(kernel * np.nan)
    fit(mlp(), None, recorder)
    assert recorder.steps == 2 * n_steps
    assert not recorder.paths
    kernel.assign(tf.ones_like(kernel))
    with pytest.raises(NonFiniteError):  # it is looked at again once it trains itself
        fit(earlier, 2, recorder)


class Odd(keras.Model):
    """A model whose step is by hand, or whose train function is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.dense = kind, keras.layers.Dense(1)
        self.compile("sgd", "mse")
        self(np.ones((1, 3)))

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, batch: Any) -> Any:
        x, y = batch
        error = self(x) - y
        self.dense.kernel.assign_sub(0.01 * tf.transpose(x) @ error)
        return {"loss": tf.reduce_mean(tf.square(error))}

    def make_train_function(self, force: bool = False) -> None:
        if self.kind == "step":
            super().make_train_function(force)
            return

        def train(iterator: Any) -> Any:
            x, y = next(iterator)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x) - y))
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

        self.train_function = train


@pytest.mark.parametrize("kind", ["step", "function"])
def test_a_fit_of_which_no_step_was_seen_says_so(kind: str, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.h5")
    with pytest.warns(UserWarning, match="nothing of this fit is recorded: no compiled") as told:
        fit(Odd(kind), None, recorder)
    assert [one.filename for one in told] == [__file__]
    assert recorder.steps == 0


def test_a_fit_without_a_batch_says_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(mlp(), None, Recorder(tmp_path / "run.h5"), epochs=0)
