"""The state before the failing step: what a replay takes where it parts from the recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import data, mlp, record, with_all_variables

from nanreplay import Capture, NonFiniteError, Recorder, Replay, explain
from nanreplay.capture.writer import lazy_contents, write_capture
from nanreplay.diagnose import judge
from nanreplay.recorder import dump_proof, dump_sizes, room
from nanreplay.recorder.reexecution import Reexecutor
from nanreplay.recorder.snapshot import fit_disk
from nanreplay.report.contents import Report
from nanreplay.whatif.trial_window import TrialWindow

pytestmark = pytest.mark.xdist_group("state before")  # one worker makes the capture

STEPS, NEAR = 64, 1e-4


class Chaotic:
    """The logistic map at 3.9: a difference of one unit in the last place doubles at each step."""

    def __init__(self) -> None:
        self.weight = tf.Variable(np.linspace(0.2, 0.7, 6, dtype=np.float32), name="weight")
        self.pole = tf.Variable(-1.0, trainable=False, name="pole")

    @tf.function
    def step(self, scale: Any) -> Any:
        with tf.GradientTape() as tape:
            distance = tf.abs(self.weight[0] - self.pole) - NEAR
            loss = tf.sqrt(distance) * scale
        gradient = tape.gradient(loss, self.weight)
        moved = 3.9 * self.weight * (1.0 - self.weight)
        self.weight.assign(moved + 0.0 * gradient)
        return loss


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that fails where a weight has a certain value; its keyframe is some ulp off.

    So it is what another machine makes of the recording: the trainings part for good.
    """
    folder, one = tmp_path_factory.mktemp("parted"), tf.constant(1.0)
    rehearsed, values = Chaotic(), []
    for _ in range(STEPS):
        values.append(float(rehearsed.weight[0]))
        rehearsed.step(one)
    failing = next(
        step
        for step in range(40, STEPS)
        if min(abs(value - values[step]) for value in values[:step]) > 2 * NEAR
    )
    training = Chaotic()
    training.pole.assign(values[failing])
    recorder = Recorder(folder / "own.h5", window=STEPS, keyframe_every=STEPS)
    recorded = recorder.wrap(training.step)
    for _ in range(failing):
        recorded(one)
    with pytest.raises(NonFiniteError):
        recorded(one)
    recorder.close()
    with Capture(folder / "own.h5") as capture:
        contents = lazy_contents(capture)
        assert (capture.incident.step, capture.keyframe_steps) == (failing, (0,))
        first = {
            index: value * np.float32(1 + 1e-6) if value.shape else value
            for index, value in capture.keyframe(0).items()
        }
        write_capture(folder / "other.h5", replace(contents, keyframes={0: first}))
    return folder / "other.h5"


def with_states(path: Path, states: Mapping[int, Any]) -> Report:
    copy = path.with_name("copy.h5")
    with Capture(path) as capture:
        write_capture(copy, replace(lazy_contents(capture), states=states))
    return explain(copy, fixes="none")


def test_a_chaotic_training_that_parts_is_explained_from_the_recorded_state(parted: Path) -> None:
    report, own = explain(parted, fixes="none"), explain(parted.with_name("own.h5"), fixes="none")
    assert own.verdict.bit_exact is True
    assert report.verdict.bit_exact is False
    assert (report.verdict.kind, own.verdict.kind) == ("reproduced", "reproduced")
    mine, theirs = own.findings.origin, report.findings.origin
    assert mine is not None
    assert theirs is not None
    assert (mine.op_type, mine.step) == ("Sqrt", own.incident_step)
    for name in ("step", "op_type", "op_name", "rows", "source"):
        assert getattr(mine, name) == getattr(theirs, name)
    assert [cause.kind for cause in report.causes] == [cause.kind for cause in own.causes]
    assert any("begins with the recorded state" in note for note in report.findings.notes)


def test_of_a_training_that_parts_fixes_are_tried_on_the_failing_step(parted: Path) -> None:
    for name, is_alone in (("other.h5", True), ("own.h5", False)):
        with Capture(parted.with_name(name)) as capture, Replay(capture) as replay:
            judge(replay)
            assert (len(TrialWindow(replay).steps) == 1) == is_alone


def test_without_the_state_the_failure_of_a_chaotic_training_is_not_found(parted: Path) -> None:
    assert with_states(parted, {}).verdict.kind != "reproduced"


def test_the_state_is_that_which_the_replay_reaches(tmp_path: Path) -> None:
    record(tmp_path / "run.h5", mlp(), *data())
    with Capture(tmp_path / "run.h5") as capture, Replay(capture) as replay:
        failing = capture.incident.step
        assert capture.state_steps == (failing,)
        held, weights = capture.state(failing), capture.weights(failing - 1)
        assert set(held) == set(capture.keyframe(capture.keyframe_steps[0]))
        replay.run_window(last=failing - 1)
        for index, value in replay.now().items():
            assert np.asarray(value).tobytes() == held[index].tobytes()
        assert weights.keys() < held.keys()
        for index in weights:  # one dataset of two names
            one, two = (
                capture._file[f"{group}/{step}/{index}"]
                for group, step in (("weights", failing - 1), ("states", failing))
            )
            assert one == two


