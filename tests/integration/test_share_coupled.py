"""minimize and redact where rows depend on each other, where outputs of ops were recorded, and
where replicas share a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import warm_python
from conftest import ROOT, environment
from test_minimize import origin_of
from trainings import data, record

from nanreplay import Capture, NonFiniteError, Recorder
from nanreplay.commands import run_command_line

pytestmark = pytest.mark.xdist_group("share coupled")  # one worker makes what they share

BATCH, SECRET = 8, np.float32(1234.5678)


def told_by(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert run_command_line([*map(str, arguments), "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def constant_feature(path: Path, *, bad_step: int) -> None:
    """Feature 2 is the same in all rows of a batch, and normalization without an epsilon divides by
    its variance."""
    x, y = data(None, features=4, steps=12)
    x[bad_step * BATCH : (bad_step + 1) * BATCH, 2] = 0.5
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.BatchNormalization(epsilon=0.0, name="norm"),
            keras.layers.Dense(1, name="out"),
        ]
    )
    model.compile("sgd", "mse", jit_compile=False)
    assert record(path, model, x, y, batch_size=BATCH) == bad_step


def closeness(_: Any, z: Any) -> Any:
    """Mean of 1 / distance of each row to the others of the batch."""
    distances = tf.reduce_sum(tf.square(z[:, None] - z[None]), axis=-1)
    return tf.reduce_mean(1.0 / (distances + tf.eye(tf.shape(z)[0])))


def equal_rows(path: Path) -> None:
    """Rows 2 and 5 of step 3 are the same, which the loss over all pairs does not stand."""
    x, y = data(None, features=4, steps=12)
    x[3 * BATCH + 5] = x[3 * BATCH + 2]
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="embedded")])
    model.compile("sgd", closeness, jit_compile=False)
    assert record(path, model, x, y, batch_size=BATCH) == 3


def outputs_of_ops(path: Path) -> None:
    """What a Python function and a shuffle gave is recorded with each batch, and holds what the
    batch holds; step 3 has a zero."""
    weight = tf.Variable([[0.5], [0.25]], name="weight")
    optimizer = keras.optimizers.SGD(1e-9)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            doubled = tf.ensure_shape(
                tf.py_function(lambda rows: 2.0 * rows, [x], tf.float32), [BATCH, 2]
            )
            near = tf.reduce_mean(tf.square((x - tf.random.shuffle(x)) @ weight)) + tf.reduce_mean(
                doubled @ weight
            )
            loss = (
                near
                + tf.reduce_mean(tf.math.log(x) @ weight)
                + tf.reduce_mean(tf.random.normal([BATCH]))
            )
        optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])
        return loss

    batches = np.random.default_rng(0).uniform(1.0, 2.0, (6, BATCH, 2)).astype("float32")
    batches[:, 1, 0] = SECRET
    batches[3, 2, 1] = 0.0
    with Recorder(path) as recorder:
        recorded = recorder.wrap(step, optimizer=optimizer)
        for batch in batches[:3]:
            recorded(tf.constant(batch))
        with pytest.raises(NonFiniteError):
            recorded(tf.constant(batches[3]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a capture of each training."""
    folder = tmp_path_factory.mktemp("coupled")
    constant_feature(folder / "constant.h5", bad_step=2)
    equal_rows(folder / "equal.h5")
    outputs_of_ops(folder / "fed.h5")
    return folder


