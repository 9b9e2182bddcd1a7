"""Whether a recorder changes any bit: small trainings of all kinds, each run bare and recorded.

Compared are weights, slots, metrics and history, random states, iterations, and what a training
leaves behind: attributes of the model, its train function, signal handlers, threads. Where the two
differ, bare training is run twice more: if its own runs differ, it is not deterministic and does
not count. At the end the recorder is asked for a file, which tells how many steps were recorded,
and must not change anything either.

Usage: python benchmarks/same_bits.py [--only TEXT]... [--sample N [--seed S]] [--processes N]

Exits with 1 if a training differs or the recorder failed in one, with 3 if one could not be run.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from measuring import ENVIRONMENT, error_line
from same_bits_grid.facts import (
    COLUMNS,
    Facts,
    differing,
    facts_of,
    left_behind,
    state_of,
    surroundings,
)
from same_bits_grid.grid import all_rows
from same_bits_grid.training import Attachment, Row

from nanreplay import Capture

ROWS_OF_A_PROCESS = 40
"""Not all memory of compiled functions is given back, so a process ends after so many."""
TIMEOUT_S = 1800
UNSTABLE = "not deterministic"
HEADER = ("training", *COLUMNS, "steps recorded", "remark")


# One training, in this process


def compare(row: Row, *, with_file: bool = True) -> dict[str, Any]:
    """Train bare and recorded; what differs, by column and name."""
    found: dict[str, Any] = {"title": row.title, "differs": {}, "steps": None, "remarks": []}
    try:
        bare = train(row).facts
    except Exception as error:
        return {**found, "failed": in_words(error)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            recorded = train(row, Path(folder), with_file=with_file)
            found |= {"steps": recorded.steps, "remarks": recorded.said}
            differs = what_differs(bare, recorded)
        except Exception as error:
            differs = {"the rest": {f"raised {in_words(error)}": 1}}
    if is_any(differs) and any(is_any(differing(bare, train(row).facts)) for _ in range(2)):
        return {**found, "differs": {}, "remarks": [UNSTABLE]}
    return {**found, "differs": differs}


def what_differs(bare: Facts, recorded: Result) -> dict[str, dict[str, int]]:
    """What differs by the recorder, and what a file that it wrote at the end changed."""
    found = differing(bare, recorded.facts)
    for column, counts in differing(recorded.facts, recorded.after_file).items():
        found[column] |= {f"{name} after the file": count for name, count in counts.items()}
    return found


def is_any(differs: dict[str, dict[str, int]]) -> bool:
    return any(differs.values())


def in_words(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


@dataclass(frozen=True)
class Result:
    """What is known after one training."""

    facts: Facts
    after_file: Facts
    """The same after the recorder wrote a file."""
    steps: int | None
    """Steps in that file; None: none was asked for."""
    said: list[str]
    """Warnings of nanreplay."""


def train(row: Row, folder: Path | None = None, *, with_file: bool = False) -> Result:
    """Run one training, recorded where there is a folder for files."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    attach, steps = Attachment(folder), None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        before = surroundings()
        trained = row.train(attach)
        facts = facts_of(trained)
        # A loop is over when its recorder is closed; `fit` is over when it returns.
        if with_file and attach.wrapping:
            steps = steps_in_files(attach)
        for recorder in attach.wrapping:
            recorder.close()
        facts["the rest"] = left_behind(trained, before)
        if with_file and not attach.wrapping:
            steps = steps_in_files(attach)
        after = {column: {**facts[column], **held} for column, held in state_of(trained).items()}
        for recorder in attach.recorders:
            recorder.close()
    texts = [str(each.message) for each in told]
    said = [text.splitlines()[0][:200] for text in texts if "nanreplay" in text]
    return Result(facts, after, steps, said)


def steps_in_files(attach: Attachment) -> int:
    """How many steps are in the files of all recorders, which are asked for one more each."""
    count = 0
    for recorder in attach.recorders:
        recorder.dump()
        for path in recorder.paths:
            with Capture(path) as capture:
                count += len(capture.steps)
    return count


def work(titles: Sequence[str], *, with_file: bool) -> None:
    """Compare the rows of these titles, and print one line of JSON for each."""
    rows, stdout = all_rows(), sys.stdout
    sys.stdout = sys.stderr  # what trainings print is no result
    for title in titles:
        prepare = rows[title].prepare
        if prepare is not None:
            prepare()
        print(json.dumps(compare(rows[title], with_file=with_file)), file=stdout, flush=True)


# All of them, in processes


