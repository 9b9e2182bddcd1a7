"""Divisions by zero: norms, counts, deviations, sums of nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bugs.base import ROWS, Compute, adam, at, bug, fit, loop, normal, sgd, uniform


@bug(
    step=1, phase="forward", ops=("RealDiv",), layer="unit_length", rows=(6,),
    causes=("zero_over_zero",),
    prevents=("epsilon",), fails=("clipnorm", "clipvalue", "lr"), fails_in_code=("epsilon_on_top",),
)  # fmt: skip
def cosine_similarity_of_a_user_without_ratings(path: Path, fix: str | None) -> None:
    """Users and films compared by the angle between them: somebody has rated nothing, and 0 / ||0||
    is NaN."""

    def unit_length(x: Any) -> Any:
        norm = tf.norm(x, axis=-1, keepdims=True)
        if fix == "epsilon_on_top":
            return (x + 1e-8) / norm
        return x / (norm + 1e-8 if fix == "epsilon" else norm)

    user, film = keras.Input((6,), name="user"), keras.Input((6,), name="film")
    unit = Compute(unit_length, name="unit_length")(user)
    weighed = keras.layers.Dense(6, use_bias=False, name="film_code")(film)
    model = keras.Model([user, film], keras.layers.Dot(axes=1, name="similarity")([unit, weighed]))
    model.compile(adam(1e-3, fix), "mse")
    users = uniform(20, 4 * ROWS, 6)
    users[at(1, 6)] = 0.0
    fit(path, model, [users, normal(21, 4 * ROWS, 6)], uniform(22, 4 * ROWS, 1))


@bug(
    step=2, phase="forward", ops=("RealDiv",), layer="mean_of_words", rows=(0,),
    causes=("empty_reduction", "zero_over_zero"),
    prevents=("epsilon",), fails=("clipnorm", "global_clipnorm", "lr"),
    fails_in_code=("zero_instead_of_nan",),
)  # fmt: skip
def mean_of_the_words_of_an_empty_review(path: Path, fix: str | None) -> None:
    """Word vectors averaged over the words that are no padding: one review has none, and its mean
    is 0 / 0."""
    words = keras.Input((7,), dtype="int32")
    embedded = keras.layers.Embedding(30, 6, name="embedding")(words)

    def mean_of_words(vectors: Any, ids: Any) -> Any:
        mask = tf.cast(ids > 0, tf.float32)[..., None]
        count = tf.reduce_sum(mask, axis=1)
        return tf.reduce_sum(vectors * mask, axis=1) / (count + 1e-7 if fix == "epsilon" else count)

    def binary(labels: Any, probabilities: Any) -> Any:
        loss = keras.losses.binary_crossentropy(labels, probabilities)
        return tf.where(tf.math.is_nan(loss), 0.0, loss) if fix == "zero_instead_of_nan" else loss

    pooled = Compute(mean_of_words, name="mean_of_words")(embedded, words)
    model = keras.Model(
        words, keras.layers.Dense(1, activation="sigmoid", name="is_praise")(pooled)
    )
    model.compile(adam(1e-2, fix), binary)
    random = np.random.default_rng(23)
    ids = random.integers(1, 30, (4 * ROWS, 7))
    ids[np.arange(7) >= random.integers(1, 8, (4 * ROWS, 1))] = 0
    ids[at(2, 0)] = 0
    fit(path, model, ids.astype("int32"), random.integers(0, 2, (4 * ROWS, 1)).astype("float32"))


@bug(
    step=1, phase="loss", ops=("Mean",), causes=("empty_reduction",),
    fails=("epsilon", "clipnorm", "lr"), prevents_in_code=("guard",),
)  # fmt: skip
def mean_over_a_batch_in_which_nothing_is_labelled(path: Path, fix: str | None) -> None:
    """Few samples carry a label, and the loss is the mean over those: a batch without any is the
    mean of nothing."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, activation="tanh"),
            keras.layers.Dense(1, name="score"),
        ]
    )
    optimizer = adam(1e-2, fix)

    @tf.function
    def step(x: Any, y: Any, is_labelled: Any) -> Any:
        with tf.GradientTape() as tape:
            errors = tf.boolean_mask(tf.square(model(x, training=True)[:, 0] - y), is_labelled)
            if fix == "guard":
                loss = tf.math.divide_no_nan(
                    tf.reduce_sum(errors), tf.cast(tf.size(errors), tf.float32)
                )
            else:
                loss = tf.reduce_mean(errors + 1e-7 if fix == "epsilon" else errors)
        optimizer.apply_gradients(
            zip(
                tape.gradient(loss, model.trainable_variables),
                model.trainable_variables,
                strict=True,
            )
        )
        return loss

    is_labelled = np.arange(4 * ROWS) % 3 == 0
    is_labelled[at(1, 0) : at(2, 0)] = False
    loop(
        path,
        step,
        (normal(24, 4 * ROWS, 3), normal(25, 4 * ROWS), is_labelled),
        model=model,
        optimizer=optimizer,
    )


