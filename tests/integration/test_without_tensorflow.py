"""Commands in processes that have no TensorFlow, and answers that recorders store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, environment

from nanreplay import AttachError, Capture, NonFiniteError, Recorder
from nanreplay.recorder.explanations import explain_beside, wait_for_all
from nanreplay.report.stored_answers import content_of, stored_answer

WITHOUT_TENSORFLOW = ROOT / "tests" / "without_tensorflow"
SAMPLE = ROOT / "sample_runs" / "log_of_zero.h5"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command in a Python that has no TensorFlow and no Keras."""
    return python("-m", "nanreplay", *arguments)


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(WITHOUT_TENSORFLOW), environment()["PYTHONPATH"]])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**environment(), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A capture without an answer."""
    from nanreplay.capture.writer import lazy_contents, write_capture

    with Capture(SAMPLE) as capture:
        write_capture(tmp_path / "bare.h5", lazy_contents(capture))
    return tmp_path / "bare.h5"


def test_info_and_bisect_give_the_stored_answer_and_say_whose_it_is() -> None:
    answer = stored_answer(SAMPLE)
    assert answer is not None
    done = run("bisect", SAMPLE)
    assert done.returncode == 1
    assert " ".join(done.stdout.split()).startswith(answer.report.sentence)
    assert "epsilon=1e-7" in done.stdout
    (line,) = done.stderr.splitlines()
    assert f"TensorFlow is not installed, so this is {answer.line}." in line
    as_json = json.loads(run("bisect", SAMPLE, "--json").stdout)
    assert as_json["origin"]["op_type"] == "Log"
    assert as_json["capture"]["path"] == str(SAMPLE)
    info = run("info", SAMPLE)
    assert (info.returncode, info.stderr) == (0, "")
    assert answer.report.sentence in info.stdout


def test_triage_groups_the_stored_answers_and_names_captures_without_one(bare: Path) -> None:
    other = ROOT / "sample_runs" / "nan_in_one_sample.h5"
    done = run("triage", SAMPLE, other, bare, "--no-cache", "--json")
    assert "TensorFlow is not installed, so these are the answers" in done.stderr
    groups = json.loads(done.stdout)["groups"]
    told = {path: group for group in groups for path in group["captures"]}
    assert told[str(SAMPLE)]["cause"] == "log_of_zero"
    assert str(other) in told
    assert "holds no stored answer" in done.stdout


def test_pages_are_made_of_the_stored_answer(tmp_path: Path) -> None:
    done = run("report", SAMPLE, "--html", tmp_path / "a.html", "--md", tmp_path / "a.md")
    assert done.returncode == 1, done.stderr
    assert "log_of_zero.py" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "epsilon=1e-7" in (tmp_path / "a.md").read_text(encoding="utf-8")


ONE_BY_ONE = """
import json, sys
from nanreplay.commands import run_command_line
codes = []
for line in json.loads(sys.argv[1]):
    codes.append(run_command_line(line))
    print("end of", *line[:1], file=sys.stderr, flush=True)
print(json.dumps(codes))
"""


def test_what_needs_tensorflow_says_so_in_one_line(bare: Path) -> None:
    file = str(bare)
    lines = [
        ["bisect", file],
        ["bisect", file, "--store"],
        ["report", file, "--md", "-"],
        ["whatif", file],
        ["replay", file],
    ]
    done = python("-c", ONE_BY_ONE, json.dumps(lines))
    assert json.loads(done.stdout) == [2] * len(lines), done.stderr  # and nothing else
    told = done.stderr.splitlines()
    assert told[1::2] == [f"end of {line[0]}" for line in lines]
    assert all("nanreplay[tensorflow]" in line for line in told[::2])


def test_bisect_stores_its_answer_in_one_file_of_this_machine(bare: Path) -> None:
    from nanreplay.commands import run_command_line

    before = content_of(bare)
    assert run_command_line(["bisect", str(bare), "--no-fixes", "--store", "--quiet"]) == 1
    answer = stored_answer(bare)
    assert answer is not None
    assert answer.report.findings.origin is not None
    assert answer.report.findings.origin.op_type == "Log"
    assert content_of(bare) == before
    assert run_command_line(["bisect", str(bare), str(SAMPLE), "--store"]) == 2
    shutil.copy(bare, bare.with_name("copy.h5"))
    without = run("bisect", bare.with_name("copy.h5"), "--quiet")
    assert without.stdout.strip() == answer.report.sentence


def test_a_recorder_stores_the_answer_beside_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((32, 2), "float32")
    x[19] = np.inf
    recorder = Recorder(tmp_path / "run.h5", explain=True)
    with pytest.raises(NonFiniteError):
        model.fit(x, x[:, :1], batch_size=8, shuffle=False, verbose=0, callbacks=[recorder])
    wait_for_all()
    said = capsys.readouterr().err
    assert "run.h5: holds its answer." in said
    answer = stored_answer(tmp_path / "run.h5")
    assert answer is not None
    assert answer.is_current
    assert answer.report.findings.origin is not None
    assert answer.report.findings.origin.rows == (3,)
    assert list(tmp_path.iterdir()) == [tmp_path / "run.h5"]


def test_an_explanation_that_fails_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explain_beside(tmp_path / "gone.h5")
    wait_for_all()
    assert "gone.h5: could not be explained: " in capsys.readouterr().err


def test_the_end_of_the_program_does_not_wait_for_ever(
    bare: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bare.read_bytes()
    monkeypatch.setattr("nanreplay.recorder.explanations.WAIT_S", 0.0)
    explain_beside(bare)
    wait_for_all()
    assert "explaining it took too long; `nanreplay bisect bare.h5 --store` does" in (
        capsys.readouterr().err
    )
    assert bare.read_bytes() == before


def test_a_capture_at_a_url_is_not_explained_by_the_recorder() -> None:
    with pytest.raises(AttachError, match=r"`explain` stores the answer in a file of this machine"):
        Recorder("memory://run.h5", explain=True)
    with pytest.raises(AttachError, match="explain=3"):
        Recorder("run.h5", explain=3)  # type: ignore[arg-type]
