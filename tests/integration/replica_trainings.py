"""Trains on several logical CPU devices, in a process of its own: python replica_trainings.py
FOLDER REPLICAS [healthy|scaled]."""

from __future__ import annotations

import contextlib
import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder

ROWS, STEPS, BAD_STEP = 3, 5, 3
"""Rows that each replica gets of a batch; steps; the step whose batch has a bad row."""


class Logarithm(keras.layers.Layer):
    """Bad at zero."""

    def call(self, x: Any) -> Any:
        return tf.math.log(x)


def dense() -> Any:
    """Sigmoid and logarithm, with statistics and random numbers that each replica keeps for
    itself."""
    layers = keras.layers
    hidden = [
        layers.Dense(8, "sigmoid", use_bias=False, name="hidden"),
        Logarithm(name="logarithm"),
    ]
    return keras.Sequential(
        [
            *hidden,
            layers.BatchNormalization(name="norm", scale=False),
            layers.Dropout(0.2),
            layers.Dense(1, name="out"),
        ]
    )


def sparse() -> Any:
    """The gradient of the embedding is sparse; replicas exchange it by gathering."""
    layers = keras.layers
    return keras.Sequential(
        [layers.Embedding(9, 4, name="embedding"), layers.Flatten(), layers.Dense(1, name="out")]
    )


def numbers(replicas: int, *, bad: int | None) -> tuple[Any, Any]:
    """Rows of floats; row 1 of what replica `bad` gets in step `BAD_STEP` makes the sigmoid 0."""
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS, replicas, ROWS, 2)).astype("float32")
    y = x.sum(axis=-1, keepdims=True)
    if bad is not None:
        x[BAD_STEP, bad, 1] = -1e30
    return x.reshape(-1, 2), y.reshape(-1, 1)


def tokens(replicas: int, *, bad: int) -> tuple[Any, Any]:
    """Rows of tokens; the target of row 1 of what replica `bad` gets in step `BAD_STEP` is
    infinite."""
    random = np.random.default_rng(0)
    x = random.integers(0, 9, size=(STEPS, replicas, ROWS, 3))
    y = x.sum(axis=-1, keepdims=True).astype("float32")
    y[BAD_STEP, bad, 1] = np.inf
    return x.reshape(-1, 3), y.reshape(-1, 1)


def fit(path: Path | None, strategy: Any, build: Any, data: Any, *, scaled: bool = False) -> str:
    """Train with `model.fit`; returns a digest of all variables of all replicas."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = build()
        # Each variable that a replica updates takes its time, and Adam has two a weight.
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        model.compile(
            optimizer=keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer,
            loss="mse",
        )
        if build is dense:  # the other model makes its variables in the first step
            model.build((None, 2))
            model.optimizer.build(model.trainable_variables)
    batches = tf.data.Dataset.from_tensor_slices(data).batch(ROWS * strategy.num_replicas_in_sync)
    with contextlib.suppress(NonFiniteError):
        model.fit(
            batches, callbacks=[] if path is None else [Recorder(path)], verbose=0, shuffle=False
        )
    variables = [
        part
        for variable in [*model.variables, *model.optimizer.variables]
        for part in variable.value.values
    ]
    return sha256(b"".join(np.asarray(variable).tobytes() for variable in variables)).hexdigest()


def loop(path: Path, strategy: Any, data: Any) -> None:
    """Train with a loop of our own."""
    keras.utils.set_random_seed(1)
    rows = ROWS * strategy.num_replicas_in_sync
    with strategy.scope():
        model, optimizer = dense(), keras.optimizers.SGD(0.01)
        model.build((None, 2))
        optimizer.build(model.trainable_variables)
    batches = tf.data.Dataset.from_tensor_slices(data).batch(rows)

    def replica_step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(x, training=True) - y)) / rows
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function
    def step(batch: Any) -> Any:
        losses = strategy.run(replica_step, args=batch)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    recorded = Recorder(path).wrap(step, model=model, optimizer=optimizer)
    with contextlib.suppress(NonFiniteError):
        for batch in strategy.experimental_distribute_dataset(batches):
            recorded(batch)


def main(folder: Path, replicas: int, what: str = "") -> None:
    """Write fit.h5 and loop.h5; or sparse.h5, of sparse gradients; or scaled.h5, of a loss that is
    scaled; or digests.json of a healthy training with and without a recorder.

    One strategy a process: TensorFlow mixes up the collective ops of two.
    """
    tf.config.threading.set_inter_op_parallelism_threads(
        2 * replicas
    )  # each device's collective op holds a thread
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * replicas
    )
    strategy, last = (
        tf.distribute.MirroredStrategy([f"CPU:{device}" for device in range(replicas)]),
        replicas - 1,
    )
    if what == "healthy":
        data = numbers(replicas, bad=None)
        digests = [
            fit(folder / "healthy.h5", strategy, dense, data),
            fit(None, strategy, dense, data),
        ]
        (folder / "digests.json").write_text(json.dumps(digests))
        return
    if what == "scaled":
        fit(folder / "scaled.h5", strategy, dense, numbers(replicas, bad=last), scaled=True)
        return
    if what == "sparse":
        fit(folder / "sparse.h5", strategy, sparse, tokens(replicas, bad=last))
        return
    fit(folder / "fit.h5", strategy, dense, numbers(replicas, bad=last))
    loop(folder / "loop.h5", strategy, numbers(replicas, bad=last))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
