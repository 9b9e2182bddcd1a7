"""A model of many small variables: what is done once for each of them is not done again at each
step, and what a step writes on its way to its gradients stays out of the state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from trainings import data, record, replayed

from nanreplay import Capture, Replay
from nanreplay.replay import recorded_steps, replay_state

VARIABLES, STEPS, BAD_STEP = 40, 8, 6


class ManyWeights(keras.layers.Layer):  # type: ignore[misc]
    """Adds many small weights to its input, and counts its calls in a variable that it reads."""

    def build(self, shape: Any) -> None:
        self.added = [self.add_weight(shape=shape[-1:]) for _ in range(VARIABLES)]
        self.calls = tf.Variable(1.0, trainable=False)

    def call(self, x: Any) -> Any:
        return (x + sum(self.added)) / self.calls.assign_add(1.0, read_value=True)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The capture of a training, and how many variables were made beside those of the model."""
    path = tmp_path_factory.mktemp("many") / "run.h5"
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), ManyWeights(), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", jit_compile=False)
    made = 0

    def count(make: Any, **arguments: Any) -> Any:
        nonlocal made
        made += 1
        return make(**arguments)

    with tf.variable_creator_scope(count):
        assert record(path, model, *data(BAD_STEP, steps=STEPS)) == BAD_STEP
    return path, made


def test_the_window_runs_again_without_new_variables_for_each_step(
    recorded: tuple[Path, int],
) -> None:
    _, made = recorded
    # One of each for the optimizer, and one of both for the run of the window.
    assert made < 4 * VARIABLES


def test_gradients_are_those_of_the_step_though_it_writes_what_it_reads(
    recorded: tuple[Path, int],
) -> None:
    path, _ = recorded
    with Capture(path) as capture:
        assert capture.incident.bit_exact
        counter = next(i for i, info in enumerate(capture.variables_info) if info.role == "state")
        assert capture.state(BAD_STEP)[counter] == 1.0 + BAD_STEP
        norms = capture.matrix("gradient_norm").loc[: BAD_STEP - 1].to_numpy()
        losses = capture.timeline()["loss"].to_numpy()[:BAD_STEP]
    results = replayed(path)
    assert all(result.bit_exact for result in results)
    assert [result.loss for result in results][:BAD_STEP] == pytest.approx(losses.tolist())
    assert (norms > 0).all()


def test_steps_are_known_without_reading_batches_and_batches_without_room_are_read_again(
    recorded: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = recorded
    read: list[int] = []
    original = Capture.batch

    def batch(capture: Capture, step: int) -> Any:
        read.append(step)
        return original(capture, step)

    monkeypatch.setattr(Capture, "batch", batch)
    monkeypatch.setattr(recorded_steps, "BATCHES_BYTES", 1)
    with Capture(path) as capture, Replay(capture) as replay:
        assert replay.steps == tuple(range(BAD_STEP + 1))
        assert not read
        for _ in range(2):
            assert all(result.bit_exact for result in replay.run_window())
        assert read.count(0) == 2
        changed = replace(replay.batch(0), fingerprint=None)
        replay.replace_batch(0, changed)
        replay.run_window()
        assert replay.batch(0) is changed, "an input that was replaced is not in the file"


def test_a_replay_looks_at_a_variable_once_a_step(
    recorded: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step left behind is what the next one begins with."""
    looks, original = 0, replay_state.has_nonfinite

    def look(values: Any) -> bool:
        nonlocal looks
        looks += 1
        return original(values)

    monkeypatch.setattr(replay_state, "has_nonfinite", look)
    with Capture(recorded[0]) as capture, Replay(capture) as replay:
        results = replay.run_window()
        assert [result.finite for result in results] == [True] * BAD_STEP + [False]
        count = len(capture.variables_info)
    assert count < looks <= (len(results) + 1) * count
