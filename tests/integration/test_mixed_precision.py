"""Half precision: skipped updates are normal, fixed scales skip nothing, and what overflows is
found with its step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import BATCH, data, record, replayed, with_all_variables

from nanreplay import Capture, NonFiniteError, Recorder


def model_of(policy: str, optimizer: Any, **compile_arguments: Any) -> Any:
    keras.utils.set_random_seed(0)
    dtype = keras.DTypePolicy(policy)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, dtype=dtype),
            keras.layers.Dense(1, dtype=dtype),
        ]
    )
    model.compile(optimizer, "mse", **{"jit_compile": False, **compile_arguments})
    return with_all_variables(model)


def assert_only_this_step_fails(path: Path, step: int) -> None:
    results = replayed(path)
    assert [result.step for result in results if not result.finite] == [step]
    assert all(result.bit_exact for result in results)


def skipped_steps(path: Path) -> list[int]:
    with Capture(path) as capture:
        timeline = capture.timeline()
    return timeline["step"][timeline["skipped"]].tolist()


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_scale_that_is_found_by_skipping_is_a_healthy_training_until_its_nan(
    tmp_path: Path, jit_compile: bool
) -> None:
    path = tmp_path / "run.h5"
    x, y = data(None, steps=12)
    x[9 * BATCH + 2, 1] = np.nan
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=2.0**20)
    assert record(path, model_of("mixed_float16", optimizer, jit_compile=jit_compile), x, y) == 9
    skipped = skipped_steps(path)
    assert skipped
    assert max(skipped) < 9
    with Capture(path) as capture:
        scales = capture.timeline()["loss_scale"].tolist()
    assert scales[0] == 2.0**20
    assert min(scales) == 2.0 ** (20 - len(skipped))
    assert_only_this_step_fails(path, 9)


def test_a_fixed_scale_skips_nothing_so_an_overflowing_gradient_is_an_incident(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.h5"
    x, y = data(None, steps=8)
    y[5 * BATCH :] *= 1e4  # the loss fits float32; 1024 times its gradient does not fit float16
    step = record(
        path, model_of("mixed_float16", keras.optimizers.SGD(1e-6, loss_scale_factor=1024.0)), x, y
    )
    assert step == 5
    with Capture(path) as capture:
        assert capture.incident.trigger.what == "gradient"
        assert not capture.timeline()["skipped"].any()
    assert_only_this_step_fails(path, 5)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_loop_whose_loss_scale_is_made_by_its_first_step(
    tmp_path: Path, is_compiled: bool
) -> None:
    path = tmp_path / "run.h5"
    x, y = data(None, steps=12)
    x[9 * BATCH + 2, 1] = np.nan
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=2.0**20)
    model = model_of("mixed_float16", "sgd")

    def train_step(inputs: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.square(tf.cast(model(inputs, training=True), tf.float32) - targets)
            )
            scaled = optimizer.scale_loss(loss)
        optimizer.apply_gradients(
            zip(
                tape.gradient(scaled, model.trainable_variables),
                model.trainable_variables,
                strict=True,
            )
        )
        return loss

    step = Recorder(path).wrap(
        tf.function(train_step) if is_compiled else train_step, model=model, optimizer=optimizer
    )

    def train() -> None:
        for first in range(0, len(x), BATCH):
            step(x[first : first + BATCH], y[first : first + BATCH])

    with pytest.raises(NonFiniteError) as caught:
        train()
    assert caught.value.step == 9
    assert skipped_steps(path)
    assert max(skipped_steps(path)) < 9


@pytest.mark.slow
def test_bfloat16_under_xla(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    assert record(path, model_of("mixed_bfloat16", "adam", jit_compile=True), *data(3)) == 3
    assert_only_this_step_fails(path, 3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_trains_to_the_same_bits_with_and_without_the_recorder(
    tmp_path: Path, policy: str
) -> None:
    x, y = data(None, steps=12)

    def weights(*callbacks: Any) -> list[Any]:
        inner: Any = keras.optimizers.Adam()
        model = model_of(
            policy,
            keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**20)
            if policy == "mixed_float16"
            else inner,
        )
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=list(callbacks))
        return [np.asarray(variable) for variable in model.variables]

    for bare, recorded in zip(weights(), weights(Recorder(tmp_path / "run.h5")), strict=True):
        assert bare.tobytes() == recorded.tobytes()
    assert not list(tmp_path.iterdir())
