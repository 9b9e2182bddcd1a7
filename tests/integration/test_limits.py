"""Limits of memory and disk: they hold, and whoever reads the capture is told what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainings import data, mlp, record, replayed

from nanreplay import Capture, Recorder
from nanreplay.commands import run


def test_without_room_for_a_keyframe_the_first_step_says_what_is_recorded_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.h5"
    with pytest.warns(
        UserWarning, match="does not hold one copy of the state and two batches"
    ) as told:
        assert (
            record(path, mlp(), *data(), recorder=Recorder(path, memory_limit=700, history=1)) == 3
        )
    assert "the capture cannot be replayed. With memory_limit=1 MiB it could" in str(
        told[0].message
    )
    with Capture(path) as capture:
        assert capture.keyframe_steps == ()
        assert capture.steps[-1] == 3
        assert any("does not hold one copy" in note for note in capture.incident.notes)
    assert run(["bisect", str(path)]) == 3
    assert "No keyframe reaches step 3" in capsys.readouterr().out


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
