"""Runs the commands of docs/five-minutes.md in the order of the page, and writes what they print.

Usage: python docs/five_minutes.py [--check]

The page is its own program: the block of Python is `train.py`, a block of `diff` changes it, and
each line of a `console` block that begins with `$` is run beside it. With --check nothing is
written; what differs from the page is shown.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).with_name("five-minutes.md")
ROOT = PAGE.parents[1]
BLOCK = re.compile(r"^```(python|diff|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TIMES = re.compile(r"\d+m?s - \d+m?s/step|in \d+\.\d+s|\d+\.\d KiB")
"""What differs from run to run."""


def page_as_run(text: str) -> str:
    """The page with what its commands print today."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def block_as_run(match: re.Match[str]) -> str:
            language, body = match.groups()
            if language == "python":
                (folder / "train.py").write_text(body, encoding="utf-8")
            elif language == "diff":
                change(folder / "train.py", body)
            else:
                body = "\n".join(transcript(body, folder)) + "\n"
            return f"```{language}\n{body}```"

        return BLOCK.sub(block_as_run, text)


def change(program: Path, difference: str) -> None:
    """Replace the lines that begin with `-` by those that begin with `+`."""
    lines = difference.splitlines()
    old = "\n".join(line[1:] for line in lines if line.startswith("-"))
    new = "\n".join(line[1:] for line in lines if line.startswith("+"))
    code = program.read_text(encoding="utf-8")
    if code.count(old) != 1:
        raise SystemExit(f"{program.name} does not hold these lines once:\n{old}")
    program.write_text(code.replace(old, new), encoding="utf-8")


def transcript(body: str, folder: Path) -> Iterator[str]:
    """Each command of a block, and what it prints; `...` stays where the page leaves lines out."""
    for part in re.split(r"^(?=\$ )", body, flags=re.MULTILINE):
        if not part:
            continue
        command, *shown = part.rstrip("\n").split("\n")
        printed = output_of(command.removeprefix("$ "), folder)
        yield command
        if shown and shown[-1] == "...":
            yield from (*printed[: len(shown) - 1], "...")
        else:
            yield from printed


def output_of(command: str, folder: Path) -> list[str]:
    """What a command prints, without what Python and TensorFlow add on stderr."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    code = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "NO_COLOR": "1"}
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, **quiet, "PATH": search, "PYTHONPATH": code, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("nanreplay")]
    return [line.rstrip() for line in (*done.stdout.splitlines(), *said)]


def main() -> int:
    """Write the page, or say in what it differs."""
    text = PAGE.read_text(encoding="utf-8")
    now = page_as_run(text)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(now, encoding="utf-8")
        return 0
    old_lines, new_lines = (TIMES.sub("(time)", page).splitlines() for page in (text, now))
    differences = list(difflib.unified_diff(old_lines, new_lines, "page", "today", lineterm=""))
    print("\n".join(differences))
    return 1 if differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
