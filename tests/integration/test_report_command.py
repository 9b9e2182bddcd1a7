"""`nanreplay report` in real processes: pages that are whole, or nothing; one line when they cannot
be written."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nanreplay.commands import run_command_line

Command = Callable[..., "subprocess.CompletedProcess[str]"]
SAMPLE = Path(__file__).parents[2] / "sample_runs" / "log_of_zero.h5"


def test_both_pages_are_written_and_the_sentence_is_printed(
    command: Command, tmp_path: Path
) -> None:
    html, md = tmp_path / "page.html", tmp_path / "page.md"
    child = command("report", str(SAMPLE), "--html", str(html), "--md", str(md), "--no-fixes")
    assert child.returncode == 1, child.stderr
    assert child.stdout.startswith("step 12 · loss · `Log` of 0.0 at [18, 0]")
    assert "log_of_zero.py" in html.read_text(encoding="utf-8")
    assert child.stdout.split("`")[0] in md.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "page.md"]


def test_markdown_goes_to_stdout_alone(command: Command) -> None:
    child = command("report", str(SAMPLE), "--md", "-", "--no-fixes")
    assert child.stdout.startswith("### log_of_zero.h5, step 12\n")
    assert child.stderr.startswith("step 12")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", str(SAMPLE)], "--html OUT, --md OUT or both"),
        (["report", str(SAMPLE), "--html", "."], "it is a folder"),
        (["report", str(SAMPLE), "--html", "nowhere/page.html"], "does not exist"),
        (["report", str(SAMPLE), "--md", str(SAMPLE)], "it is the capture"),
        (["report", "missing.h5", "--md", "-"], "no such file"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_runs(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = SAMPLE.read_bytes()
    assert run_command_line(arguments) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert SAMPLE.read_bytes() == before
