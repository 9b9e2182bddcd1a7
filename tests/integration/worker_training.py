"""One of several workers on this machine: python worker_training.py FOLDER INDEX PORT,PORT,...
BAD_WORKER.

`model.fit` of Keras 3.15 does not start under MultiWorkerMirroredStrategy (it reduces a tuple of
batches), so this is a loop.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

ROWS, STEPS, BAD_STEP = 3, 5, 3


def main(folder: str, index: int, ports: list[str], bad: int) -> None:
    """Train; write run.INDEX.h5 at the incident, and leave without a word to other workers."""
    task = {
        "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
        "task": {"type": "worker", "index": index},
    }
    os.environ["TF_CONFIG"] = json.dumps(task)
    import keras
    import numpy as np
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    from nanreplay import NonFiniteError, Recorder

    class Logarithm(keras.layers.Layer):
        """Bad at zero."""

        def call(self, x: Any) -> Any:
            return tf.math.log(x)

    keras.utils.set_random_seed(1)
    with strategy.scope():
        layers = keras.layers
        model = keras.Sequential(
            [
                layers.Dense(8, "sigmoid", name="hidden"),
                Logarithm(name="logarithm"),
                layers.Dense(1, name="out"),
            ]
        )
        model.build((None, 2))
        optimizer = keras.optimizers.Adam(0.01)
        optimizer.build(model.trainable_variables)

    def replica_step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(x, training=True) - y)) / (ROWS * len(ports))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function
    def step(x: Any, y: Any) -> Any:
        return strategy.run(replica_step, args=(x, y))

    x = np.random.default_rng(index).normal(size=(STEPS, ROWS, 2)).astype("float32")
    y = x.sum(axis=-1, keepdims=True)
    if index == bad:
        x[BAD_STEP, 1] = -1e30
    recorded = Recorder(f"{folder}/run.{{worker}}.h5").wrap(step, model=model, optimizer=optimizer)
    try:
        for batch in zip(x, y, strict=True):
            recorded(*map(tf.constant, batch))
    except NonFiniteError as error:
        print(error, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), int(sys.argv[4]))