def chosen(rows: Sequence[Row], only: Sequence[str], sample: int | None, seed: int) -> list[Row]:
    """Rows whose title holds one of the texts; of these a sample, with every group among it."""
    left = [row for row in rows if not only or any(text in row.title for text in only)]
    if sample is None or sample >= len(left):
        return left
    generator = random.Random(seed)
    groups: dict[str, list[Row]] = {}
    for row in generator.sample(left, len(left)):
        groups.setdefault(row.group, []).append(row)
    firsts = [group.pop() for group in groups.values()]
    rest = [row for group in groups.values() for row in group]
    return [*firsts, *generator.sample(rest, max(0, sample - len(firsts)))][:sample]


def in_processes(
    rows: Sequence[Row],
    processes: int,
    *,
    with_file: bool,
) -> Iterator[dict[str, Any]]:
    """The results of rows, as they come."""
    alone = [[row.title] for row in rows if row.prepare]
    others = [row.title for row in rows if not row.prepare]
    count = max(processes, -(-len(others) // ROWS_OF_A_PROCESS))
    # Neighbours take like times: each process gets a share of every group.
    shares = [*(others[start::count] for start in range(count)), *alone]
    results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    with ThreadPoolExecutor(processes) as pool:
        for titles in filter(None, shares):
            pool.submit(in_process, titles, results.put, with_file=with_file)
        for _ in rows:
            yield results.get()


def in_process(
    titles: Sequence[str],
    put: Callable[[dict[str, Any]], None],
    *,
    with_file: bool,
) -> None:
    """Hand over the results of rows that a child process works on."""
    command = [sys.executable, __file__, "--work", json.dumps(titles)]
    command += [] if with_file else ["--no-files"]
    left, why = list(titles), "it could not be read"
    try:
        with (
            tempfile.TemporaryFile("w+") as stderr,
            subprocess.Popen(
                command,
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as child,
        ):
            too_long = threading.Timer(TIMEOUT_S, child.kill)
            too_long.start()
            for text in child.stdout or ():
                if text.startswith("{"):  # what C++ prints is no result
                    put(json.loads(text))
                    left.pop(0)
            too_long.cancel()
            code = child.wait()
            stderr.seek(0)
            why = error_line(stderr.read()) or f"exit {code}"
    finally:
        for title in left:  # the one that reads waits for all of them
            put({"title": title, "failed": f"its process ended: {why}"})


def cells(result: dict[str, Any]) -> list[str]:
    """The row of the table of one training."""
    if "failed" in result:
        return [result["title"], *[""] * (len(HEADER) - 2), f"cannot be run: {result['failed']}"]
    differs = result["differs"]
    is_compared = UNSTABLE not in result["remarks"]
    numbers = [sum(differs.get(column, {}).values()) for column in COLUMNS]
    shown = [f"**{each}**" if each else "equal" if is_compared else "" for each in numbers]
    names = [name for column in differs.values() for name in column]
    remarks = [*result["remarks"], *([", ".join(names[:3])] if names else [])]
    steps = "" if result["steps"] is None else str(result["steps"])
    return [result["title"], *shown, steps, "; ".join(remarks)]


def line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "/") for text in texts) + " |"


def main() -> int:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--only", action="append", default=[], help="a text in the title")
    parser.add_argument("--sample", type=int, help="so many trainings, with each group among them")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="print the titles, and train nothing")
    parser.add_argument("--no-files", action="store_true", help="ask recorders for no file: faster")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(json.loads(given.work), with_file=not given.no_files)
        return 0

    rows = chosen(list(all_rows().values()), given.only, given.sample, given.seed)
    if given.list:
        print(*(row.title for row in rows), sep="\n")
        return 0
    print(line(HEADER), line(["---"] * len(HEADER)), sep="\n", flush=True)
    results = []
    for result in in_processes(rows, given.processes, with_file=not given.no_files):
        print(line(cells(result)), flush=True)
        results.append(result)
    return summary(results)


def summary(results: Sequence[dict[str, Any]]) -> int:
    """Print the last line; returns the exit code."""
    failed = [each for each in results if "failed" in each]
    others = [each for each in results if "failed" not in each]
    differing_ones = [each for each in others if is_any(each["differs"])]
    unstable = [each for each in others if UNSTABLE in each["remarks"]]
    silent = [each for each in others if each["steps"] == 0]
    broken = [
        each for each in others if any("Please report this" in say for say in each["remarks"])
    ]
    print(
        f"\n{len(differing_ones)} of {len(results)} trainings differ; {len(unstable)} {UNSTABLE}, "
        f"{len(failed)} cannot be run, {len(silent)} of which nothing was recorded, "
        f"{len(broken)} in which the recorder failed"
    )
    return 1 if differing_ones or broken else 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
