"""What is left in memory of each of many trainings in one process, as a search for hyperparameters
runs them, recorded and bare.

Each measurement is a process of its own that trains one small model after the other, each with a
`Recorder` of its own. After each the session is cleared and garbage collected. The growth is taken
from the tenth training on.

TensorFlow frees no graph of a Keras optimizer's step. A file names the line of each op, and
TensorFlow keeps the stack that was read for it with the op: of a training that writes a file, it
keeps more.

Usage: python benchmarks/many_fits.py [--fits 30]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measuring import last_json, machine, machine_line, run, table, write_results

WORKER = Path(__file__).with_name("many_fits_once.py")
MODES = {
    "bare": "bare `fit`",
    "recorder": "`Recorder`",
    "dump": "`Recorder`, and `recorder.dump()` at the end of each",
    "incident": "`Recorder`, and an incident in each",
}
FIRST = 10
"""Trainings that are not counted: TensorFlow's own caches fill in them."""
TOLERANCE_MIB = 0.5
STACK_MIB = 20 / 1024
"""What TensorFlow keeps of the stack of an op in `fit` once it was read; measured: 18 KiB."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fits", type=int, default=30)
    fits = parser.parse_args().fits
    if fits <= FIRST:
        parser.error(f"Expected --fits above {FIRST}. Received: {fits}")
    rows, facts, before = [], {}, machine()
    growth: dict[str, float] = {}
    for mode, title in MODES.items():
        with tempfile.TemporaryDirectory() as folder:
            _, done = run([WORKER, mode, str(fits), folder])
        facts[mode] = last_json(done)
        if "error" in facts[mode]:
            raise SystemExit(f"failed: {mode}: {facts[mode]['error']}")
        resident = facts[mode]["resident_mib"]
        growth[mode] = (resident[-1] - resident[FIRST - 1]) / (fits - FIRST)
        most = growth["bare"] + TOLERANCE_MIB + STACK_MIB * facts[mode]["ops"]
        bar = "" if mode == "bare" else f"{most:.2f}: {'yes' if growth[mode] <= most else '**no**'}"
        rows.append(
            [
                title,
                f"{resident[FIRST - 1]:.0f}",
                f"{resident[-1]:.0f}",
                f"**{growth[mode]:.2f}**",
                bar,
            ]
        )
        print(rows[-1], flush=True)
    header = [
        "training",
        f"MiB after {FIRST}",
        f"MiB after {fits}",
        "MiB more a training",
        f"at most bare + {TOLERANCE_MIB} and stacks",
    ]
    write_results(
        "many_fits",
        f"{machine_line(before)}\n\n{table(header, rows)}",
        {"machine": before, "modes": facts},
    )


if __name__ == "__main__":
    main()
