"""A mean of losses that is not finite: whether a loss is, is told without running the window again
where that is possible, within the limit of memory, and errors of the recorder's own are shown."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import BATCH, data, mlp, record, replayed, with_all_variables

from nanreplay import Capture, Recorder
from nanreplay.program.compiled_program import CompiledProgram
from nanreplay.recorder import confirmation, dump, dump_proof, one_run
from nanreplay.recorder.reexecution import Reexecutor

STEPS, BAD_STEP = 12, 10
"""Variables are not looked at after the bad step: looks are seldom here."""


@pytest.fixture(autouse=True)
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanreplay.recorder import pace

    monkeypatch.setattr(pace, "LOOK_SHARE", 1e-9)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs windows again: `fails` to confirm, `run` for the file."""
    seen: list[str] = []

    def spied(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Reexecutor, *args: Any, **options: Any) -> Any:
            seen.append(name)
            return original(self, *args, **options)

        return call

    for name in ("run", "fails"):
        monkeypatch.setattr(Reexecutor, name, spied(name, getattr(Reexecutor, name)))
    return seen


def steady(loss: Callable[[Any, Any], Any], **options: Any) -> Any:
    """A model whose weights stay finite, whatever the loss is."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(64), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss, jit_compile=False, **options)
    return with_all_variables(model)


def large(y: Any, prediction: Any) -> Any:
    """Losses of 2e37: their sum overflows, and none of them does."""
    return tf.square(y - prediction) + 2e37


def infinite_late(y: Any, prediction: Any) -> Any:
    """A loss that y makes infinite, without a gradient that is."""
    return tf.square(tf.minimum(y, 1.0) - prediction) + tf.stop_gradient(y - tf.minimum(y, 1.0))


def late(value: float) -> tuple[Any, Any]:
    x, y = data(None, steps=STEPS)
    y[BAD_STEP * BATCH] = value
    return x, np.asarray(y)


def test_a_window_whose_weights_are_nan_runs_once(tmp_path: Path, runs: list[str]) -> None:
    path = tmp_path / "run.h5"
    assert record(path, mlp(), *data(BAD_STEP, steps=STEPS)) == BAD_STEP
    assert runs == ["run"]
    with Capture(path) as capture:
        assert capture.incident.trigger.what == "loss"
        assert capture.incident.bit_exact


def test_a_mean_that_turns_nan_proves_that_a_loss_was(tmp_path: Path, runs: list[str]) -> None:
    """The weights stay finite."""
    path = tmp_path / "run.h5"
    assert record(path, steady(infinite_late), *late(np.nan)) == BAD_STEP
    assert runs == ["run"]
    with Capture(path) as capture:
        assert (capture.incident.trigger.what, capture.incident.trigger.value) == ("loss", "nan")


def test_a_mean_that_turns_infinite_is_told_from_a_loss_that_does(
    tmp_path: Path, runs: list[str]
) -> None:
    path = tmp_path / "run.h5"
    assert record(path, steady(large), *late(0.0)) is None
    assert "run" not in runs
    assert runs.count("fails") >= 1
    assert record(path, steady(infinite_late), *late(np.inf)) == BAD_STEP
    assert runs[-2:] == ["fails", "run"]
    assert not replayed(path)[-1].finite


def test_a_window_is_not_run_again_in_more_memory_than_was_promised(
    tmp_path: Path, runs: list[str]
) -> None:
    """The keyframe is on disk; the file says what could not be told, and why."""
    path = tmp_path / "run.h5"
    keras.utils.set_random_seed(1)
    recorder = Recorder(path, memory_limit="300KiB", history=1)
    layers = [keras.layers.Dense(200), keras.layers.Dense(200), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile("adam", infinite_late, jit_compile=False)
    assert record(path, with_all_variables(model), *late(np.inf), recorder=recorder) == BAD_STEP
    assert runs == []
    with Capture(path) as capture:
        (note,) = (note for note in capture.incident.notes if "could not be told" in note)
    assert "takes" in note
    assert "may be taken" in note
    assert not replayed(path)[-1].finite


def test_an_error_of_the_recorder_is_told_and_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise TypeError("a bug")

    path = tmp_path / "run.h5"
    monkeypatch.setattr(confirmation, "gather", broken)
    with pytest.warns(UserWarning, match="the recorder failed.*TypeError: a bug"):
        assert record(path, steady(infinite_late), *late(np.inf)) == BAD_STEP
    with Capture(path) as capture:
        assert any("TypeError: a bug" in note for note in capture.incident.notes)


def test_programs_of_a_window_that_cannot_run_are_let_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow may lack memory for a step: that is noted, and nothing of the try is kept."""
    kept: list[int] = []
    original = dump.write_dump

    def write(snapshot: Any, **options: Any) -> Any:
        kept.append(len(snapshot.compiled))
        return original(snapshot, **options)

    def failing(*_: Any, **__: Any) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")

    path = tmp_path / "run.h5"
    monkeypatch.setattr(dump, "write_dump", write)
    monkeypatch.setattr(Reexecutor, "_failed", failing)
    monkeypatch.setattr(Reexecutor, "_bad_loss", lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert record(path, steady(infinite_late), *late(np.inf)) == BAD_STEP
    assert kept == [0]
    with Capture(path) as capture:
        assert any("could not be run again (Res" in note for note in capture.incident.notes)


@pytest.mark.parametrize("leaves_same_bits", [True, False], ids=["once", "twice"])
def test_a_step_that_gives_its_gradients_runs_once_where_that_leaves_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves_same_bits: bool
) -> None:
    calls = 0
    original = CompiledProgram.__call__

    def call(self: CompiledProgram, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(self, *args)

    monkeypatch.setattr(CompiledProgram, "__call__", call)
    monkeypatch.setattr(
        dump_proof, "FirstState", lambda read, _: one_run.FirstState(read, step_s=1e3)
    )
    if not leaves_same_bits:
        digests = iter(range(9))
        monkeypatch.setattr("nanreplay.recorder.reexecution.bits_of", lambda *_: [next(digests)])
    path = tmp_path / "run.h5"
    assert record(path, mlp(), *data(BAD_STEP, steps=STEPS)) == BAD_STEP
    count = BAD_STEP + 1
    assert calls == (count + 1 if leaves_same_bits else 2 * count + 2)
    with Capture(path) as capture:
        assert capture.incident.bit_exact
        norms = capture.matrix("gradient_norm").loc[: BAD_STEP - 1].to_numpy()
        assert (norms > 0).all()
        held = {step: capture.weights(step) for step in capture.steps if capture.weights(step)}
        for step in held:
            assert capture.gradients(step)
    assert all(result.bit_exact for result in replayed(path))
