"""Probabilistic regression with Keras 2 and TensorFlow Probability: weights are distributions, and
so is what the model predicts; the loss is the negative log likelihood.

With --fail one target is 0, for which a log-normal distribution has no likelihood: log(0) is -inf.
"""

import argparse

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

tfd = tfp.distributions
BATCH, STEPS = 8, 9
EXPECT = {
    "step": 6,
    "op": "Log",
    "rows": [3],
    "line": "return -predicted.log_prob(targets)",
}


def posterior_mean_field(kernel_size, bias_size=0, dtype=None):
    n = kernel_size + bias_size
    start = np.log(np.expm1(1e-2))

    def normal(t):
        parts = tfd.Normal(loc=t[..., :n], scale=1e-5 + tf.nn.softplus(start + t[..., n:]))
        return tfd.Independent(parts, reinterpreted_batch_ndims=1)

    variables = tfp.layers.VariableLayer(2 * n, dtype=dtype)
    return keras.Sequential([variables, tfp.layers.DistributionLambda(normal)])


def prior_trainable(kernel_size, bias_size=0, dtype=None):
    n = kernel_size + bias_size

    def normal(t):
        return tfd.Independent(tfd.Normal(loc=t, scale=1), reinterpreted_batch_ndims=1)

    variables = tfp.layers.VariableLayer(n, dtype=dtype)
    return keras.Sequential([variables, tfp.layers.DistributionLambda(normal)])


def negative_log_likelihood(targets, predicted):
    return -predicted.log_prob(targets)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail", action="store_true", help="one target is 0")
    fail = parser.parse_args().fail

    keras.utils.set_random_seed(25)
    random = np.random.default_rng(26)
    x = random.uniform(-1, 1, (STEPS * BATCH, 1)).astype("float32")
    y = np.exp(0.5 * x + 0.2 * random.normal(size=x.shape)).astype("float32")
    if fail:
        y[6 * BATCH + 3] = 0.0
    variational = tfp.layers.DenseVariational(
        2,
        posterior_mean_field,
        prior_trainable,
        kl_weight=1 / len(x),
        name="variational",
    )
    prediction = tfp.layers.DistributionLambda(
        lambda t: tfd.LogNormal(loc=t[..., :1], scale=1e-2 + tf.nn.softplus(t[..., 1:])),
        name="prediction",
    )
    model = keras.Sequential([variational, prediction])
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=negative_log_likelihood)
    history = model.fit(x, y, batch_size=BATCH, epochs=3, shuffle=False, verbose=0).history
    print("loss", *(f"{value:.9g}" for value in history["loss"]))


if __name__ == "__main__":
    main()
