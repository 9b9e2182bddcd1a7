"""Mixed precision: a layer squares pixel values in float16, whose largest number is 65504.

Ordinary pixels are at most 20. One hot pixel of 300 squares to infinity, and infinity over infinity is NaN.
"""

import keras
import numpy as np
from keras import ops

from nanreplay import NonFiniteError, Recorder


class Energy(keras.layers.Layer):
    """Each pixel's share of the energy of its image."""

    def call(self, images):
        energy = ops.square(images)
        return energy / ops.sum(energy, axis=(1, 2, 3), keepdims=True)


def load_images(samples=384):
    random = np.random.default_rng(6)
    digits = random.integers(0, 4, samples)
    images = random.uniform(0, 4, size=(samples, 8, 8, 1))
    images[np.arange(samples), digits * 2] += 16
    images[197, 3, 5] = 300.0  # a hot pixel of the camera
    return images.astype("float32"), digits


def main():
    keras.utils.set_random_seed(5)
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            Energy(name="energy"),
            keras.layers.Conv2D(8, 3, activation="relu", name="conv"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(4, dtype="float32", name="digit"),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    images, digits = load_images()
    try:
        model.fit(images, digits, batch_size=16, epochs=2, shuffle=False, verbose=2, callbacks=[Recorder("float16_overflow.h5")])
    except NonFiniteError as error:
        print(error)


if __name__ == "__main__":
    main()
