"""Limits of memory and disk: they hold, and whoever reads the capture is told what is missing."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from trainings import data, mlp, record, replayed, with_all_variables

from nanreplay import Capture, Recorder
from nanreplay.commands import run_command_line
from nanreplay.recorder import retention, room


def wide() -> Any:
    """A model with a state of 1 MiB."""
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(300, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((300,)), *layers])
    model.compile("adam", "mse", jit_compile=False)
    return with_all_variables(model)


def wide_data() -> tuple[Any, Any]:
    return data(features=300)


def test_without_room_for_a_keyframe_the_first_step_says_what_is_recorded_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither memory nor disk: the one setting that the warning names is enough."""
    path = tmp_path / "run.h5"
    small = Recorder(path, memory_limit=700, disk_limit=100_000, history=1)
    with pytest.warns(UserWarning, match="one copy of the state and two batches") as told:
        assert record(path, wide(), *wide_data(), recorder=small) == 3
    message = str(told[0].message)
    assert "the capture cannot be replayed" in message
    with Capture(path) as capture:
        assert capture.keyframe_steps == ()
        assert capture.steps[-1] == 3
        assert any("do not hold one copy" in note for note in capture.incident.notes)
    assert run_command_line(["bisect", str(path)]) == 3
    assert "No keyframe reaches step 3" in capsys.readouterr().out
    setting = re.search(r"With (.*) it could\.", message)
    assert setting is not None
    path = tmp_path / "followed.h5"
    followed = Recorder(path, **eval(f"dict({setting[1]})"), history=1)
    assert record(path, wide(), *wide_data(), recorder=followed) == 3, "and not a word more"
    assert run_command_line(["bisect", str(path)]) == 1


def test_large_batches_leave_a_short_window_and_the_limits_that_are_named_hold_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keyframes are said to pay every 40 steps, and the limits hold a few batches."""
    for name in ("every_for", "least_every_for"):
        monkeypatch.setattr(retention, name, lambda *_: 40)
    monkeypatch.setattr(room, "USUAL_BYTES", 2**20)
    steps = 60
    x, y = data(steps - 1, features=8000, steps=steps)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    path = tmp_path / "run.h5"
    with pytest.warns(UserWarning, match="of the last 32 steps a file has 1 to") as told:
        assert record(path, mlp(features=8000), batches) == steps - 1
    message = str(told[0].message)
    assert "(the state has" in message
    with Capture(path) as capture:
        assert len(capture.steps) < 32
    setting = re.search(r"With (.*) it has 32", message)
    assert setting is not None
    path = tmp_path / "followed.h5"
    followed = Recorder(path, **eval(f"dict({setting[1]})"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert record(path, mlp(features=8000), batches, recorder=followed) == steps - 1
    with Capture(path) as capture:
        assert len(capture.steps) >= 32
        assert [note for note in capture.incident.notes if "left out" in note] == []


def test_a_keyframe_that_memory_does_not_hold_goes_to_disk_and_replays(tmp_path: Path) -> None:
    """Over several epochs, at whose beginning the metrics are reset and no keyframe is written."""
    path = tmp_path / "run.h5"
    recorder = Recorder(path, memory_limit="200KiB", history=1)
    batches = tf.data.Dataset.from_tensor_slices(wide_data()).batch(4).repeat()
    assert record(path, wide(), batches, recorder=recorder, steps_per_epoch=2, epochs=3) == 3
    with Capture(path) as capture:
        assert capture.keyframe_steps == (0,)
        assert any("was not run once more" in note for note in capture.incident.notes)
    assert [result.bit_exact for result in replayed(path)] == [True] * 4
    assert [each.name for each in tmp_path.iterdir()] == ["run.h5"], "nothing of the spool stays"


def test_a_disk_limit_leaves_out_what_replays_give_again_and_the_capture_names_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.h5"
    recorder = Recorder(path, window=2, keyframe_every=2, disk_limit=60_000)
    assert record(path, mlp(), *data(), recorder=recorder) == 3
    whole = path.stat().st_size
    with Capture(path) as capture:
        graph_bytes = len(capture.program(capture.programs[0]).graph)
    path = tmp_path / "smaller.h5"
    recorder = Recorder(path, window=2, keyframe_every=2, disk_limit=graph_bytes + 1100)
    assert record(path, mlp(), *data(), recorder=recorder) == 3
    assert path.stat().st_size < whole
    with Capture(path) as capture:
        assert any("were left out" in note for note in capture.incident.notes)
        assert capture.weights(1) == {}
    assert not replayed(path)[-1].finite
