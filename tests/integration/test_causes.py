"""Small real trainings, recorded, bisected and asked why: a few of each family of causes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import with_all_variables

from nanreplay import Capture, Recorder, Replay
from nanreplay.bisect import bisect
from nanreplay.diagnose import causes_of, judge
from nanreplay.findings import Cause

ROWS, BAD = 8, 20
"""Rows of a batch; row of the data that is unlike the others, row 4 of step 2."""
pytestmark = pytest.mark.filterwarnings(
    "ignore:nanreplay. step"
)  # what `on_nan="stop"` says at an incident
Loss = Callable[[Any, Any], Any]
mean, total = tf.reduce_mean, tf.reduce_sum


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session(free_memory=False)


def positive(*shape: int) -> Any:
    return np.random.default_rng(0).uniform(0.5, 1.5, shape).astype("float32")


def normal(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def with_row(x: Any, *values: float) -> Any:
    x[BAD] = values if len(values) > 1 else values[0]
    return x


def in_positive(*values: float) -> Any:
    return with_row(positive(40, 3), *values)


def in_normal(*values: float) -> Any:
    return with_row(normal(40, 3), *values)


def why(path: Path) -> tuple[Cause, ...]:
    with Capture(path) as capture, Replay(capture) as replay:
        timeline = capture.timeline_record()
        return causes_of(replay, bisect(replay, timeline), judge(replay), timeline)


def loop(
    folder: Path,
    loss_of: Loss,
    x: Any,
    rate: float = 0.01,
    first: tuple[float, ...] = (1.0, 0.5, 0.25),
) -> tuple[Cause, ...]:
    """Train one vector of three weights on `loss_of(batch, weights)`, and ask why it failed."""
    weights, optimizer = tf.Variable(first, name="weights"), keras.optimizers.SGD(rate)

    @tf.function(autograph=False)  # which reads all of this file for each lambda of it
    def step(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(batch, weights)
        optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
        return loss

    with Recorder(str(folder / "run.h5"), on_nan="stop") as recorder:
        recorded = recorder.wrap(step, optimizer=optimizer)
        for start in range(0, len(x), ROWS):
            recorded(tf.constant(x[start : start + ROWS]))
            if recorder.stopped:
                break
    return why(folder / "run.h5")


def fit(
    folder: Path,
    layers: list[Any],
    x: Any,
    y: Any,
    optimizer: Any = "sgd",
    loss: Any = "mse",
    **options: Any,
) -> tuple[Cause, ...]:
    """Fit a model of these layers, and ask why it failed."""
    model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
    model.compile(optimizer, loss, **options)
    with_all_variables(model)
    model.fit(
        x,
        y,
        batch_size=ROWS,
        shuffle=False,
        verbose=0,
        callbacks=[Recorder(str(folder / "run.h5"), on_nan="stop")],
    )
    return why(folder / "run.h5")


def kinds(causes: tuple[Cause, ...]) -> list[str]:
    return [cause.kind for cause in causes]


def half(x: Any) -> Any:
    return tf.cast(x, tf.float16)


def single(x: Any) -> Any:
    return tf.cast(x, tf.float32)


def masked_mean(x: Any, w: Any) -> Any:
    mask = single(x > 0)
    return total(tf.square(x * w) * mask) / total(mask)


def class_means(x: Any, w: Any) -> Any:
    classes = tf.one_hot(tf.cast(x[:, 2], tf.int32), 2)
    return mean(tf.matmul(classes, x * w, transpose_a=True) / total(classes, axis=0)[:, None])


def variance_of_one(x: Any, w: Any) -> Any:
    deviations = x * w - mean(x * w, axis=0)
    return mean(total(deviations * deviations, axis=0) / (single(tf.shape(x)[0]) - 1))


def relu_by_hand_in_float16(x: Any, w: Any) -> Any:
    return single(-mean(tf.math.log(tf.maximum(half(x * w), 0.0))))


def float16_mask(x: Any, w: Any) -> Any:
    return single(mean(tf.nn.softmax(half(x * w) + half((x - 1) * 1e9))))


def two_forms(error: Any) -> Any:
    """As a Huber loss has them."""
    return tf.where(tf.abs(error) < 1, error * error / 2, tf.abs(error) - 0.5)


def unit(w: Any) -> Any:
    """1 whatever the weights are, with a gradient."""
    return w / tf.stop_gradient(w)


def scalings_in_turn(x: Any, w: Any) -> Any:
    """As Sinkhorn's: a row whose exponentials all round to 0 makes infinities of the others."""
    rows = tf.math.log(total(tf.exp(-x * w), axis=1, keepdims=True))
    columns = -tf.math.log(total(tf.exp(-rows), axis=0))
    return mean(tf.math.log(total(tf.exp(columns - x * w), axis=1)))


