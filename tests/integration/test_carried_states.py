"""What a loop carries from step to step in no variable: a state that each step returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Recorder, Replay
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain

pytestmark = pytest.mark.filterwarnings("ignore:nanreplay. step")


def batches() -> list[Any]:
    return [*np.random.default_rng(0).normal(0, 0.1, (6, 4, 1)).astype("float32")]


def train(path: Path, given: list[Any], *, carries: bool = True) -> Report:
    """A recurrence whose loss sees the state that the step before returned."""
    weight = tf.Variable([[1.0]], name="weight")

    @tf.function(autograph=False)
    def step(x: Any, state: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(state * weight)) + tf.reduce_mean(x * weight)
            following = tf.exp(x * weight) - 1.0
        weight.assign_sub(0.01 * tape.gradient(loss, weight))
        return loss, following

    state = tf.zeros((4, 1))
    with Recorder(path, on_nan="stop") as recorder:
        recorded = recorder.wrap(step)
        for x in given:
            following = recorded(tf.constant(x), state)[1]
            state = following * 0.5 if carries else state
            if recorder.stopped:
                break
    return explain(path)


def test_a_state_that_the_step_before_made_infinite_is_no_data(tmp_path: Path) -> None:
    given = batches()
    given[3][1] = 100.0
    report = train(tmp_path / "run.h5", given)
    origin = report.findings.origin
    assert origin is not None, report.sentence
    assert (origin.step, origin.op_type, report.incident_step) == (3, "Exp", 4), report.sentence
    assert origin.rows == (1,)
    assert report.causes[0].kind == "exp_overflow"
    assert "reached the loss in step 4" in report.sentence
    assert not report.fixes, "what a fix makes of step 3 does not reach step 4"
    assert any("as it was recorded" in note for note in report.findings.notes)


def test_a_batch_that_is_nan_is_data_though_a_step_before_returned_an_infinity(
    tmp_path: Path,
) -> None:
    given = batches()
    given[2][1], given[3][2] = 100.0, np.nan
    report = train(tmp_path / "run.h5", given, carries=False)
    origin = report.findings.origin
    assert origin is not None, report.sentence
    assert (origin.step, origin.phase, origin.rows) == (3, "input", (2,)), report.sentence
    assert report.causes[0].kind == "data_nan"


def test_data_that_each_step_returns_are_those_of_the_step_that_fails(tmp_path: Path) -> None:
    """A column that is missing in all batches, and that the last one does not mask."""
    weights = tf.Variable([1.0, 1.0], name="weights")

    @tf.function(autograph=False)
    def step(x: Any, mask: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.where(mask, x, 0.0) * weights)
        weights.assign_sub(0.01 * tape.gradient(loss, weights))
        return loss, x

    path, random = tmp_path / "run.h5", np.random.default_rng(0)
    with Recorder(path, on_nan="stop") as recorder:
        recorded = recorder.wrap(step)
        for number in range(4):
            x = random.random((4, 2), "float32")
            x[:, 1] = np.nan
            recorded(tf.constant(x), tf.constant([True, number == 3]))
    origin = explain(path, fixes="none").findings.origin

    assert origin is not None
    assert (origin.step, origin.phase) == (3, "input")


def test_no_earlier_step_runs_whose_outputs_are_known_to_be_of_other_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the state before that step, which of a large model is memory."""
    weight = tf.Variable([[1.0]], name="weight")

    @tf.function(autograph=False)
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x * weight))
        weight.assign_sub(0.01 * tape.gradient(loss, weight))
        return loss

    given = batches()
    given[3][1] = np.nan
    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorded = recorder.wrap(step)
        for x in given:
            recorded(tf.constant(x))
            if recorder.stopped:
                break
    ran = []
    run = Replay.run

    def noted(self: Replay, number: int, *args: Any, **options: Any) -> Any:
        ran.append(number)
        return run(self, number, *args, **options)

    monkeypatch.setattr(Replay, "run", noted)
    report = explain(tmp_path / "run.h5", fixes="none")
    assert report.causes[0].kind == "data_nan"
    assert set(ran) == {3}
