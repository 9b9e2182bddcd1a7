"""A training loop written from scratch: a compiled step, metrics, a validation after each epoch.

With --fail one picture of the second epoch comes without its division by 255, and much brighter
still. The softmax of its class scores is exactly 0 for some classes, and log(0) is -inf.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

BATCH = 8
EPOCHS = 3
EXPECT = {
    "step": 9,
    "op": "Log",
    "rows": [5],
    "line": "return -tf.reduce_mean(tf.reduce_sum(labels * tf.math.log(probabilities), axis=-1))",
}


def pictures(count, seed):
    """Pictures with a bright bar whose place is the class; float32 [count, 8, 8] from 0 to 1."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, 4, count)
    images = random.uniform(0.0, 0.3, (count, 8, 8)).astype("float32")
    for image, place in zip(images, classes, strict=True):
        image[2 * place] += 0.7
    return images, keras.utils.to_categorical(classes, 4).astype("float32")


def cross_entropy(labels, probabilities):
    return -tf.reduce_mean(tf.reduce_sum(labels * tf.math.log(probabilities), axis=-1))


def make_model():
    inputs = keras.Input((8, 8), name="picture")
    pixels = keras.layers.Flatten(name="pixels")(inputs)
    hidden = keras.layers.Dense(32, activation="relu", name="hidden")(pixels)
    return keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="classes")(hidden))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail", action="store_true", help="one picture is not scaled")
    fail = parser.parse_args().fail

    keras.utils.set_random_seed(1)
    model = make_model()
    optimizer = keras.optimizers.Adam(learning_rate=1e-2)
    training_loss = keras.metrics.Mean(name="loss")
    training_accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
    validation_accuracy = keras.metrics.CategoricalAccuracy(name="validation_accuracy")

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            probabilities = model(x, training=True)
            loss = cross_entropy(y, probabilities)
        gradients = tape.gradient(loss, model.trainable_weights)
        optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
        training_loss.update_state(loss)
        training_accuracy.update_state(y, probabilities)
        return loss

    @tf.function
    def test_step(x, y):
        validation_accuracy.update_state(y, model(x, training=False))

    images, labels = pictures(6 * BATCH, seed=2)
    validation = tf.data.Dataset.from_tensor_slices(pictures(2 * BATCH, seed=3)).batch(BATCH)
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(images))
        shuffled = images[order]
        if fail and epoch == 1:
            shuffled[3 * BATCH + 5] *= 255.0**2
        dataset = tf.data.Dataset.from_tensor_slices((shuffled, labels[order])).batch(BATCH)
        for step, (x, y) in enumerate(dataset):
            loss = train_step(x, y)
            if step % 3 == 0:
                print(f"epoch {epoch} batch {step} loss {float(loss):.9g}")
        for x, y in validation:
            test_step(x, y)
        shown = [training_loss, training_accuracy, validation_accuracy]
        results = [f"{metric.name} {float(metric.result()):.9g}" for metric in shown]
        print(f"epoch {epoch}", *results)
        for metric in shown:
            metric.reset_state()
    print(f"last loss {float(loss):.9g}")


if __name__ == "__main__":
    main()
