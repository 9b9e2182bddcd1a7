"""How soon `nanreplay open` shows what the file holds, the answer, and all that it leads to, and
whether keys are answered while a replay runs.

All of it in a pseudo-terminal, as a user sees it; times begin with the process. First paint: until
source, batch and loss are on the screen, of a large capture and of a small one. The sentence: until
it is on the screen, beside `nanreplay bisect --no-fixes`, one after the other in each round; wall
time, and processor time until then of the interface and its worker together. Keys: the cursor of
the timeline is moved ten times a second until fixes have been tried; beside it `open_control.py`,
which answers keys at once while the same worker runs. Tabs after the sentence: `open_answers.py`.

Usage: python benchmarks/open.py [--gib 2] [--runs 7] [--rounds 3]
                                 [--capture sample_runs/exploding_rnn.h5]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from info import large_contents
from measuring import ROOT, last_json, machine, machine_line, run, table, write_results
from pty_session import Session, peak_mib, processor_s

from nanreplay.capture.writer import write_capture
from nanreplay.records import Frame
from nanreplay.report.headline import headline
from nanreplay.report.report_json import from_json

OPEN = ("-m", "nanreplay", "open")
KEY_EVERY_S, SLOW_S = 0.1, 0.1
"""Seconds between two keys, and from which on an answer is slow."""
IDLE_S = 1.5
"""Seconds without processor time after which the worker has done its work."""


def first_paint_s(capture: Path) -> float:
    """Seconds until source, batch and loss are on the screen."""

    def is_there(text: str) -> bool:
        # The titles name a file and rows once they are read; the mark is below the loss's plot.
        return all(part in text for part in ("Source  ", "Batch  ", "▲"))

    with Session([*OPEN, capture]) as session:
        return session.until(is_there)


def bisected(capture: Path, *options: str) -> dict[str, Any]:
    """Times of `nanreplay bisect`, and its report."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall_s, done = run(["-m", "nanreplay", "bisect", capture, "--json", *options])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        sys.exit(f"bisect failed: {done.stderr.strip()}")
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"wall_s": wall_s, "processor_s": processor, "report": json.loads(done.stdout)}


def sentence(capture: Path, words: str) -> dict[str, float]:
    """Times until a headline is on the screen; then the worker's peak once fixes are tried."""
    with Session([*OPEN, capture]) as session:
        wall_s = session.until(lambda text: words in text)
        taken_s = session.processor_s()
        worker = session.worker()
        assert worker is not None
        until_idle(session, worker)
        return {"wall_s": wall_s, "processor_s": taken_s, "worker_mib": peak_mib(worker)}


def until_idle(session: Session, worker: int) -> None:
    """Wait until the worker has done its work."""
    taken, at = processor_s(worker), time.perf_counter()
    while time.perf_counter() - at < IDLE_S:
        session.read(0.1)
        if processor_s(worker) > taken:
            taken, at = processor_s(worker), time.perf_counter()


def keys_of_interface(capture: Path) -> list[float]:
    """Seconds that each key takes until the cursor of the timeline has moved."""
    with Session([*OPEN, capture]) as session:
        session.until(lambda text: "▲" in text)
        session.press("2")
        session.until(lambda text: "gradient norm" in text)
        return list(answered(session, ["h", "l"], "step "))


def keys_of_control(capture: Path) -> list[float]:
    """Seconds that each key takes where nothing but the worker runs beside it."""
    with Session(["benchmarks/open_control.py", capture]) as session:
        session.until(lambda text: "ready" in text)
        return list(answered(session, ["h"], "key "))


def answered(session: Session, keys: Sequence[str], answer: str) -> Iterator[float]:
    """Press keys in turn until the worker has done its work; seconds until each was answered."""
    worker = session.worker()
    taken, at, turn = -1.0, time.perf_counter(), 0
    while time.perf_counter() - at < IDLE_S or worker is None:
        worker = worker or session.worker()
        now = processor_s(worker) if worker is not None else 0.0
        if now > taken:
            taken, at = now, time.perf_counter()
        session.press(keys[turn % len(keys)])
        turn += 1
        pressed = time.perf_counter()
        session.until(lambda text: answer in text, timeout_s=60)
        yield time.perf_counter() - pressed
        while (left := pressed + KEY_EVERY_S - time.perf_counter()) > 0:
            session.read(left)


def key_row(name: str, keys: Sequence[float], bar: str) -> list[str]:
    """Share of slow keys, median and 99th percentile."""
    slow = sum(key > SLOW_S for key in keys) / len(keys)
    middle, late = np.percentile(keys, (50, 99))
    measured = f"**{slow:.1%}** of {len(keys)} over 0.1 s"
    return [name, bar, measured, f"median {middle:.3f} s, 99 % under {late:.3f} s"]


