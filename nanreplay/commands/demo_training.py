"""The training behind `nanreplay demo`: a small encoder that divides by a variance of 0.

Usage: python train.py CAPTURE. The demo runs a copy of its own, so that it stands outside of the
package as a user's script does.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder

STEPS, BATCH, FEATURES = 40, 32, 8
SILENT_SAMPLE = 24 * BATCH + 17
"""A sensor that was unplugged: all its readings are the same."""


class Norm(keras.layers.Layer):
    """Layer normalisation as one writes it in a hurry: without an epsilon."""

    def call(self, x: Any) -> Any:
        """Scale each sample to mean 0 and variance 1."""
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        return centred * tf.math.rsqrt(variance)


class Encoder(keras.layers.Layer):
    """Normalises the readings, then two dense layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norm = Norm(name="norm")
        self.hidden = keras.layers.Dense(16, activation="tanh", name="hidden")
        self.code = keras.layers.Dense(4, name="code")

    def call(self, x: Any) -> Any:
        """Encode a batch of readings."""
        return self.code(self.hidden(self.norm(x)))


def build_model() -> Any:
    """A compiled model."""
    readings = keras.Input((FEATURES,), name="readings")
    code = Encoder(name="encoder")(readings)
    model = keras.Model(readings, keras.layers.Dense(1, name="head")(code))
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model


def make_data() -> tuple[Any, Any]:
    """Readings and targets; one sample is constant."""
    random = np.random.default_rng(7)
    readings = random.normal(size=(STEPS * BATCH, FEATURES)).astype("float32")
    targets = readings[:, :1] * 0.5 + readings[:, 1:2]
    readings[SILENT_SAMPLE] = 0.5
    return readings, targets


def main(path: str) -> None:
    """Train until the recorder stops it."""
    keras.utils.set_random_seed(7)
    readings, targets = make_data()
    try:
        build_model().fit(
            readings,
            targets,
            batch_size=BATCH,
            shuffle=False,
            verbose=0,
            callbacks=[Recorder(path)],
        )
    except NonFiniteError as error:
        print(f"Training stopped: {error.sentence}")


if __name__ == "__main__":
    main(sys.argv[1])
