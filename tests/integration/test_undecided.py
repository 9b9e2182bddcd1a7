"""Captures of which a replay cannot decide, or only looks as if it could not: what is said why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Capture, Recorder, Replay
from nanreplay.bisect import bisect
from nanreplay.bisect.failing_step import StepTraces
from nanreplay.diagnose import judge
from nanreplay.findings import Verdict
from nanreplay.records import BatchRecord, Incident, Trigger

pytestmark = pytest.mark.filterwarnings("ignore:nanreplay. step")
NAN = Trigger("loss", "loss", "nan")


def judged(path: Path, incident: Incident | None = None) -> Verdict:
    with Capture(path) as capture:
        capture.incident = incident or capture.incident
        with Replay(capture) as replay:
            return judge(replay)


def trained(
    path: Path,
    loss_of: Callable[[Any, Any], Any],
    batches: list[Any],
    *,
    eager: bool = False,
    dumps: bool = False,
) -> Path:
    """Train one vector on some batches; what a step raises ends the training."""
    weights, optimizer = tf.Variable([1.0, 0.5]), keras.optimizers.SGD(0.01)

    def step(*batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(batch, weights)
        optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
        return loss

    with Recorder(path, on_nan="stop") as recorder:
        recorded = recorder.wrap(step if eager else tf.function(step, autograph=False))
        try:
            for batch in batches:
                recorded(*map(tf.constant, batch))
        except (ValueError, tf.errors.InvalidArgumentError):
            return path
        if dumps:
            recorder.dump(reason="to look at")
    return path


def rows(steps: int) -> list[Any]:
    random = np.random.default_rng(0)
    return [(random.uniform(0.5, 1.5, (4, 2)).astype("float32"),) for _ in range(steps)]


def labelled(steps: int) -> list[Any]:
    return [(x, np.array([0, 1, 1, 0])) for (x,) in rows(steps)]


def cross_entropy(batch: Any, w: Any) -> Any:
    x, y = batch
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, x * w))


def test_an_eager_loop_that_is_dumped_on_demand_has_no_program(tmp_path: Path) -> None:
    def loss_of(batch: Any, w: Any) -> Any:
        return tf.reduce_mean(batch[0] * w * float(batch[0][0, 0]))

    path = trained(tmp_path / "run.h5", loss_of, rows(3), eager=True, dumps=True)
    verdict = judged(path)
    assert (verdict.kind, verdict.reason) == (
        "inconclusive",
        "The capture holds no program for step 2.",
    )


def test_what_python_code_raised_no_op_raises(tmp_path: Path) -> None:
    def loss_of(batch: Any, w: Any) -> Any:
        loss = tf.reduce_mean(batch[0] * w)
        if float(loss) > 5:
            raise ValueError("a check of the user's")
        return loss

    path = trained(tmp_path / "run.h5", loss_of, [*rows(2), (np.full((4, 2), 9.0, "float32"),)],
                   eager=True)  # fmt: skip
    verdict = judged(path)
    assert (verdict.kind, verdict.reason) == (
        "inconclusive",
        "The step raised in training and does not raise when it is replayed: "
        "a replay runs its ops, not its Python code.",
    )


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy training of four steps with labels."""
    path = tmp_path_factory.mktemp("undecided") / "run.h5"
    return trained(path, cross_entropy, labelled(4), dumps=True)


@pytest.mark.parametrize("wrong", [2, 3])
def test_a_step_that_raises_where_it_gave_nan_in_training_is_undecided(
    labels: Path, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a label that is out of range does, which a GPU takes and a CPU refuses."""
    read = Capture.batch

    def elsewhere(capture: Capture, step: int) -> BatchRecord:
        batch = read(capture, step)
        x, y = batch.leaves
        return batch if step != wrong else replace(batch, leaves=(x, np.full_like(y, -1)))

    monkeypatch.setattr(Capture, "batch", elsewhere)
    verdict = judged(labels, Incident(3, NAN))
    assert verdict.kind == "inconclusive"
    reason = verdict.reason or ""
    assert "outside the valid range" in reason
    before = "A step before the incident could not be replayed."
    assert reason.startswith(before) is (wrong == 2)


def test_a_run_that_draws_anew_and_is_finite_is_healthy(tmp_path: Path) -> None:
    def loss_of(batch: Any, w: Any) -> Any:
        def drawn(row: Any) -> Any:  # whatever seed was set for all of TensorFlow
            return row * w * tf.raw_ops.RandomUniform(shape=[2], dtype=tf.float32)

        return tf.reduce_mean(tf.map_fn(drawn, batch[0]))

    path = trained(tmp_path / "run.h5", loss_of, rows(2), dumps=True)
    verdict = judged(path)
    assert (verdict.kind, verdict.bit_exact) == ("healthy", False)
    assert [run.mode for run in verdict.evidence] == ["recorded", "ops"]
    verdict = judged(path, Incident(1, NAN))
    assert verdict.kind == "inconclusive"
    assert "Outputs of some ops were not recorded; a replay has others: " in (verdict.reason or "")


def test_the_verdict_is_the_same_after_bisecting(tmp_path: Path) -> None:
    batches = [*rows(2), (np.float32([[1, 2], [3, 0]]),)]
    path = trained(
        tmp_path / "run.h5", lambda batch, w: tf.reduce_mean(tf.math.log(batch[0] * w)), batches
    )
    with Capture(path) as capture, Replay(capture) as replay:
        traces = StepTraces(replay)
        bisect(replay, capture.timeline_record(), traces=traces)
        assert judge(replay, traces=traces) == judged(path)
