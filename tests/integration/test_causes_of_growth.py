"""What made values grow, or round to nothing: a row of an earlier step, weights, number formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_causes import _seeded, fit, half, kinds, loop, mean, normal, positive, single, why

from nanreplay import Capture, Recorder, Replay, explain
from nanreplay.bisect import bisect
from nanreplay.diagnose import causes_of, judge
from nanreplay.findings import FixResult
from nanreplay.whatif.trial import what_if

__all__ = ["_seeded"]
pytestmark = pytest.mark.filterwarnings("ignore:nanreplay. step")
AT = 20
"""Row of the data that is unlike the others, row 4 of step 2."""


def tried(path: Path, *fixes: str) -> dict[str, FixResult]:
    with Capture(path) as capture, Replay(capture) as replay:
        timeline = capture.timeline_record()
        bisection = bisect(replay, timeline)
        causes = causes_of(replay, bisection, judge(replay), timeline)
        return {one.name: one for one in what_if(replay, bisection, causes, fixes or None).results}


def test_a_far_out_label_of_an_earlier_step_is_to_blame_and_is_clipped(tmp_path: Path) -> None:
    x = normal(64, 4)
    y = x[:, :1].copy()
    y[[AT, AT + 2]] = [[1e7], [-1e6]]
    layers = [
        keras.layers.Dense(8, activation="tanh"),
        keras.layers.Dense(8, activation="relu"),
        keras.layers.Dense(1),
    ]
    causes = fit(tmp_path, layers, x, y, keras.optimizers.SGD(0.05))
    assert causes[0].kind == "data_outlier"
    assert "holds 1e+07 in row 4, column 0 of step 2" in causes[0].sentence
    fixes = ("clip_data", "clean_data=drop_rows")
    clipped, dropped, *_ = tried(tmp_path / "run.h5", *fixes).values()
    assert clipped.prevents
    assert clipped.params["arrays"] == "1"
    assert dropped.prevents
    assert dropped.params == {"how": "drop_rows", "rows": "4, 6", "step": 2}
    assert "# of step 2" in str(dropped.code)


def test_a_far_out_row_whose_gradient_alone_overflows_is_to_blame(tmp_path: Path) -> None:
    x = normal(40, 3)
    x[AT, 1] = 1e21
    optimizer = keras.optimizers.Adam(1e-3)
    causes = fit(tmp_path, [keras.layers.Dense(1)], x, normal(40, 1), optimizer, loss="mae")
    assert kinds(causes)[:2] == ["data_outlier", "exploding_gradient"]


def test_a_recurrence_whose_result_overflows_in_the_loss_begins_too_wide(tmp_path: Path) -> None:
    kernel = tf.Variable(3.0 * np.eye(3, dtype="float32"), name="recurrent_kernel")

    @tf.function(autograph=False)
    def step(state: Any) -> Any:
        with tf.GradientTape() as tape:
            for _ in range(45):
                state = state @ kernel
            loss = mean(tf.square(state))
        kernel.assign_sub(0.01 * tape.gradient(loss, kernel))
        return loss

    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorder.wrap(step)(tf.constant(positive(8, 3)))
    (cause, *_) = why(tmp_path / "run.h5")
    assert cause.kind == "bad_init"
    assert "begins with a spectral radius of 3:" in cause.sentence
    assert cause.evidence == ("Step 0 is the first that fails, in `Square` in the loss.",)


def test_a_norm_whose_squares_float16_rounds_to_0_underflows(tmp_path: Path) -> None:
    def loss_of(x: Any, w: Any) -> Any:
        rows = half(x * w)
        return single(mean(rows / tf.sqrt(tf.reduce_sum(tf.square(rows), 1, keepdims=True))))

    x = positive(40, 3)
    x[AT] = 1e-5
    (cause, *_) = loop(tmp_path, loss_of, x)
    assert cause.kind == "fp16_underflow"
    assert "is 0.0 in float16, where what it is made of was rounded" in cause.sentence
    assert "in float32 it is 1.1" in cause.sentence


def test_float32_is_not_judged_where_the_trace_lost_the_constant(tmp_path: Path) -> None:
    """The program holds 0 for 1e-8: in float32 the code would have it, the recording has not."""
    x = positive(40, 3)
    x[AT, 0] = 0.0
    causes = loop(tmp_path, lambda x, w: single(-mean(tf.math.log(half(x * w) + 1e-8))), x)
    assert causes[0].kind == "fp16_underflow"
    names = tried(tmp_path / "run.h5")
    assert names["epsilon"].prevents
    assert "float32" not in names
    assert "is in float32 is not known" in (
        tried(tmp_path / "run.h5", "float32")["float32"].note or ""
    )


def test_a_rate_that_changes_is_not_told_as_one_number(tmp_path: Path) -> None:
    schedule = keras.optimizers.schedules.PolynomialDecay(0.01, 10, 8.0)
    x = normal(160, 3) * 4
    causes = fit(tmp_path, [keras.layers.Dense(1)], x, x[:, :1], keras.optimizers.SGD(schedule))
    assert causes[0].kind == "high_learning_rate"
    assert dict(tried(tmp_path / "run.h5", "lr=0.01")["lr"].params) == {"factor": 0.01}


def test_weights_that_are_added_to_themselves_are_no_high_learning_rate(tmp_path: Path) -> None:
    weights = tf.Variable(tf.fill([4, 1], 0.1), name="weights")

    @tf.function(autograph=False)
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = mean(tf.abs(x @ weights - x[:, :1]))
        weights.assign(weights - 0.01 * tape.gradient(loss, weights) + 9.0 * weights)  # for -0.01
        return loss

    x = normal(8, 4)
    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorded = recorder.wrap(step)
        for _ in range(60):
            recorded(tf.constant(x))
            if recorder.stopped:
                break
    causes = why(tmp_path / "run.h5")
    assert kinds(causes)[0] == "other"
    assert causes[0].sentence.startswith(
        "Each of the last updates added 9 times `weights` to itself, in its own direction:"
    )
    lower = tried(tmp_path / "run.h5", "lr=0.01")["lr"]  # the code has no rate of the whole update
    assert lower.prevents is None


def test_the_first_updates_of_adam_tell_a_rate_that_is_too_high(tmp_path: Path) -> None:
    def loss(y: Any, p: Any) -> Any:
        return tf.square(tf.square(tf.square(tf.square(p - y))))

    layers = [keras.layers.Dense(16, activation="relu") for _ in range(3)]
    layers.append(keras.layers.Dense(1))
    x = normal(400, 4)
    causes = fit(tmp_path, layers, x, x[:, :1], keras.optimizers.Adam(0.3, beta_2=0.1), loss)
    assert causes[0].kind == "high_learning_rate"
    assert causes[0].sentence.startswith("The update of step 0 changed the weights by 0.")
    assert causes[0].sentence.endswith("times their norm, at a learning rate of 0.3.")


def test_a_loss_of_the_wrong_sign_is_no_high_learning_rate(tmp_path: Path) -> None:
    causes = loop(tmp_path, lambda x, w: -mean(tf.square(x @ w[:, None])), normal(400, 3), rate=1.0)
    assert causes[0].kind == "other"
    assert causes[0].sentence.startswith("The loss falls without bound, from -")
    assert tried(tmp_path / "run.h5", "lr=0.01")["lr"].prevents is None


def test_a_rate_that_throws_the_weights_of_an_eager_loop_off_is_told(tmp_path: Path) -> None:
    weights, optimizer = tf.Variable(normal(3, 2)), keras.optimizers.Adam(1e25)
    scales = iter((1.0, 2.0))  # so that no step runs the program of another

    def step(x: Any, scale: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = mean(tf.square(tf.constant(x) @ weights)) * scale
        optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
        return float(loss)

    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorded = recorder.wrap(step, optimizer=optimizer)
        for _ in range(2):
            recorded(normal(8, 3), next(scales))
    cause = why(tmp_path / "run.h5")[0]
    assert cause.kind == "high_learning_rate"
    assert "The update of step 0 changed the weights by" in cause.sentence
    assert "at a learning rate of 1e+25" in cause.sentence
    assert tried(tmp_path / "run.h5", "clipnorm=1")["clipnorm"].prevents is None


@pytest.mark.parametrize(("scale", "rate"), [(100, 0.02), (1, 200.0)])
def test_large_data_are_told_where_a_training_diverges(
    tmp_path: Path, scale: float, rate: float
) -> None:
    x, y = scale * normal(96, 4), normal(96, 1)
    causes = fit(tmp_path, [keras.layers.Dense(1)], x, y, keras.optimizers.SGD(rate))
    assert causes[0].kind == "high_learning_rate"
    is_told = "Half of `batch[0]` is larger than 58.4 in step 0" in causes[0].evidence[-1]
    assert is_told == (scale == 100)


def test_an_array_that_the_code_of_a_step_makes_is_told_as_such(tmp_path: Path) -> None:
    weight = tf.Variable([[1.0], [2.0]])

    def step(x: Any) -> Any:
        scaled = x / x.max(axis=0)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.constant(scaled) @ weight))
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder, np.errstate(all="ignore"):
        recorder.wrap(step)(np.float32([[1, 0], [2, 0]]))
    report = explain(tmp_path / "run.h5")
    assert report.causes[0].sentence == (
        "An array that the step's code made outside of TensorFlow, as with NumPy, holds NaN, row "
        "0, column 1."
    )
    assert str(report.fixes[0].code).startswith("# Put `np.nan_to_num` around the array that")
