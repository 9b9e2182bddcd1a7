"""A training loop in plain Python, nothing compiled: a network predicts a mean and a spread, and the spread reaches 0.

relu lets the spread be exactly 0, and the likelihood divides by it.
"""

import keras
import numpy as np
import tensorflow as tf

from nanreplay import Recorder


class Forecaster(keras.Model):
    """Mean and spread of tomorrow's demand."""

    def __init__(self):
        super().__init__(name="forecaster")
        self.hidden = keras.layers.Dense(16, activation="tanh", name="hidden")
        self.mean = keras.layers.Dense(1, name="mean")
        self.spread = keras.layers.Dense(1, activation="relu", kernel_initializer="zeros", bias_initializer="ones", name="spread")

    def call(self, features):
        hidden = self.hidden(features)
        return self.mean(hidden), self.spread(hidden)


def load_demand(samples=1600):
    random = np.random.default_rng(17)
    features = random.normal(size=(samples, 6)).astype("float32")
    noise = random.normal(scale=0.02 + 0.4 * (features[:, 1:2] > 0), size=(samples, 1))
    return features, (features[:, :1] + noise).astype("float32")


def main():
    keras.utils.set_random_seed(8)
    model = Forecaster()
    optimizer = keras.optimizers.Adam(0.05)
    recorder = Recorder("custom_eager_loop.h5", on_nan="stop")

    def train_step(features, demand):
        with tf.GradientTape() as tape:
            mean, spread = model(features, training=True)
            loss = tf.reduce_mean(tf.math.log(spread) + 0.5 * tf.square((demand - mean) / spread))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return float(loss)

    step = recorder.wrap(train_step, model=model, optimizer=optimizer)
    features, demand = load_demand()
    for epoch in range(10):
        for start in range(0, len(features), 32):
            loss = step(features[start : start + 32], demand[start : start + 32])
            if recorder.stopped:
                print(f"epoch {epoch}, batch {start // 32}: loss {loss}")
                return
        print(f"epoch {epoch}: loss {loss:.4f}")


if __name__ == "__main__":
    main()
