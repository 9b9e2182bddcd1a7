"""The models that benchmarks train: an MLP, a CNN and a small transformer, with data of their
shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

CLASSES = 10


@dataclass(frozen=True)
class Training:
    """A model and the size of its epochs."""

    build: Callable[[], Any]
    shape: tuple[int, ...]
    """Shape of one sample."""
    batch: int
    steps: int
    """Steps of one epoch."""
    words: int = 0
    """Size of the vocabulary; 0 when samples are floats."""
    steps_per_execution: int = 1
    run_eagerly: bool = False

    def data(self) -> tuple[Any, Any]:
        """Samples and labels of one epoch."""
        random = np.random.default_rng(1)
        count = self.batch * self.steps
        x = (
            random.integers(0, self.words, (count, *self.shape))
            if self.words
            else random.normal(size=(count, *self.shape)).astype("float32")
        )
        return x, random.integers(0, CLASSES, count)

    def model(self, *, jit_compile: bool) -> Any:
        """A compiled model, the same weights in every process."""
        keras.utils.set_random_seed(1)
        model = self.build()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(
            keras.optimizers.Adam(1e-4),
            loss,
            metrics=["accuracy"],
            jit_compile=jit_compile,
            steps_per_execution=self.steps_per_execution,
            run_eagerly=self.run_eagerly,
        )
        return model


def mlp() -> Any:
    """784 inputs, three hidden layers, dropout."""
    layers = [
        layer
        for _ in range(3)
        for layer in (keras.layers.Dense(512, activation="relu"), keras.layers.Dropout(0.2))
    ]
    return keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(CLASSES)])


def small_mlp() -> Any:
    """28 x 28 pixels, one hidden layer, dropout: steps of a millisecond, of which Python takes a
    good part."""
    layers = [
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.2),
    ]
    return keras.Sequential([keras.Input((28, 28)), *layers, keras.layers.Dense(CLASSES)])


def tiny() -> Any:
    """16 inputs, one hidden layer: steps of half a millisecond, of which kernels take little."""
    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input((16,)), *layers])


def cnn() -> Any:
    """32 x 32 pixels, three convolutions with batch normalisation."""
    layers: list[Any] = [keras.Input((32, 32, 3))]
    for filters in (32, 64, 64):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(CLASSES)])


def transformer(blocks: int = 2, width: int = 64, length: int = 64, words: int = 1000) -> Any:
    """An encoder of pre-norm blocks over `length` tokens."""
    tokens = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(words, width)(tokens)
    for _ in range(blocks):
        normed = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(4, width // 4, dropout=0.1)(normed, normed)
        normed = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.Dense(width)(keras.layers.Dense(4 * width, activation="gelu")(normed))
    return keras.Model(
        tokens, keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling1D()(x))
    )


TRAININGS = {
    "loop": Training(mlp, (784,), batch=128, steps=200),
    "trainer": Training(mlp, (784,), batch=128, steps=200),
    "tiny_loop": Training(tiny, (16,), batch=16, steps=400),
    "tiny_trainer": Training(tiny, (16,), batch=16, steps=400),
    "train_on_batch": Training(tiny, (16,), batch=16, steps=400),
    "eager_loop": Training(tiny, (16,), batch=16, steps=400),
    "run_eagerly": Training(tiny, (16,), batch=16, steps=400, run_eagerly=True),
    "mlp": Training(mlp, (784,), batch=128, steps=200),
    "small_mlp": Training(small_mlp, (28, 28), batch=32, steps=400),
    "small_mlp_by_8": Training(small_mlp, (28, 28), batch=32, steps=400, steps_per_execution=8),
    "cnn": Training(cnn, (32, 32, 3), batch=64, steps=40),
    "transformer": Training(transformer, (64,), batch=32, steps=50, words=1000),
}


def train_step(model: Any, *, jit_compile: bool) -> Any:
    """A `tf.function` that trains `model` on a batch, as loops without `fit` have it."""

    @tf.function(jit_compile=jit_compile)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(
                    y, model(x, training=True), from_logits=True
                )
            )
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    model.optimizer.build(model.trainable_variables)
    return step


def run_loop(step: Any, x: Any, y: Any, batch: int) -> float:
    """One epoch of a loop; returns its mean loss."""
    data = (
        tf.data.Dataset.from_tensor_slices((x, y))
        .batch(batch, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )
    total = tf.zeros(())
    for xs, ys in data:
        total += step(xs, ys)
    return float(total) / (len(x) // batch)
