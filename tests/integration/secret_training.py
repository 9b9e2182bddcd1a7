"""Trains with things that must not leave the house in every place that a capture has: python
secret_training.py OUT NAME HOST VALUE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder

OUT, NAME, HOST, VALUE = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
TABLE = np.random.default_rng(3).normal(VALUE, 0.001, 40).astype("float32")
RECORDED_TOO = tf.constant(TABLE[::-1].copy())


def main() -> None:
    """Six steps; the fourth divides by zero."""
    weight = tf.Variable([[0.5], [0.25]], name="weight")
    optimizer = tf.keras.optimizers.SGD(1e-9)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = 1e-9 * tf.reduce_sum(TABLE * RECORDED_TOO)
            loss += tf.reduce_mean(tf.square(x @ weight))
            loss += tf.reduce_mean(1.0 / x)
            tf.debugging.assert_greater(
                loss, -1.0, message=f"{NAME} on {HOST} reads {Path(__file__).absolute()}"
            )
            tf.print(f"{NAME} trains:", loss, output_stream=sys.stdout)
        optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])
        return loss

    batches = np.random.default_rng(0).uniform(1.0, 2.0, (6, 4, 2)).astype("float32")
    batches[:, 1, 0] = VALUE
    batches[4, 2, 1] = 0.0
    recorder = Recorder(OUT)
    recorded = recorder.wrap(step, optimizer=optimizer)
    with recorder:
        try:
            for batch in batches:
                recorded(tf.constant(batch))
        except NonFiniteError:
            return


main()
