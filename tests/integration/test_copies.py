"""Searches and cross-validations: a copied recorder is one of its own, and no incident replaces
another's file."""

from __future__ import annotations

import copy
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import warm_python
from conftest import environment
from trainings import BATCH, data, mlp

from nanreplay import Capture, NonFiniteError, Recorder
from nanreplay.recorder import settings

pytestmark = pytest.mark.xdist_group("copies")  # one worker traces the step


@cache
def traced() -> tuple[Any, list[np.ndarray]]:
    """A model whose step is traced once for all folds and trials, and what its variables held."""
    model = mlp()
    model.build((None, 3))
    model.optimizer.build(model.trainable_variables)
    return model, [variable.numpy() for variable in [*model.variables, *model.optimizer.variables]]


def fails_at(step: int | None, recorder: Recorder) -> NonFiniteError | None:
    model, values = traced()
    for variable, value in zip([*model.variables, *model.optimizer.variables], values, strict=True):
        variable.assign(value)
    x, y = data(step)
    try:
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[recorder])
    except NonFiniteError as error:
        assert step is not None
        return error
    return None


def step_of(path: Any) -> int:
    with Capture(path) as capture:
        return capture.incident.step


def test_copies_of_a_recorder_have_files_of_their_own(tmp_path: Path) -> None:
    """As keras-tuner does: each trial trains with a deep copy of the callbacks."""
    callbacks = [Recorder(tmp_path / "run.h5", on_nan="raise")]
    for step in (1, None, 3):
        (trial,) = copy.deepcopy(callbacks)
        fails_at(step, trial)
    assert [Path(path).name for path in callbacks[0].paths] == ["run.h5", "run.1.h5"]
    assert [step_of(path) for path in callbacks[0].paths] == [1, 3]


def test_a_relative_path_leads_where_it_did_when_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many launchers change the working folder once the training is set up."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    recorder = Recorder("run.h5", on_nan="raise")
    monkeypatch.chdir("work")
    error = fails_at(1, recorder)
    assert error is not None
    assert error.path == str(tmp_path / "run.h5")
    assert f"nanreplay bisect {tmp_path / 'run.h5'}" in str(error)
    fails_at(2, copy.copy(recorder))
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["run.1.h5", "run.h5"]
    assert not list((tmp_path / "work").iterdir())


def test_a_file_is_the_same_by_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    monkeypatch.setattr(settings, "_is_new", lambda file: False)  # as on a disk of whole seconds
    for name in ("run.h5", tmp_path / "runs" / "run.h5", "../link/run.h5"):
        fails_at(1, Recorder(name))
    assert sorted(path.name for path in tmp_path.glob("runs/*")) == [
        "run.1.h5", "run.2.h5", "run.h5"
    ]  # fmt: skip


def test_a_recorder_that_has_recorded_can_be_copied(tmp_path: Path) -> None:
    first = Recorder(tmp_path / "run.h5", window=3)
    fails_at(2, first)
    second = copy.copy(first)
    fails_at(1, second)
    assert second.paths == first.paths
    assert [step_of(path) for path in first.paths] == [2, 1]


def test_a_recorder_goes_to_another_process_with_its_arguments(tmp_path: Path) -> None:
    recorder = pickle.loads(pickle.dumps(Recorder(tmp_path / "run.h5", window=3, on_nan="stop")))
    x, y = data(3)
    with pytest.warns(UserWarning, match="step 3"):
        mlp().fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[recorder])
    assert step_of(tmp_path / "run.h5") == 3


@pytest.mark.slow  # `test_one_recorder_serves_several_fits` is the like, in test_record_fit.py
def test_one_recorder_in_a_cross_validation_keeps_the_file_of_each_fold(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.h5")
    for step in (2, None, 4):
        fails_at(step, recorder)
    assert [step_of(path) for path in recorder.paths] == [
        2,
        3 + 6 + 4,
    ]  # steps are counted over all fits


def test_a_new_recorder_of_this_process_replaces_no_file_of_it(tmp_path: Path) -> None:
    paths = []
    for step in (1, 2, 3):
        recorder = Recorder(tmp_path / "run.h5")
        fails_at(step, recorder)
        paths.append(recorder.path)
    assert [step_of(path) for path in paths] == [1, 2, 3]


def test_a_file_of_an_earlier_process_is_replaced(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']\n"
        "from test_copies import *\n"
        "recorder = Recorder(sys.argv[2])\n"
        "fails_at(int(sys.argv[3]), recorder)\n"
    )
    fails_at(1, Recorder(tmp_path / "run.h5"))
    arguments = ["-c", script, Path(__file__).parent, tmp_path / "run.h5", "3"]
    warm_python.run(arguments, check=True, env=environment())
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]
    assert step_of(tmp_path / "run.h5") == 3


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:All-NaN axis encountered:RuntimeWarning"
)  # their own
def test_keras_tuner_records_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner_of = pytest.importorskip("keras_tuner")
    monkeypatch.chdir(tmp_path)
    x, y = data(3)

    def build(choices: Any) -> Any:
        return mlp(optimizer="sgd", metrics=[]) if choices.Int("units", 1, 9) else None

    tuner = tuner_of.RandomSearch(
        build, objective="val_loss", max_trials=2, directory=str(tmp_path), overwrite=True
    )
    recorder = Recorder(tmp_path / "run.h5", on_nan="stop")
    with pytest.warns(UserWarning, match="step 3"):
        tuner.search(
            x, y, validation_data=(np.zeros((4, 3), "float32"), np.zeros((4, 1), "float32")),
            batch_size=BATCH, shuffle=False,
            verbose=0, callbacks=[recorder],
        )  # fmt: skip
    assert [step_of(path) for path in recorder.paths] == [3, 3]
