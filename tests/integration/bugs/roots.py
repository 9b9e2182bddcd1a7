"""Roots, powers, angles and norms at the edge of where they are defined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bugs.base import ROWS, Compute, adam, at, bug, fit, loop, normal, sgd, uniform


@bug(
    step=2, phase="backward", ops=("SqrtGrad", "Mul", "RealDiv"), rows=(4,),
    causes=("norm_grad_at_zero", "sqrt_grad_at_zero"),
    trigger="gradient", prevents=("epsilon",), fails=("clipnorm", "clipvalue", "global_clipnorm",
    "lr"),
    fails_in_code=("epsilon_outside", "zero_instead_of_nan"),
)  # fmt: skip
def triplet_whose_positive_is_its_anchor(path: Path, fix: str | None) -> None:
    """Triplet loss by tf.norm: the same photograph was drawn twice, the loss is fine, and the
    gradient of the norm is 0 / 0."""
    encoder = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="tanh", name="hidden"),
            keras.layers.Dense(3, name="code"),
        ],
        name="encoder",
    )
    optimizer = adam(1e-3, fix)

    def distance(one: Any, other: Any) -> Any:
        if fix == "epsilon":
            return tf.sqrt(tf.reduce_sum(tf.square(one - other), axis=-1) + 1e-12)
        return tf.norm(one - other, axis=-1) + (1e-8 if fix == "epsilon_outside" else 0.0)

    @tf.function
    def step(anchor: Any, positive: Any, negative: Any) -> Any:
        with tf.GradientTape() as tape:
            a, p, n = encoder(anchor), encoder(positive), encoder(negative)
            loss = tf.reduce_mean(tf.maximum(distance(a, p) - distance(a, n) + 5.0, 0.0))
            if fix == "zero_instead_of_nan":
                loss = tf.where(tf.math.is_nan(loss), 0.0, loss)
        optimizer.apply_gradients(
            zip(
                tape.gradient(loss, encoder.trainable_variables),
                encoder.trainable_variables,
                strict=True,
            )
        )
        return loss

    anchor, positive, negative = (normal(seed, 4 * ROWS, 6) for seed in (50, 51, 52))
    positive[at(2, 4)] = anchor[at(2, 4)]
    loop(path, step, (anchor, positive, negative), model=encoder, optimizer=optimizer)


@bug(
    step=1, phase="backward", ops=("SqrtGrad", "Mul"), layer="distance", rows=(0,),
    causes=("sqrt_grad_at_zero", "norm_grad_at_zero"),
    trigger="gradient", prevents=("epsilon",), fails=("clipnorm", "clipvalue", "lr"),
    fails_in_code=("larger_epsilon_outside",),
)  # fmt: skip
def distance_with_the_epsilon_outside_of_the_root(path: Path, fix: str | None) -> None:
    """sqrt(sum(square)) + 1e-8: the epsilon that somebody added stands outside of the root, where
    the gradient never sees it."""

    def distance(one: Any, other: Any) -> Any:
        squares = tf.reduce_sum(tf.square(one - other), axis=-1, keepdims=True)
        outside = 1e-2 if fix == "larger_epsilon_outside" else 1e-8
        return tf.sqrt(squares + 1e-12 if fix == "epsilon" else squares) + outside

    left, right = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    code = keras.layers.Dense(4, activation="tanh", name="code")
    model = keras.Model([left, right], Compute(distance, name="distance")(code(left), code(right)))
    model.compile(sgd(0.01, fix), "mse")
    one, other = normal(53, 3 * ROWS, 5), normal(54, 3 * ROWS, 5)
    other[at(1, 0)] = one[at(1, 0)]
    fit(path, model, [one, other], uniform(55, 3 * ROWS, 1, low=0.5))


@bug(
    step=0, phase="backward", ops=("SqrtGrad", "Mul"), causes=("sqrt_grad_at_zero",
    "norm_grad_at_zero"), trigger="gradient",
    prevents=("epsilon",), fails=("clipnorm", "clipvalue", "lr"),
)  # fmt: skip
def gradient_penalty_of_a_critic_that_is_flat(path: Path, fix: str | None) -> None:
    """WGAN-GP: the critic's last layer starts at zero, so its slope is 0, and the root in the
    penalty has no gradient there."""
    critic = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="tanh", name="hidden"),
            keras.layers.Dense(1, kernel_initializer="zeros", name="score"),
        ],
        name="critic",
    )
    optimizer = adam(1e-4, fix)

    @tf.function
    def step(real: Any, fake: Any, mix: Any) -> Any:
        with tf.GradientTape() as tape:
            between = mix * real + (1.0 - mix) * fake
            with tf.GradientTape() as inner:
                inner.watch(between)
                scores = critic(between)
            squares = tf.reduce_sum(tf.square(inner.gradient(scores, between)), axis=-1)
            slopes = tf.sqrt(squares + 1e-12 if fix == "epsilon" else squares)
            loss = (
                tf.reduce_mean(critic(fake))
                - tf.reduce_mean(critic(real))
                + 10.0 * tf.reduce_mean(tf.square(slopes - 1.0))
            )
        optimizer.apply_gradients(
            zip(
                tape.gradient(loss, critic.trainable_variables),
                critic.trainable_variables,
                strict=True,
            )
        )
        return loss

    loop(
        path,
        step,
        (normal(56, 3 * ROWS, 4), normal(57, 3 * ROWS, 4), uniform(58, 3 * ROWS, 1)),
        model=critic,
        optimizer=optimizer,
    )


@bug(
    step=2, phase="forward", ops=("Sqrt",), layer="spread", rows=(1,), causes=("sqrt_of_negative",
    "variance_zero"),
    prevents=("epsilon",), fails=("clipnorm", "lr"), prevents_in_code=("two_passes",),
    fails_in_code=("added_epsilon",),
)  # fmt: skip
def variance_as_the_mean_of_squares_less_the_square_of_the_mean(
    path: Path, fix: str | None
) -> None:
    """E[x^2] - E[x]^2 of three equal large numbers: rounding leaves it below 0, by more than any
    usual epsilon."""

    def spread(x: Any) -> Any:
        if fix == "two_passes":
            return tf.sqrt(tf.math.reduce_variance(x, axis=-1, keepdims=True) + 1e-7)
        variance = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True) - tf.square(
            tf.reduce_mean(x, axis=-1, keepdims=True)
        )
        if fix == "epsilon":
            variance = tf.maximum(variance, 1e-7)
        return tf.sqrt(variance + 1e-7 if fix == "added_epsilon" else variance)

    pressures = keras.Input((3,))
    model = keras.Model(
        pressures, keras.layers.Dense(1, name="change")(Compute(spread, name="spread")(pressures))
    )
    model.compile(adam(1e-3, fix), "mse")
    x = 1013.0 + 30.0 * normal(59, 4 * ROWS, 3)
    # below 0 in whichever order it is added, divided or multiplied, rounded once or twice
    x[at(2, 1)] = 1011.4
    fit(path, model, x, normal(60, 4 * ROWS, 1))


@bug(
    step=1, phase="backward", ops=("Pow", "Mul"), rows=(2,), causes=("pow_domain",
    "sqrt_grad_at_zero"), trigger="gradient",
    prevents=("epsilon",), fails=("clipnorm", "clipvalue", "lr"),
    fails_in_code=("epsilon_outside",),
)  # fmt: skip
def focal_loss_of_a_sample_that_is_certain(path: Path, fix: str | None) -> None:
    """(1 - p) ** 0.5: where p has reached 1 the power is 0 and its slope infinite.

    p is 1 - exp(-hazard), which is 1 for a large hazard on every processor. A softmax or a sigmoid
    divides, and its last bit is each processor's own.
    """

    def focal(labels: Any, hazards: Any) -> Any:
        survives = tf.exp(-hazards)
        p = labels * (1.0 - survives) + (1.0 - labels) * survives
        focus = tf.pow(1.0 - p + 1e-7 if fix == "epsilon" else 1.0 - p, 0.5)
        if fix == "epsilon_outside":
            focus += 1e-7
        return -focus * tf.math.log(p + 1e-7)

    hazards = keras.layers.Dense(1, activation="softplus", kernel_initializer="ones", name="hazard")
    model = keras.Sequential([keras.Input((2,)), hazards])
    model.compile(sgd(1e-3, fix), focal)
    x = uniform(61, 3 * ROWS, 2)
    x[at(1, 2)] = 100.0
    failed = np.ones((3 * ROWS, 1), np.float32)
    failed[::3] = 0.0
    failed[at(1, 2)] = 1.0
    fit(path, model, x, failed)


@bug(
    step=2, phase="forward", ops=("Pow",), layer="gamma", rows=(6,), causes=("pow_domain",),
    prevents=("epsilon",), fails=("clipnorm", "global_clipnorm", "lr"),
    fails_in_code=("added_epsilon",),
)  # fmt: skip
def gamma_correction_of_a_negative_pixel(path: Path, fix: str | None) -> None:
    """x ** (1 / 2.2) after noise was added for augmentation: a dark pixel fell below 0, where the
    power is not real."""

    def gamma(images: Any) -> Any:
        if fix == "epsilon":
            images = tf.maximum(images, 1e-7)
        return tf.pow(images + 1e-7 if fix == "added_epsilon" else images, 1 / 2.2)

    images = keras.Input((4, 4, 1))
    convolved = keras.layers.Conv2D(3, 3, activation="relu", name="edges")(
        Compute(gamma, name="gamma")(images)
    )
    model = keras.Model(
        images,
        keras.layers.Dense(1, name="depth")(keras.layers.GlobalAveragePooling2D()(convolved)),
    )
    model.compile(adam(1e-3, fix), "mse")
    x = uniform(62, 4 * ROWS, 4, 4, 1, low=0.1)
    x[at(2, 6), 1, 2] = -0.04
    fit(path, model, x, uniform(63, 4 * ROWS, 1))


@bug(
    step=2, phase="loss", ops=("Acos",), rows=(3,), causes=("acos_domain",),
    prevents=("epsilon",), fails=("clipnorm", "lr"), fails_in_code=("added_epsilon",),
)  # fmt: skip
def angle_between_rotations_that_are_none(path: Path, fix: str | None) -> None:
    """acos((trace - 1) / 2): the network's nine numbers are no rotation, so their trace exceeds 3
    and the cosine 1."""

    def angle(true: Any, predicted: Any) -> Any:
        trace = tf.reduce_sum(true * predicted, axis=-1)
        cosine = (trace - 1.0) / 2.0
        if fix == "epsilon":
            cosine = tf.clip_by_value(cosine, -1.0 + 1e-6, 1.0 - 1e-6)
        return tf.acos(cosine + 1e-7 if fix == "added_epsilon" else cosine)

    inputs = keras.Input((9,))
    near_identity = keras.initializers.Constant(0.9 * np.eye(9, dtype=np.float32))
    model = keras.Model(
        inputs, keras.layers.Dense(9, kernel_initializer=near_identity, name="rotation")(inputs)
    )
    model.compile(sgd(1e-3, fix), angle)
    turns = np.random.default_rng(64).uniform(0, 2 * np.pi, 4 * ROWS)
    cos, sin, zero, one = np.cos(turns), np.sin(turns), np.zeros(4 * ROWS), np.ones(4 * ROWS)
    rotations = np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], axis=1).astype(
        "float32"
    )
    seen = rotations.copy()
    seen[at(2, 3)] *= 1.5
    fit(path, model, seen, rotations)


@bug(
    step=1, phase="backward", ops=("RealDiv",), layer="rate", rows=(4,),
    causes=("where_gradient",), trigger="gradient",
    prevents=("double_where",), fails=("clipnorm", "clipvalue", "lr"),
    prevents_in_code=("epsilon",),
)  # fmt: skip
def click_rate_guarded_by_where(path: Path, fix: str | None) -> None:
    """where(views > 0, clicks / views, 0): the division that is dropped still takes part in the
    gradient, and 0 / 0 is NaN."""

    class Rate(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.prior = self.add_weight(shape=(), initializer="ones", name="prior")

        def call(self, counts: Any) -> Any:
            clicks, views = counts[:, :1], counts[:, 1:]
            if fix == "epsilon":
                views += 1e-7
            below = (
                tf.where(views > 0.0, views, tf.ones_like(views))
                if fix == "double_where"
                else views
            )
            return tf.where(views > 0.5, (clicks + self.prior) / below, tf.zeros_like(views))

    counts = keras.Input((2,))
    model = keras.Model(
        counts, keras.layers.Dense(1, activation="sigmoid", name="buys")(Rate(name="rate")(counts))
    )
    model.compile(sgd(0.01, fix), "binary_crossentropy")
    random = np.random.default_rng(65)
    views = random.integers(1, 20, 3 * ROWS).astype("float32")
    views[at(1, 4)] = 0.0
    fit(
        path,
        model,
        np.stack([np.floor(views * 0.3), views], axis=1),
        random.integers(0, 2, (3 * ROWS, 1)).astype("float32"),
    )
