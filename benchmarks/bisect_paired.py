"""Whether answers take as long as an older version's: `nanreplay bisect --no-fixes` of both on the
same captures, one after the other in each round.

Processor time counts, that of TensorFlow's import taken off, since the machine may do other work.
The captures are recorded by the older version, so that both can read them.

Usage: python benchmarks/bisect_paired.py OLDER [--layers 4,16] [--rounds 5]

OLDER is a folder with the older version: `git worktree add OLDER COMMIT`.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import ENVIRONMENT, ROOT, machine, machine_line, table, write_results

LOAD = "from nanreplay.terminal import quiet_work\nwith quiet_work(): pass"
"""Loads TensorFlow as the commands of a version do."""


def processor_time(folder: Path, *arguments: str | os.PathLike[str]) -> float:
    """Seconds of processor time that Python takes with the nanreplay of a folder.

    Raises:
        RuntimeError: It ended with something else than an answer.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**ENVIRONMENT, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{folder}: {arguments}: {done.stderr.strip().splitlines()[-1:]}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def measure(layers: int, older: Path, rounds: int) -> dict[str, float]:
    """Medians of one depth: seconds of either version, and the ratio within a round."""
    with tempfile.TemporaryDirectory() as name:
        capture = Path(name) / "run.h5"
        processor_time(
            older, ROOT / "benchmarks" / "bisect_once.py", "record", str(layers), capture
        )
        bisect = ("-m", "nanreplay", "bisect", capture, "--json", "--no-fixes")
        pairs = []
        for _ in range(rounds):
            pairs.append([])
            for tree in (older, ROOT):
                imported = processor_time(tree, "-c", LOAD)
                pairs[-1].append(processor_time(tree, *bisect) - imported)
            print(f"{layers} layers: {pairs[-1]}", file=sys.stderr, flush=True)
    return {
        "layers": layers,
        "older_s": statistics.median(old for old, _ in pairs),
        "now_s": statistics.median(new for _, new in pairs),
        "ratio": statistics.median(new / old for old, new in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("older", type=Path)
    parser.add_argument("--layers", default="4,16")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    older = given.older.resolve()
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h of %as"],
        cwd=older,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    facts = machine()
    found = [measure(int(layers), older, given.rounds) for layers in given.layers.split(",")]
    rows = [
        [
            str(each["layers"]),
            f"{each['older_s']:.2f} s",
            f"{each['now_s']:.2f} s",
            f"**{each['ratio']:.2f}**",
        ]
        for each in found
    ]
    text = f"{machine_line(facts)} Against {commit or older}, median of {given.rounds} rounds.\n\n"
    text += table(["layers", "older", "now", "now / older"], rows)
    write_results("bisect_paired", text, {"machine": facts, "older": commit, "rows": found})


if __name__ == "__main__":
    main()
