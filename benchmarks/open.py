"""How soon `nanreplay open` shows a large capture, the answer and all that it leads to, and whether
keys are answered while TensorFlow loads and a replay runs.

First paint: a process in a pseudo-terminal, from its start until the answer's box is on the
screen; median of seven. Stalls: the
interface without a screen, in a process of its own; a timer in its event loop asks to be called
every 5 ms, and keys are pressed
meanwhile. The answer: see `open_answers.py`; beside it `nanreplay bisect --json` of the same
capture, its time and its peak of memory. For comparison, the same replay runs in a thread of the
interface's own process.

Usage: python benchmarks/open.py [--gib 2] [--runs 7] [--capture sample_runs/exploding_rnn.h5]
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any

from info import large_contents
from measuring import ENVIRONMENT, ROOT, last_json, machine, machine_line, run, table, write_results

from nanreplay.capture.writer import write_capture

COLUMNS, LINES = 120, 40
PAINTED = b"Export"
"""Part of the last line of the first picture."""


def first_paint_s(capture: Path, *, timeout_s: float = 30) -> float:
    """Seconds from the start of `nanreplay open` until the first picture is complete."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**ENVIRONMENT, "TERM": "xterm-256color"}
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "nanreplay", "open", str(capture)],
        stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    try:
        while PAINTED not in seen:
            if time.perf_counter() - began > timeout_s or child.poll() is not None:
                sys.exit(f"nothing was painted: {seen[-400:]!r}")
            if select.select([controller], [], [], 0.1)[0]:
                seen += os.read(controller, 65536)
        return time.perf_counter() - began
    finally:
        os.killpg(child.pid, signal.SIGKILL)  # of the session that was started above
        child.wait()
        os.close(controller)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2.0, help="size of the large capture")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument(
        "--folder", default=None, help="where the capture is written for the time of the benchmark"
    )
    parser.add_argument(
        "--capture", default=str(ROOT / "sample_runs" / "exploding_rnn.h5"), help="what is replayed"
    )
    parser.add_argument("--also", nargs="*", default=[], help="more captures to open")
    given = parser.parse_args()
    facts, rows, raw = machine(), [], {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        large = Path(folder) / "large.h5"
        write_capture(large, large_contents(int(given.gib * 2**30)))
        size_gib = os.path.getsize(large) / 2**30
        times = [first_paint_s(large) for _ in range(given.runs)]
    raw["first_paint_s"] = times
    rows.append(
        [
            f"first paint, capture of {size_gib:.2f} GiB",
            "1 s",
            f"**{statistics.median(times):.2f} s**",
            _range(times, "s"),
        ]
    )
    for where, bar in (("process", "0.1 s"), ("thread", "")):
        found = last_json(run(["benchmarks/open_stalls.py", given.capture, where])[1])
        raw[where] = found
        if "error" in found:
            sys.exit(f"open_stalls.py {where} failed: {found['error']}")
        name = "worker process" if where == "process" else "thread, for comparison"
        rows.append(
            [
                f"longest stall of the event loop, {name}",
                bar,
                f"**{found['stall_s']:.3f} s**",
                f"{found['over']} above 0.1 s",
            ]
        )
        if where == "process":
            keys = found["keys_s"]
            rows.append(
                [
                    "a key meanwhile, until the cursor has moved",
                    bar,
                    f"**{statistics.median(keys):.3f} s**",
                    _range(keys, "s"),
                ]
            )
            rows.append(
                [
                    "start to final report",
                    "",
                    f"{found['total_s']:.1f} s",
                    f"{Path(given.capture).name}",
                ]
            )
    for capture in (given.capture, *given.also):
        raw[f"answers of {Path(capture).name}"], more = answers(Path(capture))
        rows += more
    header = ["what", "bar", "measured", "range"]
    text = (
        f"{machine_line(facts)} Median of {given.runs} processes for the first paint.\n\n"
        + table(header, rows)
    )
    write_results("open", text, {"machine": facts, **raw})


def answers(capture: Path) -> tuple[dict[str, Any], list[list[str]]]:
    """Rows of how soon the answer and the tabs are there, beside `nanreplay bisect`."""
    bisect_s, done = run(["-m", "nanreplay", "bisect", str(capture), "--no-fixes", "--json"])
    bisect_mib = json.loads(done.stdout)["peak_bytes"] / 2**20
    found = last_json(run(["benchmarks/open_answers.py", str(capture)])[1])
    if "error" in found:
        sys.exit(f"open_answers.py failed: {found['error']}")
    bars = (
        ("source, batch and loss on the first screen", "source_batch_loss_s", "1 s"),
        ("sentence", "sentence_s", f"bisect: {bisect_s:.1f} s"),
        ("tree as it ran, after the sentence", "tree_after_s", "0.3 s"),
        ("tensor of the origin, after the sentence", "tensor_after_s", "0.3 s"),
        ("batch, after the sentence", "batch_after_s", "0.3 s"),
    )
    rows = [
        [f"{what}, {capture.stem}", bar, f"**{found[name]:.2f} s**", ""] for what, name, bar in bars
    ]
    memory = f"**{found['worker_mib']:.0f} MiB**"
    rows.append([f"worker's peak, {capture.stem}", f"bisect: {bisect_mib:.0f} MiB", memory, ""])
    return {**found, "bisect_s": bisect_s, "bisect_mib": bisect_mib}, rows


def _range(times: list[float], unit: str) -> str:
    return f"{min(times):.3f} to {max(times):.3f} {unit}"


if __name__ == "__main__":
    main()
