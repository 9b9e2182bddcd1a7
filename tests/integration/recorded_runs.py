"""Trains what the tests of the command line need, in a process of its own: python recorded_runs.py
FOLDER."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder


def train(
    path: Path, penalty: Callable[[Any], Any], *, bad: float = 0.0, dump: bool = False
) -> None:
    """Fit one weight for six steps; `bad` is an input of step 4, of which `penalty` may make what
    it likes."""
    weight = tf.Variable([[0.5], [0.25]], name="weight")
    optimizer = tf.keras.optimizers.SGD(0.01)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x @ weight)) + tf.reduce_mean(penalty(x))
        optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])
        return loss

    batches = np.random.default_rng(0).uniform(1.0, 2.0, (6, 4, 2)).astype("float32")
    batches[4, 2, 1] = bad
    with Recorder(path) as recorder:
        recorded = recorder.wrap(step, optimizer=optimizer)
        try:
            for batch in batches:
                recorded(tf.constant(batch))
        except NonFiniteError:
            return
        if dump:
            recorder.dump()


def chatty_log(x: Any) -> Any:
    """Logarithm that prints to stdout, as some training steps do."""
    tf.print("a training step may print", output_stream=sys.stdout)
    return tf.math.log(x)


def through_python(x: Any) -> Any:
    """Logarithm in Python code within a loop, whose outputs no capture can hold."""
    return tf.map_fn(
        lambda row: tf.ensure_shape(tf.numpy_function(np.log, [row], tf.float32), row.shape), x
    )


def reaching_a_file(x: Any) -> Any:
    """Logarithm of numbers that pass by the file system."""
    text = tf.strings.as_string(tf.reduce_sum(x))
    with tf.control_dependencies([tf.io.write_file(str(Path(sys.argv[1]) / "written"), text)]):
        return tf.math.log(x)


def main(folder: Path) -> None:
    """Write nan.h5, healthy.h5, python.h5 and unsafe.h5."""
    train(folder / "nan.h5", chatty_log)
    train(folder / "healthy.h5", tf.math.log, bad=1.0, dump=True)
    train(folder / "python.h5", through_python)
    train(folder / "unsafe.h5", reaching_a_file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
