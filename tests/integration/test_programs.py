"""Programs as tutorials have them, unchanged: `nanreplay run` records each, and `bisect` is right.

Each program in tests/programs trains a small model; with `--fail` it turns NaN in the way that its
EXPECT describes, which was found out without nanreplay.
"""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import warm_python
from conftest import environment

FOLDER = Path(__file__).parents[1] / "programs"
QUICK = {"custom_loop"}
"""Programs that every run of the tests trains, with and without a failure."""
ATTEMPTS = 3
"""How often a program may run until it ends with the same bits: TensorFlow adds up three gradients
from the first whose buffer is free, which threads decide, so that a run on two processors differs
now and then."""

PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py"))

each_program = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PROGRAMS],
)


def run(
    arguments: Sequence[str | Path], folder: Path, *, on_one_processor: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a process of its own, in `folder`."""
    cpus = [a_cpu()] if on_one_processor and hasattr(os, "sched_setaffinity") else None
    return warm_python.run(arguments, cwd=folder, env=quiet_environment(), cpus=cpus)


def a_cpu() -> int:
    """A processor that this process may use: of two threads, TensorFlow's sums depend on who is
    first."""
    return random.choice(sorted(os.sched_getaffinity(0)))


def quiet_environment() -> dict[str, str]:
    return {**environment(), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


def expected(script: Path) -> dict[str, Any]:
    """The literal EXPECT of a program, read without running it."""
    for statement in ast.parse(script.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "EXPECT":
            found: dict[str, Any] = ast.literal_eval(statement.value)
            return found
    raise AssertionError(f"{script.name} has no EXPECT")


def number_of(line: str, script: Path) -> int:
    """Where the code `line` stands in a program; it must stand there once."""
    lines = [text.strip() for text in script.read_text().splitlines()]
    assert lines.count(line) == 1, f"{script.name} has {lines.count(line)} lines `{line}`"
    return lines.index(line) + 1


def facts(report: dict[str, Any]) -> dict[str, Any]:
    """What a report says of the origin, by the names that EXPECT has."""
    origin = report["origin"]
    assert origin is not None, report["sentence"]
    return {
        "step": origin["step"],
        "op": origin["op_type"],
        "layer": origin["layer"],
        "rows": origin["rows"],
        "replica": origin["replica"],
        "line": (os.path.basename(origin["source"]["file"]), origin["source"]["line"]),
    }


@each_program
def test_a_failing_program_leaves_a_file_that_names_its_bug(name: str, tmp_path: Path) -> None:
    script, capture = FOLDER / f"{name}.py", tmp_path / "out.h5"
    expect = expected(script)
    expect["line"] = (script.name, number_of(expect["line"], script))

    for _ in range(ATTEMPTS):
        recorded = run(["-m", "nanreplay", "run", "-o", capture, script, "--fail"], tmp_path)
        assert recorded.returncode == 1, recorded.stderr[-2000:]
        assert "NonFiniteError" in recorded.stderr
        assert os.listdir(tmp_path) == ["out.h5"]

        answered = run(["-m", "nanreplay", "bisect", "--no-fixes", "--json", capture], tmp_path)
        assert answered.returncode == 1, answered.stderr[-2000:]
        report = json.loads(answered.stdout)
        found = facts(report)
        assert {key: found[key] for key in expect} == expect, report["sentence"]
        if report["verdict"]["bit_exact"]:
            break
        capture.unlink()
    assert report["verdict"]["bit_exact"] is True, report["verdict"]


@each_program
def test_a_healthy_program_runs_as_if_nobody_looked(name: str, tmp_path: Path) -> None:
    script = FOLDER / f"{name}.py"

    recorded = run(["-m", "nanreplay", "run", script], tmp_path, on_one_processor=True)
    assert recorded.returncode == 0, recorded.stderr[-2000:]
    assert "nanreplay" not in recorded.stderr
    assert os.listdir(tmp_path) == []
    assert recorded.stdout.strip(), "a program prints its losses"

    printed: list[str] = []
    while recorded.stdout not in printed and len(printed) < ATTEMPTS:
        bare = run([script], tmp_path, on_one_processor=True)
        assert bare.returncode == 0, bare.stderr[-2000:]
        printed.append(bare.stdout)
    assert recorded.stdout in printed, f"without a recorder it prints {printed[0]}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_knows_nothing_of_its_recorder(name: str) -> None:
    script = FOLDER / f"{name}.py"
    assert "nanreplay" not in script.read_text()
    expect = expected(script)
    assert {"step", "op", "line"} <= set(expect)
    assert number_of(expect["line"], script)
