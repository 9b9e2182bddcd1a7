"""What a user of the pytest plugin writes; copied to test_trainings.py of a temporary project."""

import contextlib
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from train import careless, fit, make_model, quick_model

from nanreplay import NonFiniteError


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(1)


def test_a_finite_training_passes(nan_recorder):
    fit(quick_model(), nan_recorder)


def test_a_training_that_turns_nan_fails(nan_recorder):
    fit(quick_model(careless), nan_recorder)


def test_a_swallowed_error_fails(nan_recorder):
    with contextlib.suppress(NonFiniteError):
        fit(quick_model(careless), nan_recorder)
    fit(quick_model(), nan_recorder)
    nan_recorder.dump()
    raise AssertionError("the accuracy is low")


@pytest.mark.parametrize("start", [1.0, 0.0])
def test_a_loop(nan_recorder, start):
    weight = tf.Variable([start, 1.0], name="weight")

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(x * tf.math.log(weight))
        weight.assign_sub(0.01 * tape.gradient(loss, weight))
        return loss

    nan_recorder.wrap(step)(tf.constant([1.0, 2.0]))


def test_an_exception_of_the_step_is_its_own(nan_recorder):
    def step(x):
        raise ValueError("not a number, but no NaN")

    with pytest.raises(ValueError, match="no NaN"):
        nan_recorder.wrap(step)(tf.constant([1.0]))


@pytest.mark.nanreplay("captures/log_of_zero.h5", model=make_model)
def test_a_fixed_case_passes_and_its_body_runs():
    Path("fixed-body-ran").touch()


@pytest.mark.nanreplay("captures/log_of_zero.h5", model="train:make_careless_model")
def test_a_case_that_is_not_fixed_fails_before_its_body():
    Path("broken-body-ran").touch()


@pytest.mark.xfail(strict=True)
@pytest.mark.nanreplay("captures/log_of_zero.h5")
def test_a_recorded_failure_is_there_as_recorded():
    pass


@pytest.mark.nanreplay("nope.h5")
def test_a_missing_case_is_an_error():
    pass


@pytest.mark.nanreplay("captures/log_of_zero.h5", allow_missing=True)
def test_an_option_without_a_model_is_an_error():
    pass


@pytest.mark.nanreplay("captures/log_of_zero.h5", model="train:no_such_function")
def test_a_model_that_is_not_there_is_an_error():
    pass
