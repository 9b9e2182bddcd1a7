"""Other ways to make and to weigh a loss, and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import layers, losses, metrics

from same_bits_grid.loss_rows import FEATURES, classifier, targets
from same_bits_grid.training import (
    CLASSES,
    SAMPLES,
    Attachment,
    Row,
    Table,
    Trained,
    compiled,
    fitted,
    mlp,
    numbers,
    regression,
    with_and_without_xla,
)

WEIGHTS = Table()
"""Trainings of other ways to make and to weigh a loss."""


@WEIGHTS.add
def two_outputs(attach: Attachment, *, jit: bool) -> Trained:
    """two outputs with loss_weights and metrics."""
    inputs = keras.Input((FEATURES,))
    x = layers.Dense(16, "relu")(inputs)
    outputs = {"number": layers.Dense(CLASSES, name="number")(x)}
    outputs["class"] = layers.Dense(CLASSES, "softmax", name="class")(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        "adam",
        {"number": "mae", "class": "sparse_categorical_crossentropy"},
        metrics={"number": ["mse"], "class": ["accuracy"]},
        loss_weights={"number": 0.3, "class": 0.7},
        jit_compile=jit,
    )
    y = {"number": targets("number"), "class": targets("class")}
    return fitted(attach, model, numbers(SAMPLES, FEATURES), y)


@WEIGHTS.add
def class_weights(attach: Attachment, *, jit: bool) -> Trained:
    """class weights and weighted metrics."""
    model = classifier("class")
    loss = "sparse_categorical_crossentropy"
    compiled(model=model, loss=loss, weighted_metrics=["accuracy"], jit=jit)
    weights = {0: 0.5, 1: 1.5, 2: 1.0, 3: 0.3}
    x = numbers(SAMPLES, FEATURES)
    return fitted(attach, model, x, targets("class"), class_weight=weights)


@WEIGHTS.add
def weights_of_classes_one_hot(attach: Attachment, *, jit: bool) -> Trained:
    """class weights of one-hot targets."""
    model = compiled(model=classifier("one hot"), loss="categorical_crossentropy", jit=jit)
    weights = {0: 0.5, 1: 1.5, 2: 1.0, 3: 0.3}
    x = numbers(SAMPLES, FEATURES)
    return fitted(attach, model, x, targets("one hot"), class_weight=weights)


@WEIGHTS.add
def label_smoothing(attach: Attachment, *, jit: bool) -> Trained:
    """label smoothing from logits, summed."""
    loss = losses.CategoricalCrossentropy(True, 0.1, reduction="sum")
    model = compiled("sgd", model=classifier("number"), loss=loss, jit=jit)
    return fitted(attach, model, numbers(SAMPLES, FEATURES), targets("one hot"))


@WEIGHTS.add
def a_function(attach: Attachment, *, jit: bool) -> Trained:
    """a function times a constant."""

    def loss(y: Any, predicted: Any) -> Any:
        return 0.3 * keras.ops.mean(keras.ops.abs(0.7 * (y - predicted)), axis=-1)

    return fitted(attach, compiled("sgd", loss=loss, jit=jit), *regression())


class AddsLoss(layers.Layer):
    """Adds a loss of its own, and a metric of it."""

    def __init__(self) -> None:
        super().__init__()
        self.size = metrics.Mean(name="size")

    def call(self, x: Any) -> Any:
        size = keras.ops.mean(keras.ops.square(x))
        self.add_loss(0.03 * size)
        self.size.update_state(size)
        return x


@WEIGHTS.add
def added_loss(attach: Attachment, *, jit: bool) -> Trained:
    """add_loss, and regularizers of all kinds."""
    penalised = layers.Dense(
        16,
        "tanh",
        kernel_regularizer=keras.regularizers.L1L2(0.01, 0.02),
        bias_regularizer="l2",
        activity_regularizer=keras.regularizers.L1(0.001),
    )
    orthogonal = layers.Dense(8, kernel_regularizer=keras.regularizers.OrthogonalRegularizer(0.02))
    last = layers.Dense(CLASSES)
    model = keras.Sequential([keras.Input((FEATURES,)), penalised, AddsLoss(), orthogonal, last])
    return fitted(attach, compiled("sgd", model=model, jit=jit), *regression())


@WEIGHTS.add
def constraints(attach: Attachment, *, jit: bool) -> Trained:
    """constraints of all kinds."""
    named = keras.constraints
    kinds = [named.MaxNorm(0.5), named.MinMaxNorm(0.3, 0.6), named.NonNeg(), named.UnitNorm()]
    hidden = [layers.Dense(12, "tanh", kernel_constraint=each) for each in kinds]
    model = keras.Sequential([keras.Input((FEATURES,)), *hidden, layers.Dense(CLASSES)])
    return fitted(attach, compiled("sgd", model=model, jit=jit), *regression())


@WEIGHTS.add
def half_frozen(attach: Attachment, *, jit: bool) -> Trained:
    """half of the layers frozen."""
    model = mlp()
    model.layers[0].trainable = False
    return fitted(attach, compiled(model=model, jit=jit), *regression())


def weight_rows() -> Iterator[Row]:
    for name, train in WEIGHTS.items():
        yield from with_and_without_xla("weights of losses", name, train)


POLICIES = ("mixed_float16", "mixed_bfloat16", "float64", "float16", "bfloat16")


def convolutional() -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(16, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES, dtype="float32"),
        ]
    )


def over_time() -> Any:
    # The usual orthogonal initializer has no kernel for bfloat16.
    hidden = layers.LSTM(8, dropout=0.2, recurrent_initializer="glorot_uniform")
    return keras.Sequential([keras.Input((6, 5)), hidden, layers.Dense(CLASSES, dtype="float32")])


MODELS = {"perceptron": mlp, "convolution": convolutional, "LSTM": over_time}


def dtype_rows() -> Iterator[Row]:
    for policy in POLICIES:
        for model in MODELS:
            for optimizer in ("sgd", "adam"):
                train = trains_policy(policy, model, optimizer)
                name = f"{policy}, {model}, {optimizer}"
                yield from with_and_without_xla("dtypes", name, train)


def trains_policy(policy: str, name: str, optimizer: str) -> Callable[..., Trained]:
    def train(attach: Attachment, *, jit: bool) -> Trained:
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            model = compiled(optimizer, model=MODELS[name](), jit=jit)
            x = numbers(SAMPLES, *model.input_shape[1:])
            return fitted(attach, model, x, numbers(SAMPLES, CLASSES, seed=1))
        finally:
            keras.config.set_dtype_policy(before)

    return train
