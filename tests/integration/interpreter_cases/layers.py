"""Keras models: three steps of forward, backward and optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import CASES

MODELS: dict[str, tuple[tuple[int, ...], Callable[[], list[Any]]]] = {
    "dense_dropout": ((8,), lambda: [keras.layers.Dense(16, "relu"), keras.layers.Dropout(0.3)]),
    "batchnorm": ((8,), lambda: [keras.layers.Dense(16), keras.layers.BatchNormalization()]),
    "normalizations": (
        (6, 8),
        lambda: [
            keras.layers.LayerNormalization(),
            keras.layers.GroupNormalization(4),
            keras.layers.UnitNormalization(),
            *(
                [keras.layers.RMSNormalization()]
                if hasattr(keras.layers, "RMSNormalization")
                else []
            ),  # since Keras 3.9
        ],
    ),
    "activations": (
        (8,),
        lambda: [
            keras.layers.Dense(9, name)
            for name in ("gelu", "selu", "elu", "softplus", "swish", "tanh", "mish")
        ],
    ),
    "prelu_leaky_softmax": (
        (8,),
        lambda: [keras.layers.PReLU(), keras.layers.LeakyReLU(), keras.layers.Softmax()],
    ),
    "lstm": (
        (3, 5),
        lambda: [
            keras.layers.LSTM(7, return_sequences=True),
            keras.layers.LSTM(4, recurrent_dropout=0.2),
        ],
    ),
    "gru": (
        (6, 5),
        lambda: [
            keras.layers.GRU(7, return_sequences=True),
            keras.layers.GRU(4, reset_after=False),
        ],
    ),
    "simple_rnn": ((6, 5), lambda: [keras.layers.SimpleRNN(7, unroll=True)]),
    "bidirectional": ((6, 5), lambda: [keras.layers.Bidirectional(keras.layers.LSTM(4))]),
    "time_distributed": (
        (6, 5),
        lambda: [keras.layers.TimeDistributed(keras.layers.Dense(4, "relu"))],
    ),
    "conv2d": (
        (8, 8, 3),
        lambda: [
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
        ],
    ),
    "conv_variants": (
        (8, 8, 3),
        lambda: [
            keras.layers.SeparableConv2D(4, 3, padding="same"),
            keras.layers.DepthwiseConv2D(3, strides=2, padding="same"),
            keras.layers.Conv2DTranspose(3, 3, strides=2),
            keras.layers.AveragePooling2D(2),
            keras.layers.UpSampling2D(interpolation="bilinear"),
            keras.layers.ZeroPadding2D(),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ],
    ),
    "conv1d_causal": (
        (9, 3),
        lambda: [keras.layers.Conv1D(4, 3, padding="causal", dilation_rate=2)],
    ),
    "conv3d": (
        (5, 5, 5, 2),
        lambda: [keras.layers.Conv3D(2, 3), keras.layers.MaxPooling3D(2), keras.layers.Flatten()],
    ),
    "conv_lstm": ((3, 6, 6, 2), lambda: [keras.layers.ConvLSTM2D(2, 3), keras.layers.Flatten()]),
    "noise": (
        (8,),
        lambda: [
            keras.layers.GaussianNoise(0.1),
            keras.layers.GaussianDropout(0.1),
            keras.layers.Dense(3),
        ],
    ),
    "augmentation": (
        (8, 8, 3),
        lambda: [
            keras.layers.RandomFlip(),
            keras.layers.RandomRotation(0.1),
            keras.layers.Conv2D(2, 3),
        ],
    ),
}
OPTIMIZERS = (
    "sgd",
    "adam",
    "adamw",
    "rmsprop",
    "adagrad",
    "adadelta",
    "adamax",
    "nadam",
    "ftrl",
    "lion",
    "muon",
)


def _train_step(model: Any, x: Any, y: Any) -> tuple[Any, tuple[Any, ...]]:
    model.train_step((x, y))  # makes slots and metrics, without tracing what is traced next
    return lambda x, y: model.train_step((x, y)), (x, y)


def _arrays(shape: tuple[int, ...]) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    return tf.constant(random.normal(size=(6, *shape)), tf.float32), tf.constant(
        random.normal(size=(6, 1)), tf.float32
    )


def _model(
    shape: tuple[int, ...], layers: Callable[[], list[Any]], optimizer: Any, policy: str
) -> Any:
    keras.utils.set_random_seed(3)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential(
            [keras.Input(shape), *layers(), keras.layers.Flatten(), keras.layers.Dense(1)]
        )
        model.compile(optimizer, "mse", metrics=["mae"], jit_compile=False)
    finally:
        keras.config.set_dtype_policy(before)
    return model


def _register() -> None:
    for name, (shape, layers) in MODELS.items():
        CASES[f"layers-{name}"] = lambda s=shape, m=layers: _train_step(
            _model(s, m, "adam", "float32"), *_arrays(s)
        )
    shape, dense = MODELS["dense_dropout"]
    for name in OPTIMIZERS:
        if name == "muon" and not hasattr(keras.optimizers, "Muon"):  # since Keras 3.10
            continue
        CASES[f"optimizers-{name}"] = lambda o=name: _train_step(
            _model(shape, dense, o, "float32"), *_arrays(shape)
        )
    for policy in ("mixed_float16", "mixed_bfloat16", "float64"):
        CASES[f"policies-{policy}"] = lambda p=policy: _train_step(
            _model(shape, dense, "adam", p), *_arrays(shape)
        )
    CASES["layers-embedding_attention"] = _embedding_attention
    CASES["optimizers-clipping_ema_accumulation"] = _clipping


def _clipping() -> tuple[Any, tuple[Any, ...]]:
    shape, dense = MODELS["dense_dropout"]
    optimizer = keras.optimizers.Adam(
        global_clipnorm=0.1, use_ema=True, gradient_accumulation_steps=2, weight_decay=0.1
    )
    return _train_step(_model(shape, dense, optimizer, "float32"), *_arrays(shape))


def _embedding_attention() -> tuple[Any, tuple[Any, ...]]:
    keras.utils.set_random_seed(3)
    ids = keras.Input((7,), dtype="int32")
    x = keras.layers.Embedding(11, 8, mask_zero=True)(ids)
    x = keras.layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x, use_causal_mask=True)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(ids, keras.layers.Dense(3, "softmax")(x))
    model.compile(
        "adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False
    )
    random = np.random.default_rng(0)
    x, y = (
        random.integers(0, 11, (6, 7), dtype=np.int32),
        random.integers(0, 3, (6,), dtype=np.int32),
    )
    return _train_step(model, tf.constant(x), tf.constant(y))


_register()
