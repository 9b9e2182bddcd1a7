"""Power of solar panels, judged by the relative error: one measurement was taken at night, and the error is divided by 0."""

import keras
import numpy as np
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder


def relative_error(power, predicted):
    return tf.reduce_mean(tf.abs(power - predicted) / power, axis=-1)


def load_panels(samples=800):
    random = np.random.default_rng(27)
    sun = random.uniform(0.3, 1.0, size=samples)
    temperature = random.normal(loc=15.0, scale=8.0, size=samples)
    dust = random.uniform(size=samples)
    power = sun * (1.0 - 0.004 * (temperature - 25.0)) * (1.0 - 0.2 * dust)
    sun[570], power[570] = 0.0, 0.0  # the clock was not set to summer time
    return np.stack([sun, temperature / 10.0, dust], axis=1).astype("float32"), power.astype("float32")[:, None]


def main():
    keras.utils.set_random_seed(10)
    model = keras.Sequential(
        [
            keras.Input((3,), name="panel"),
            keras.layers.Dense(16, activation="tanh", name="hidden"),
            keras.layers.Dense(1, name="power"),
        ],
        name="panels",
    )
    model.compile(keras.optimizers.Adam(1e-3), loss=relative_error)
    panels, power = load_panels()
    try:
        model.fit(panels, power, batch_size=32, epochs=3, shuffle=False, verbose=2, callbacks=[Recorder("division_by_zero.h5")])
    except NonFiniteError as error:
        print(error)


if __name__ == "__main__":
    main()
