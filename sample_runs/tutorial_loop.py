"""The usual tutorial loop (GradientTape, Adam, batches of 32, `check_numerics` on each gradient) with a recorder in it.

`check_numerics` raises out of the step; the recorder writes its file and lets the exception go on. The recorder takes two
lines: the one that makes it and the one that wraps the step.
"""

import numpy as np
import tensorflow as tf

from nanreplay import Recorder


def load_data(samples=1000):
    random = np.random.default_rng(42)
    x = random.normal(size=(samples, 20)).astype("float32")
    y = (x[:, :1] + x[:, 1:2] > 0).astype("float32")
    x[500, 3] = 1e30  # a sensor's code for "no reading"
    return x, y


def main():
    tf.keras.utils.set_random_seed(42)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Dense(64, activation="relu"),
            tf.keras.layers.Dense(64, activation="relu"),
            tf.keras.layers.Dense(1),
        ]
    )
    optimizer = tf.keras.optimizers.Adam(learning_rate=0.001)
    loss_fn = tf.keras.losses.MeanSquaredError()
    recorder = Recorder("tutorial_loop.h5")

    def train_step(x_batch, y_batch):
        with tf.GradientTape() as tape:
            predictions = model(x_batch, training=True)
            loss = loss_fn(y_batch, predictions)
        gradients = tape.gradient(loss, model.trainable_variables)
        for gradient in gradients:
            tf.debugging.check_numerics(gradient, "Gradient is not finite")
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    train_step = recorder.wrap(train_step, model=model, optimizer=optimizer)
    x, y = load_data()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    for epoch in range(5):
        for step, (x_batch, y_batch) in enumerate(dataset):
            try:
                loss = train_step(x_batch, y_batch)
            except tf.errors.InvalidArgumentError as error:
                print(f"Epoch {epoch}, step {step}: {error.message.splitlines()[0]}")
                return
            if tf.math.is_nan(loss):
                print(f"Epoch {epoch}, step {step}: the loss is NaN")
                return


if __name__ == "__main__":
    main()
