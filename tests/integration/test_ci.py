"""The workflow files of docs/ci: in order, shown in docs/ci.md, and run, in a project that has a
capture and a recorded test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import warm_python
import yaml
from conftest import ROOT, environment, plugin_arguments

DOCS = ROOT / "docs"
PROJECT = ROOT / "tests" / "integration" / "plugin_project"
TEST = """
from train import fit, make_model

def test_training_stays_finite(nan_recorder):
    fit(make_model(), nan_recorder)
"""
Shell = Callable[..., "subprocess.CompletedProcess[str]"]


def workflow(name: str) -> dict[Any, Any]:
    read: dict[Any, Any] = yaml.safe_load((DOCS / "ci" / name).read_text(encoding="utf-8"))
    return read


def github_commands() -> list[str]:
    return [
        step["run"] for step in workflow("github.yml")["jobs"]["finite"]["steps"] if "run" in step
    ]


def gitlab_commands() -> list[str]:
    script: list[str] = workflow("gitlab.yml")["finite"]["script"]
    return script


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Runs a command line in a project as a runner does, with further variables."""
    shutil.copy(PROJECT / "train.py", tmp_path / "train.py")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_train.py").write_text(TEST, encoding="utf-8")
    (tmp_path / "captures").mkdir()
    shutil.copy(ROOT / "sample_runs" / "log_of_zero.h5", tmp_path / "captures")

    def run(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        env = {
            **environment(),
            "PATH": path,
            "PYTEST_ADDOPTS": " ".join(plugin_arguments()),
            **variables,
        }
        given = ["bash", "-e", "-o", "pipefail", "-c", line]
        return subprocess.run(
            given,
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=warm_python.HANGS_S,
        )

    return run


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])
def test_the_page_shows_the_file_as_it_is(name: str) -> None:
    assert f"```yaml\n{(DOCS / 'ci' / name).read_text(encoding='utf-8')}```" in (
        DOCS / "ci.md"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "commands", [github_commands(), gitlab_commands()], ids=["github", "gitlab"]
)
def test_all_that_a_job_needs_is_installed_first(commands: list[str]) -> None:
    assert commands[0].startswith("pip install -r requirements.txt")
    assert all(
        line.startswith(("python -m pytest --nanreplay", "nanreplay replay "))
        for line in commands[1:]
    )


def test_github_uploads_what_the_commands_write_even_when_they_fail() -> None:
    steps = workflow("github.yml")["jobs"]["finite"]["steps"]
    uploads = {step["uses"].split("@")[0]: step for step in steps if "uses" in step}
    assert uploads["github/codeql-action/upload-sarif"]["with"]["sarif_file"] == "nanreplay.sarif"
    assert uploads["actions/upload-artifact"]["with"]["path"] == "kept/"
    assert workflow("github.yml")["permissions"]["security-events"] == "write"
    after = steps[
        [step.get("run", "").startswith("python -m pytest") for step in steps].index(True) + 1 :
    ]
    assert all(step["if"] == "${{ !cancelled() }}" for step in after)


def on_github(folder: Path) -> dict[str, str]:
    """Variables of a runner, for code that is not fixed."""
    return {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(folder), "WITHOUT_EPSILON": "1"}


@pytest.mark.slow  # what is written for GitHub is tested in test_cli_machines.py, too
def test_on_github_a_known_failure_is_shown_at_its_line_while_it_is_there(
    shell: Shell, tmp_path: Path
) -> None:
    replayed = shell(github_commands()[2], **on_github(tmp_path))
    assert replayed.returncode == 1, replayed.stdout + replayed.stderr
    assert (
        "::error file=train.py,line=13,title=log of zero (captures/log_of_zero.h5)::"
        in replayed.stderr
    )
    (result,) = json.loads((tmp_path / "nanreplay.sarif").read_text(encoding="utf-8"))["runs"][0][
        "results"
    ]
    place = result["locations"][0]["physicalLocation"]
    assert (result["ruleId"], place["artifactLocation"]["uri"], place["region"]["startLine"]) == (
        "log_of_zero",
        "train.py",
        13,
    )


@pytest.mark.slow
def test_on_github_a_training_that_turns_nan_is_shown_at_its_line_and_its_capture_is_kept(
    shell: Shell, tmp_path: Path
) -> None:
    tested = shell(github_commands()[1], **on_github(tmp_path))
    assert tested.returncode == 1, tested.stdout + tested.stderr
    assert "::error file=train.py,line=13,title=log of zero (kept/" in tested.stdout
    assert len(list((tmp_path / "kept").glob("*.h5"))) == 1


@pytest.mark.slow
def test_on_github_code_that_is_fixed_passes_and_closes_the_alerts(
    shell: Shell, tmp_path: Path
) -> None:
    assert [shell(line).returncode for line in github_commands()[1:]] == [0, 0]
    assert (
        json.loads((tmp_path / "nanreplay.sarif").read_text(encoding="utf-8"))["runs"][0]["results"]
        == []
    )
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "code", "failures"),
    [({}, 0, 0), ({"WITHOUT_EPSILON": "1"}, 1, 2)],
    ids=["fixed", "broken"],
)
def test_on_gitlab_captures_and_trainings_are_test_cases(
    variables: dict[str, str], code: int, failures: int, shell: Shell, tmp_path: Path
) -> None:
    job = workflow("gitlab.yml")["finite"]
    child = shell(gitlab_commands()[1], CI_PROJECT_DIR=str(tmp_path), **variables)
    assert child.returncode == code, child.stdout + child.stderr

    cases = ElementTree.parse(tmp_path / job["artifacts"]["reports"]["junit"]).findall(
        ".//testcase"
    )
    assert [case.get("classname") for case in cases] == [
        "tests.test_train",
        "captures.log_of_zero.h5",
    ]
    assert len([case for case in cases if case.find("failure") is not None]) == failures
    assert len(list((tmp_path / job["artifacts"]["paths"][0]).iterdir())) == failures / 2
