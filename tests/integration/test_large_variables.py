"""Variables are not looked at after every step; what turns non-finite in between is dated to its
step all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import replayed, with_all_variables

from nanreplay import Capture, NonFiniteError, Recorder
from nanreplay.recorder import dump_proof, pace, room

STEPS, BATCH, FEATURES, UNITS = 20, 8, 100, 164
BAD_STEP = 10
"""A step after which variables are not looked at, where a look is said to take long."""


@pytest.fixture(autouse=True)
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at variables cost next to nothing here: let them be as seldom as they may be."""
    monkeypatch.setattr(pace, "LOOK_SHARE", 1e-9)


class Broken(keras.Model):  # type: ignore[misc]
    """Divides 0 by 0 into its kernel after the update of one step, which neither the loss nor a
    gradient of that step shows."""

    def __init__(self, bad_step: int) -> None:
        super().__init__()
        self.wide = keras.layers.Dense(UNITS, activation="tanh", name="wide")
        self.out = keras.layers.Dense(1, name="out")
        self.bad_step = bad_step

    def call(self, x: Any) -> Any:
        return self.out(self.wide(x))

    def train_step(self, batch: Any) -> dict[str, Any]:
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x)[:, 0] - y))
        self.optimizer.apply_gradients(
            zip(
                tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True
            )
        )
        left = tf.cast(self.bad_step + 1 - self.optimizer.iterations, tf.float32)
        self.wide.kernel.assign(self.wide.kernel * (left / left))
        return {"loss": loss}


def samples(nan_at: int | None = None) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    x, y = (
        random.normal(size=(STEPS * BATCH, FEATURES)).astype("float32"),
        random.normal(size=STEPS * BATCH).astype("float32"),
    )
    if nan_at is not None:
        x[nan_at * BATCH] = np.nan
    return x, y


def compiled(model: Any, *loss: Any, optimizer: Any = "adam", **options: Any) -> Any:
    model.compile(optimizer, *loss, **options)
    model(keras.Input((FEATURES,)))  # makes its variables
    return with_all_variables(model)


def wide_model() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(UNITS, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )


def fit(model: Any, recorder: Recorder, nan_at: int | None = None) -> int:
    """The step that the recorder says has failed."""
    with pytest.raises(NonFiniteError) as raised:
        model.fit(
            *samples(nan_at), batch_size=BATCH, shuffle=False, verbose=0, callbacks=[recorder]
        )
    return raised.value.step


@pytest.mark.parametrize(
    "jit_compile",
    [
        pytest.param(False, id="graph"),
        pytest.param(True, id="xla", marks=pytest.mark.slow),
    ],
)
def test_a_variable_that_turns_nan_between_two_measurements_is_dated_to_its_step(
    tmp_path: Path, jit_compile: bool
) -> None:
    path, model = tmp_path / "run.h5", Broken(BAD_STEP)
    keras.utils.set_random_seed(0)
    compiled(model, jit_compile=jit_compile)
    assert fit(model, Recorder(path)) == BAD_STEP
    with Capture(path) as capture:
        incident = capture.incident
        assert (incident.step, incident.trigger.what, incident.trigger.value) == (
            BAD_STEP,
            "variable",
            "nan",
        )
        assert incident.trigger.name.endswith("wide/kernel")
        assert incident.bit_exact
        assert max(capture.steps) == capture.timeline()["step"].iloc[-1] == BAD_STEP
    results = replayed(path)
    assert [result.step for result in results if not result.finite] == [BAD_STEP]
    assert all(result.bit_exact for result in results)


def test_a_variable_that_turns_nan_in_the_last_step_is_seen_as_training_ends(
    tmp_path: Path,
) -> None:
    model = Broken(STEPS - 1)
    compiled(model)
    assert fit(model, Recorder(tmp_path / "run.h5")) == STEPS - 1
    assert [result.finite for result in replayed(tmp_path / "run.h5")][-2:] == [True, False]


def test_without_its_keyframe_the_step_that_was_seen_to_fail_is_the_incident(
    tmp_path: Path,
) -> None:
    path, model = tmp_path / "run.h5", Broken(BAD_STEP)
    compiled(model)
    with pytest.warns(UserWarning, match="do not hold one copy of the state"):
        assert fit(model, Recorder(path, memory_limit="64KiB", disk_limit="64KiB")) >= BAD_STEP


def test_a_loss_is_seen_in_its_step(tmp_path: Path) -> None:
    path, model = tmp_path / "run.h5", wide_model()
    compiled(model, "mse")
    assert fit(model, Recorder(path), nan_at=BAD_STEP) == BAD_STEP
    with Capture(path) as capture:
        measured = capture.timeline()["measured"].tolist()
    assert measured[: pace.FIRST_LOOKS] == [True] * pace.FIRST_LOOKS
    assert not all(measured)


def test_a_learning_rate_that_is_nan_is_seen_in_its_step(tmp_path: Path) -> None:
    class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            return 0.01 * tf.sqrt(tf.cast(BAD_STEP - 1 - step, tf.float32) + 0.5)

    path, model = tmp_path / "run.h5", wide_model()
    model.compile(keras.optimizers.SGD(Schedule()), "mse")
    assert fit(model, Recorder(path)) == BAD_STEP


def test_a_step_that_measures_less_is_as_bit_exact_and_its_norms_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump_proof, "QUICK_S", 1e9)
    path, model = tmp_path / "run.h5", wide_model()
    compiled(model, "mse")
    fit(model, Recorder(path, window=STEPS), nan_at=STEPS - 1)
    with Capture(path) as capture:
        healthy = slice(STEPS - 1)
        measured = capture.timeline()["measured"][healthy]
        norms, gradients, largest = (
            capture.matrix(name)[healthy]
            for name in ("weight_norm", "gradient_norm", "gradient_absmax")
        )
    assert not measured.all()
    for each in (norms, gradients, largest):  # told by the re-execution of the window
        assert each.notna().all(axis=None)
    assert all(result.bit_exact for result in replayed(path))


@pytest.mark.parametrize("quick_s", [0.0, 1e9], ids=["slow", "quick"])
def test_of_a_large_state_gradients_of_the_step_that_failed_and_weights_before_it_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_s: float
) -> None:
    """It is not the step that was seen to fail, and not the last one; of a slow training, few steps
    have gradients."""
    monkeypatch.setattr(dump_proof, "QUICK_S", quick_s)
    monkeypatch.setattr(room, "LARGE_STATE_BYTES", 0)
    path, model = tmp_path / "run.h5", Broken(BAD_STEP)
    compiled(model)
    assert fit(model, Recorder(path)) == BAD_STEP
    with Capture(path) as capture:
        assert not any(capture.weights(step) for step in capture.steps)
        assert capture.state_steps == (BAD_STEP,)
        assert [step for step in capture.steps if capture.gradients(step)] == [BAD_STEP]
        assert any("full_steps=3 writes those" in note for note in capture.incident.notes)
        infos = capture.variables_info
        held = capture.state(BAD_STEP)
        kernel = next(i for i, info in enumerate(infos) if info.path.endswith("wide/kernel"))
        assert np.isfinite(held[kernel]).all()
        slots = {i for i, info in enumerate(infos) if info.role == "optimizer" and info.shape}
        assert set(held) == set(range(len(infos))) - slots
