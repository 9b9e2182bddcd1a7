"""Small real trainings that the tests record: models, data with one bad sample, and `record`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nanreplay import Capture, NonFiniteError, Recorder, Replay

STEPS, BATCH = 6, 4


def data(bad_step: int | None = 3, *, features: int = 3, steps: int = STEPS) -> tuple[Any, Any]:
    """`x` [steps * 4, features] and `y` [steps * 4, 1]; sample 2 of step `bad_step` holds a NaN."""
    random = np.random.default_rng(0)
    x = random.normal(size=(steps * BATCH, features)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    if bad_step is not None:
        x[bad_step * BATCH + 2, 1] = np.nan
    return x, y


def mlp(*, features: int | None = 3, **compile_arguments: Any) -> Any:
    """A Sequential model with dropout; without `features` not built until its first batch."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.layers.Dense(5, activation="tanh", name="hidden"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1, name="out"),
        ]
    )
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    usual = {"optimizer": optimizer, "loss": "mse", "jit_compile": False}
    model.compile(**{**usual, **compile_arguments})
    if features is not None:
        model.build((None, features))
        with_all_variables(model)
    return model


def with_all_variables(model: Any) -> Any:
    """Make the variables of the optimizer; returns the model.

    A step that makes variables is traced twice by TensorFlow, and tracing is most of the time that
    a small training takes.
    """
    model.optimizer.build(model.trainable_variables)
    return model


def record(
    path: Path,
    model: Any,
    x: Any,
    y: Any = None,
    *,
    recorder: Recorder | None = None,
    callbacks_before: Any = (),
    **fit: Any,
) -> int | None:
    """Fit with a recorder after other callbacks; returns the step of the incident, None when there
    was none."""
    callbacks = [*callbacks_before, recorder or Recorder(path)]
    options = {"batch_size": BATCH, "epochs": 1, "shuffle": False, "verbose": 0, **fit}
    if not isinstance(x, (np.ndarray, list, dict)):
        options.pop("batch_size")
    try:
        model.fit(x, y, callbacks=callbacks, **options)
    except NonFiniteError as error:
        return error.step if error.path == str(path) else None
    return None


def replayed(path: Path) -> list[Any]:
    """Results of replaying all steps as they were trained."""
    with Capture(path) as capture, Replay(capture) as replay:
        return replay.run_window("recorded")


def weights_after(fit: Callable[[], Any]) -> list[Any]:
    """All variables of the model that `fit` trains and returns, its optimizer's and metrics'
    included."""
    model = fit()
    return [np.asarray(variable) for variable in [*model.variables, *model.optimizer.variables]]


def assert_same_bits(left: list[Any], right: list[Any]) -> None:
    assert len(left) == len(right)
    for index, (one, other) in enumerate(zip(left, right, strict=True)):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), f"variable {index} differs"


def as_dataset(x: Any, y: Any) -> Any:
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
