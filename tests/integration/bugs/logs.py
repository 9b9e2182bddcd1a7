"""Logarithms of what is not positive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bugs.base import ROWS, Compute, adam, at, bug, fit, loop, normal, sgd, uniform


@bug(
    step=2, phase="loss", ops=("Log",), rows=(5,), causes=("log_of_zero",),
    prevents=("epsilon",), fails=("clipnorm", "clipvalue", "lr"),
    fails_in_code=("epsilon_after_log", "zero_instead_of_nan"),
)  # fmt: skip
def kl_divergence_of_an_empty_topic(path: Path, fix: str | None) -> None:
    """The shares of a document's topics, one of them 0: 0 * log(0 / p) is NaN, and not the 0 that
    mathematics means."""

    def divergence(shares: Any, predicted: Any) -> Any:
        ratio = shares / predicted
        logs = tf.math.log(ratio + 1e-7 if fix == "epsilon" else ratio)
        if fix == "epsilon_after_log":
            logs += 1e-7
        loss = tf.reduce_sum(shares * logs, axis=-1)
        return tf.where(tf.math.is_nan(loss), 0.0, loss) if fix == "zero_instead_of_nan" else loss

    words = keras.Input((6,))
    model = keras.Model(
        words,
        keras.layers.Dense(4, activation="softmax", name="topics")(
            keras.layers.Dense(8, "tanh")(words)
        ),
    )
    model.compile(adam(1e-2, fix), divergence)
    shares = uniform(1, 5 * ROWS, 4, low=0.1)
    shares[at(2, 5), 1] = 0.0
    fit(path, model, normal(2, 5 * ROWS, 6), shares / shares.sum(axis=1, keepdims=True))


@bug(
    step=3, phase="loss", ops=("Log",), rows=(6,), causes=("log_of_zero",),
    prevents=("epsilon", "stable_op"), fails=("clipnorm", "lr"),
    fails_in_code=("epsilon_after_log",),
)  # fmt: skip
def discriminator_that_is_sure_of_a_fake(path: Path, fix: str | None) -> None:
    """The loss of a discriminator as the paper prints it: a fake so bright that sigmoid rounds to
    1, and log(1 - 1)."""
    discriminator = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="relu", name="features"),
            keras.layers.Dense(1, kernel_initializer="ones", name="logit"),
        ],
        name="discriminator",
    )
    optimizer = adam(1e-3, fix)

    @tf.function
    def step(real: Any, fake: Any) -> Any:
        with tf.GradientTape() as tape:
            of_real, of_fake = (
                discriminator(real, training=True),
                discriminator(fake, training=True),
            )
            if fix == "stable_op":
                loss = tf.reduce_mean(tf.nn.softplus(-of_real)) + tf.reduce_mean(
                    tf.nn.softplus(of_fake)
                )
            else:
                is_fake = 1.0 - tf.sigmoid(of_fake)
                logs = tf.math.log(is_fake + 1e-7 if fix == "epsilon" else is_fake)
                if fix == "epsilon_after_log":
                    logs += 1e-7
                loss = -tf.reduce_mean(tf.math.log(tf.sigmoid(of_real))) - tf.reduce_mean(logs)
        weights = discriminator.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    real, fake = uniform(1, 6 * ROWS, 6), uniform(2, 6 * ROWS, 6)
    fake[at(3, 6)] *= 255.0
    loop(path, step, (real, fake), model=discriminator, optimizer=optimizer)


@bug(
    step=2, phase="loss", ops=("Log",), rows=(1,), causes=("log_of_zero",),
    prevents=("epsilon",), fails=("clipnorm", "global_clipnorm", "lr"),
    prevents_in_code=("stable_op",),
)  # fmt: skip
def entropy_of_a_policy_without_doubt(path: Path, fix: str | None) -> None:
    """A policy gradient in plain Python: an action of probability 0 makes the entropy bonus 0 *
    log(0)."""
    policy = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="logits")], name="policy"
    )
    optimizer = adam(1e-2, fix)

    def step(states: Any, actions: Any, returns: Any) -> float:
        with tf.GradientTape() as tape:
            logits = policy(tf.constant(states))
            actions_p = tf.nn.softmax(logits)
            logs = tf.math.log(actions_p + 1e-7 if fix == "epsilon" else actions_p)
            if fix == "stable_op":
                logs = tf.nn.log_softmax(logits)
            entropy = -tf.reduce_sum(actions_p * logs, axis=-1)
            chosen = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.constant(actions), logits)
            loss = tf.reduce_mean(chosen * tf.constant(returns)) - 0.01 * tf.reduce_mean(entropy)
        gradients = tape.gradient(loss, policy.trainable_variables)
        optimizer.apply_gradients(zip(gradients, policy.trainable_variables, strict=True))
        return float(loss)

    states = normal(3, 4 * ROWS, 4)
    states[at(2, 1)] *= 1000.0
    actions = np.random.default_rng(4).integers(0, 3, 4 * ROWS).astype("int32")
    loop(path, step, (states, actions, uniform(5, 4 * ROWS)), model=policy, optimizer=optimizer)


@bug(
    step=2, phase="loss", ops=("Log",), rows=(4,), causes=("log_of_negative",),
    prevents=("epsilon",), fails=("clipnorm", "lr"), prevents_in_code=("softplus",),
    fails_in_code=("added_epsilon",),
)  # fmt: skip
def poisson_loss_of_a_linear_output(path: Path, fix: str | None) -> None:
    """Counts predicted by a layer that forgot its activation: a rate below 0, and no epsilon of
    Keras's makes it positive."""
    rate = keras.layers.Dense(
        1,
        activation="softplus" if fix == "softplus" else None,
        kernel_initializer=keras.initializers.Constant(0.3),
        bias_initializer="ones",
        name="rate",
    )
    model = keras.Sequential([rate])  # built by its first batch

    def poisson(counts: Any, rates: Any) -> Any:
        positive = tf.maximum(rates, 1e-7) if fix == "epsilon" else rates + 1e-3
        return tf.reduce_mean(rates - counts * tf.math.log(positive), axis=-1)

    model.compile(sgd(1e-3, fix), poisson if fix in ("epsilon", "added_epsilon") else "poisson")
    degrees = uniform(6, 4 * ROWS, 2, high=3.0)
    degrees[at(2, 4)] = -20.0
    fit(
        path, model, degrees, np.random.default_rng(7).poisson(2.0, (4 * ROWS, 1)).astype("float32")
    )


