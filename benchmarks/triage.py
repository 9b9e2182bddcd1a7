"""`nanreplay triage` on a folder of many captures: a first run, a second one, one with a new file.

The folder holds copies of the sample runs. Copies with the same content are bisected once; with
`--own` some of them get bytes of their own, so that each of these is bisected. The cache is a
folder of its own. A run is a process with its workers; its processor time is theirs too.

Usage: python benchmarks/triage.py [--files 500] [--own 0] [--workers N]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
from measuring import ROOT, machine, machine_line, run, table, write_results

SAMPLES = sorted((ROOT / "sample_runs").glob("*.h5"))
SETTLED_S = 2.5
"""The cache trusts the time of a change only once it is two seconds old."""


class Run(NamedTuple):
    """One run of the command."""

    name: str
    files: int
    from_cache: int
    groups: int
    wall_s: float
    processor_s: float


def main() -> None:
    """Measure the runs and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--own", type=int, default=0, help="how many get bytes of their own")
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    if not 0 <= given.own <= given.files or not given.files:
        parser.error("Expected --files above 0, and --own between 0 and --files.")
    workers = [] if given.workers is None else ["--workers", str(given.workers)]
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        runs = list(measured(Path(folder), given.files, given.own, workers))
    rows = [
        [
            each.name,
            f"{each.files:,}",
            f"{each.from_cache:,}",
            str(each.groups),
            f"**{each.wall_s:.2f} s**",
            f"{each.processor_s:.2f} s",
        ]
        for each in runs
    ]
    headings = ["run", "captures", "known from the cache", "groups", "wall time", "processor time"]
    text = f"{machine_line(facts)}\n\n" + table(headings, rows)
    values = {"machine": facts, "own": given.own, "runs": [each._asdict() for each in runs]}
    write_results("triage", text, values)


def measured(folder: Path, n_files: int, n_own: int, workers: Sequence[str]) -> Iterator[Run]:
    """The three runs on a folder of copies."""
    captures, cache = folder / "captures", folder / "cache"
    captures.mkdir()
    for number in range(n_files):
        copy = captures / f"{number:06}.h5"
        shutil.copyfile(SAMPLES[number % len(SAMPLES)], copy)
        if number < n_own:
            note(copy)
    time.sleep(SETTLED_S)
    command = ["-m", "nanreplay", "triage", str(captures), "--cache", str(cache), "--json"]
    for name in ("first", "second", "one file is new"):
        if name == "one file is new":
            note(Path(shutil.copyfile(SAMPLES[0], captures / "new.h5")))
        before = processor_s()
        wall_s, done = run([*command, *workers])
        if done.returncode not in (0, 1, 3):
            raise SystemExit(f"failed: {done.stderr.strip()}")
        value = json.loads(done.stdout)
        known = sum(each["cached"] for each in value["captures"])
        total = len(value["captures"])
        yield Run(name, total, known, len(value["groups"]), wall_s, processor_s() - before)


def note(capture: Path) -> None:
    """Give a capture bytes of its own, with what it records unchanged."""
    with h5py.File(capture, "r+") as file:
        file.attrs["note"] = capture.name


def processor_s() -> float:
    """Processor time of all processes that this one has waited for, and of those that they had."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
