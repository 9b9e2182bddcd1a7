"""Data that cannot be learnt from as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bugs.base import ROWS, adam, at, bug, fit, loop, normal, sgd, uniform


@bug(
    step=2, phase="input", ops=(), rows=(6,), causes=("data_nan",),
    prevents=("clean_data",), fails=("clipnorm", "clipvalue", "lr", "clip_data"),
)  # fmt: skip
def missing_target_with_a_weight_of_zero(path: Path, fix: str | None) -> None:
    """A target that was never measured is NaN and weighs 0, and 0 times NaN is NaN."""
    inputs = {"wind": keras.Input((2,), name="wind"), "sun": keras.Input((1,), name="sun")}
    joined = keras.layers.Concatenate()([inputs["wind"], inputs["sun"]])
    model = keras.Model(
        inputs,
        keras.layers.Dense(1, name="power")(keras.layers.Dense(4, activation="tanh")(joined)),
    )
    model.compile(adam(1e-3, fix), "mse")
    power, weight = normal(90, 4 * ROWS, 1), np.ones(4 * ROWS, np.float32)
    power[at(2, 6)], weight[at(2, 6)] = np.nan, 0.0
    if fix == "clean_data":
        power = np.nan_to_num(power)
    elif fix == "clip_data":
        power = np.clip(power, -3.0, 3.0)
    fit(
        path,
        model,
        {"wind": normal(91, 4 * ROWS, 2), "sun": uniform(92, 4 * ROWS, 1)},
        power,
        sample_weight=weight,
    )


@bug(
    step=1, phase="input", ops=(), rows=(2,), causes=("data_inf",),
    prevents=("clean_data",), fails=("clipnorm", "global_clipnorm", "lr"),
    prevents_in_code=("clip_data",),
)  # fmt: skip
def feature_whose_logarithm_was_taken_of_zero(path: Path, fix: str | None) -> None:
    """Incomes as logarithms, computed in the pipeline before the model sees them: somebody earned
    nothing."""
    income = np.exp(normal(93, 4 * ROWS, 3))
    income[at(1, 2), 0] = 0.0

    def logarithms(income: Any, label: Any) -> Any:
        logs = tf.math.log(income)
        if fix == "clean_data":
            logs = tf.where(tf.math.is_finite(logs), logs, 0.0)
        return tf.clip_by_value(logs, -10.0, 10.0) if fix == "clip_data" else logs, label

    model = keras.Sequential(
        [
            keras.layers.Dense(4, activation="tanh", name="hidden"),
            keras.layers.Dense(1, name="spends"),
        ]
    )
    model.compile(sgd(0.01, fix), "mse")
    fit(
        path,
        model,
        tf.data.Dataset.from_tensor_slices((income, normal(94, 4 * ROWS, 1)))
        .batch(ROWS)
        .map(logarithms),
    )


@bug(
    step=2, phase="loss", ops=("Square",), rows=(0,), causes=("data_outlier",),
    prevents=("clip_data",), fails=("clipnorm", "clipvalue", "lr"), fails_in_code=("clean_data",),
)  # fmt: skip
def code_for_no_reading_among_the_readings(path: Path, fix: str | None) -> None:
    """9.9e36 is the sensor's code for `no reading`: a finite number, so nan_to_num leaves it, and
    its square is infinite."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="relu"),
            keras.layers.Dense(1, name="level"),
        ]
    )
    optimizer = adam(1e-3, fix)

    @tf.function(jit_compile=True)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        optimizer.apply_gradients(
            zip(
                tape.gradient(loss, model.trainable_variables),
                model.trainable_variables,
                strict=True,
            )
        )
        return loss

    x = normal(95, 4 * ROWS, 4)
    x[at(2, 0), 1] = 9.9e36
    if fix == "clip_data":
        x = np.clip(x, -5.0, 5.0)
    elif fix == "clean_data":
        x = np.nan_to_num(x)
    loop(path, step, (x, normal(96, 4 * ROWS, 1)), model=model, optimizer=optimizer)


@bug(
    step=1, phase="loss", ops=("SparseSoftmaxCrossEntropyWithLogits",), rows=(7,),
    causes=("label_out_of_range",),
    prevents=("clean_data",), fails=("clipnorm", "lr", "epsilon"),
)  # fmt: skip
def label_minus_one_for_unknown(path: Path, fix: str | None) -> None:
    """-1 marks an unknown class, as scikit-learn does it; in a step compiled by XLA that is NaN and
    no error."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="logits")])
    optimizer = sgd(0.01, fix)

    @tf.function(jit_compile=True)
    def step(x: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = model(x, training=True) + (1e-7 if fix == "epsilon" else 0.0)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.apply_gradients(
            zip(
                tape.gradient(loss, model.trainable_variables),
                model.trainable_variables,
                strict=True,
            )
        )
        return loss

    labels = (np.arange(4 * ROWS) % 4).astype("int32")
    labels[at(1, 7)] = 0 if fix == "clean_data" else -1
    loop(path, step, (normal(97, 4 * ROWS, 3), labels), model=model, optimizer=optimizer)