@tf.custom_gradient
def own_gradient(x: Any) -> Any:
    return tf.sign(x), lambda upstream: upstream / tf.abs(x)


def batch_of(x: Any, value: float) -> Any:
    """Make all of step 3 one value."""
    x[3 * ROWS : 4 * ROWS] = value
    return x


LOOPS: dict[str, tuple[str, Loss, Any]] = {
    "log of a product": ("log_of_zero", lambda x, w: mean(tf.math.xlogy(0.5, x * w)),
    in_positive(0)),
    "log of 1 - p": ("log_of_zero", lambda x, w: -mean(tf.math.log(1 - tf.sigmoid(x * w))),
    in_positive(500)),
    "log clipped afterwards": ("log_of_zero", lambda x, w: mean(tf.maximum(tf.math.log(x * w),
    -9.0)), in_positive(0, 1, 1)),
    "log of a loss": ("log_of_negative", lambda x, w: mean(tf.math.log1p(x * w)), in_positive(-3,
    1, 1)),
    "root of a difference": ("sqrt_of_negative", lambda x, w: mean(tf.math.rsqrt(4 - x * x * w)),
    in_positive(5, 1, 1)),
    "distance by hand": ("sqrt_grad_at_zero", lambda x, w: mean(tf.sqrt(total(tf.square(x * w - x),
    axis=1))), in_normal(0)),
    "perfect RMSE": ("sqrt_grad_at_zero", lambda x,
    w: tf.sqrt(mean(tf.math.squared_difference(x * w, x))), batch_of(normal(40, 3), 0)),
    "tf.norm": ("norm_grad_at_zero", lambda x, w: mean(tf.norm(x * w, axis=1)), in_normal(0)),
    "keras.ops.norm": ("norm_grad_at_zero", lambda x, w: mean(keras.ops.norm(x * w, axis=1)),
    in_normal(0)),
    "euclidean norm": ("norm_grad_at_zero", lambda x, w: mean(tf.math.reduce_euclidean_norm(x * w,
    axis=1)), in_normal(0)),
    "power of a negative": ("pow_domain", lambda x, w: mean(tf.pow(x * w, 0.3)), in_positive(-1, 1,
    1)),
    "power one half at 0": ("pow_domain", lambda x, w: mean((x * w) ** 0.5), in_positive(0, 1, 1)),
    "acos beyond 1": ("acos_domain", lambda x, w: mean(tf.acos(x * w)), with_row(normal(40,
    3) * 0.1, 1.001, 0, 0)),
    "gaussian": ("exp_overflow", lambda x, w: mean(tf.exp(-x * w) * x**2 + x * w), in_normal(-400,
    0, 0)),
    "square of exp": ("exp_overflow", lambda x, w: mean(tf.square(tf.exp(x * w))), in_normal(60, 0,
    0)),
    "odds": ("division_by_zero", lambda x, w: mean(tf.reduce_max(x * w) / (1 - x[:, 0])),
    with_row(positive(40, 3) * 0.5, 1, 0.5, 0.5)),
    "atan2": ("division_by_zero", lambda x, w: mean(tf.atan2(x[:, 0] * w[0], x[:, 1] * w[1])),
    in_positive(0, 0, 1)),
    "shares": ("zero_over_zero", lambda x, w: mean(x / total(x, axis=1, keepdims=True) * w),
    in_positive(0)),
    "projection": ("zero_over_zero", lambda x, w: mean(total(x * w, axis=1) / total(x * x,
    axis=1)), in_normal(0)),
    "masked mean": ("empty_reduction", masked_mean, batch_of(positive(40, 3), -1)),
    "boolean mask": ("empty_reduction", lambda x, w: mean(tf.boolean_mask(x * w, x > 0)),
    batch_of(positive(40, 3), -1)),
    "class means": ("empty_reduction", class_means, batch_of(np.tile(np.float32([[1, 2, 0], [2, 1,
    1]]), (20, 1)), 0)),
    "standard deviation": ("variance_zero", lambda x, w: mean(tf.math.reduce_std(x * w, axis=1)),
    in_normal(0)),
    "batch of one": ("variance_zero", variance_of_one, normal(33, 3)),
    "where of log": ("where_gradient", lambda x, w: mean(tf.where(x > 0, tf.math.log(x * w), 0.0)),
    in_positive(0, 1, 1)),
    "where of exp": ("where_gradient", lambda x, w: mean(tf.where(x < 20, tf.exp(x * w), x * w)),
    in_positive(200, 1, 1)),
    "where of acos": ("where_gradient", lambda x, w: mean(tf.where(x < 1, tf.acos(x * w), 0.0)),
    with_row(normal(40, 3) * 0.1, 2, 0, 0)),
    "where between two forms of one value": ("division_by_zero", lambda x,
    w: mean(two_forms(tf.atan2(x[:, 0] * w[0], x[:, 1] * w[1]) - 0.1)), in_positive(0, 0, 1)),
    "where that keeps the arc of 1": ("acos_domain", lambda x,
    w: mean(tf.square(tf.where(x <= 1, tf.acos(x * unit(w)), 0.0))), with_row(normal(40, 3) * 0.1,
    1, 0, 0)),
    "where that drops the arc of 1": ("where_gradient", lambda x,
    w: mean(tf.where(x < 1, tf.acos(x * unit(w)), 0.0)), with_row(normal(40, 3) * 0.1, 1, 0, 0)),
    "angle of nothing": ("division_by_zero", lambda x,
    w: mean(tf.math.angle(tf.complex(x[:, 0] * w[0], x[:, 1] * w[1]))), in_positive(0, 0, 1)),
    "largest of no rows": ("empty_reduction", lambda x, w: mean(4 * x[:, 2] * tf.gather(
    tf.math.unsorted_segment_max(x[:, 0] * w[0], tf.cast(x[:, 1], tf.int32), 2), 1)),
    batch_of(np.tile(np.float32([[1, 0, 2], [2, 1, 2]]), (20, 1)), 0) + np.float32([0, 0, 2])),
    "gradient of one's own": ("division_by_zero", lambda x, w: mean(own_gradient(x * w)),
    in_positive(0, 1, 1)),
    "masked softmax": ("mask_all", lambda x, w: mean(tf.nn.log_softmax(tf.where(x > -9, x * w,
    -np.inf))[:, 0]), in_normal(-10)),
    "masked log-sum-exp": ("mask_all", lambda x, w: mean(tf.reduce_logsumexp(tf.where(x > -9,
    x * w, -np.inf), axis=1)), in_normal(-10)),
    "float16 sum": ("fp16_overflow", lambda x, w: single(mean(total(half(x * w) * 100, axis=1))),
    in_positive(600, 300, 100)),
    "float16 mask": ("fp16_overflow", float16_mask, with_row(normal(40, 3) ** 0, 0)),
    "float16 epsilon": ("fp16_underflow", lambda x,
    w: single(-mean(tf.math.log(half(x * w) + 1e-8))), in_positive(0, 1, 1)),
    "float16 softmax": ("fp16_underflow", lambda x,
    w: single(-mean(tf.math.log(tf.nn.softmax(half(x * w))))), in_normal(30, 0, 0)),
    "a relu by hand in float16": ("log_of_zero", relu_by_hand_in_float16, in_positive(-1, 1, 1)),
    "cholesky": ("linalg_singular", lambda x, w: mean(tf.linalg.cholesky(tf.einsum("bi,bj->bij",
    x * w, x * w))), in_normal(0)),
    "infinity in the data": ("data_inf", lambda x, w: mean(x * w), in_positive(np.inf, 1, 1)),
    "far-out row": ("data_outlier", lambda x, w: mean(tf.square(x * w)), in_positive(1e25, 1, 1)),
    "root beside a norm": ("sqrt_grad_at_zero", lambda x,
    w: mean(tf.sqrt(x * w)) + 0.01 * tf.norm(w), in_positive(0, 1, 1)),
    "log of a small determinant": ("log_of_zero", lambda x, w: tf.math.log(tf.linalg.det(
    tf.eye(64) * 0.01 * mean(x * w))), positive(40, 3)),
    "where of atan2": ("where_gradient", lambda x, w: mean(tf.where(x[:, 2] > 0.1,
    tf.atan2(x[:, 0] * w[0], x[:, 1] * w[1]), 0.0)), in_positive(0)),
    "scalings that take turns": ("log_of_zero", scalings_in_turn, in_positive(900, 900, 900)),
    "0 * -inf": ("other", lambda x, w: mean(tf.nn.softmax(x * w + (1 - single(x > -9)) * -np.inf)),
    in_normal(-10)),
}  # fmt: skip