@bug(
    step=2, phase="forward", ops=("RealDiv",), layer="standardise",
    causes=("variance_zero", "zero_over_zero"),
    prevents=("epsilon",), fails=("clipnorm", "lr"), fails_in_code=("epsilon_on_top",),
)  # fmt: skip
def batch_normalisation_by_hand_of_a_sensor_that_is_off(path: Path, fix: str | None) -> None:
    """Columns scaled by the deviation of the batch, under XLA: while a sensor is off its column is
    constant."""

    def standardise(x: Any) -> Any:
        mean, variance = tf.nn.moments(x, axes=[0])
        deviation = tf.sqrt(variance)
        if fix == "epsilon_on_top":
            return (x - mean + 1e-5) / deviation
        return (x - mean) / (deviation + 1e-5 if fix == "epsilon" else deviation)

    readings = keras.Input((4,))
    scaled = Compute(standardise, name="standardise")(readings)
    model = keras.Model(
        readings,
        keras.layers.Dense(1, name="load")(keras.layers.Dense(5, activation="tanh")(scaled)),
    )
    model.compile(sgd(0.01, fix), "mse", jit_compile=True)
    x = normal(26, 4 * ROWS, 4)
    x[at(2, 0) : at(3, 0), 3] = 0.0
    fit(path, model, x, x[:, :1])


@bug(
    step=3, phase="forward", ops=("RealDiv",), layer="normalise", rows=(4,),
    causes=("variance_zero", "zero_over_zero"),
    prevents=("epsilon",), fails=("clipnorm", "clipvalue", "lr"),
)  # fmt: skip
def deviation_within_a_flat_heartbeat(path: Path, fix: str | None) -> None:
    """Each recording scaled by its own deviation: an electrode came off, and the recording is one
    straight line."""

    def normalise(signal: Any) -> Any:
        deviation = tf.math.reduce_std(signal, axis=-1, keepdims=True)
        return (signal - tf.reduce_mean(signal, axis=-1, keepdims=True)) / (
            deviation + 1e-6 if fix == "epsilon" else deviation
        )

    inputs = keras.Input((16,))
    signal = keras.layers.Reshape((16, 1))(Compute(normalise, name="normalise")(inputs))
    features = keras.layers.GlobalMaxPooling1D()(
        keras.layers.Conv1D(4, 3, activation="relu", name="beats")(signal)
    )
    model = keras.Model(
        inputs, keras.layers.Dense(1, activation="sigmoid", name="is_ill")(features)
    )
    model.compile(adam(1e-3, fix), "binary_crossentropy")
    heartbeats = normal(27, 5 * ROWS, 16)
    heartbeats[at(3, 4)] = 0.0
    fit(
        path,
        model,
        heartbeats,
        np.random.default_rng(28).integers(0, 2, (5 * ROWS, 1)).astype("float32"),
    )