@contextlib.contextmanager
def without_answer(capture: Path) -> Iterator[Path]:
    """A copy of a capture that holds no answer, beside the program that it is of."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(capture, folder))
        program = capture.with_suffix(".py")
        if program.exists():
            shutil.copy(program, folder)
        with h5py.File(copy, "r+") as file:
            if "report" in file:
                del file["report"]
        yield copy


def paint_row(capture: Path, runs: int) -> tuple[list[float], list[str]]:
    """First paints of a capture."""
    times = [first_paint_s(capture) for _ in range(runs)]
    size_mib = os.path.getsize(capture) / 2**20
    size = f"{size_mib / 1024:.2f} GiB" if size_mib > 1024 else f"{size_mib:.1f} MiB"
    middle = f"**{statistics.median(times):.2f} s**"
    what = f"source, batch and loss on the screen, {size}"
    return times, [what, "1 s", middle, f"{min(times):.2f} to {max(times):.2f} s"]


def sentence_rows(capture: Path, rounds: int) -> tuple[dict[str, Any], list[list[str]]]:
    """The sentence beside `nanreplay bisect`, and the worker's peak beside its peak."""
    answered_fully = bisected(capture)
    words = headline(from_json(bisected(capture, "--no-fixes")["report"]))
    pairs = []
    for _ in range(rounds):
        told = bisected(capture, "--no-fixes")
        del told["report"]
        pairs.append((told, sentence(capture, words)))
    rows = []
    for kind in ("wall", "processor"):
        ratios = [ours[f"{kind}_s"] / theirs[f"{kind}_s"] for theirs, ours in pairs]
        ours_s, theirs_s = (
            statistics.median(pair[who][f"{kind}_s"] for pair in pairs) for who in (1, 0)
        )
        measured = f"**{statistics.median(ratios):.2f}** of it: {ours_s:.1f} s"
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        bar = f"`bisect --no-fixes`: {theirs_s:.1f} s"
        rows.append([f"sentence, {kind} time", bar, measured, spread])
    peak = answered_fully["report"]["memory"]["peak_bytes"] / 2**20
    ours_mib = statistics.median(ours["worker_mib"] for _, ours in pairs)
    bar = f"`bisect`: {peak:.0f} MiB"
    rows.append(["worker's peak, fixes tried", bar, f"**{ours_mib:.0f} MiB**", ""])
    return {"pairs": pairs, "bisect_mib": peak}, rows


def tab_rows(capture: Path) -> tuple[dict[str, Any], list[list[str]]]:
    """How soon after the sentence the tabs show it."""
    found = last_json(run(["benchmarks/open_answers.py", str(capture)])[1])
    if "error" in found:
        sys.exit(f"open_answers.py failed: {found['error']}")
    names = ("tree", "tensor", "batch")
    rows = [
        [f"{name}, after the sentence", "0.3 s", f"**{found[f'{name}_after_s']:.2f} s**", ""]
        for name in names
    ]
    return found, rows


@contextlib.contextmanager
def large_capture(given: argparse.Namespace) -> Iterator[Path]:
    """A capture of random keyframes, whose ops were made by a line of code."""
    contents = large_contents(int(given.gib * 2**30))
    frame = Frame("train.py", 12, "log_loss", "return -tf.reduce_mean(tf.math.log(likely))")
    programs = [
        replace(program, ops=[replace(op, stack=0) for op in program.ops])
        for program in contents.programs
    ]
    contents = replace(contents, programs=programs, frames=[frame], stacks=[[0]])
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        large = Path(folder) / "large.h5"
        write_capture(large, contents)
        yield large


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2.0, help="size of the large capture")
    parser.add_argument("--folder", help="where the large capture is written meanwhile")
    parser.add_argument("--runs", type=int, default=7, help="of the first paint")
    parser.add_argument("--rounds", type=int, default=3, help="of the sentence and of keys")
    parser.add_argument(
        "--capture",
        type=Path,
        default=ROOT / "sample_runs" / "exploding_rnn.h5",
        help="what is replayed",
    )
    given = parser.parse_args()
    facts, rows, raw = machine(), [], {}

    def took(name: str, found: Any, *more: list[str]) -> None:
        raw[name] = found
        for row in more:
            rows.append(row)
            print(" | ".join(row), file=sys.stderr, flush=True)

    with without_answer(given.capture) as capture:
        times, row = paint_row(capture, given.runs)
        took("paint", times, row)
        with large_capture(given) as large:
            times, row = paint_row(large, given.runs)
        took("paint_large", times, row)
        found, more = sentence_rows(capture, given.rounds)
        took("sentence", found, *more)
        found, more = tab_rows(capture)
        took("tabs", found, *more)
        keys: dict[str, list[float]] = {"interface": [], "control": []}
        for _ in range(given.rounds):
            keys["interface"] += keys_of_interface(capture)
            keys["control"] += keys_of_control(capture)
        row = key_row("keys while a replay runs", keys["interface"], "0.1 s")
        took("keys", keys, row, key_row("the same, control", keys["control"], ""))
    runs = f"Median of {given.runs} processes for the first paint, {given.rounds} for others"
    text = f"{machine_line(facts)} {runs}; {given.capture.stem} is what is replayed.\n\n"
    text += table(["what", "bar", "measured", "range"], rows)
    write_results("open", text, {"machine": facts, **raw})


if __name__ == "__main__":
    main()
