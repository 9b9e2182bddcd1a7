"""A flower classifier with a cross-entropy written by hand: softmax gives 0.0 for one sample, and 0 * log(0) is NaN.

One measurement was entered in micrometres instead of centimetres, so the logits of that sample are far apart.
"""

import keras
import numpy as np
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder


def cross_entropy(labels, probabilities):
    return -tf.reduce_sum(labels * tf.math.log(probabilities), axis=-1)


def load_flowers(samples=600):
    random = np.random.default_rng(4)
    species = random.integers(0, 3, samples)
    centres = np.array([[5.0, 3.4, 1.5, 0.2], [5.9, 2.8, 4.3, 1.3], [6.6, 3.0, 5.6, 2.0]])
    measured = centres[species] + random.normal(scale=0.3, size=(samples, 4))
    measured[402] *= 10_000  # micrometres
    return measured.astype("float32"), np.eye(3, dtype="float32")[species]


def main():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,), name="measurements"),
            keras.layers.Dense(16, activation="relu", name="hidden"),
            keras.layers.Dense(3, activation="softmax", name="species"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), loss=cross_entropy, metrics=["accuracy"])
    measured, species = load_flowers()
    try:
        model.fit(measured, species, batch_size=32, epochs=3, shuffle=False, verbose=2, callbacks=[Recorder("log_of_zero.h5")])
    except NonFiniteError as error:
        print(error)


if __name__ == "__main__":
    main()