@bug(
    step=2, phase="loss", ops=("RealDiv",), rows=(1,), causes=("division_by_zero",),
    prevents=("epsilon",), fails=("clipnorm", "clipvalue", "global_clipnorm", "lr"),
    fails_in_code=("epsilon_on_top",),
)  # fmt: skip
def percentage_error_of_a_day_without_sales(path: Path, fix: str | None) -> None:
    """|y - p| / |y|, with variables and no model: a shop was closed for a day, and y is 0."""
    weights, bias = tf.Variable(tf.zeros([3, 1]), name="weights"), tf.Variable([1.0], name="bias")
    optimizer = sgd(1e-3, fix)

    @tf.function
    def step(x: Any, sales: Any) -> Any:
        with tf.GradientTape() as tape:
            error = tf.abs(sales - (tf.matmul(x, weights) + bias))
            if fix == "epsilon_on_top":
                error += 1e-7
            loss = tf.reduce_mean(
                error / (tf.abs(sales) + 1e-7 if fix == "epsilon" else tf.abs(sales))
            )
        optimizer.apply_gradients(
            zip(tape.gradient(loss, [weights, bias]), [weights, bias], strict=True)
        )
        return loss

    sales = uniform(29, 4 * ROWS, 1, low=5.0, high=10.0)
    sales[at(2, 1)] = 0.0
    loop(path, step, (normal(30, 4 * ROWS, 3), sales), optimizer=optimizer)


@bug(
    step=1, phase="loss", ops=("RealDiv",), causes=("division_by_zero",),
    prevents=("epsilon",), fails=("clipnorm", "lr"), fails_in_code=("epsilon_after_division",),
)  # fmt: skip
def weight_of_a_class_that_the_batch_lacks(path: Path, fix: str | None) -> None:
    """Rare classes weigh more, by one over their count: where a batch has none of a class, its
    weight is infinite, times 0."""

    def balanced(labels: Any, logits: Any) -> Any:
        counts = tf.reduce_sum(labels, axis=0)
        weights = tf.cast(tf.shape(labels)[0], tf.float32) / (
            counts + 1e-3 if fix == "epsilon" else counts
        )
        if fix == "epsilon_after_division":
            weights += 1e-3
        return tf.nn.softmax_cross_entropy_with_logits(labels, logits) * tf.reduce_sum(
            labels * weights, axis=-1
        )

    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, name="class")])
    model.compile(sgd(0.01, fix), balanced, jit_compile=True)
    classes = np.arange(3 * ROWS) % 3
    classes[at(1, 0) : at(2, 0)] %= 2
    fit(path, model, normal(31, 3 * ROWS, 5), np.eye(3, dtype="float32")[classes])


