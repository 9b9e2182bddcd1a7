"""What recording takes of memory: the peak of a recorded training, its dump included, over that of
a bare one.

Each measurement is a process of its own: two epochs of a model with the given state (weights and
Adam's slots), with batches of
the given size, to a NaN in the last step, which the recorder writes to a file.

Usage: python benchmarks/memory.py [--large]      --large adds a state of 2 GiB with room for it,
which needs 16 GiB
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measuring import last_json, machine, machine_line, run, table, write_results

WORKER = Path(__file__).with_name("memory_once.py")
CASES = [
    (10, 1, 1024),
    (100, 1, 1024),
    (300, 1, 1024),
    (10, 100, 1024),
    (300, 100, 1024),
    (10, 300, 1024),
    (100, 20, 512),
    (300, 1, 200),
    (2048, 1, 1024),
]
"""State, batch and limit in MiB."""
LARGE = [(2048, 1, 6144)]
TOLERANCE = 1.1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    rows, facts, before = [], [], machine()
    for state, batch, limit in [*CASES, *(LARGE if given.large else [])]:
        found = {}
        for mode in ("bare", "recorder"):
            with tempfile.TemporaryDirectory() as folder:
                _, done = run(
                    [WORKER, mode, str(state), str(batch), str(limit), folder], timeout_s=3600
                )
            found[mode] = last_json(done)
        facts.append({"state_mib": state, "batch_mib": batch, "limit_mib": limit, **found})
        if "error" in found["recorder"] or "error" in found["bare"]:
            raise SystemExit(f"failed: {found}")
        over = found["recorder"]["peak_mib"] - found["bare"]["peak_mib"]
        kept = found["recorder"]
        what = (
            f"{kept['keyframes']} keyframes, {kept['batches']} batches"
            if kept["keyframes"]
            else f"{kept['batches']} batches, no keyframe"
        )
        bar = "yes" if over <= TOLERANCE * limit else "**no**"
        rows.append(
            [
                f"{state}",
                f"{batch}",
                f"{limit}",
                f"{found['bare']['peak_mib']:.0f}",
                f"**{over:.0f}**",
                bar,
                what,
            ]
        )
        print(rows[-1], flush=True)
    header = [
        "state MiB",
        "batch MiB",
        "memory_limit MiB",
        "bare peak MiB",
        "more with the recorder",
        "at most the limit + 10 %",
        "in the file",
    ]
    write_results(
        "memory",
        f"{machine_line(before)}\n\n{table(header, rows)}",
        {"machine": before, "rows": facts},
    )


if __name__ == "__main__":
    main()
