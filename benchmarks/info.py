"""How fast `nanreplay info` opens a large capture, and `nanreplay --help` answers: processes,
median of seven.

Usage: python benchmarks/info.py [--gib 1] [--runs 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import machine, machine_line, run, table, write_results

from nanreplay.capture.writer import write_capture
from nanreplay.records import (
    BatchRecord,
    CaptureContents,
    Incident,
    OpInfo,
    ProgramRecord,
    Signature,
    Timeline,
    Trigger,
    VariableInfo,
)

VARIABLES, STEPS, KEYFRAMES, OPS = 64, 32, 4, 4000


def large_contents(size_bytes: int) -> CaptureContents:
    """A capture of random keyframes, which no compression makes smaller, with as many ops as a
    transformer has."""
    random = np.random.default_rng(0)
    each = size_bytes // (KEYFRAMES * VARIABLES * 4)
    shape = (each // 1024, 1024)
    values = random.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
    infos = [
        VariableInfo(f"block_{index}/kernel", shape, "float32", "trainable")
        for index in range(VARIABLES)
    ]
    ops = [
        OpInfo(
            "",
            f"functional/block_{index % 64}/op_{index}",
            "MatMul",
            f"block_{index % 64}",
            "forward",
            "layer",
            -1,
            "",
            "",
        )
        for index in range(OPS)
    ]
    batch = random.normal(size=(32, 128)).astype(np.float32)
    fingerprint = np.zeros(2 * VARIABLES + 1, np.float32)
    layout = (
        "loss:0",
        *(
            f"{kind}:{index}"
            for index in range(VARIABLES)
            for kind in ("gradient_sum", "variable_sum")
        ),
    )
    signature = Signature("graph", inputs=(), captures=(), watch_layout=layout)
    history = 10_000
    matrix = random.normal(size=(history, VARIABLES)).astype(np.float32)
    return CaptureContents(
        metadata={
            "nanreplay": "0",
            "tensorflow": "2.21.0",
            "created": "2026-01-01T00:00:00+00:00",
            "script": "train.py",
        },
        variables=infos,
        programs=[ProgramRecord("p0", random.bytes(2_000_000), signature, ops)],
        keyframes={
            step: dict.fromkeys(range(VARIABLES), values)
            for step in range(history - STEPS, history, STEPS // KEYFRAMES)
        },
        batches={
            step: BatchRecord("p0", [batch], ["x"], fingerprint)
            for step in range(history - STEPS, history)
        },
        timeline=Timeline(
            {
                "step": np.arange(history),
                **dict.fromkeys(
                    ("loss", "learning_rate", "step_time_s"), np.arange(history, dtype=np.float64)
                ),
            },
            dict.fromkeys(
                ("gradient_norm", "gradient_absmax", "weight_norm", "update_ratio"), matrix
            ),
            tuple(range(VARIABLES)),
        ),
        incident=Incident(history - 1, Trigger("loss", "loss", "nan")),
    )


def seconds(arguments: list[str], runs: int) -> tuple[float, float, float]:
    """Median, best and worst wall time of a process."""
    times = []
    for _ in range(runs):
        elapsed_s, done = run(arguments)
        if done.returncode:
            sys.exit(f"{' '.join(arguments)} failed: {done.stderr.strip()}")
        times.append(elapsed_s)
    return statistics.median(times), min(times), max(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=1.0, help="size of the capture")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument(
        "--folder", default=None, help="where the capture is written for the time of the benchmark"
    )
    given = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        capture = Path(folder) / "large.h5"
        write_capture(capture, large_contents(int(given.gib * 2**30)))
        size_gib = os.path.getsize(capture) / 2**30
        found = {
            f"`nanreplay info` on {size_gib:.2f} GiB": (
                0.5,
                seconds(["-m", "nanreplay", "info", str(capture)], given.runs),
            ),
            f"`nanreplay info --json` on {size_gib:.2f} GiB": (
                0.5,
                seconds(["-m", "nanreplay", "info", "--json", str(capture)], given.runs),
            ),
            "`nanreplay --help`": (0.4, seconds(["-m", "nanreplay", "--help"], given.runs)),
        }
    rows = [
        [name, f"{bar} s", f"**{median:.3f} s**", f"{low:.3f} to {high:.3f} s"]
        for name, (bar, (median, low, high)) in found.items()
    ]
    text = f"{machine_line(facts)} Median of {given.runs} processes.\n\n" + table(
        ["command", "bar", "median", "range"], rows
    )
    write_results(
        "info",
        text,
        {"machine": facts, "seconds": {name: each for name, (_, each) in found.items()}},
    )


if __name__ == "__main__":
    main()
