"""A generative adversarial network: two models, two optimizers, two tapes in one compiled step.

With --fail a real sample of one batch is far away from all others. The discriminator is so sure
about it that the sigmoid of its score is exactly 0, and log(0) is -inf.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

BATCH, NOISE, STEPS = 8, 4, 14
EXPECT = {
    "step": 7,
    "op": "Log",
    "rows": [2],
    "line": "real_loss = -tf.reduce_mean(tf.math.log(tf.sigmoid(real_scores)))",
}


def make_generator():
    return keras.Sequential(
        [
            keras.Input((NOISE,)),
            keras.layers.Dense(16, use_bias=False, name="up"),
            keras.layers.BatchNormalization(name="up_norm"),
            keras.layers.LeakyReLU(),
            keras.layers.Dense(6, activation="tanh", name="sample"),
        ],
        name="generator",
    )


def make_discriminator():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, name="features"),
            keras.layers.LeakyReLU(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1, name="score"),
        ],
        name="discriminator",
    )


def discriminator_loss(real_scores, fake_scores):
    real_loss = -tf.reduce_mean(tf.math.log(tf.sigmoid(real_scores)))
    fake_loss = -tf.reduce_mean(tf.math.log(tf.sigmoid(-fake_scores)))
    return real_loss + fake_loss


def generator_loss(fake_scores):
    return -tf.reduce_mean(tf.math.log(tf.sigmoid(fake_scores)))


keras.utils.set_random_seed(5)
generator = make_generator()
discriminator = make_discriminator()
generator_optimizer = keras.optimizers.Adam(1e-3, beta_1=0.5)
discriminator_optimizer = keras.optimizers.Adam(1e-3, beta_1=0.5)


@tf.function
def train_step(samples):
    noise = tf.random.normal([BATCH, NOISE])
    with tf.GradientTape() as generator_tape, tf.GradientTape() as discriminator_tape:
        made = generator(noise, training=True)
        real_scores = discriminator(samples, training=True)
        fake_scores = discriminator(made, training=True)
        loss_of_generator = generator_loss(fake_scores)
        loss_of_discriminator = discriminator_loss(real_scores, fake_scores)
    weights = generator.trainable_variables
    gradients = generator_tape.gradient(loss_of_generator, weights)
    generator_optimizer.apply_gradients(zip(gradients, weights, strict=True))
    weights = discriminator.trainable_variables
    gradients = discriminator_tape.gradient(loss_of_discriminator, weights)
    discriminator_optimizer.apply_gradients(zip(gradients, weights, strict=True))
    return loss_of_generator, loss_of_discriminator


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail", action="store_true", help="one sample lies far off")
    fail = parser.parse_args().fail

    angles = np.random.default_rng(6).uniform(0, 2 * np.pi, (STEPS * BATCH, 1))
    samples = np.cos(angles + np.linspace(0, np.pi, 6)).astype("float32")
    if fail:
        samples[7 * BATCH + 2] = np.float32([1, -1, 1, 1, -1, -1]) * 1e4
    for batch in tf.data.Dataset.from_tensor_slices(samples).batch(BATCH):
        losses = train_step(batch)
    print("losses", *(f"{float(loss):.9g}" for loss in losses))
    print("sample", generator(tf.ones([1, NOISE]), training=False).numpy().tolist())


if __name__ == "__main__":
    main()
