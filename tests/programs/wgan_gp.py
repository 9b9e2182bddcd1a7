"""A Wasserstein GAN with gradient penalty, as a keras.Model with a train_step of its own.

The critic sees pictures of which a part is hidden. With --fail a mask hides all of one picture:
the critic's gradient by this picture is 0 throughout, and its norm, a root, has no gradient there.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

BATCH, NOISE, PIXELS, STEPS = 6, 3, 12, 9
EXPECT = {
    "step": 5,
    "op": "SqrtGrad",
    "rows": [4],
    "line": "norm = tf.sqrt(tf.reduce_sum(tf.square(gradients), axis=1))",
}


def make_critic():
    picture, shown = keras.Input((PIXELS,)), keras.Input((PIXELS,))
    x = keras.layers.Multiply(name="hide")([picture, shown])
    x = keras.layers.LeakyReLU(negative_slope=0.2)(keras.layers.Dense(16, name="features")(x))
    return keras.Model([picture, shown], keras.layers.Dense(1, name="score")(x), name="critic")


def make_generator():
    return keras.Sequential(
        [
            keras.Input((NOISE,)),
            keras.layers.Dense(16, activation="relu", name="up"),
            keras.layers.Dense(PIXELS, activation="tanh", name="picture"),
        ],
        name="generator",
    )


class WGAN(keras.Model):
    """Trains the critic twice, then the generator once, on each batch."""

    def __init__(self, critic, generator, critic_extra_steps=2, gp_weight=10.0):
        super().__init__()
        self.critic = critic
        self.generator = generator
        self.critic_extra_steps = critic_extra_steps
        self.gp_weight = gp_weight

    def compile(self, critic_optimizer, generator_optimizer):
        super().compile()
        self.critic_optimizer = critic_optimizer
        self.generator_optimizer = generator_optimizer

    def gradient_penalty(self, real, fake, shown):
        """How far the gradient's length at points between real and fake is from 1."""
        alpha = tf.random.uniform([tf.shape(real)[0], 1], 0.0, 1.0)
        between = fake + alpha * (real - fake)
        with tf.GradientTape() as tape:
            tape.watch(between)
            scores = self.critic([between, shown], training=True)
        gradients = tape.gradient(scores, between)
        norm = tf.sqrt(tf.reduce_sum(tf.square(gradients), axis=1))
        return tf.reduce_mean((norm - 1.0) ** 2)

    def train_step(self, data):
        real, shown = data
        batch = tf.shape(real)[0]
        for _ in range(self.critic_extra_steps):
            noise = tf.random.normal([batch, NOISE])
            with tf.GradientTape() as tape:
                fake = self.generator(noise, training=True)
                fake_scores = self.critic([fake, shown], training=True)
                real_scores = self.critic([real, shown], training=True)
                cost = tf.reduce_mean(fake_scores) - tf.reduce_mean(real_scores)
                penalty = self.gradient_penalty(real, fake, shown)
                critic_loss = cost + self.gp_weight * penalty
            gradients = tape.gradient(critic_loss, self.critic.trainable_variables)
            self.critic_optimizer.apply(gradients, self.critic.trainable_variables)
        noise = tf.random.normal([batch, NOISE])
        with tf.GradientTape() as tape:
            fake = self.generator(noise, training=True)
            generator_loss = -tf.reduce_mean(self.critic([fake, shown], training=True))
        gradients = tape.gradient(generator_loss, self.generator.trainable_variables)
        self.generator_optimizer.apply(gradients, self.generator.trainable_variables)
        return {"critic_loss": critic_loss, "generator_loss": generator_loss}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail", action="store_true", help="one picture is hidden")
    fail = parser.parse_args().fail

    keras.utils.set_random_seed(20)
    random = np.random.default_rng(21)
    pictures = random.uniform(-1, 1, (STEPS * BATCH, PIXELS)).astype("float32")
    shown = (random.uniform(size=pictures.shape) < 0.6).astype("float32")
    shown[:, 0] = 1.0
    if fail:
        shown[5 * BATCH + 4] = 0.0
    wgan = WGAN(make_critic(), make_generator())
    wgan.compile(keras.optimizers.Adam(1e-3, 0.5, 0.9), keras.optimizers.Adam(1e-3, 0.5, 0.9))
    history = wgan.fit(pictures, shown, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    for name, values in history.history.items():
        print(name, *(f"{value:.9g}" for value in values))


if __name__ == "__main__":
    main()
