"""What the command line writes for machines, in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import environment

from nanreplay.commands import run

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def replayed(recorded_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """`nanreplay replay` of a failing, a healthy and a missing capture on GitHub, with everything written into a folder."""
    folder = tmp_path_factory.mktemp("written")
    given = ["replay", "nan.h5", "healthy.h5", "nope.h5", "--jsonl", "--junit", folder / "junit.xml", "--sarif", folder / "nan.sarif"]
    github = {**environment(), "GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(Path(__file__).parents[2])}
    return run_module(given, recorded_runs, github), folder


def run_module(given: list[str | Path], folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nanreplay", *map(str, given)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_each_capture_has_a_line_of_json(replayed: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    child, _ = replayed
    assert child.returncode == 2
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("nan.h5", "nonfinite"),
        ("healthy.h5", "finite"),
        ("nope.h5", "unreadable"),
    ]
    assert (lines[0]["cause"], lines[0]["op_type"], lines[0]["step"]) == ("log_of_zero", "Log", 4)
    assert lines[1]["sentence"] == "6 steps replayed, 6 of 6 bit for bit; all finite."


def test_the_files_name_the_line_of_code_in_the_checkout(replayed: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    child, folder = replayed
    cases = ElementTree.parse(folder / "junit.xml").findall(".//testcase")
    assert [[element.tag for element in case] for case in cases] == [["failure"], ["system-out"], ["error"]]
    (result,) = json.loads((folder / "nan.sarif").read_text(encoding="utf-8"))["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    file, line = place["artifactLocation"]["uri"], place["region"]["startLine"]
    assert (cases[0].get("file"), cases[0].get("line")) == (file, str(line))
    source = (Path(__file__).parents[2] / file).read_text(encoding="utf-8").splitlines()
    assert source[line - 1].strip() == "return tf.math.log(x)"
    annotations = [line for line in child.stderr.splitlines() if line.startswith("::error ")]
    assert len(annotations) == 2
    assert annotations[0].startswith(f"::error file={file},line={line},title=log of zero (")
    assert result["message"]["text"] in annotations[0]


def test_bisect_writes_the_same_and_keeps_its_exit_code(
    recorded_runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert run(["bisect", str(recorded_runs / "nan.h5"), "--no-fixes", "--jsonl", "--sarif", str(tmp_path / "nan.sarif")]) == 1
    (line,) = capfd.readouterr().out.splitlines()
    assert (json.loads(line)["status"], json.loads(line)["rows"]) == ("nonfinite", [2])
    (result,) = json.loads((tmp_path / "nan.sarif").read_text(encoding="utf-8"))["runs"][0]["results"]
    assert result["message"]["text"] == json.loads(line)["sentence"]


def test_a_file_that_cannot_be_read_is_written_into_the_report_too(tmp_path: Path) -> None:
    assert run(["bisect", str(tmp_path / "nope.h5"), "--junit", str(tmp_path / "junit.xml")]) == 2
    (error,) = ElementTree.parse(tmp_path / "junit.xml").findall(".//error")
    assert error.get("message") == f"{tmp_path / 'nope.h5'}: no such file."


@pytest.mark.parametrize("option", ["--junit", "--sarif"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    option: str, made_up: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["replay", str(made_up), option, str(tmp_path / "nowhere" / "report")]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"the folder of {tmp_path / 'nowhere' / 'report'} does not exist." in err


def test_json_and_json_lines_exclude_each_other(made_up: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", str(made_up), "--json", "--jsonl"]) == 2
    assert "--json and --jsonl exclude each other." in capfd.readouterr().err