def test_of_a_constant_feature_two_rows_are_needed(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = told_by(capsys, "minimize", runs / "constant.h5", "-o", tmp_path / "out.h5")
    assert (len(told["rows"]["kept"]), told["rows"]["taken_out"]) == (2, True)
    assert told["report"]["origin"]["layer"] == "norm"
    assert told["report"]["origin"]["outputs"][0]["indices"] == [
        [2]
    ]  # not of features that are constant for want of rows
    assert told["report"]["cause"]["kind"] == "variance_zero"
    assert origin_of(tmp_path / "out.h5") == origin_of(runs / "constant.h5")
    with Capture(tmp_path / "out.h5") as capture:
        varied = np.ptp(np.asarray(capture.batch(2).leaves[0]), axis=0) > 0
        assert varied.tolist() == [True, True, False, True]
        notes = " ".join(capture.incident.notes)
    assert (
        "Of the batch as it was recorded: Needs the whole batch: with any one row replaced it "
        "does not happen." in notes
    )


def test_rows_that_fail_only_together_stay_together(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = told_by(capsys, "minimize", runs / "equal.h5", "-o", tmp_path / "out.h5")
    assert told["rows"]["kept"] == [2, 5]
    assert origin_of(tmp_path / "out.h5") == origin_of(runs / "equal.h5")
    assert (
        "Of the batch as it was recorded: Proved by replay: these rows together reproduce it"
        in " ".join(told["notes"])
    )


def test_rows_that_fail_only_together_are_kept_while_others_are_random(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = told_by(
        capsys, "redact", runs / "equal.h5", "-o", tmp_path / "out.h5", "--batches", "failing-rows"
    )
    assert (told["reproduces"], told["report"]["origin"]["outputs"][0]["indices"]) == (
        True,
        [[2, 5], [5, 2]],
    )
    with Capture(runs / "equal.h5") as before, Capture(tmp_path / "out.h5") as after:
        own, other = (np.asarray(each.batch(3).leaves[0]) for each in (before, after))
    assert np.isin(own, other).all(axis=1).nonzero()[0].tolist() == [2, 5]


def test_outputs_of_ops_have_the_rows_of_the_batch(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = told_by(capsys, "minimize", runs / "fed.h5", "-o", tmp_path / "out.h5")
    assert told["rows"]["kept"] == [2]
    assert origin_of(tmp_path / "out.h5") == origin_of(runs / "fed.h5")
    assert "Recorded outputs of ops (3 arrays) are fed as they were" in " ".join(told["notes"])
    with Capture(tmp_path / "out.h5") as capture:
        batch = capture.batch(3)
        assert len(batch.fed) == 3
        assert {len(np.asarray(each)) for each in batch.arrays} == {
            len(np.asarray(batch.leaves[0]))
        }
    assert run_command_line(["replay", str(tmp_path / "out.h5")]) == 1


@pytest.mark.parametrize("batches", ["statistics", "failing-rows", "none"])
def test_outputs_of_ops_are_data(
    batches: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {float(SECRET), 2 * float(SECRET)} <= numbers_in(runs / "fed.h5")
    told = told_by(
        capsys, "redact", runs / "fed.h5", "-o", tmp_path / "out.h5", "--batches", batches
    )
    assert told["reproduces"] is (batches != "none")
    assert ("What ops gave and was recorded" in " ".join(told["notes"])) is (batches != "none")
    with Capture(runs / "fed.h5") as before:
        batch = before.batch(3)
    other_rows = np.delete(np.asarray(batch.leaves[0]), 2, axis=0)
    data_of_others = {
        float(number)
        for number in (*other_rows.flat, *(2 * other_rows).flat, *np.asarray(batch.fed[2]).flat)
    }
    assert not data_of_others & numbers_in(tmp_path / "out.h5")


def numbers_in(path: Path) -> set[float]:
    """All numbers of all batches of a file, and of what ops gave for them."""
    with Capture(path) as capture:
        arrays = [
            np.asarray(array) for step in capture.steps for array in capture.batch(step).arrays
        ]
    return {float(number) for array in arrays for number in array.flat}


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with trainings of two replicas, of which the second fails for its row 1."""
    folder = tmp_path_factory.mktemp("two")
    script = ROOT / "tests" / "integration" / "replica_trainings.py"
    warm_python.run([script, folder, "2"], check=True, env=environment())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit", "sparse", "loop"])
def test_replicas_are_made_small_together(
    name: str, two_replicas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = told_by(capsys, "minimize", two_replicas / f"{name}.h5", "-o", tmp_path / "out.h5")
    assert origin_of(tmp_path / "out.h5") == origin_of(two_replicas / f"{name}.h5")
    assert (
        told["report"]["origin"]["replica"],
        told["report"]["verdict"]["bit_exact"],
        told["rows"]["kept"],
    ) == (1, True, [1])
    assert "The batch of each replica holds row 1 of the 3 that were recorded." in told["notes"]


@pytest.mark.slow
@pytest.mark.parametrize("batches", ["statistics", "failing-rows"])
def test_rows_of_other_replicas_are_not_shared(
    batches: str, two_replicas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = told_by(
        capsys, "redact", two_replicas / "loop.h5", "-o", tmp_path / "out.h5", "--batches", batches
    )
    assert told["reproduces"] is True
    with Capture(two_replicas / "loop.h5") as before, Capture(tmp_path / "out.h5") as after:
        compared = zip(
            before.batch(3).paths, before.batch(3).leaves, after.batch(3).leaves, strict=True
        )
        labels = {
            path: [row for row in range(len(own)) if np.isin(own[row], other)]
            for path, own, other in compared
            if path.endswith("/1")
        }
    assert labels == {"replica_0/1": [], "replica_1/1": [1] if batches == "failing-rows" else []}
