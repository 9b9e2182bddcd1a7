"""Exponentials of what is too large, and softmax of what is masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bugs.base import ROWS, Compute, adam, at, bug, fit, loop, normal, sgd, uniform


@bug(
    step=2, phase="forward", ops=("Exp",), layer="softmax", rows=(3,), causes=("exp_overflow",),
    prevents=("stable_op",), fails=("epsilon", "clipnorm", "lr"), fails_in_code=("epsilon_below",),
)  # fmt: skip
def softmax_by_hand(path: Path, fix: str | None) -> None:
    """exp(x) / sum(exp(x)): a score above 88 is infinite, and infinity over infinity is NaN; no
    epsilon changes that."""

    def softmax(scores: Any) -> Any:
        if fix == "stable_op":
            return tf.nn.softmax(scores)
        exps = tf.exp(scores + 1e-7 if fix == "epsilon" else scores)
        return exps / (
            tf.reduce_sum(exps, axis=-1, keepdims=True) + (1e-7 if fix == "epsilon_below" else 0.0)
        )

    def cross_entropy(labels: Any, probabilities: Any) -> Any:
        return -tf.reduce_sum(labels * tf.math.log(probabilities + 1e-7), axis=-1)

    inputs = keras.Input((4,))
    scores = keras.layers.Dense(3, name="scores")(
        keras.layers.Dense(6, activation="relu", name="hidden")(inputs)
    )
    model = keras.Model(inputs, Compute(softmax, name="softmax")(scores))
    model.compile(adam(1e-3, fix), cross_entropy)
    x = normal(40, 4 * ROWS, 4)
    x[at(2, 3)] *= 1000.0
    fit(path, model, x, np.eye(3, dtype="float32")[np.arange(4 * ROWS) % 3])


@bug(
    step=1, phase="loss", ops=("Exp",), rows=(2,), causes=("exp_overflow",),
    fails=("epsilon", "clipnorm", "lr"), prevents_in_code=("clip_log_variance",),
)  # fmt: skip
def precision_of_a_forecast_that_is_sure_of_itself(path: Path, fix: str | None) -> None:
    """Mean and log of the variance, as regression with uncertainty has it: exp(-log_variance) has
    no upper limit."""
    inputs = keras.Input((3,))
    mean = keras.layers.Dense(1, name="mean")(inputs)
    log_variance = keras.layers.Dense(
        1, kernel_initializer=keras.initializers.Constant(0.1), name="log_variance"
    )(inputs)
    model = keras.Model(inputs, [mean, log_variance], name="forecast")
    optimizer = adam(1e-3, fix)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            mean, log_variance = model(x, training=True)
            if fix == "clip_log_variance":
                log_variance = tf.clip_by_value(log_variance, -10.0, 10.0)
            precision = tf.exp(-log_variance + 1e-7 if fix == "epsilon" else -log_variance)
            loss = tf.reduce_mean(0.5 * precision * tf.square(y - mean) + 0.5 * log_variance)
        optimizer.apply_gradients(
            zip(
                tape.gradient(loss, model.trainable_variables),
                model.trainable_variables,
                strict=True,
            )
        )
        return loss

    x = normal(41, 4 * ROWS, 3)
    x[at(1, 2)] = -400.0
    loop(path, step, (x, normal(42, 4 * ROWS, 1)), model=model, optimizer=optimizer)


@bug(
    step=2, phase="forward", ops=("Exp",), layer="positive", rows=(6,),
    causes=("exp_overflow",),
    prevents=("stable_op",), fails=("epsilon", "clipnorm", "clipvalue", "lr"),
)  # fmt: skip
def softplus_by_hand(path: Path, fix: str | None) -> None:
    """log(1 + exp(x)) is x for a large x in mathematics, and infinite in float32, under XLA as
    well."""

    def positive(x: Any) -> Any:
        return (
            tf.nn.softplus(x)
            if fix == "stable_op"
            else tf.math.log(1.0 + tf.exp(x + 1e-7 if fix == "epsilon" else x))
        )

    inputs = keras.Input((3,))
    linear = keras.layers.Dense(2, kernel_initializer="ones", name="linear")(inputs)
    model = keras.Model(
        inputs, keras.layers.Dense(1, name="duration")(Compute(positive, name="positive")(linear))
    )
    model.compile(sgd(1e-6, fix), "mae", jit_compile=True)
    x = uniform(43, 4 * ROWS, 3)
    x[at(2, 6)] = 60.0
    fit(path, model, x, uniform(44, 4 * ROWS, 1))


class DecayCell(keras.layers.Layer):
    """A recurrent cell that forgets with the time since the last visit."""

    def __init__(self, epsilon: float, **options: Any) -> None:
        super().__init__(**options)
        self.epsilon = epsilon
        self.state_size = self.output_size = 4
        self.read = keras.layers.Dense(4, activation="tanh", name="read")

    def build(self, shape: Any) -> None:
        self.rate = self.add_weight(shape=(4,), initializer="ones", name="rate")
        self.read.build((None, 1))

    def call(self, inputs: Any, states: Any) -> Any:
        value, gap = inputs[:, :1], inputs[:, 1:]
        state = states[0] * tf.exp(-self.rate * gap + self.epsilon) + self.read(value)
        return state, [state]


@bug(
    step=1, phase="forward", ops=("Exp",), layer="decay", rows=(5,), iteration=3,
    causes=("exp_overflow", "data_outlier"),
    prevents=("clip_data",), fails=("epsilon", "clipnorm", "lr"),
)  # fmt: skip
def decay_over_a_gap_that_is_negative(path: Path, fix: str | None) -> None:
    """A recurrent cell that decays by exp(-rate * gap): two visits are in the wrong order, and the
    decay grows instead."""
    visits = keras.Input((6, 2))
    memory = keras.layers.RNN(
        DecayCell(1e-7 if fix == "epsilon" else 0.0, name="decay"), name="memory"
    )(visits)
    model = keras.Model(visits, keras.layers.Dense(1, name="risk")(memory))
    model.compile(adam(1e-3, fix), "mse", jit_compile=False)
    x = uniform(45, 4 * ROWS, 6, 2)
    x[at(1, 5), 3, 1] = -365.0
    fit(path, model, np.clip(x, 0.0, 1.0) if fix == "clip_data" else x, uniform(46, 4 * ROWS, 1))


@bug(
    step=2, phase="forward", ops=("Softmax",), layer="attend", rows=(7,), causes=("mask_all",),
    prevents=("finite_mask",), fails=("epsilon", "clipnorm", "lr"),
    prevents_in_code=("loop_to_itself",),
)  # fmt: skip
def attention_of_a_node_without_neighbours(path: Path, fix: str | None) -> None:
    """Attention over the neighbours in a graph: a node that has none attends to a row of nothing
    but -inf."""

    def attend(nodes: Any, adjacency: Any) -> Any:
        scores = tf.matmul(nodes, nodes, transpose_b=True)
        if fix == "loop_to_itself":
            adjacency = tf.maximum(adjacency, tf.eye(5))
        hidden = -1e9 if fix == "finite_mask" else -np.inf
        masked = tf.where(adjacency > 0.0, scores, hidden)
        return tf.matmul(tf.nn.softmax(masked + 1e-7 if fix == "epsilon" else masked), nodes)

    nodes, adjacency = keras.Input((5, 3), name="nodes"), keras.Input((5, 5), name="adjacency")
    coded = keras.layers.Dense(4, name="code")(nodes)
    attended = keras.layers.GlobalAveragePooling1D()(
        Compute(attend, name="attend")(coded, adjacency)
    )
    model = keras.Model([nodes, adjacency], keras.layers.Dense(1, name="solubility")(attended))
    model.compile(adam(1e-3, fix), "mse")
    edges = (uniform(47, 4 * ROWS, 5, 5) > 0.6).astype("float32")
    edges[:, np.arange(5), (np.arange(5) + 1) % 5] = 1.0
    edges[at(2, 7), 2] = 0.0
    fit(path, model, [normal(48, 4 * ROWS, 5, 3), edges], normal(49, 4 * ROWS, 1))
