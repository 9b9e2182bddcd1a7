"""Signatures compared by the distance of two codes: when both are the same picture the loss is fine, its gradient is not.

The derivative of sqrt at 0 is infinite, and infinity times the zero difference is NaN.
"""

import keras
import numpy as np
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder


class Distance(keras.layers.Layer):
    """Euclidean distance of two codes."""

    def call(self, left, right):
        return tf.sqrt(tf.reduce_sum(tf.square(left - right), axis=-1, keepdims=True))


def contrastive_loss(is_same, distance):
    return is_same * tf.square(distance) + (1.0 - is_same) * tf.square(tf.maximum(1.0 - distance, 0.0))


def load_pairs(samples=512):
    random = np.random.default_rng(9)
    left = random.normal(size=(samples, 12)).astype("float32")
    is_same = (random.uniform(size=(samples, 1)) < 0.5).astype("float32")
    noise = random.normal(size=(samples, 12)).astype("float32")
    right = np.where(is_same == 1, left + 0.1 * noise, noise)
    right[301] = left[301]  # the same scan was filed twice
    is_same[301] = 0.0  # and labelled as two different people
    return left, right, is_same


def main():
    keras.utils.set_random_seed(7)
    encoder = keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(16, "tanh", name="hidden"), keras.layers.Dense(6, name="code")], name="encoder"
    )
    left, right = keras.Input((12,), name="left"), keras.Input((12,), name="right")
    model = keras.Model([left, right], Distance(name="distance")(encoder(left), encoder(right)))
    model.compile(keras.optimizers.Adam(1e-3), loss=contrastive_loss)
    one, other, is_same = load_pairs()
    try:
        model.fit(
            [one, other], is_same, batch_size=32, epochs=3, shuffle=False, verbose=2, callbacks=[Recorder("sqrt_gradient_at_zero.h5")]
        )
    except NonFiniteError as error:
        print(error)


if __name__ == "__main__":
    main()
