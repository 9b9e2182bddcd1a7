"""Numbers that grow until they no longer fit: steps too large, weights too large, gradients too
large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bugs.base import ROWS, adam, at, bug, fit, loop, normal, sgd, uniform


@bug(
    step=17, phase="loss", ops=("Square", "Sum", "SquaredDifference"), rows=(1, 5, 6),
    causes=("high_learning_rate",),
    prevents=("lr",), fails=("clip_data",),
)  # fmt: skip
def momentum_on_top_of_a_rate_that_is_too_high(path: Path, fix: str | None) -> None:
    """SGD with momentum 0.9 on columns nobody scaled: every step overshoots further than the one
    before."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="price")])
    model.compile(sgd(0.5, fix, momentum=0.9), "mse")
    x = uniform(80, 40 * ROWS, 3, high=4.0)
    fit(
        path,
        model,
        np.clip(x, 0.0, 4.0) if fix == "clip_data" else x,
        x.sum(axis=1, keepdims=True),
        window=64,
    )


@bug(
    step=3, phase="loss", ops=("Square", "SquaredDifference"), causes=("exploding_gradient",
    "data_outlier"),
    prevents=("clipnorm", "clipvalue", "global_clipnorm"), fails=("leaky_relu",),
)  # fmt: skip
def one_label_in_the_wrong_unit_and_twelve_layers(path: Path, fix: str | None) -> None:
    """One target is in grams and not in tonnes: its gradient throws twelve layers off at once, and
    the next batch overflows."""
    slope = "leaky_relu" if fix == "leaky_relu" else "elu"
    layers = [
        keras.layers.Dense(6, activation=slope, kernel_initializer="he_normal", name=f"layer_{i}")
        for i in range(12)
    ]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1, name="weight")])
    model.compile(sgd(1e-3, fix), "mse")
    y = uniform(82, 5 * ROWS, 1)
    y[at(2, 5)] = 1e6
    fit(path, model, normal(81, 5 * ROWS, 4), y)


@bug(
    step=0, phase="forward", ops=("MatMul", "BiasAdd", "AddV2"), layer="layer_4",
    causes=("bad_init",),
    prevents=("init",), fails=("lr", "clipnorm", "clipvalue"), prevents_in_code=("he",),
)  # fmt: skip
def weights_drawn_with_a_deviation_of_a_billion(path: Path, fix: str | None) -> None:
    """RandomNormal(stddev=1e9) for 1e-9: every layer multiplies by a billion, and the fifth is
    beyond float32."""
    start: Any = {"init": "glorot_uniform", "he": "he_normal"}.get(
        fix or "", keras.initializers.RandomNormal(stddev=1e9, seed=1)
    )
    layers = [
        keras.layers.Dense(8, activation="relu", kernel_initializer=start, name=f"layer_{i}")
        for i in range(5)
    ]
    model = keras.Sequential(
        [*layers, keras.layers.Dense(1, kernel_initializer=start, name="out")]
    )  # built by its first batch
    model.compile(adam(1e-3, fix), "mse")
    fit(path, model, normal(83, 4 * ROWS, 4), normal(84, 4 * ROWS, 1))


@bug(
    step=0, phase="forward", ops=("MatMul", "AddV2", "BiasAdd"), layer="simple_rnn_cell", rows=(1,
    7), iteration=82,
    causes=("bad_init", "exploding_gradient"),
    prevents=("init",), fails=("lr", "clipnorm", "clipvalue"),
)  # fmt: skip
def recurrent_weights_that_triple_the_state(path: Path, fix: str | None) -> None:
    """A relu recurrence that starts at three times the identity: the state is tripled at each of
    120 time steps."""
    start = "glorot_uniform" if fix == "init" else keras.initializers.Identity(gain=3.0)
    memory = keras.layers.SimpleRNN(
        5, activation="relu", recurrent_initializer=start, name="memory"
    )
    model = keras.Sequential([keras.Input((120, 2)), memory, keras.layers.Dense(1, name="next")])
    model.compile(adam(1e-3, fix), "mse", jit_compile=False)
    fit(path, model, uniform(85, 3 * ROWS, 120, 2), normal(86, 3 * ROWS, 1))


@bug(
    step=2, phase="update", ops=("L2Loss", "Square", "Mul", "Sum"), rows=(3,),
    causes=("exploding_gradient", "data_outlier"), trigger="variable", prevents=("clipvalue",),
    fails=("global_clipnorm", "lr"),
)  # fmt: skip
def clipping_by_a_norm_that_overflows(path: Path, fix: str | None) -> None:
    """The optimizer already clips by the global norm; a gradient of 1e20 is finite, its square is
    not, and 1e20 / inf * inf."""
    weights = tf.Variable(tf.zeros([3, 1]), name="weights")
    optimizer = sgd(0.1, fix, global_clipnorm=1.0)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.abs(tf.matmul(x, weights) - y))
        optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
        return loss

    x = normal(87, 4 * ROWS, 3)
    x[at(2, 3), 1] = 1e21
    loop(path, step, (x, normal(88, 4 * ROWS, 1)), optimizer=optimizer)
