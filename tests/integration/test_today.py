"""Recorded weights and batches through today's code: fixed, still non-finite, does not fit, cannot
decide."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
from today_models import cross_entropy, flowers, forecaster, mended_cross_entropy, mended_forecaster

from nanreplay import ModelError, replay_with

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "sample_runs"
FLOWERS = RUNS / "log_of_zero.h5"
Command = Callable[..., "subprocess.CompletedProcess[str]"]
TrainedHere = Callable[[str], Path]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the training code of a project."""
    shutil.copy(Path(__file__).with_name("today_models.py"), tmp_path / "train.py")
    return tmp_path


def test_unchanged_code_is_still_non_finite_and_its_line_is_named(
    project: Path, command: Command
) -> None:
    child = command("replay", FLOWERS, "--model", "train:flowers", cwd=project)
    assert child.returncode == 1, child.stderr
    line = child.stdout.splitlines()[0]
    assert line.startswith(
        f"{FLOWERS}: still non-finite with today's train:flowers: step 12 · loss · `Log` of 0.0 "
        f"at [18, 0]"
    )
    assert (
        "train.py:14 `return -tf.reduce_sum(labels * tf.math.log(probabilities), axis=-1)`" in line
    )


def test_an_epsilon_in_todays_code_is_the_fix(project: Path, command: Command) -> None:
    """Files that do not fit the model do not keep the others from being replayed."""
    child = command(
        "replay",
        FLOWERS,
        RUNS / "division_by_zero.h5",
        "--model",
        "train.py:mended_flowers",
        "--json",
        cwd=project,
    )
    assert child.returncode == 2
    assert "today's training step does not take the recorded batch: ValueError" in child.stderr
    (capture,) = json.loads(child.stdout)["captures"]
    assert (capture["mode"], capture["model"], capture["fixed"], capture["report"]) == (
        "today",
        "train.py:mended_flowers",
        True,
        None,
    )
    assert capture["sentence"].startswith(
        "fixed: 13 steps finite with today's train.py:mended_flowers (step 12 of the recording: "
        "loss is NaN)"
    )
    assert [step["step"] for step in capture["steps"]] == list(range(13))
    assert all(step["finite"] for step in capture["steps"])
    assert (
        "Step 12 alone, from the recorded state just before it, is finite too." in capture["notes"]
    )


@pytest.mark.slow
def test_an_eager_loop_is_called_with_its_recorded_arguments(trained_here: TrainedHere) -> None:
    renamed, loop = {"forecaster": ""}, trained_here("custom_eager_loop")
    result = replay_with(loop, forecaster, renamed=renamed)
    assert result.exit_code == 1
    assert [step.differences for step in result.steps if not step.bit_exact] == []
    assert result.report is not None
    assert result.report.findings.origin is not None
    assert result.report.findings.origin.source is not None
    assert "tf.math.log(spread)" in str(result.report.findings.origin.source.code)
    assert replay_with(loop, mended_forecaster, renamed=renamed).exit_code == 0


def test_the_learning_rate_is_that_of_todays_code() -> None:
    """The recorded one is state, but a setting of the code."""
    path = RUNS / "learning_rate_too_high.h5"
    inputs, layers = keras.Input((3,)), keras.layers.Dense(1, name="price")

    def price(rate: float) -> Any:
        model = keras.Sequential([inputs, layers])
        model.compile(keras.optimizers.SGD(rate), loss="mse")
        return model

    slow = replay_with(path, lambda: price(1e-4))
    assert slow.fixed, slow.sentence
    assert any(
        note.startswith("Today's learning rate is used: 0.0001, where the recording had ")
        for note in slow.notes
    )
    assert not replay_with(path, lambda: price(1e-4), learning_rate="recorded").finite


def test_a_renamed_layer_is_mapped_and_gives_the_recorded_bits(trained_here: TrainedHere) -> None:
    path = trained_here("log_of_zero")
    with pytest.raises(
        ModelError, match=r"today's model has no `sequential/hidden/kernel` \[4, 16\]"
    ) as error:
        replay_with(path, lambda: flowers(mended_cross_entropy, hidden="first"))
    assert str(error.value.hint).startswith("renamed? --map hidden=first; --allow-missing keeps")
    renamed = {"hidden": "first"}
    result = replay_with(path, lambda: flowers(cross_entropy, hidden="first"), renamed=renamed)
    assert len(result.steps) == 13
    measured = [
        step.bit_exact for step in result.steps if step.bit_exact is not None
    ]  # after the first steps, variables now and then
    assert measured == [True] * len(measured)
    assert len(measured) >= 8


def test_another_shape_is_named_with_both() -> None:
    with pytest.raises(
        ModelError, match=r"hidden/kernel` is \[4, 8\] today, \[4, 16\] in the recording"
    ):
        replay_with(FLOWERS, lambda: flowers(units=8))


def test_a_new_layer_keeps_its_initial_values_when_allowed() -> None:
    with pytest.raises(
        ModelError, match=r"the recording has no `sequential\w*/extra/kernel` \[16, 16\]"
    ):
        replay_with(FLOWERS, lambda: flowers(extra=True))
    result = replay_with(
        FLOWERS, lambda: flowers(mended_cross_entropy, extra=True), allow_missing=True
    )
    assert result.finite
    assert any("extra/kernel" in note for note in result.notes)


def test_a_model_without_any_recorded_weight_is_refused_though_missing_ones_are_allowed() -> None:
    def other() -> Any:
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3, activation="softmax", name="all_new")]
        )
        model.compile("adam", mended_cross_entropy)
        return model

    with pytest.raises(ModelError, match="none of the recorded weights has a place in "):
        replay_with(FLOWERS, other, allow_missing=True)


def test_another_optimizer_is_no_hindrance_at_the_first_update() -> None:
    result = replay_with(
        FLOWERS,
        lambda: flowers(mended_cross_entropy, optimizer=keras.optimizers.SGD(0.01, momentum=0.9)),
    )
    assert result.fixed, result.sentence


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nowhere:model", "There is no module 'nowhere' in "),
        ("today_models:flower", "today_models has no 'flower'."),
        ("nowhere.py:model", "nowhere.py: no such file."),
        ("today_models", "Expected MODULE:FUNCTION or FILE.py:FUNCTION. Received: today_models"),
        (
            "today_models:broken",
            "today_models:broken cannot make the model: FileNotFoundError at "
            "today_models.py:54: weights.npz",
        ),
        ("today_models:not_compiled", "is not compiled."),
        (
            "today_models:cross_entropy",
            "today_models:cross_entropy cannot make the model: TypeError",
        ),
        (
            "json:JSONDecoder",
            "json:JSONDecoder returned JSONDecoder. Expected a compiled Keras model, or "
            "(model, optimizer, step) of a loop.",
        ),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(
    model: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from nanreplay.commands import run_command_line

    assert run_command_line(["replay", str(FLOWERS), "--model", model]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