def test_of_a_large_state_the_slots_are_left_to_the_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LARGE_STATE_BYTES", 0)
    record(tmp_path / "run.h5", mlp(optimizer="adam"), *data())
    with Capture(tmp_path / "run.h5") as capture, Replay(capture) as replay:
        failing, infos = capture.incident.step, capture.variables_info
        slots = {i for i, info in enumerate(infos) if info.role == "optimizer" and info.shape}
        assert slots
        assert set(capture.state(failing)) == set(range(len(infos))) - slots
        assert capture.weights(failing) == {}
        reached = {index: np.asarray(value) for index, value in replay.state(failing).items()}
        assert any(np.any(reached[index]) for index in slots)
        assert all(result.bit_exact for result in replay.run_window())


class Raising(keras.layers.Layer):  # type: ignore[misc]
    """Raises where an input is huge."""

    def call(self, inputs: Any) -> Any:
        tf.debugging.assert_less(tf.reduce_max(tf.abs(inputs)), 1e6)
        return inputs


def train_to_exception(path: Path) -> None:
    """Record a training whose last step raises."""
    model = keras.Sequential([keras.Input((3,)), Raising(), keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=False)
    with_all_variables(model)
    x, y = data(None)
    x[-1] = 1e7
    with pytest.raises(tf.errors.InvalidArgumentError):
        record(path, model, x, y)


def test_the_state_before_a_step_that_raises_is_in_the_file(tmp_path: Path) -> None:
    train_to_exception(tmp_path / "run.h5")
    with Capture(tmp_path / "run.h5") as capture, Replay(capture) as replay:
        failing = capture.incident.step
        assert (capture.incident.trigger.what, capture.state_steps) == ("exception", (failing,))
        assert not any("left out" in note for note in capture.incident.notes)
        replay.run_window(last=failing - 1)
        held = capture.state(failing)
        for index, value in replay.now().items():
            assert np.asarray(value).tobytes() == held[index].tobytes()


@pytest.mark.parametrize(
    "reason",
    [
        "raises",
        "large",
        pytest.param("slow", marks=pytest.mark.slow),
        pytest.param("disk", marks=pytest.mark.slow),
    ],
)
def test_why_the_state_before_a_step_that_raises_was_left_out_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def refuse(self: Any, *args: Any) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nat some place")

    def fit_without_room_left(sizes: Any, *limit: Any) -> Any:
        monkeypatch.setattr(room.Room, "disk_bytes", lambda *sizes: 0)
        return fit_disk(sizes, 2**40)

    expected = {
        "raises": "could not be run again (ResourceExhaustedError: OOM when allocating",
        "large": " bytes. A replay computes it from the keyframe at step ",
        "slow": " steps to it again takes more than ",
        "disk": "the file may have ",
    }
    if reason == "raises":
        monkeypatch.setattr(Reexecutor, "state_before", refuse)
    elif reason == "large":
        monkeypatch.setattr(room, "LARGE_STATE_BYTES", 0)
    elif reason == "slow":
        monkeypatch.setattr(dump_proof, "QUICK_S", -1.0)
    else:
        monkeypatch.setattr(dump_sizes, "fit_disk", fit_without_room_left)
    train_to_exception(tmp_path / "run.h5")
    with Capture(tmp_path / "run.h5") as capture, Replay(capture) as replay:
        step = capture.incident.step
        assert (capture.incident.trigger.what, capture.state_steps) == ("exception", ())
        notes = [note for note in capture.incident.notes if f"before step {step} was left" in note]
        assert len(notes) == 1
        assert expected[reason] in notes[0]
        assert all(result.bit_exact for result in replay.run_window(last=step - 1))


def test_weights_that_the_first_eager_step_makes_are_those_that_it_runs_again_with(
    tmp_path: Path,
) -> None:
    """The layers are built in the step that fails, and so are the optimizer's slots."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).uniform(0.1, 1, (8, 3)).astype("float32")
    x[5] = 0
    model = keras.Sequential([keras.layers.Dense(3, use_bias=False)])
    model.compile("adam", lambda y, p: tf.norm(y - p, axis=-1), run_eagerly=True)
    with pytest.raises(NonFiniteError, match="step 0: gradient"):
        model.fit(x, x, verbose=0, callbacks=[Recorder(tmp_path / "run.h5")])
    with Capture(tmp_path / "run.h5") as capture, Replay(capture) as replay:
        assert not any("other numbers" in note for note in capture.incident.notes)
        assert [result.bit_exact for result in replay.run_window("recorded")] == [True]
