"""Training ends with the very bits of bare training, whatever the layers, the optimizer and the
compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from trainings import assert_same_bits, weights_after, with_all_variables

from nanreplay import Recorder

BATCH, STEPS, CLASSES, WORDS = 16, 8, 10, 500


def convolutions() -> list[Any]:
    return [
        keras.Input((8, 8, 3)), layers.Conv2D(32, 3, padding="same"), layers.BatchNormalization(),
        layers.ReLU(),
        layers.Conv2D(64, 3, padding="same"), layers.BatchNormalization(), layers.ReLU(),
        layers.GlobalAveragePooling2D(),
    ]  # fmt: skip


def separable() -> list[Any]:
    return [
        keras.Input((12, 12, 8)), layers.DepthwiseConv2D(3), layers.SeparableConv2D(32, 3),
        layers.GroupNormalization(8),
        layers.Conv2DTranspose(64, 3, strides=2, activation="relu"), layers.Flatten(),
    ]  # fmt: skip


def over_time() -> list[Any]:
    return [
        keras.Input((12, 16)),
        layers.Conv1D(64, 5, padding="causal"),
        layers.LSTM(64, return_sequences=True),
        layers.GRU(64),
    ]


def volumes() -> list[Any]:
    return [
        keras.Input((6, 6, 6, 4)),
        layers.Conv3D(32, 3, activation="relu"),
        layers.Conv3D(32, 3),
        layers.Flatten(),
    ]


def wide() -> list[Any]:
    return [
        keras.Input((100,)), layers.Dense(200, activation="gelu", kernel_regularizer="l2"),
        layers.UnitNormalization(),
        layers.Dense(200, activation="selu", kernel_constraint=keras.constraints.MaxNorm(2.0)),
        layers.Dropout(0.3),
    ]  # fmt: skip


def words() -> list[Any]:
    return [
        keras.Input((16,), dtype="int32"),
        layers.Embedding(WORDS, 64),
        layers.LayerNormalization(),
        layers.GlobalAveragePooling1D(),
    ]


MODELS = [convolutions, separable, over_time, volumes, wide, words]
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: keras.optimizers.Adam(1e-3),
    "momentum": lambda: keras.optimizers.SGD(1e-2, momentum=0.9, nesterov=True, clipnorm=1.0),
    "adamw": lambda: keras.optimizers.AdamW(1e-3, global_clipnorm=1.0),
    "lion": lambda: keras.optimizers.Lion(1e-4),
    "rmsprop": lambda: keras.optimizers.RMSprop(1e-3),
}


def trained(
    build: Callable[[], list[Any]], optimizer: str, callbacks: Sequence[Any], *, jit_compile: bool
) -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([*build(), layers.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[optimizer](), loss, jit_compile=jit_compile)
    with_all_variables(model)
    random = np.random.default_rng(0)
    shape = (BATCH * STEPS, *model.input_shape[1:])
    x = (
        random.integers(0, WORDS, shape)
        if build is words
        else random.normal(size=shape).astype("float32")
    )
    model.fit(
        x,
        random.integers(0, CLASSES, len(x)),
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    return model


def assert_bits_stay(
    folder: Path, build: Callable[[], list[Any]], optimizer: str, *, jit_compile: bool
) -> None:
    bare = weights_after(lambda: trained(build, optimizer, [], jit_compile=jit_compile))
    recorded = weights_after(
        lambda: trained(build, optimizer, [Recorder(folder / "run.h5")], jit_compile=jit_compile)
    )
    assert_same_bits(bare, recorded)


@pytest.mark.parametrize("optimizer", [pytest.param("adam", marks=pytest.mark.slow), "lion"])
def test_watching_a_convolution_does_not_change_how_xla_computes_it(
    tmp_path: Path, optimizer: str
) -> None:
    assert_bits_stay(tmp_path, convolutions, optimizer, jit_compile=True)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("build", MODELS)
def test_training_ends_with_the_bits_of_bare_training(
    tmp_path: Path, build: Callable[[], list[Any]], optimizer: str, jit_compile: bool
) -> None:
    assert_bits_stay(tmp_path, build, optimizer, jit_compile=jit_compile)
