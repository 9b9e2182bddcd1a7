"""Checks that are read late, as on a GPU: the same step is the incident, and none of the last steps
is missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from trainings import BATCH, data, mlp, record, replayed

from nanreplay import Capture, NonFiniteError, Recorder
from nanreplay.recorder import pace

STEPS = 10


@pytest.fixture(params=[pytest.param(0, marks=pytest.mark.slow), 4], ids="lag {}".format)
def lag(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(pace.LAGS, "CPU", request.param)
    return int(request.param)


def loop(path: Path, bad_step: int, **arguments: Any) -> tuple[Recorder, Any, list[Any]]:
    x, y = data(bad_step, steps=STEPS)
    model, optimizer = mlp(), keras.optimizers.Adam(0.01)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        optimizer.apply_gradients(
            zip(
                tape.gradient(loss, model.trainable_variables),
                model.trainable_variables,
                strict=True,
            )
        )
        return loss

    model.build((None, 3))
    optimizer.build(model.trainable_variables)
    recorder = Recorder(path, **arguments)
    batches = [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    return recorder, recorder.wrap(step, model=model, optimizer=optimizer), batches


@pytest.mark.parametrize("bad_step", [3, STEPS - 1])
def test_fit_finds_the_same_step(tmp_path: Path, lag: int, bad_step: int) -> None:
    path = tmp_path / "run.h5"
    recorder = Recorder(path, window=2, keyframe_every=3)
    assert record(path, mlp(), *data(bad_step, steps=STEPS), recorder=recorder) == bad_step
    with Capture(path) as capture:
        assert capture.incident.step == bad_step == max(capture.steps)
        assert capture.incident.bit_exact
        assert capture.timeline()["step"].iloc[-1] == bad_step
    results = replayed(path)
    assert {bad_step - 1, bad_step} <= {result.step for result in results}
    assert [result.step for result in results if not result.finite] == [bad_step]
    assert all(result.bit_exact for result in results)


def test_a_loop_finds_the_same_step(tmp_path: Path, lag: int) -> None:
    _, step, batches = loop(tmp_path / "run.h5", 4)
    ran: list[int] = []

    def train() -> None:
        for number, batch in enumerate(batches):
            ran.append(number)
            step(*batch)

    with pytest.raises(NonFiniteError) as found:
        train()
    assert found.value.step == 4
    assert ran[-1] == 4 + lag


def test_closing_finds_a_nan_in_the_last_steps(tmp_path: Path, lag: int) -> None:
    def train() -> None:
        recorder, step, batches = loop(tmp_path / "run.h5", STEPS - 2)
        with recorder:
            for batch in batches:
                step(*batch)

    with pytest.raises(NonFiniteError) as found:
        train()
    assert found.value.step == STEPS - 2
    assert Capture(tmp_path / "run.h5").incident.step == STEPS - 2
