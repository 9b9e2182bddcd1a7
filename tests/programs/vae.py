"""A variational autoencoder: a keras.Model with a train_step of its own, trained by fit.

With --fail one sample is so large that the encoder gives a log variance of ten thousands, and its
exp in the sampling layer is more than a float32 can hold.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from keras import ops

BATCH, STEPS, LATENT = 8, 12, 2
EXPECT = {
    "step": 6,
    "op": "Exp",
    "layer": "sampling",
    "rows": [3],
    "line": "return z_mean + ops.exp(0.5 * z_log_var) * noise",
}


class Sampling(keras.layers.Layer):
    """Draws from the normal distribution that the encoder describes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        z_mean, z_log_var = inputs
        noise = keras.random.normal(shape=ops.shape(z_mean), seed=self.seed_generator)
        return z_mean + ops.exp(0.5 * z_log_var) * noise


def make_encoder():
    inputs = keras.Input((10,))
    hidden = keras.layers.Dense(16, activation="relu", name="encoded")(inputs)
    z_mean = keras.layers.Dense(LATENT, name="z_mean")(hidden)
    z_log_var = keras.layers.Dense(LATENT, name="z_log_var")(hidden)
    z = Sampling(name="sampling")([z_mean, z_log_var])
    return keras.Model(inputs, [z_mean, z_log_var, z], name="encoder")


def make_decoder():
    inputs = keras.Input((LATENT,))
    hidden = keras.layers.Dense(16, activation="relu", name="decoded")(inputs)
    outputs = keras.layers.Dense(10, activation="sigmoid", name="probabilities")(hidden)
    return keras.Model(inputs, outputs, name="decoder")


class VAE(keras.Model):
    """Encoder and decoder with the sum of reconstruction loss and KL divergence."""

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.decoder = decoder
        self.total_loss_tracker = keras.metrics.Mean(name="total_loss")
        self.reconstruction_loss_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.kl_loss_tracker = keras.metrics.Mean(name="kl_loss")

    @property
    def metrics(self):
        return [self.total_loss_tracker, self.reconstruction_loss_tracker, self.kl_loss_tracker]

    def train_step(self, data):
        with tf.GradientTape() as tape:
            z_mean, z_log_var, z = self.encoder(data)
            reconstruction = self.decoder(z)
            reconstruction_loss = ops.mean(keras.losses.binary_crossentropy(data, reconstruction))
            divergence = 1 + z_log_var - ops.square(z_mean) - ops.exp(z_log_var)
            kl_loss = ops.mean(ops.sum(-0.5 * divergence, axis=1))
            total_loss = reconstruction_loss + kl_loss
        gradients = tape.gradient(total_loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.total_loss_tracker.update_state(total_loss)
        self.reconstruction_loss_tracker.update_state(reconstruction_loss)
        self.kl_loss_tracker.update_state(kl_loss)
        return {
            "loss": self.total_loss_tracker.result(),
            "reconstruction_loss": self.reconstruction_loss_tracker.result(),
            "kl_loss": self.kl_loss_tracker.result(),
        }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail", action="store_true", help="one sample is not scaled")
    fail = parser.parse_args().fail

    keras.utils.set_random_seed(8)
    bits = np.random.default_rng(9).integers(0, 2, (STEPS * BATCH, 10)).astype("float32")
    if fail:
        bits[6 * BATCH + 3] *= 1e5
    vae = VAE(make_encoder(), make_decoder())
    vae.compile(optimizer=keras.optimizers.Adam())
    history = vae.fit(bits, epochs=2, batch_size=BATCH, shuffle=False, verbose=0)
    for name, values in history.history.items():
        print(name, *(f"{value:.9g}" for value in values))


if __name__ == "__main__":
    main()
