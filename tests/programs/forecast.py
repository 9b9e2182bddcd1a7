"""Forecasting of a series from windows of it: a loop over model.train_on_batch.

With --fail a sensor hangs, so one window is constant. Its variance is 0, and so the layer that
brings each window to mean 0 and variance 1 multiplies by 1 / sqrt(0).
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

BATCH, STEPS, WINDOW = 8, 12, 10
EXPECT = {
    "step": 8,
    "op": "Rsqrt",
    "layer": "window_norm",
    "rows": [6],
    "line": "return (windows - mean) * tf.math.rsqrt(variance)",
}


class WindowNorm(keras.layers.Layer):
    """Brings each window to mean 0 and variance 1."""

    def call(self, windows):
        mean, variance = tf.nn.moments(windows, axes=[1], keepdims=True)
        return (windows - mean) * tf.math.rsqrt(variance)


def make_model():
    model = keras.Sequential(
        [
            keras.Input((WINDOW, 1)),
            WindowNorm(name="window_norm"),
            keras.layers.LSTM(8, name="memory"),
            keras.layers.Dense(1, name="next"),
        ]
    )
    model.compile(optimizer=keras.optimizers.RMSprop(1e-3), loss="mse", metrics=["mae"])
    return model


def windows_of(series):
    windows = np.lib.stride_tricks.sliding_window_view(series, WINDOW + 1)
    return windows[:, :-1, None].copy(), windows[:, -1:].copy()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail", action="store_true", help="a sensor hangs for a while")
    fail = parser.parse_args().fail

    keras.utils.set_random_seed(27)
    random = np.random.default_rng(28)
    times = np.arange(STEPS * BATCH + WINDOW)
    series = (np.sin(times / 5) + 0.1 * random.normal(size=times.shape)).astype("float32")
    x, y = windows_of(series)
    if fail:
        x[8 * BATCH + 6] = 0.5
    model = make_model()
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        loss, error = model.train_on_batch(x[rows], y[rows])
        if step % 4 == 3:
            print(f"step {step} loss {loss:.9g} mean absolute error {error:.9g}")
        if step % 6 == 5:
            model.reset_metrics()
    print(f"next {float(model.predict_on_batch(x[:1])[0, 0]):.9g}")


if __name__ == "__main__":
    main()
