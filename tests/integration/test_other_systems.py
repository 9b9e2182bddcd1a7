"""Captures are read, explained, replayed and made where Linux's own modules and names are missing.

Each test runs in a process of its own that lacks what Windows or macOS lacks.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import other_system
import pytest
import warm_python
import yaml
from conftest import ROOT

from nanreplay.commands import COMMANDS

SCRIPT = """
import tensorflow as tf
weight = tf.Variable(1.0)

@tf.function
def step(x):
    with tf.GradientTape() as tape:
        loss = tf.math.log(x) * weight
    weight.assign_sub(0.1 * tape.gradient(loss, weight))
    return loss

for number in range(6):
    step(tf.constant(float(number != 4)))
"""
SAMPLE = ROOT / "sample_runs" / "log_of_zero.h5"
PATHS = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(ROOT))),
}


def on(system: str, folder: Path, work: str, *arguments: str) -> tuple[int, str]:
    """What came of a piece of work on another system: its code, and what it printed."""
    answer = folder / "answer.txt"
    what = (system, work, arguments, str(answer))
    if hasattr(os, "fork"):
        warm_python.run(["-c", f"import other_system; other_system.run_in(*{what})"], env=PATHS)
    else:
        process = multiprocessing.get_context("spawn").Process(
            target=other_system.run_in, args=what
        )
        process.start()
        process.join()
    code, _, text = answer.read_text(encoding="utf-8").partition("\n")
    return int(code), text


def test_a_capture_is_told_of_reported_and_replayed_on_windows(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    lines = [
        f"info|{SAMPLE}", f"report|{SAMPLE}|--html|{page}", f"bisect|{SAMPLE}|--no-fixes",
        f"replay|{SAMPLE}",
    ]  # fmt: skip
    code, text = on("win32", tmp_path, "commands", *lines)
    assert code == 0, text
    assert "Log" in text
    assert page.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_every_command_works_elsewhere(system: str, tmp_path: Path) -> None:
    script, table = tmp_path / "train.py", tmp_path / "timeline.csv"
    script.write_text(SCRIPT, encoding="utf-8")
    recording = f"run|-o|{tmp_path / 'run.h5'}|{script}"
    lines = [
        f"demo|-o|{tmp_path / 'demo.h5'}",
        f"whatif|{SAMPLE}|--fix|epsilon",
        f"triage|{SAMPLE}|{tmp_path / 'run.h5'}|--no-cache|--workers|1",
        f"diff|{SAMPLE}|{SAMPLE}",
        f"minimize|{SAMPLE}|-o|{tmp_path / 'small.h5'}",
        f"redact|{SAMPLE}|-o|{tmp_path / 'redacted.h5'}",
        f"export|{SAMPLE}|--csv|{table}",
        f"logs|{table}",
        f"shell|{SAMPLE}|-c|pass",
        "completion|bash",
    ]
    told_elsewhere = {"info", "report", "bisect", "replay", "open"}
    tried = {line.partition("|")[0] for line in (recording, *lines)}
    assert tried | told_elsewhere == set(COMMANDS)
    if system == "win32":  # a process of POSIX cannot start workers as Windows does
        lines = [line for line in lines if not line.startswith("triage")]
    # The recorder of a program lasts as long as its process.
    for each in ([recording], lines):
        code, text = on(system, tmp_path, "commands", *each)
        assert code == 0, text
    for name in ("run.h5", "demo.h5", "small.h5", "redacted.h5", "timeline.csv"):
        assert (tmp_path / name).stat().st_size > 1000


def test_a_training_is_recorded_on_windows_but_no_signal_is_listened_to(tmp_path: Path) -> None:
    code, text = on("win32", tmp_path, "record", str(tmp_path / "run.h5"))
    assert code >= 3, text
    (said,) = [entry for entry in text.splitlines() if "dump_signal" in entry]
    assert "recorder.dump()" in said


def test_a_capture_opens_on_windows(tmp_path: Path) -> None:
    code, text = on("win32", tmp_path, "open", str(SAMPLE))
    assert code == 1, text


def test_macos_bisects_and_says_what_only_linux_does(tmp_path: Path) -> None:
    line = f"bisect|{SAMPLE}|--no-fixes|--max-memory|8GiB"
    code, text = on("darwin", tmp_path, "one_command", line)
    assert code == 1, text
    (said,) = [entry for entry in text.splitlines() if "--max-memory" in entry]
    assert "only Linux" in said


def test_the_workflow_of_the_project_runs_on_all_systems_and_pythons() -> None:
    text = (ROOT / "docs" / "ci" / "project.yml").read_text(encoding="utf-8")
    matrix = yaml.safe_load(text)["jobs"]["tests"]["strategy"]["matrix"]
    assert set(matrix["os"]) == {"ubuntu-latest", "windows-latest", "macos-latest"}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = [f"3.{minor}" for minor in range(10, 14)]
    assert matrix["python"] == versions
    assert all(f"Programming Language :: Python :: {version}" in project for version in versions)


@pytest.mark.parametrize("command", ["make lint", "tests/integration/test_other_systems.py"])
def test_the_workflow_names_what_is_there(command: str) -> None:
    text = (ROOT / "docs" / "ci" / "project.yml").read_text(encoding="utf-8")
    assert command in text