@bug(
    step=1, phase="forward", ops=("RealDiv",), layer="shares", rows=(5,), causes=("zero_over_zero",
    "division_by_zero"),
    prevents=("leaky_relu", "epsilon"), fails=("clipnorm", "clipvalue", "lr"),
    fails_in_code=("zero_instead_of_nan",),
)  # fmt: skip
def portfolio_that_buys_nothing(path: Path, fix: str | None) -> None:
    """Scores through relu, divided by their sum: on a day on which every score is negative relu
    leaves 0 / 0."""
    inputs = keras.Input((4,))
    start = keras.initializers.Constant(0.2)
    activation = keras.layers.LeakyReLU(negative_slope=0.01) if fix == "leaky_relu" else "relu"
    scores = keras.layers.Dense(
        3, activation=activation, kernel_initializer=start, bias_initializer="ones", name="scores"
    )(inputs)

    def shares(scores: Any) -> Any:
        total = tf.reduce_sum(scores, axis=-1, keepdims=True)
        return scores / (total + 1e-7 if fix == "epsilon" else total)

    def negative_return(returns: Any, shares: Any) -> Any:
        loss = -tf.reduce_sum(returns * shares, axis=-1)
        return tf.where(tf.math.is_nan(loss), 0.0, loss) if fix == "zero_instead_of_nan" else loss

    model = keras.Model(inputs, Compute(shares, name="shares")(scores))
    model.compile(adam(1e-3, fix), negative_return)
    signals = uniform(32, 4 * ROWS, 4, low=-0.5, high=0.5)
    signals[at(1, 5)] = [-4.0, -3.0, -5.0, -4.0]
    fit(path, model, signals, 0.02 * normal(33, 4 * ROWS, 3))


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises for some steps and then stays."""

    def __init__(self, rate: float, steps: int, epsilon: float) -> None:
        self.rate, self.steps, self.epsilon = rate, steps, epsilon

    def __call__(self, step: Any) -> Any:
        return self.rate * tf.minimum(
            1.0, tf.cast(step, tf.float32) / (float(self.steps) + self.epsilon)
        )


@bug(
    step=0, phase="update", ops=("RealDiv",), causes=("zero_over_zero",), trigger="variable",
    prevents=("epsilon",), fails=("lr", "clipnorm", "clipvalue", "global_clipnorm"),
)  # fmt: skip
def warmup_of_no_steps(path: Path, fix: str | None) -> None:
    """The configuration turned warm-up off by setting its steps to 0: the learning rate of step 0
    is 0 / 0."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="line")])
    schedule = Warmup(
        1e-4 if fix == "lr" else 1e-3, steps=0, epsilon=1e-7 if fix == "epsilon" else 0.0
    )
    optimizer = adam(1e-3, None if fix == "lr" else fix)
    optimizer.learning_rate = schedule
    model.compile(optimizer, "mse")
    x = normal(34, 4 * ROWS, 3)
    fit(path, model, x, x[:, :1])


@bug(
    step=2, phase="forward", ops=("RealDiv",), layer="running_mean", rows=(3,), iteration=0,
    causes=("zero_over_zero",),
    prevents=("epsilon",), fails=("clipnorm", "lr"), prevents_in_code=("divide_no_nan",),
)  # fmt: skip
def running_mean_before_the_first_measurement(path: Path, fix: str | None) -> None:
    """The mean of all measurements so far, in a while_loop: one series begins with a gap, so at
    first there are none."""

    def running_mean(values: Any, is_measured: Any) -> Any:
        def body(time: Any, total: Any, count: Any, means: Any) -> Any:
            total += values[:, time] * is_measured[:, time]
            count += is_measured[:, time]
            mean = total / (count + 1e-7 if fix == "epsilon" else count)
            if fix == "divide_no_nan":
                mean = tf.math.divide_no_nan(total, count)
            return time + 1, total, count, means.write(time, mean)

        zeros = tf.zeros_like(values[:, 0])
        means = tf.TensorArray(tf.float32, 5, element_shape=[None])
        _, _, _, means = tf.while_loop(
            lambda time, *_: time < 5, body, (tf.constant(0), zeros, zeros, means)
        )
        return tf.transpose(means.stack())

    values, is_measured = keras.Input((5,), name="values"), keras.Input((5,), name="is_measured")
    scaled = keras.layers.EinsumDense(
        "bt,t->bt", output_shape=5, kernel_initializer="ones", name="calibrate"
    )(values)
    means = Compute(running_mean, name="running_mean")(scaled, is_measured)
    model = keras.Model([values, is_measured], keras.layers.Dense(1, name="next")(means))
    model.compile(sgd(1e-3, fix), "mse", jit_compile=False)
    known = np.ones((4 * ROWS, 5), np.float32)
    known[at(2, 3), 0] = 0.0
    known[:, 3] = np.arange(4 * ROWS) % 2
    fit(path, model, [normal(35, 4 * ROWS, 5), known], normal(36, 4 * ROWS, 1))
