"""What float16 cannot hold: nothing above 65504, nothing but 0 below 6e-8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bugs.base import ROWS, Compute, adam, at, bug, fit, mixed_float16, normal, sgd, uniform


@bug(
    step=2, phase="forward", ops=("BatchMatMulV2", "MatMul", "Einsum"), layer="attention",
    rows=(1,), causes=("fp16_overflow",),
    prevents=("float32",), fails=("clipnorm", "lr", "epsilon"), prevents_in_code=("scale_first",),
)  # fmt: skip
def attention_scores_that_were_scaled_too_late(path: Path, fix: str | None) -> None:
    """Queries times keys in float16, divided by the root of the width afterwards: the product is
    beyond 65504 by then."""
    with mixed_float16(fix):

        def attention(queries: Any, keys: Any, values: Any) -> Any:
            if fix == "scale_first":
                return tf.matmul(
                    tf.nn.softmax(tf.matmul(queries / 8.0, keys / 8.0, transpose_b=True)), values
                )
            scores = tf.matmul(queries, keys, transpose_b=True)
            return tf.matmul(
                tf.nn.softmax((scores + 1e-3 if fix == "epsilon" else scores) / 64.0), values
            )

        inputs = keras.Input((4, 6))
        coded = [
            keras.layers.Dense(8, kernel_initializer="ones", name=name)(inputs)
            for name in ("queries", "keys")
        ]
        values = keras.layers.Dense(4, name="values")(inputs)
        pooled = keras.layers.GlobalAveragePooling1D()(
            Compute(attention, name="attention")(*coded, values)
        )
        model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32", name="score")(pooled))
        model.compile(adam(1e-3, fix), "mse")
        x = uniform(70, 4 * ROWS, 4, 6)
        x[at(2, 1), 2] = 20.0
        fit(path, model, x, normal(71, 4 * ROWS, 1))


@bug(
    step=1, phase="forward", ops=("RealDiv",), layer="share", rows=(4,), causes=("fp16_underflow",
    "zero_over_zero"),
    prevents=("epsilon=1e-3",), fails=("clipnorm", "lr"), prevents_in_code=("float32",),
    fails_in_code=("smaller_epsilon",),
)  # fmt: skip
def epsilon_that_float16_rounds_to_zero(path: Path, fix: str | None) -> None:
    """x / (sum(x) + 1e-8) under mixed precision: the epsilon is there, and it is 0 in float16.

    The recorded program holds that 0, in float32 too. Whether its NaN reaches the loss there is up
    to the processor: relu as oneDNN computes it makes 0 of NaN.
    """
    epsilon = {"epsilon": 1e-3, "smaller_epsilon": 1e-10}.get(fix or "", 1e-8)
    with mixed_float16(fix):

        def share(x: Any) -> Any:
            return x / (tf.reduce_sum(x, axis=-1, keepdims=True) + epsilon)

        counts = keras.Input((5,))
        hidden = keras.layers.Dense(6, activation="relu", name="hidden")(
            Compute(share, name="share")(counts)
        )
        model = keras.Model(counts, keras.layers.Dense(1, dtype="float32", name="out")(hidden))
        model.compile(sgd(0.01, fix), "mse")
        x = np.random.default_rng(72).integers(0, 4, (4 * ROWS, 5)).astype("float32")
        x[:, 0] += 1.0
        x[at(1, 4)] = 0.0
        fit(path, model, x, normal(73, 4 * ROWS, 1))


@bug(
    step=2, phase="loss", ops=("Log",), rows=(5,), causes=("fp16_underflow", "log_of_zero"),
    prevents=("float32", "stable_op", "epsilon"), fails=("clipnorm", "clipvalue", "lr"),
    fails_in_code=("epsilon_after_log",),
)  # fmt: skip
def probability_too_small_for_float16(path: Path, fix: str | None) -> None:
    """The last layer was left in float16: a probability of 2e-9 is 0 there, and its logarithm
    -inf."""
    with mixed_float16(fix):

        def cross_entropy(labels: Any, outputs: Any) -> Any:
            if fix == "stable_op":
                return tf.nn.softmax_cross_entropy_with_logits(labels, outputs)
            logs = tf.math.log(
                outputs + 1e-8 if fix == "epsilon" else outputs
            )  # Keras has cast them to float32
            if fix == "epsilon_after_log":
                logs += 1e-8
            return -tf.reduce_sum(labels * logs, axis=-1)

        activation = None if fix == "stable_op" else "softmax"
        start = np.array([[1.0, -1.0, 0.0], [1.0, -1.0, 0.0]], np.float32)
        output = keras.layers.Dense(
            3,
            activation=activation,
            kernel_initializer=keras.initializers.Constant(start),
            name="grade",
        )
        model = keras.Sequential([keras.Input((2,)), output])
        model.compile(sgd(1e-3, fix), cross_entropy)
        x = uniform(74, 4 * ROWS, 2)
        x[at(2, 5)] = 5.0
        fit(path, model, x, np.eye(3, dtype="float32")[np.arange(4 * ROWS) % 3])


@bug(
    step=19, phase="backward", ops=("SqrtGrad", "Mul"), layer="length", trigger="gradient",
    causes=("loss_scale_stuck", "sqrt_grad_at_zero", "norm_grad_at_zero"),
    prevents=("epsilon=1e-3",), fails=("clipnorm", "lr"), fails_in_code=("smaller_loss_scale",),
)  # fmt: skip
def loss_scale_that_falls_for_ever(path: Path, fix: str | None) -> None:
    """Loss scaling takes a NaN gradient for an overflow: it skips the update, halves its scale, and
    does so in every step."""
    with mixed_float16(fix):

        def length(codes: Any) -> Any:
            squares = tf.reduce_sum(tf.square(codes), axis=-1, keepdims=True)
            return tf.sqrt(squares + 1e-3 if fix == "epsilon" else squares)

        inputs = keras.Input((4,))
        codes = keras.layers.Dense(3, kernel_initializer="zeros", name="code")(inputs)
        model = keras.Model(
            inputs,
            keras.layers.Dense(1, dtype="float32", name="out")(
                Compute(length, name="length")(codes)
            ),
        )
        scale = 8.0 if fix == "smaller_loss_scale" else 2.0**15
        model.compile(
            keras.optimizers.LossScaleOptimizer(adam(1e-4, fix), initial_scale=scale), "mse"
        )
        fit(path, model, normal(75, 24 * ROWS, 4), normal(76, 24 * ROWS, 1))
