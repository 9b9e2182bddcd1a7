"""What trying fixes costs, against an older version: all fixes that fit, on the same captures, by
both versions one after the other in each round.

Processor time counts, since the machine may do other work; TensorFlow's import and the answer
before the fixes are no part of it. An eager step is the failing step op by op. The last column
says whether each fix has the same outcome.

Usage: python benchmarks/fixes_paired.py OLDER [--rounds 3] [FILE...]

OLDER is a folder with the older version: `git worktree add OLDER COMMIT`. Without files, the sample
runs are taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import ENVIRONMENT, ROOT, machine, machine_line, table, write_results

HEADINGS = ["capture", "fixes", "steps", "older", "now", "now / older", "a fix", "outcomes"]


def facts_of(folder: Path, capture: Path) -> dict[str, Any]:
    """What `fixes_once.py` prints with the nanreplay of a folder."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "fixes_once.py", capture],
        env={**ENVIRONMENT, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def measure(capture: Path, older: Path, rounds: int) -> dict[str, Any]:
    """Medians of one capture."""
    pairs = []
    for _ in range(rounds):
        pairs.append([facts_of(folder, capture) for folder in (older, ROOT)])
        print(capture.stem, *(facts["fixes_s"] for facts in pairs[-1]), file=sys.stderr, flush=True)
    before, now = pairs[-1]
    return {
        "capture": capture.stem,
        "fixes": len(now["outcomes"]),
        "steps": [before["steps"], now["steps"]],
        "older_s": statistics.median(old["fixes_s"] for old, _ in pairs),
        "now_s": statistics.median(new["fixes_s"] for _, new in pairs),
        "ratio": statistics.median(new["fixes_s"] / old["fixes_s"] for old, new in pairs),
        "eager_s": statistics.median(new["eager_s"] for _, new in pairs),
        "is_same": before["outcomes"] == now["outcomes"],
    }


def main() -> None:
    """Measure all captures and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("older", type=Path)
    parser.add_argument("captures", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_intermixed_args()
    captures = given.captures or sorted((ROOT / "sample_runs").glob("*.h5"))
    older = given.older.resolve()
    found = [measure(capture.resolve(), older, given.rounds) for capture in captures]
    rows = []
    for each in found:
        a_fix = each["now_s"] / each["eager_s"] / max(each["fixes"], 1)
        rows.append(
            [
                each["capture"],
                str(each["fixes"]),
                " -> ".join(map(str, each["steps"])),
                f"{each['older_s']:.2f} s",
                f"{each['now_s']:.2f} s",
                f"**{each['ratio']:.2f}**",
                f"{a_fix:.1f} eager steps",
                "same" if each["is_same"] else "**differ**",
            ]
        )
    facts = machine()
    text = f"{machine_line(facts)} Median of {given.rounds} rounds.\n\n" + table(HEADINGS, rows)
    write_results("fixes_paired", text, {"machine": facts, "rows": found})


if __name__ == "__main__":
    main()
