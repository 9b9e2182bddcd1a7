"""Trainings for `injected` with late checks, ops whose outputs are recorded, assignments, a dump on
demand, and a step that raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from nanreplay import Recorder
from nanreplay.recorder import pace


def half() -> Any:
    return np.float32(0.5)


def busy_loop(path: Path | None, begin: Callable[[], None]) -> list[bytes]:
    """Compiled, and checked late as on a GPU."""
    with mock.patch.dict(pace.LAGS, {"CPU": 2}):
        return _loop(
            path,
            begin,
            tf.function,
            lambda x: x + tf.ensure_shape(tf.py_function(half, [], tf.float32), []),
        )


def drawing_loop(path: Path | None, begin: Callable[[], None]) -> list[bytes]:
    """Eager, with random numbers from a kernel's own state."""
    return _loop(path, begin, lambda step: step, lambda x: x + tf.random.normal([2, 3], seed=1))


def _loop(
    path: Path | None,
    begin: Callable[[], None],
    kind: Callable[[Any], Any],
    disturbed: Callable[[Any], Any],
) -> list[bytes]:
    """The second step follows an assignment, the fifth gives NaN, and the eighth raises."""
    keras.utils.set_random_seed(1)
    dense, optimizer = keras.layers.Dense(2), keras.optimizers.SGD(0.1, momentum=0.9)
    dense.build((None, 3))
    optimizer.build(dense.trainable_variables)

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tf.debugging.assert_less(x[0, 0], 1e6)
            loss = tf.reduce_mean(tf.square(dense(disturbed(x)) - 1.0))
        optimizer.apply(tape.gradient(loss, dense.trainable_variables), dense.trainable_variables)
        return loss

    batches = np.random.default_rng(0).normal(size=(8, 2, 3)).astype("float32")
    batches[4, 1, 1], batches[7] = np.nan, 1e9
    recorded, recorder, losses = (
        kind(step),
        None if path is None else Recorder(path, on_nan="continue"),
        [],
    )
    begin()
    if recorder is not None:
        recorded = recorder.wrap(recorded, optimizer=optimizer)
    for index, batch in enumerate(batches):
        if index == 1:
            dense.bias.assign([1.0, 2.0])
        if index == 3 and recorder is not None:
            recorder.dump()
        try:
            losses.append(np.asarray(recorded(tf.constant(batch))).tobytes())
        except tf.errors.InvalidArgumentError:
            losses.append(b"raised")
        if index == 5:
            for variable in [*dense.variables, *optimizer.variables]:
                variable.assign(tf.ones_like(variable))
    if recorder is not None:
        recorder.close()
    return [
        *losses,
        *(np.asarray(variable).tobytes() for variable in [*dense.variables, *optimizer.variables]),
    ]
