"""The training of sample_runs/log_of_zero.py in a project: a loss, and what makes the model."""

import os

import keras
import numpy as np
import tensorflow as tf

EPSILON = 0.0 if os.environ.get("WITHOUT_EPSILON") else 1e-7


def cross_entropy(labels, probabilities):
    return -tf.reduce_sum(labels * tf.math.log(probabilities + EPSILON), axis=-1)


def make_model(loss=cross_entropy):
    model = keras.Sequential(
        [
            keras.Input((4,), name="measurements"),
            keras.layers.Dense(16, activation="relu", name="hidden"),
            keras.layers.Dense(3, activation="softmax", name="species"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), loss=loss, metrics=["accuracy"])
    return model


def careless(labels, probabilities):
    return -tf.reduce_sum(labels * tf.math.log(probabilities), axis=-1)


def make_careless_model():
    return make_model(careless)


def quick_model(loss=cross_entropy):
    """The same layers; TensorFlow traces a step twice that makes variables, and this has all."""
    model = make_model(loss)
    model.compile(keras.optimizers.Adam(1e-2), loss=loss)
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, *callbacks, outlier=True):
    """Three steps of four flowers; the one at 6 is measured in micrometres."""
    random = np.random.default_rng(4)
    measured = random.uniform(0.1, 7.0, (12, 4)).astype("float32")
    if outlier:
        measured[6] *= 10_000
    species = np.eye(3, dtype="float32")[random.integers(0, 3, 12)]
    model.fit(measured, species, batch_size=4, shuffle=False, verbose=0, callbacks=[*callbacks])
