"""A custom loop under tf.distribute: two replicas on logical CPUs, losses of the global batch.

With --fail a missing measurement of one sample is coded as -1, and the layer that takes log(1 + x)
makes -inf of it.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

GLOBAL_BATCH, STEPS = 8, 6
EXPECT = {
    "step": 3,
    "op": "Log1p",
    "layer": "log_scale",
    "rows": [2],
    "replica": 1,
    "line": "return tf.math.log1p(measurements)",
}


class LogScale(keras.layers.Layer):
    """Brings measurements that span orders of magnitude closer together."""

    def call(self, measurements):
        return tf.math.log1p(measurements)


def make_model():
    return keras.Sequential(
        [
            keras.Input((5,)),
            LogScale(name="log_scale"),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.Dense(1, name="out"),
        ]
    )


def measurements(fail):
    random = np.random.default_rng(23)
    x = random.lognormal(sigma=2.0, size=(STEPS * GLOBAL_BATCH, 5)).astype("float32")
    y = np.log1p(x).sum(axis=1, keepdims=True)
    if fail:
        x[3 * GLOBAL_BATCH + 6, 2] = -1.0
    return x, y


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail", action="store_true", help="one measurement is missing")
    fail = parser.parse_args().fail

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    print(f"{strategy.num_replicas_in_sync} replicas")

    keras.utils.set_random_seed(24)
    dataset = tf.data.Dataset.from_tensor_slices(measurements(fail)).batch(GLOBAL_BATCH)
    distributed = strategy.experimental_distribute_dataset(dataset)
    with strategy.scope():
        model = make_model()
        optimizer = keras.optimizers.Adam(1e-2)
        optimizer.build(model.trainable_variables)

    def compute_loss(labels, predictions):
        per_sample = tf.reduce_sum(tf.square(labels - predictions), axis=-1)
        return tf.nn.compute_average_loss(per_sample, global_batch_size=GLOBAL_BATCH)

    def train_step(inputs):
        x, y = inputs
        with tf.GradientTape() as tape:
            loss = compute_loss(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function
    def distributed_train_step(inputs):
        per_replica_losses = strategy.run(train_step, args=(inputs,))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica_losses, axis=None)

    for epoch in range(2):
        total_loss, batches = 0.0, 0
        for x in distributed:
            total_loss += distributed_train_step(x)
            batches += 1
        print(f"epoch {epoch} loss {float(total_loss) / batches:.9g}")


if __name__ == "__main__":
    main()
