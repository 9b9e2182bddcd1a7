"""What recording costs, for a noisy machine: a bare and a recorded model train in turns in one process.

Both train a short epoch, over and over (`fit`, or a loop over a `tf.function`), the order changing from round to round. The
ratio is taken within a round; the median of the rounds is the figure. `overhead.py` measures whole processes, and TensorFlow's own
tools as well. The time of the processor, on all cores, is told too: other work on the machine disturbs it less.

Usage: python benchmarks/overhead_paired.py [--rounds 15] [--models mlp,cnn] [--xla off|on|both]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import machine, machine_line, table, write_results

MODELS = ("mlp", "cnn", "transformer", "loop")
SHARE = 4
"""An epoch is a quarter of that of `overhead.py`."""


def measure_here(model: str, xla: str, rounds: int) -> None:
    """Print the ratio of each round; runs in a process of its own."""
    from trainings import TRAININGS, run_loop, train_step

    from nanreplay import Recorder

    training = TRAININGS[model]
    x, y = training.data()
    count = len(x) // SHARE // training.batch * training.batch
    x, y = x[:count], y[:count]
    models = {mode: training.model(jit_compile=xla == "on") for mode in ("bare", "recorder")}
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder) / "run.h5")
        callbacks = {"bare": [], "recorder": [recorder]}
        steps = {mode: train_step(each, jit_compile=xla == "on") for mode, each in models.items()} if model == "loop" else {}
        if steps:
            steps["recorder"] = recorder.wrap(steps["recorder"], model=models["recorder"], optimizer=models["recorder"].optimizer)

        def epoch(mode: str) -> tuple[float, float]:
            started = time.perf_counter(), time.process_time()
            if steps:
                run_loop(steps[mode], x, y, training.batch)
            else:
                models[mode].fit(x, y, batch_size=training.batch, shuffle=False, verbose=0, callbacks=callbacks[mode])
            return time.perf_counter() - started[0], time.process_time() - started[1]

        for mode in ("bare", "recorder", "bare", "recorder"):
            epoch(mode)
        same = all(np.array_equal(one, other) for one, other in zip(*(each.get_weights() for each in models.values()), strict=True))
        print("same" if same else "differ")
        for turn in range(rounds):
            order = ("bare", "recorder") if turn % 2 else ("recorder", "bare")
            seconds = {mode: epoch(mode) for mode in order}
            (wall, processor), (bare_wall, bare_processor) = seconds["recorder"], seconds["bare"]
            print(wall / bare_wall, bare_wall, processor / bare_processor, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--xla", choices=("off", "on", "both"), default="both")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        measure_here(given.here, given.xla, given.rounds)
        return
    rows, facts = [], []
    for model, xla in itertools.product(given.models.split(","), ["off", "on"] if given.xla == "both" else [given.xla]):
        command = [sys.executable, __file__, "--here", model, "--xla", xla, "--rounds", str(given.rounds)]
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", **os.environ}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, check=True)
        same, *lines = done.stdout.splitlines()
        pairs = [tuple(map(float, line.split())) for line in lines]
        ratios = sorted(pair[0] for pair in pairs)
        processor = statistics.median(pair[2] for pair in pairs)
        quarter = len(ratios) // 4
        bare_s = statistics.median(pair[1] for pair in pairs)
        spread = f"{ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}"
        rows.append(
            [
                model,
                xla,
                f"**{statistics.median(ratios):.3f}**",
                spread,
                f"{processor:.3f}",
                f"{bare_s:.2f}",
                "yes" if same == "same" else "**no**",
            ]
        )
        facts.append({"model": model, "xla": xla, "ratios": ratios, "processor": processor, "same_weights": same == "same"})
        print(rows[-1], file=sys.stderr, flush=True)
    text = table(
        ["model", "XLA", "time / bare", "middle half of the rounds", "processor time / bare", "s / bare epoch", "weights as bare"], rows
    )
    write_results("overhead_paired", f"{machine_line(machine())} {given.rounds} rounds.\n\n{text}", {"rows": facts})


if __name__ == "__main__":
    main()
