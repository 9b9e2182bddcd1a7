"""How recording and looking at a capture grow with the size of a model: time and memory against the
bytes of its state, and against the number of its ops.

Each row is a training to a NaN, recorded with the recorder's defaults, and one without a recorder,
each a process of its own; then `nanreplay info`, `replay`, `bisect` and `whatif` on its file, what
TensorFlow alone takes to make the program of the file ready, and a training that SIGTERM ends.
Below them stands what each figure is made of: a fixed part, which is mostly TensorFlow's import,
the power with which the rest grows (1 is linear), and how much of the growth up to the largest row
a quadratic term explains (0 % is linear).

A long training of many small steps follows, bare and recorded: memory on the way, and what is left
of its history.

Usage: python benchmarks/scale.py [--large] [--only STATE_MIB:LAYERS ...] [--models NAME ...]
                                  [--steps COUNT] [--batch MIB] [--folder DIR]
Without arguments it takes under 12 minutes on 2 idle cores and 4 GiB of memory. --large adds states
of 1.3 to 8 GiB, 10,000 variables, a batch of 500 MiB, 1,000,000 steps and models to be bisected,
which takes hours and 24 GiB of memory. --only 0:5000 is the row of 10,000 variables, --only 8192:0
an embedding of 8 GiB, --steps 1000000 alone the long training, --batch 500 alone the large batch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fitting import Growth, growth_of
from measuring import ENVIRONMENT, machine, machine_line, table, write_results

WORKER = Path(__file__).with_name("scale_once.py")
STEPS_WORKER = Path(__file__).with_name("scale_steps_once.py")
BISECT_WORKER = Path(__file__).with_name("scale_bisect_once.py")
TENSORFLOW_WORKER = Path(__file__).with_name("scale_tensorflow_once.py")
BATCH_WORKER = Path(__file__).with_name("memory_once.py")
TRANSFORMERS = [("8", "512", "10000"), ("12", "768", "30522")]
"""Blocks, width and words of transformers that are bisected: 30 and 110 million parameters."""
APPLICATIONS = [("MobileNetV3Small",), ("ResNet50V2",), ("EfficientNetV2B0",), ("DenseNet121",)]
"""Models of `keras.applications` that are bisected."""
MANY_VARIABLES = (0, 5000)
"""No state to speak of, in 10,000 variables."""
EMBEDDING = (8192, 0)
"""One table without slots, whose gradients are sparse."""
# the peaks of smaller states hide in that of importing TensorFlow
BY_STATE = [(20, 8), (80, 8), (160, 8), (320, 8), (640, 8)]
# the peaks of fewer layers hide in that of importing TensorFlow
BY_OPS = [(20, 8), (20, 16), (20, 32), (20, 64)]
LARGE = [(1280, 8), (2048, 8), (4096, 8)]
"""State in MiB and layers of each row."""
STEPS, LARGE_STEPS = 50_000, 1_000_000
"""Steps of a long training."""
LARGE_BATCH = 500
"""MiB of a batch."""
COMMANDS = ("info", "replay", "bisect", "whatif")
LEAST_FITTED = 4
"""Rows that are needed to tell a fixed part from what grows, and how."""


def measured(arguments: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
    """Run Python: seconds, the peak of its memory in MiB, its exit code, what it printed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], env=ENVIRONMENT, stdout=out, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        elapsed_s = time.perf_counter() - began_s
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        return {
            "s": elapsed_s,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_mib": usage.ru_maxrss / 1024,
            "code": process.returncode,
            "out": out.read(),
            "err": errors.read()[-500:],
        }