QUICK = (
    "perfect RMSE",
    "boolean mask",
    "where that keeps the arc of 1",
    "float16 mask",
    "root beside a norm",
)
"""Those that another rule than the first of their kind has to tell apart."""


def rest_slow(names: Iterable[str]) -> list[Any]:
    """The first of each kind of cause, and those of `QUICK`, are quick tests."""
    seen: Counter[str] = Counter()
    cases = []
    for name in names:
        seen[LOOPS[name][0]] += 1
        is_quick = seen[LOOPS[name][0]] == 1 or name in QUICK
        cases.append(pytest.param(name, marks=() if is_quick else pytest.mark.slow))
    return cases


@pytest.mark.parametrize("name", rest_slow(LOOPS))
def test_the_likeliest_cause(tmp_path: Path, name: str) -> None:
    kind, loss_of, x = LOOPS[name]
    assert kinds(loop(tmp_path, loss_of, x))[0] == kind


def test_an_infinity_that_is_multiplied_by_0_is_told(tmp_path: Path) -> None:
    causes = loop(tmp_path, *LOOPS["0 * -inf"][1:])
    assert causes[0].confidence > 0.8
    assert "multiplies 0 by -inf at [0, 0]: that is NaN" in causes[0].sentence


def test_the_far_out_row_is_the_second_cause_of_an_overflowing_exponential(tmp_path: Path) -> None:
    causes = loop(tmp_path, lambda x, w: mean(tf.exp(x * w)), with_row(normal(40, 3), 400, 0, 0))
    assert kinds(causes) == ["exp_overflow", "data_outlier"]
    assert causes[0].sentence.startswith("The output of `Mul` is 39")
    assert "holds 400 in row 4, column 0 of step 2" in causes[1].sentence
    assert causes[0].confidence > causes[1].confidence


