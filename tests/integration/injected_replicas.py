"""Errors inside the recorder of two replicas, in a process of its own: python injected_replicas.py
FOLDER prints what they harmed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import injected
import keras
import numpy as np
import tensorflow as tf

from nanreplay import Recorder

REPLICAS, ROWS = 2, 2


def trainer(strategy: Any) -> Any:
    """A training with `strategy`, of which a process can have only one."""

    def mirrored_loop(path: Path | None, begin: Callable[[], None]) -> list[bytes]:
        keras.utils.set_random_seed(1)
        with strategy.scope():
            dense, optimizer = keras.layers.Dense(2), keras.optimizers.SGD(0.1)
            dense.build((None, 3))
            optimizer.build(dense.trainable_variables)

        def replica_step(x: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(dense(x) - 1.0))
            optimizer.apply(
                tape.gradient(loss, dense.trainable_variables), dense.trainable_variables
            )
            return loss

        @tf.function
        def step(x: Any) -> Any:
            return strategy.reduce(
                tf.distribute.ReduceOp.SUM, strategy.run(replica_step, args=(x,)), axis=None
            )

        x = np.random.default_rng(0).normal(size=(4 * REPLICAS * ROWS, 3)).astype("float32")
        x[3 * REPLICAS * ROWS, 1] = np.nan
        batches = strategy.experimental_distribute_dataset(
            tf.data.Dataset.from_tensor_slices(x).batch(REPLICAS * ROWS)
        )
        recorded, recorder = step, None if path is None else Recorder(path, on_nan="continue")
        begin()
        if recorder is not None:
            recorded = recorder.wrap(step, optimizer=optimizer)
        losses = [np.asarray(recorded(batch)).tobytes() for batch in batches]
        if recorder is not None:
            recorder.close()
        return [
            *losses,
            *(
                np.asarray(part).tobytes()
                for variable in dense.variables
                for part in variable.value.values
            ),
        ]

    return mirrored_loop


def main(folder: Path) -> None:
    """Raise in every function that a compiled loop on one device does not reach."""
    tf.config.threading.set_inter_op_parallelism_threads(
        2 * REPLICAS
    )  # each device's collective op holds a thread
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * REPLICAS
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{device}" for device in range(REPLICAS)])
    injected.SPECIAL["mirrored_loop"] = trainer(strategy)
    usual = injected.functions_of("compiled_loop", folder / "usual.h5")
    functions = {
        name: code
        for name, code in injected.functions_of("mirrored_loop", folder / "all.h5").items()
        if name not in usual
    }
    bare, _ = injected.run("mirrored_loop", None)
    _, said = injected.run("mirrored_loop", folder / "said.h5")
    found = {
        name: injected.harm("mirrored_loop", folder, code, RuntimeError("a bug"), bare, len(said))
        for name, code in functions.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
