"""The smallest capture still has the origin, is read by every command, and says what was taken
away."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanreplay import Capture, Replay
from nanreplay.bisect import find_origin
from nanreplay.commands import run_command_line

pytestmark = pytest.mark.xdist_group("minimize")  # one worker makes what they share

SAMPLES = Path(__file__).parents[2] / "sample_runs"
Command = Callable[..., "subprocess.CompletedProcess[str]"]
SLOW = (
    "custom_eager_loop", "dead_relu", "division_by_zero", "empty_mask_zero_over_zero",
    "exploding_rnn", "float16_overflow",
    "learning_rate_too_high", "log_of_zero", "sqrt_gradient_at_zero", "tutorial_loop",
    "weights_drawn_too_large", "xla_label_out_of_range",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory, command: Command
) -> tuple[Path, dict[str, Any]]:
    """A minimized capture, and what the command said of it."""
    out = tmp_path_factory.mktemp("small") / "small.h5"
    child = command("minimize", SAMPLES / "nan_in_one_sample.h5", "-o", out, "--json")
    assert child.returncode == 0, child.stderr
    return out, json.loads(child.stdout)


def origin_of(path: Path) -> tuple[object, ...]:
    with Capture(path) as capture, Replay(capture) as replay:
        origin = find_origin(replay).origin
        assert origin is not None
        return (
            origin.step,
            origin.phase,
            origin.layer_path,
            origin.op_type,
            origin.op_name,
            origin.loop,
        )


def test_one_row_and_one_number_of_it_are_left(small: tuple[Path, dict[str, Any]]) -> None:
    path, told = small
    assert told["rows"] == {
        "recorded": 32,
        "kept": [13],
        "taken_out": True,
        "program_resized": True,
    }
    assert told["features"]["kept"] == 1
    assert told["steps"] == [22]
    assert told["output_bytes"] == path.stat().st_size < told["size_bytes"] / 4
    with Capture(path) as capture:
        features, labels = capture.batch(22).leaves
        assert features.shape[0] == labels.shape[0] == 1
        assert (np.isnan(features).sum(), np.count_nonzero(features), np.count_nonzero(labels)) == (
            1,
            1,
            0,
        )


def test_the_origin_is_the_same(small: tuple[Path, dict[str, Any]]) -> None:
    path, told = small
    assert origin_of(path) == origin_of(SAMPLES / "nan_in_one_sample.h5")
    assert told["report"]["verdict"]["kind"] == "reproduced"
    assert told["report"]["verdict"]["bit_exact"] is True
    assert told["report"]["cause"]["kind"] == "data_nan"


def test_the_file_says_what_was_taken_away(small: tuple[Path, dict[str, Any]]) -> None:
    path, told = small
    with Capture(path) as capture:
        assert list(capture.incident.notes) == told["notes"]
        assert (capture.steps, capture.keyframe_steps, len(capture.timeline())) == ((22,), (22,), 1)
        notes = " ".join(capture.incident.notes)
    assert (
        "Cut to step 22 from a capture of steps 0 to 22; the keyframe was made by replay." in notes
    )
    assert "The batch holds row 13 of the 32 that were recorded." in notes
    assert "Set to 0, since the origin does not need their values: `hidden/kernel`" in notes
    assert "Fingerprints are those of a replay" in notes


def test_other_commands_read_it(
    small: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = small
    assert run_command_line(["info", str(path)]) == 0
    assert "note: The batch holds row 13" in capsys.readouterr().out
    assert run_command_line(["replay", str(path)]) == 1
    assert run_command_line(["whatif", str(path), "--fix", "clean_data=nan_to_num"]) == 0


def test_an_existing_file_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.h5").write_text("mine")
    for name in ("minimize", "redact"):
        assert (
            run_command_line(
                [name, str(SAMPLES / "log_of_zero.h5"), "-o", str(tmp_path / "out.h5")]
            )
            == 2
        )
        assert "out.h5: exists." in capfd.readouterr().err
        assert (
            run_command_line(
                [name, str(SAMPLES / "log_of_zero.h5"), "-o", str(tmp_path / "no" / "out.h5")]
            )
            == 2
        )
    assert (
        run_command_line(
            ["minimize", str(tmp_path / "out.h5"), "-o", str(tmp_path / "out.h5"), "--force"]
        )
        == 2
    )
    assert (tmp_path / "out.h5").read_text() == "mine"


def test_a_healthy_capture_has_nothing_to_keep(
    recorded_runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command_line(
            ["minimize", str(recorded_runs / "healthy.h5"), "-o", str(tmp_path / "out.h5")]
        )
        == 3
    )
    assert "has no origin to keep" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_time_only_the_step_is_cut_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "minimize",
        str(SAMPLES / "division_by_zero.h5"),
        "-o",
        str(tmp_path / "out.h5"),
        "--budget",
        "0",
        "--json",
    ]
    assert run_command_line(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["replays"], told["steps"], len(told["rows"]["kept"])) == (0, [17], 32)
    assert origin_of(tmp_path / "out.h5") == origin_of(SAMPLES / "division_by_zero.h5")
    with Capture(tmp_path / "out.h5") as capture, Capture(SAMPLES / "division_by_zero.h5") as whole:
        assert np.array_equal(
            capture.batch(17).fingerprint, whole.batch(17).fingerprint, equal_nan=True
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_sample_runs_keep_their_origin(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.h5"
    assert (
        run_command_line(["minimize", str(SAMPLES / f"{name}.h5"), "-o", str(out), "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert out.stat().st_size < (SAMPLES / f"{name}.h5").stat().st_size / 2
    assert origin_of(out) == origin_of(SAMPLES / f"{name}.h5")
    assert told["report"]["verdict"]["bit_exact"] is not False