def facts_of(done: dict[str, Any]) -> dict[str, Any]:
    """What a worker printed on its last line."""
    lines = done["out"].strip().splitlines()
    if not lines:
        raise SystemExit(f"failed: {done}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def measure(state_mib: int, layers: int, folder: str | None) -> dict[str, Any]:
    """All figures of one model."""
    found: dict[str, Any] = {"state_mib": state_mib, "layers": layers}
    arguments = [str(state_mib), str(layers)]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for mode in ("bare", "nan"):
            found[mode] = facts_of(measured([WORKER, mode, *arguments, name]))
        capture = str(Path(name) / "run.h5")
        for command in COMMANDS:
            done = measured(["-m", "nanreplay", command, capture])
            found[command] = {key: done[key] for key in ("s", "cpu_s", "peak_mib", "code")}
            print(state_mib, layers, command, found[command], flush=True)
        found["tensorflow"] = facts_of(measured([TENSORFLOW_WORKER, capture]))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        found["sigterm"] = facts_of(measured([WORKER, "sigterm", *arguments, name]))
    return found


def bisected(model: Sequence[str], folder: str | None) -> dict[str, Any]:
    """Verdict, origin and cause of a model: memory, and processor time in eager steps.

    Processor time, since it hardly depends on what else the machine does.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        capture = str(Path(name) / "run.h5")
        found = facts_of(measured([BISECT_WORKER, *model, capture]))
        found["model"] = model[0] if len(model) == 1 else "transformer"
        importing = measured([BISECT_WORKER, "import"])
        done = measured(["-m", "nanreplay", "bisect", capture, "--json", "--no-fixes"])
        found |= json.loads(done["out"])["memory"]
        found |= {"s": done["s"], "cpu_s": done["cpu_s"] - importing["cpu_s"]}
    print(found, flush=True)
    return found


def bisected_row(found: dict[str, Any]) -> list[str]:
    """A row of the table of models that are bisected."""
    state_mib, peak_mib = found["state_bytes"] / 2**20, found["peak_bytes"] / 2**20
    return [
        found["model"],
        f"{found['parameters'] / 1e6:.0f} M",
        f"{found['ops']}",
        f"{state_mib:.0f}",
        f"{peak_mib:.0f}",
        f"{2.5 * state_mib + 1024:.0f}",
        f"{found['eager_step_s']:.2f}",
        f"{found['cpu_s']:.1f}",
        f"**{found['cpu_s'] / found['eager_step_s']:.1f}**",
    ]


def long_training(count: int, folder: str | None) -> dict[str, Any]:
    """Memory of a long training on its way, bare and recorded, and what its file holds."""
    found: dict[str, Any] = {}
    for mode in ("bare", "recorder"):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            found[mode] = facts_of(measured([STEPS_WORKER, mode, str(count), name]))
        print(mode, found[mode], flush=True)
    return found


def steps_table(found: dict[str, Any]) -> str:
    """Resident memory after each tenth of the steps, and the history that is left."""
    bare, recorded = found["bare"], found["recorder"]
    rows = []
    for step, *sizes in zip(
        recorded["steps"], bare["resident_mib"], recorded["resident_mib"], strict=True
    ):
        rows.append([f"{step:,}", *(f"{size:.1f}" for size in sizes)])
    older = "all of them"
    if recorded["older_rows"]:
        lowest, highest = recorded["older_losses"]
        older = (
            f"{recorded['older_rows']:,} of them before the last ones that are all there, none "
            f"more than {recorded['widest_gap']:,} after another, with losses from {lowest:.3g} "
            f"to {highest:.3g}"
        )
    history = (
        f"In the file ({recorded['file_mib']:.1f} MiB): {recorded['rows']:,} steps from step "
        f"{recorded['first_step']} on, {older}. A step takes {np.median(bare['step_us']):.0f} "
        f"microseconds of processor time bare, {np.median(recorded['step_us']):.0f} recorded."
    )
    return "\n".join([table(["steps", "bare MiB", "recorded MiB"], rows), "", history])


COLUMNS: dict[str, Any] = {
    "first step CPU s": lambda row: row["nan"]["first_step_s"],
    "bare first step CPU s": lambda row: row["bare"]["first_step_s"],
    "recorded less bare CPU s": lambda row: (
        row["nan"]["first_step_s"] - row["bare"]["first_step_s"]
    ),
    "dump CPU s": lambda row: row["nan"]["dump_s"],
    "TensorFlow alone CPU s": lambda row: sum(row["tensorflow"].values()),
    "dump less TensorFlow CPU s": lambda row: (
        row["nan"]["dump_s"] - sum(row["tensorflow"].values())
    ),
    "more MiB than bare": lambda row: row["nan"]["peak_mib"] - row["bare"]["peak_mib"],
    "file MiB": lambda row: row["nan"]["file_mib"],
    "SIGTERM to file s": lambda row: row["sigterm"]["file_s"],
    "plain write of the state s": lambda row: row["sigterm"]["plain_s"],
    "SIGTERM to file / plain write, CPU": lambda row: (
        row["sigterm"]["file_cpu_s"] / max(row["sigterm"]["plain_cpu_s"], 1e-3)
    ),
    **{f"{name} CPU s": lambda row, name=name: row[name]["cpu_s"] for name in COMMANDS},
    **{f"{name} MiB": lambda row, name=name: row[name]["peak_mib"] for name in COMMANDS},
}
"""What is shown of a row, and fitted."""


def rows_of(found: Sequence[dict[str, Any]], size_name: str) -> list[list[str]]:
    """The table of some models, the growth in its last row."""
    rows = [
        [
            f"{row['state_mib']}",
            f"{row['nan']['ops']}",
            f"{row['nan']['step_s'] / row['bare']['step_s']:.2f}",
            *(f"{figure(row):.3g}" for figure in COLUMNS.values()),
        ]
        for row in found
    ]
    sizes = [row["state_mib"] if size_name == "state" else row["nan"]["ops"] for row in found]
    if len(sizes) < LEAST_FITTED:
        return rows
    grown = [growth_of(sizes, [figure(row) for row in found]) for figure in COLUMNS.values()]
    return [
        *rows,
        ["fixed part", "", "", *(f"{each.fixed:.3g}" for each in grown)],
        [f"power of the {size_name}", "", "", *map(power_in_words, grown)],
        ["quadratic share", "", "", *(f"{each.quadratic_share:.0%}" for each in grown)],
    ]


def power_in_words(growth: Growth) -> str:
    """The power of what grows; "flat" where hardly anything does."""
    return "flat" if growth.power is None else f"{growth.power:.2f}"


def large_batch(batch_mib: int, folder: str | None) -> dict[str, Any]:
    """Peaks of a training with batches of that size, and of what looks at its file."""
    found: dict[str, Any] = {"batch_mib": batch_mib}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for mode in ("bare", "recorder"):
            case = [mode, "10", str(batch_mib), "auto", name]
            found[mode] = facts_of(measured([BATCH_WORKER, *case]))
        capture = str(Path(name) / "run.h5")
        for command in COMMANDS:
            done = measured(["-m", "nanreplay", command, capture])
            found[command] = {key: done[key] for key in ("s", "cpu_s", "peak_mib", "code")}
            print(batch_mib, command, found[command], flush=True)
    return found


def batch_table(found: dict[str, Any]) -> str:
    """Peaks, and what is in the file."""
    recorded = found["recorder"]
    rows = [["bare training", f"{found['bare']['peak_mib']:.0f}", ""]]
    rows.append(["recorded training", f"{recorded['peak_mib']:.0f}", ""])
    for command in COMMANDS:
        done = found[command]
        rows.append([command, f"{done['peak_mib']:.0f}", f"{done['cpu_s']:.1f}"])
    facts = (
        f"Batches of {found['batch_mib']} MiB: the file ({recorded['file_mib']:.0f} MiB) holds "
        f"{recorded['keyframes']} keyframes and {recorded['batches']} batches."
    )
    return "\n".join([table(["what", "peak MiB", "CPU s"], rows), "", facts, *recorded["said"]])


def case_of(text: str) -> tuple[int, int]:
    """State in MiB and layers of `640:8`."""
    state_mib, layers = map(int, text.split(":"))
    return state_mib, layers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--only", nargs="*", metavar="STATE_MIB:LAYERS")
    parser.add_argument("--models", nargs="*", metavar="NAME|BLOCKS:WIDTH:WORDS")
    parser.add_argument("--steps", type=int, metavar="COUNT")
    parser.add_argument("--batch", type=int, metavar="MIB")
    parser.add_argument("--folder", help="a folder on the disk to measure")
    given = parser.parse_args()
    before = machine()
    by_state, by_ops = [*BY_STATE, *(LARGE if given.large else [])], BY_OPS
    chosen = (given.only, given.models, given.steps, given.batch)
    is_chosen = any(each is not None for each in chosen)
    if is_chosen:
        by_state, by_ops = list(map(case_of, given.only or ())), []
    header = ["state MiB", "ops", "step / bare, CPU", *COLUMNS]
    text: list[str] = [machine_line(before)]
    facts: list[dict[str, Any]] = []
    known: dict[tuple[int, int], dict[str, Any]] = {}
    for case in dict.fromkeys((*by_state, *by_ops)):
        known[case] = measure(*case, given.folder)
    facts += known.values()
    for name, cases in (("state", by_state), ("ops", by_ops)):
        measured_rows = [known[case] for case in cases]
        if measured_rows:
            text += ["", table(header, rows_of(measured_rows, name))]
    if given.large and not is_chosen:
        for title, case in (("10,000 variables:", MANY_VARIABLES), ("An embedding:", EMBEDDING)):
            single = measure(*case, given.folder)
            facts.append(single)
            text += ["", title, "", table(header, rows_of([single], "ops"))]
    models = [*TRANSFORMERS, *APPLICATIONS] if given.large and not is_chosen else []
    if given.models is not None:
        models = [tuple(each.split(":")) for each in given.models]
    explained = [bisected(model, given.folder) for model in models]
    if explained:
        header = [
            "model", "parameters", "ops", "state MiB", "bisect MiB", "bar MiB", "eager step, CPU s",
            "bisect, CPU s", "bisect / eager step (bar 10)",
        ]  # fmt: skip
        text += ["", table(header, [bisected_row(found) for found in explained])]
        facts += explained
    batch_mib = given.batch or (LARGE_BATCH if given.large and not is_chosen else 0)
    if batch_mib:
        found = large_batch(batch_mib, given.folder)
        text += ["", batch_table(found)]
        facts.append(found)
    count = given.steps or (0 if is_chosen else LARGE_STEPS if given.large else STEPS)
    if count:
        found = long_training(count, given.folder)
        text += ["", steps_table(found)]
        facts.append(found)
    write_results("scale", "\n".join(text), {"machine": before, "rows": facts})


if __name__ == "__main__":
    main()