def test_a_layer_that_is_called_norm_is_no_norm_of_the_library(tmp_path: Path) -> None:
    def length(x: Any) -> Any:
        return tf.sqrt(total(tf.square(x), axis=1, keepdims=True))

    layers = [keras.layers.Dense(3, use_bias=False), keras.layers.Lambda(length, name="norm")]
    assert (
        kinds(fit(tmp_path, layers, with_row(normal(40, 3), 0), normal(40, 1)))[0]
        == "sqrt_grad_at_zero"
    )


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(keras.layers.LayerNormalization, marks=pytest.mark.slow),
        keras.layers.BatchNormalization,
    ],
)
def test_normalization_without_an_epsilon(tmp_path: Path, layer: Any) -> None:
    x = batch_of(with_row(normal(40, 3), 2), 1)
    assert (
        kinds(fit(tmp_path, [layer(epsilon=0.0), keras.layers.Dense(1)], x, normal(40, 1)))[0]
        == "variance_zero"
    )


def test_a_label_below_zero_under_xla(tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    labels[BAD] = -1
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    causes = fit(
        tmp_path, [keras.layers.Dense(4)], normal(40, 3), labels, loss=loss, jit_compile=True
    )
    assert causes[0].kind == "label_out_of_range"
    assert causes[0].sentence == "The label in row 4 is -1, but there are only 4 classes (0 to 3)."


def test_a_label_of_a_sequence_is_told_with_its_place(tmp_path: Path) -> None:
    labels = np.arange(120).reshape(40, 3) % 4
    labels[BAD, 1] = 7
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(tf.errors.InvalidArgumentError):
        fit(tmp_path, [keras.layers.Dense(4)], normal(40, 3, 2), labels, loss=loss)
    told = why(tmp_path / "run.h5")[0].sentence
    assert told == "The label in row 4, column 1 is 7, but there are only 4 classes (0 to 3)."


@pytest.mark.parametrize("bad", [400.0, np.nan])
def test_what_a_loop_fetched_is_told_by_iteration_and_row(tmp_path: Path, bad: float) -> None:
    """Gradients of four small batches in one step; the second of them has the bad row."""
    x = positive(20, ROWS, 3)
    x[9, 5, 2] = bad
    weights = tf.Variable([[1.0], [0.5], [0.25]])

    @tf.function
    def step(iterator: Any) -> Any:
        total_loss, gradient = 0.0, tf.zeros_like(weights)
        for _ in tf.range(4):
            with tf.GradientTape() as tape:
                loss = mean(tf.exp(next(iterator)) @ weights)
            gradient += tape.gradient(loss, weights)
            total_loss += loss
        weights.assign_sub(0.001 * gradient)
        return total_loss

    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorded, iterator = recorder.wrap(step), iter(tf.data.Dataset.from_tensor_slices(x))
        for _ in range(3):
            recorded(iterator)
    kind = "data_nan" if np.isnan(bad) else "data_outlier"
    cause = next(cause for cause in why(tmp_path / "run.h5") if cause.kind == kind)
    assert "iteration 1, row 5, column 2" in cause.sentence


@pytest.mark.parametrize(
    "rate", [0.3, *(pytest.param(rate, marks=pytest.mark.slow) for rate in (5.0, 1e3))]
)
def test_a_learning_rate_that_is_too_high(tmp_path: Path, rate: float) -> None:
    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)]
    x = normal(400, 3) * 3
    causes = fit(tmp_path, layers, x, x.sum(1, keepdims=True), keras.optimizers.SGD(rate))
    assert causes[0].kind == "high_learning_rate"
    assert f"at a learning rate of {rate:.6g}" in causes[0].sentence


