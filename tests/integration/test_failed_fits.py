"""A `fit` that raised leaves nothing for the next one of the model, though somebody keeps its
exception, and with it all frames, as notebooks do; of several recorders of one `fit`, one records.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    keras = pytest.importorskip("tf_keras")
    model = keras.Sequential([keras.layers.Dense(1)])
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
