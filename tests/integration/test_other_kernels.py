"""Captures under kernels that compute other bits, as another processor has them: same answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

SCRIPT = ROOT / "benchmarks" / "other_machine.py"


def table(*arguments: str | Path) -> tuple[int, list[list[str]]]:
    """The exit code, and the cells of the table's rows."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert rows, done.stderr
    return done.returncode, rows


@pytest.mark.slow
def test_no_answer_of_a_sample_run_hangs_on_the_bits_of_a_kernel() -> None:
    code, rows = table()
    assert [row[0] for row in rows] == [
        "as it is", "without oneDNN", "oneDNN with SSE4.1", "one thread",
    ]  # fmt: skip
    assert [row[4] for row in rows] == ["none"] * 4
    assert code == 0
    assert rows[1][1] != rows[0][1], "without oneDNN the bits are others, or nothing is shown"