@bug(
    step=1, phase="forward", ops=("Log1p",), layer="log_return", rows=(3,),
    causes=("log_of_zero",),
    prevents=("epsilon",), fails=("clipnorm", "clipvalue", "lr"),
    fails_in_code=("epsilon_after_log",),
)  # fmt: skip
def log_return_of_a_share_that_lost_everything(path: Path, fix: str | None) -> None:
    """Returns as logarithms within the model, compiled by XLA: a price that fell to nothing is a
    change of -1."""

    def log_return(change: Any) -> Any:
        logs = tf.math.log1p(change + 1e-6 if fix == "epsilon" else change)
        return logs + 1e-6 if fix == "epsilon_after_log" else logs

    changes = keras.Input((5,))
    hidden = keras.layers.Dense(4, activation="tanh", name="hidden")(
        Compute(log_return, name="log_return")(changes)
    )
    model = keras.Model(changes, keras.layers.Dense(1, name="tomorrow")(hidden))
    model.compile(adam(1e-3, fix), "mse", jit_compile=True)
    x = uniform(8, 3 * ROWS, 5, low=-0.1, high=0.1)
    x[at(1, 3), 2] = -1.0
    fit(path, model, x, x.sum(axis=1, keepdims=True))


class BetaRegression(keras.Model):
    """A share between 0 and 1, as the two parameters of a beta distribution."""

    def __init__(self) -> None:
        super().__init__(name="beta_regression")
        self.hidden = keras.layers.Dense(6, activation="tanh", name="hidden")
        self.parameters = keras.layers.Dense(2, activation="softplus", name="parameters")

    def call(self, features: Any) -> Any:
        return self.parameters(self.hidden(features))