def test_a_relu_recurrence_over_many_time_steps_explodes(tmp_path: Path) -> None:
    x = normal(160, 30, 1) * 3
    layers = [keras.layers.SimpleRNN(4, activation="relu"), keras.layers.Dense(1)]
    assert (
        kinds(fit(tmp_path, layers, x, x.sum(1), keras.optimizers.SGD(0.15), jit_compile=False))[0]
        == "exploding_gradient"
    )


def test_weights_that_are_drawn_too_wide(tmp_path: Path) -> None:
    wide = keras.initializers.RandomNormal(stddev=20.0)
    layers = [keras.layers.Dense(64, activation="relu", kernel_initializer=wide) for _ in range(10)]
    causes = fit(tmp_path, [*layers, keras.layers.Dense(1)], normal(80, 64), normal(80, 1))
    assert causes[0].kind == "bad_init"
    assert "times the 0.177 that He's rule gives" in causes[0].sentence


def test_updates_that_loss_scaling_skips_for_good(tmp_path: Path) -> None:
    layers = [
        keras.layers.Dense(4, dtype="mixed_float16"),
        keras.layers.Lambda(lambda x: tf.sqrt(tf.abs(x * 0.0)), dtype="float16"),
        keras.layers.Dense(1),
    ]
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))
    causes = fit(tmp_path, layers, normal(400, 3), normal(400, 1), optimizer, jit_compile=False)
    assert kinds(causes)[:2] == ["loss_scale_stuck", "sqrt_grad_at_zero"]


