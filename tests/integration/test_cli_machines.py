"""What the command line writes for machines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from nanreplay.commands import run_command_line
from nanreplay.whatif import trial

ROOT = Path(__file__).parents[2]


def test_replay_writes_the_line_of_code_into_all_of_them(
    recorded_runs: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(ROOT))
    files = [str(recorded_runs / name) for name in ("nan.h5", "healthy.h5", "nope.h5")]
    junit, sarif = tmp_path / "junit.xml", tmp_path / "nan.sarif"
    assert (
        run_command_line(
            ["replay", *files, "--jsonl", "--junit", str(junit), "--sarif", str(sarif)]
        )
        == 2
    )

    out, err = capfd.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == list(
        zip(files, ("nonfinite", "finite", "unreadable"), strict=True)
    )
    assert (lines[0]["cause"], lines[0]["op_type"], lines[0]["step"]) == ("log_of_zero", "Log", 4)
    assert lines[1]["sentence"] == "6 steps replayed, 6 of 6 bit for bit; all finite."

    cases = ElementTree.parse(junit).findall(".//testcase")
    assert [[element.tag for element in case] for case in cases] == [
        ["failure"],
        ["system-out"],
        ["error"],
    ]
    (result,) = json.loads(sarif.read_text(encoding="utf-8"))["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    file, line = place["artifactLocation"]["uri"], place["region"]["startLine"]
    assert (ROOT / file).read_text(encoding="utf-8").splitlines()[
        line - 1
    ].strip() == "return tf.math.log(x)"
    assert (cases[0].get("file"), cases[0].get("line")) == (file, str(line))
    annotations = [each for each in err.splitlines() if each.startswith("::error ")]
    assert [f"file={file},line={line},title=log of zero (" in each for each in annotations] == [
        True,
        False,
    ]
    assert annotations[0].endswith(f"::{result['message']['text']}")


def test_bisect_writes_the_same_and_keeps_its_exit_code(
    recorded_runs: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert (
        run_command_line(
            [
                "bisect",
                str(recorded_runs / "nan.h5"),
                "--no-fixes",
                "--jsonl",
                "--sarif",
                str(tmp_path / "nan.sarif"),
            ]
        )
        == 1
    )
    (line,) = capfd.readouterr().out.splitlines()
    assert (json.loads(line)["status"], json.loads(line)["rows"]) == ("nonfinite", [2])
    (result,) = json.loads((tmp_path / "nan.sarif").read_text(encoding="utf-8"))["runs"][0][
        "results"
    ]
    assert result["message"]["text"] == json.loads(line)["sentence"]


def test_bisect_tells_the_answer_before_it_tries_fixes(
    recorded_runs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    replayed = trial._replayed

    def noted(*args: Any) -> Any:
        printed.append(capfd.readouterr().out)
        return replayed(*args)

    monkeypatch.setattr(trial, "_replayed", noted)
    assert run_command_line(["bisect", str(recorded_runs / "nan.h5"), "--jsonl"]) == 1
    answer, *before_later_fixes = printed
    assert json.loads(answer)["format"] == "nanreplay-outcome"
    assert json.loads(answer)["cause"] == "log_of_zero"
    last = capfd.readouterr().out
    fixes = [json.loads(line) for line in "".join([*before_later_fixes, last]).splitlines()]
    assert all(fix["format"] == "nanreplay-fix" for fix in fixes)
    assert {fix["path"] for fix in fixes} == {json.loads(answer)["path"]}
    assert len(fixes) == len(printed) > 1  # each before the next one is tried
    assert all(before_later_fixes)
    assert any(fix["prevents"] for fix in fixes)


@pytest.mark.slow
def test_a_process_streams_lines_and_ends_as_with_json(recorded_runs: Path) -> None:
    for name, code, formats in [
        ("nan.h5", 1, {"nanreplay-outcome", "nanreplay-fix"}),
        ("healthy.h5", 0, {"nanreplay-outcome"}),
        ("nope.h5", 2, {"nanreplay-outcome"}),
    ]:
        command = [sys.executable, "-m", "nanreplay", "bisect", str(recorded_runs / name)]
        plain = subprocess.run([*command, "--json"], capture_output=True, check=False)
        done = subprocess.run([*command, "--jsonl"], capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == plain.returncode == code
        assert {line["format"] for line in lines} == formats
        assert [line["format"] for line in lines].index("nanreplay-outcome") == 0


def test_a_file_that_cannot_be_read_is_written_into_the_report_too(tmp_path: Path) -> None:
    assert (
        run_command_line(
            ["bisect", str(tmp_path / "nope.h5"), "--junit", str(tmp_path / "junit.xml")]
        )
        == 2
    )
    (error,) = ElementTree.parse(tmp_path / "junit.xml").findall(".//error")
    assert error.get("message") == f"{tmp_path / 'nope.h5'}: no such file."


@pytest.mark.parametrize("option", ["--junit", "--sarif"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    option: str, made_up: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command_line(["replay", str(made_up), option, str(tmp_path / "nowhere" / "report")])
        == 2
    )
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"the folder of {tmp_path / 'nowhere' / 'report'} does not exist." in err


def test_json_and_json_lines_exclude_each_other(
    made_up: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["replay", str(made_up), "--json", "--jsonl"]) == 2
    assert "--json and --jsonl exclude each other." in capfd.readouterr().err
