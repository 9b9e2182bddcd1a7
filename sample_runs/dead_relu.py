"""Experts weighed by a gate of relu units, divided by their sum: for one machine all units are silent, and 0 / 0 is NaN.

The gate has worked for 20 batches. A machine that stands still gives readings far below those of all others, and relu makes
every score 0.
"""

import keras
import numpy as np

from nanreplay import NonFiniteError, Recorder

EXPERTS = 4


class Shares(keras.layers.Layer):
    """Scores as shares of their sum."""

    def call(self, scores):
        return scores / keras.ops.sum(scores, axis=-1, keepdims=True)


def load_machines(samples=1024):
    random = np.random.default_rng(33)
    readings = random.normal(size=(samples, 8))
    wear = np.abs(readings[:, :1]) + 0.5 * readings[:, 1:2] + 0.1 * random.normal(size=(samples, 1))
    readings[653] = -6.0  # stands still
    return readings.astype("float32"), wear.astype("float32")


def main():
    keras.utils.set_random_seed(15)
    readings = keras.Input((8,), name="readings")
    start = keras.initializers.RandomUniform(0.0, 0.2)
    scores = keras.layers.Dense(EXPERTS, activation="relu", kernel_initializer=start, bias_initializer="ones", name="scores")(readings)
    gate = Shares(name="gate")(scores)
    experts = keras.layers.Dense(EXPERTS, name="experts")(readings)
    wear = keras.layers.Dot(axes=1, name="wear")([gate, experts])
    model = keras.Model(readings, wear, name="mixture")
    model.compile(keras.optimizers.Adam(3e-3), loss="mse")
    machines, worn = load_machines()
    try:
        model.fit(machines, worn, batch_size=32, epochs=2, shuffle=False, verbose=2, callbacks=[Recorder("dead_relu.h5")])
    except NonFiniteError as error:
        print(error)


if __name__ == "__main__":
    main()
