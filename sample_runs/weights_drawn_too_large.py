"""A deep network whose weights were meant to be drawn with a deviation of 0.001, and are drawn with one of 1000.

Each layer multiplies what it gets by some thousands: after eleven layers a number no longer fits float32, in the first step.
"""

import keras
import numpy as np

from nanreplay import NonFiniteError, Recorder


def load_wines(samples=512):
    random = np.random.default_rng(51)
    measured = random.normal(size=(samples, 11)).astype("float32")
    quality = 5.0 + measured[:, :1] - 0.5 * measured[:, 4:5] + 0.3 * random.normal(size=(samples, 1))
    return measured, quality.astype("float32")


def main():
    keras.utils.set_random_seed(12)
    model = keras.Sequential([keras.Input((11,), name="wine")], name="taster")
    for number in range(12):
        weights = keras.initializers.RandomNormal(stddev=1e3)  # for 1e-3
        model.add(keras.layers.Dense(16, activation="relu", kernel_initializer=weights, name=f"hidden_{number}"))
    model.add(keras.layers.Dense(1, name="quality"))
    model.compile(keras.optimizers.Adam(1e-3), loss="mse")
    measured, quality = load_wines()
    try:
        model.fit(measured, quality, batch_size=32, epochs=2, shuffle=False, verbose=2, callbacks=[Recorder("weights_drawn_too_large.h5")])
    except NonFiniteError as error:
        print(error)


if __name__ == "__main__":
    main()
