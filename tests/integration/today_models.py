"""Today's code for the sample runs, as projects write it: factories that tests and child processes
import."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def cross_entropy(labels: Any, probabilities: Any) -> Any:
    """The loss of sample_runs/log_of_zero.py, with the bug in it."""
    return -tf.reduce_sum(labels * tf.math.log(probabilities), axis=-1)


def mended_cross_entropy(labels: Any, probabilities: Any) -> Any:
    """The same with an epsilon."""
    return -tf.reduce_sum(labels * tf.math.log(probabilities + 1e-7), axis=-1)


def flowers(
    loss: Any = cross_entropy,
    *,
    optimizer: Any = None,
    hidden: str = "hidden",
    units: int = 16,
    extra: bool = False,
) -> Any:
    """The classifier of sample_runs/log_of_zero.py."""
    layers = [
        keras.Input((4,), name="measurements"),
        keras.layers.Dense(units, activation="relu", name=hidden),
        *([keras.layers.Dense(units, name="extra")] if extra else []),
        keras.layers.Dense(3, activation="softmax", name="species"),
    ]
    model = keras.Sequential(layers)
    model.compile(optimizer or keras.optimizers.Adam(1e-2), loss=loss, metrics=["accuracy"])
    return model


def mended_flowers() -> Any:
    """The classifier with the epsilon."""
    return flowers(mended_cross_entropy)


def not_compiled() -> Any:
    """A model that nobody compiled."""
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def broken() -> Any:
    """A factory that raises."""
    raise FileNotFoundError("weights.npz")


def forecaster(epsilon: float = 0.0) -> Any:
    """The loop of sample_runs/custom_eager_loop.py."""
    features = keras.Input((6,))
    hidden = keras.layers.Dense(16, activation="tanh", name="hidden")(features)
    spread = keras.layers.Dense(1, activation="relu", name="spread")(hidden)
    model = keras.Model(features, [keras.layers.Dense(1, name="mean")(hidden), spread])
    optimizer = keras.optimizers.Adam(0.05)

    def train_step(features: Any, demand: Any) -> Any:
        with tf.GradientTape() as tape:
            mean, spread = model(features, training=True)
            spread = spread + epsilon
            loss = tf.reduce_mean(tf.math.log(spread) + 0.5 * tf.square((demand - mean) / spread))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return float(loss)

    return model, optimizer, train_step


def mended_forecaster() -> Any:
    """The loop with a spread that is never 0."""
    return forecaster(1e-3)
