"""A simple recurrent network with relu over 300 time steps: one careless update, and its memory grows at every time step.

A meter reported in kilowatts among meters in megawatts. Its loss is still finite, but the gradient has passed through 300
steps and throws the recurrent weights far off. With the next batch the state doubles and doubles until it overflows.
"""

import keras
import numpy as np

from nanreplay import NonFiniteError, Recorder

LENGTH = 300


def load_series(samples=384):
    random = np.random.default_rng(21)
    phase = random.uniform(0, 2 * np.pi, size=(samples, 1))
    time = np.arange(LENGTH) / 12.0
    load = np.sin(time + phase) + 0.1 * random.normal(size=(samples, LENGTH))
    target = np.sin(LENGTH / 12.0 + phase)
    load[197] *= 1000.0  # kilowatts
    return load[..., None].astype("float32"), target.astype("float32")


def main():
    keras.utils.set_random_seed(6)
    model = keras.Sequential(
        [
            keras.Input((LENGTH, 1), name="load"),
            keras.layers.SimpleRNN(12, activation="relu", name="memory"),
            keras.layers.Dense(1, name="forecast"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.05), loss="mse")
    load, target = load_series()
    try:
        model.fit(load, target, batch_size=16, epochs=3, shuffle=False, verbose=2, callbacks=[Recorder("exploding_rnn.h5", window=8)])
    except NonFiniteError as error:
        print(error)


if __name__ == "__main__":
    main()
