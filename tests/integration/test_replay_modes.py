"""One step in four modes: as trained, as a graph without XLA, op by op, and in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import data, mlp, record, with_all_variables

from nanreplay import Capture, Recorder, Replay
from nanreplay.commands import run_command_line
from nanreplay.replay.provenance import OpEvent
from nanreplay.tensorflow_internals import tf_eager

MODES = ("recorded", "graph", "ops", "float64")


def overflowing(**compile_arguments: Any) -> tuple[Any, Any, Any]:
    """A model whose loss squares 1e30 in float32 at step 3."""
    x, y = data(None)
    y[3 * 4 + 2] = 1e30
    return mlp(**compile_arguments), x, y


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_float32_overflow_is_non_finite_in_every_mode_but_float64(
    jit: bool, tmp_path: Path
) -> None:
    model, x, y = overflowing(jit_compile=jit)
    assert record(tmp_path / "run.h5", model, x, y) == 3
    with Capture(tmp_path / "run.h5") as capture, Replay(capture) as replay:
        results = {mode: replay.run_window(mode) for mode in MODES}  # type: ignore[arg-type]
    assert {mode: [each.step for each in results[mode] if not each.finite] for mode in MODES} == {
        "recorded": [3], "graph": [3], "ops": [3], "float64": [],
    }  # fmt: skip
    assert all(each.bit_exact for each in results["recorded"])
    assert results["float64"][0].bit_exact is False
    assert (results["float64"][0].max_ulp or 0) < 1000
    assert results["float64"][3].loss == pytest.approx(1e60 / 4, rel=1e-3)


def test_mixed_precision_dropout_and_batch_normalisation_run_in_float64(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, dtype="mixed_float16"),
            keras.layers.BatchNormalization(dtype="mixed_float16"),
            keras.layers.Dropout(0.5, dtype="mixed_float16"),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )
    model.compile("adam", "mse", jit_compile=False)
    with_all_variables(model)
    recorder = Recorder(tmp_path / "run.h5")
    x, y = data(None)
    record(tmp_path / "run.h5", model, x, y, recorder=recorder)
    recorder.dump()
    with Capture(tmp_path / "run.h5") as capture, Replay(capture) as replay:
        as_trained, wide = replay.run_window("recorded"), replay.run_window("float64")
    assert all(each.bit_exact for each in as_trained)
    for one, other in zip(as_trained, wide, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=2e-2)


def test_an_op_without_a_float64_kernel_is_told(tmp_path: Path) -> None:
    class Normalisation(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return tf.nn.local_response_normalization(x)

    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(2, 3),
            Normalisation(),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse", jit_compile=False)
    recorder = Recorder(tmp_path / "run.h5")
    record(
        tmp_path / "run.h5",
        model,
        np.ones((8, 6, 6, 1), "float32"),
        np.ones((8, 1), "float32"),
        recorder=recorder,
    )
    recorder.dump()
    with Capture(tmp_path / "run.h5") as capture, Replay(capture) as replay:
        replay.run_window("float64")
        assert any("LRN, LRNGrad" in note for note in replay.notes)


@pytest.mark.xdist_group("overflowed")
def test_the_values_of_a_float64_run_can_be_seen(overflowed: Path) -> None:
    seen: list[OpEvent] = []
    with Capture(overflowed) as capture, Replay(capture) as replay:
        replay.run(3, seen.append, mode="float64")
    floats = {value.dtype for event in seen for value in event.outputs if value.dtype.is_floating}
    assert floats == {tf.float32, tf.float64}  # dropout draws in float32, as recorded
    square = next(
        event
        for event in seen
        if event.type in ("Square", "SquaredDifference") and event.outputs[0].numpy().max() > 1e50
    )
    assert square.inputs[0].dtype == tf.float64
    assert square.outputs[0].numpy().max() == pytest.approx(1e60, rel=1e-3)


@pytest.fixture(scope="module")
def overflowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of the overflow, compiled without XLA."""
    path = tmp_path_factory.mktemp("overflowed") / "run.h5"
    model, x, y = overflowing()
    record(path, model, x, y)
    return path


@pytest.mark.xdist_group("overflowed")
@pytest.mark.parametrize("mode", MODES)
def test_the_command_takes_every_mode(
    mode: str, overflowed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["replay", str(overflowed), "--mode", mode]) == (
        0 if mode == "float64" else 1
    )
    assert "4 steps replayed" in capsys.readouterr().out


def test_a_step_without_deterministic_kernels_runs_from_its_own_state(
    tmp_path: Path,
) -> None:
    count = tf.Variable(0.0, trainable=False, name="count")
    weight = tf.Variable(1.0, name="weight")

    def unseeded() -> Any:
        return tf.squeeze(tf.raw_ops.RandomUniform(shape=[1], dtype=tf.float32))

    @tf.function
    def step(x: Any) -> Any:
        count.assign_add(1.0)
        with tf.control_dependencies([count.read_value()]):  # the draw comes after the count
            noise = tf.map_fn(lambda each: each + 0.0 * unseeded(), x)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * noise) / count
        weight.assign_sub(0.0 * tape.gradient(loss, weight))
        return loss

    path = tmp_path / "run.h5"
    recorder = Recorder(path, keyframe_every=100)
    recorded = recorder.wrap(step)
    for _ in range(3):
        recorded(tf.ones([2]))
    recorder.dump()
    recorder.close()
    with Capture(path) as capture, Replay(capture) as replay:
        results = replay.run_window("ops")
        assert [result.bit_exact for result in results] == [True] * 3
        assert any("no deterministic kernel" in note for note in replay.notes)


@pytest.mark.xdist_group("overflowed")
@pytest.mark.parametrize("first_closes", [True, False])
def test_two_open_replays_share_op_determinism(first_closes: bool, overflowed: Path) -> None:
    assert not tf_eager.is_deterministic()
    with Capture(overflowed) as capture:
        one, other = Replay(capture), Replay(capture)
        closes, stays = (one, other) if first_closes else (other, one)
        closes.close()
        assert all(result.bit_exact for result in stays.run_window("recorded"))
        assert tf_eager.is_deterministic()
        stays.close()
        stays.close()
    assert not tf_eager.is_deterministic()


@pytest.fixture(scope="module")
def raising(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step that raises: a matrix that cannot be inverted."""
    path = tmp_path_factory.mktemp("raising") / "run.h5"
    weight = tf.Variable(1.0)

    @tf.function
    def step(matrix: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.linalg.inv(matrix * weight))
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    with Recorder(path) as recorder:
        recorded = recorder.wrap(step)
        recorded(tf.eye(2))
        with pytest.raises(tf.errors.InvalidArgumentError):
            recorded(tf.ones((2, 2)))
    return path


@pytest.mark.xdist_group("raising")
@pytest.mark.parametrize("mode", MODES)
def test_a_step_that_raised_raises_again(mode: Any, raising: Path) -> None:
    with Capture(raising) as capture, Replay(capture) as replay:
        good, bad = replay.run_window(mode)
    assert (good.finite, good.exception) == (True, None)
    assert not bad.finite
    assert bad.exception is not None
    assert bad.exception.name == "InvalidArgumentError"
    assert "not invertible" in bad.exception.value


@pytest.mark.xdist_group("raising")
def test_replaying_what_raises_again_exits_as_bisecting_does(
    raising: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["replay", str(raising)]) == 1
    assert "step 1 raises, as it did in training" in capsys.readouterr().out
    assert run_command_line(["bisect", str(raising), "--no-fixes"]) == 1