def test_a_healthy_noisy_training_has_grown_nothing(tmp_path: Path) -> None:
    x = normal(400, 3)
    y = (x.sum(1, keepdims=True) + np.random.default_rng(1).standard_t(2, size=(400, 1))).astype(
        "float32"
    )
    y[380] = np.nan
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)]
    assert kinds(fit(tmp_path, layers, x, y, "adam")) == ["data_nan"]


def test_a_branch_whose_gradient_alone_is_infinite_is_not_said_to_be_so_itself(
    tmp_path: Path,
) -> None:
    x = with_row(normal(40, 3) * 0.1, 1, 0, 0)
    (cause, *_) = loop(tmp_path, lambda x, w: mean(tf.where(x < 1, tf.acos(x * unit(w)), 0.0)), x)
    assert cause.sentence.startswith("The gradient of `Acos` in the loss is not finite at [4, 0]")


def test_rows_of_map_fn_do_not_grow_from_one_another(tmp_path: Path) -> None:
    causes = loop(
        tmp_path,
        lambda x, w: mean(tf.map_fn(lambda row: tf.square(row * w), x)),
        in_positive(1e25, 1, 1),
    )
    assert kinds(causes) == ["data_outlier"]


def test_an_op_that_raised_is_not_said_to_have_given_a_value(tmp_path: Path) -> None:
    def loss_of(x: Any, w: Any) -> Any:
        """Fewer indices than rows, from step 3 on."""
        rows = tf.zeros([8 - tf.cast(x[0, 0] // 9, tf.int32), 1], tf.int32)
        return mean(tf.gather(x * w, rows, batch_dims=1))

    with pytest.raises(tf.errors.InvalidArgumentError):
        loop(tmp_path, loss_of, batch_of(positive(40, 3), 9))
    (cause,) = why(tmp_path / "run.h5")
    assert (cause.kind, cause.sentence) == (
        "other",
        "`GatherV2` in the loss raised: params.shape[0]: 8 should be equal to indices.shape[0]: 7.",
    )


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_the_infinity_that_float16_makes_of_a_number_is_told_with_its_sign(tmp_path: Path) -> None:
    x = batch_of(positive(40, 3), 0)
    (cause, *_) = loop(
        tmp_path, lambda x, w: single(mean(half(x * w) * tf.constant(1e9, tf.float16))), x[24:]
    )
    assert cause.kind == "fp16_overflow"
    assert "gives inf in float16, which ends at 65504: inf times 0 is NaN." in cause.sentence


def test_an_update_that_overflows_is_no_gradient_that_does(tmp_path: Path) -> None:
    (cause,) = loop(tmp_path, lambda x, w: mean(100 * x * w), positive(8, 3), rate=3e38)
    assert cause.sentence == (
        "What the optimizer makes of a gradient overflows in `Mul` in the optimizer."
    )