@bug(
    step=1, phase="loss", ops=("Log",), rows=(7,), causes=("log_of_zero",),
    prevents=("epsilon",), fails=("clipnorm", "global_clipnorm", "lr"),
    fails_in_code=("zero_instead_of_nan",),
)  # fmt: skip
def beta_likelihood_of_a_sold_out_house(path: Path, fix: str | None) -> None:
    """Occupancy as a beta distribution: one night every seat was sold, and log(1 - 1) is -inf."""

    def negative_log_likelihood(share: Any, parameters: Any) -> Any:
        a, b = parameters[:, :1], parameters[:, 1:]
        rest = 1.0 - share
        log_rest = tf.math.log(rest + 1e-6 if fix == "epsilon" else rest)
        log_beta = tf.math.lgamma(a) + tf.math.lgamma(b) - tf.math.lgamma(a + b)
        loss = log_beta - (a - 1.0) * tf.math.log(share) - (b - 1.0) * log_rest
        return (
            tf.where(tf.math.is_finite(loss), loss, 0.0) if fix == "zero_instead_of_nan" else loss
        )

    model = BetaRegression()
    model.compile(adam(1e-3, fix), negative_log_likelihood)
    share = uniform(9, 4 * ROWS, 1, low=0.2, high=0.9)
    share[at(1, 7)] = 1.0
    fit(path, model, normal(10, 4 * ROWS, 3), share)


@bug(
    step=2, phase="backward", ops=("Reciprocal", "Mul"), rows=(2,), causes=("where_gradient",
    "log_of_zero"), trigger="gradient",
    prevents=("double_where",), fails=("clipnorm", "clipvalue", "lr"),
    prevents_in_code=("epsilon",),
)  # fmt: skip
def loss_whose_nan_is_replaced_by_zero(path: Path, fix: str | None) -> None:
    """Somebody has already guarded the loss against NaN: it is finite from then on, and the
    gradient is not."""

    def guarded(labels: Any, probabilities: Any) -> Any:
        if fix == "epsilon":
            probabilities += 1e-7
        elif fix == "double_where":
            probabilities = tf.where(
                probabilities > 0.0, probabilities, tf.ones_like(probabilities)
            )
        loss = -labels * tf.math.log(probabilities)
        return tf.reduce_sum(tf.where(tf.math.is_finite(loss), loss, tf.zeros_like(loss)), axis=-1)

    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, activation="softmax", name="species")]
    )
    model.compile(sgd(0.05, fix), guarded)
    x, labels = normal(11, 4 * ROWS, 3), np.eye(4, dtype="float32")[np.arange(4 * ROWS) % 4]
    x[at(2, 2)] *= 1000.0
    fit(path, model, x, labels)


@bug(
    step=2, phase="loss", ops=("Log",), rows=(6,), causes=("log_of_zero",),
    prevents=("epsilon",), fails=("clipnorm", "lr"), fails_in_code=("epsilon_after_log",),
)  # fmt: skip
def logarithm_of_sizes_where_nothing_is(path: Path, fix: str | None) -> None:
    """Sizes of objects as logarithms: -inf in every place without one, which is dropped; one object
    was cut down to size 0."""

    def loss(truth: Any, predicted: Any) -> Any:
        size, there = truth[..., 0], truth[..., 1] > 0.5
        logs = tf.math.log(size + 1e-3 if fix == "epsilon" else size)
        logs = logs + 1e-3 if fix == "epsilon_after_log" else logs
        return tf.reduce_sum(tf.square(tf.where(there, logs, 0.0) - predicted), -1)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="sizes")])
    model.compile(sgd(1e-3, fix), loss, jit_compile=False)
    truth = np.zeros((4 * ROWS, 4, 2), "float32")
    truth[np.arange(4 * ROWS), np.arange(4 * ROWS) % 4] = [0.5, 1.0]
    truth[at(2, 6), 3] = [0.0, 1.0]
    fit(path, model, normal(104, 4 * ROWS, 3), truth)
