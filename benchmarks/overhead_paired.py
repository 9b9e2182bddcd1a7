"""What recording costs, for a noisy machine: bare and recorded trainings take turns of a few steps
within one process.

Three trainings run, each in a thread of its own: a bare one, a recorded one, and a bare one
again. One thread at a time
holds the turn, runs four steps, and hands it on, in an order that changes from round to round.
The figure is the median over
the rounds of the recorded turn to the mean of the two bare ones; the ratio of the bare ones
shows what the machine's noise
makes of no difference at all. The first turns, in which steps are traced and compiled, are told
apart. `overhead.py` measures
whole processes, and TensorFlow's own tools as well.

Usage: python benchmarks/overhead_paired.py [--rounds 100] [--models mlp,cnn] [--xla off|on|both]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import ENVIRONMENT, machine, machine_line, table, write_results

MODELS = (
    "mlp",
    "cnn",
    "transformer",
    "loop",
    "trainer",
    "small_mlp",
    "small_mlp_by_8",
    "tiny_loop",
    "tiny_trainer",
    "train_on_batch",
    "eager_loop",
    "run_eagerly",
)
LOOPS = ("loop", "trainer", "tiny_loop", "tiny_trainer", "train_on_batch", "eager_loop")
"""Those that train in a loop of their own; the others in `fit`."""
WITHOUT_XLA = ("eager_loop", "run_eagerly")
"""Those whose steps run in Python, op by op."""
MODES = ("bare", "recorder", "bare again")
STEPS = 4
"""Steps of a turn."""
WARM_UP = 5
"""Rounds before the measured ones: tracing, compiling, the first keyframes."""


class Turns:
    """Lets trainings run in turns, and times each turn.

    Args:
        rounds: How often each training gets its turn.
    """

    def __init__(self, rounds: int) -> None:
        self.seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
        self.processor_s: dict[str, list[float]] = {mode: [] for mode in MODES}
        self._go = {mode: threading.Semaphore(0) for mode in MODES}
        self._done = threading.Semaphore(0)
        self._left = dict.fromkeys(MODES, 0)
        self._rounds = rounds

    def step_ends(self, mode: str) -> None:
        """Called by a training after each step; returns when it may run the next one."""
        self._left[mode] -= 1
        if self._left[mode] == 0:
            self._done.release()
            self._wait(mode)

    def _wait(self, mode: str) -> None:
        self._go[mode].acquire()
        self._left[mode] = STEPS

    def run(self, train: Callable[[str], None]) -> None:
        """Run `train(mode)` in a thread for each mode, until all of them have run all steps."""

        def body(mode: str) -> None:
            self._wait(mode)
            try:
                train(mode)
            except BaseException:
                self._left[mode] = -1
                self._done.release()
                raise

        threads = [threading.Thread(target=body, args=(mode,), daemon=True) for mode in MODES]
        for thread in threads:
            thread.start()
        order = random.Random(1)
        for _ in range(self._rounds):
            for mode in order.sample(MODES, len(MODES)):
                began_s = time.perf_counter(), time.process_time()
                self._go[mode].release()
                self._done.acquire()
                if self._left[mode] < 0:
                    raise SystemExit(f"The {mode} training failed.")
                self.seconds[mode].append(time.perf_counter() - began_s[0])
                self.processor_s[mode].append(time.process_time() - began_s[1])
        for mode in MODES:  # the last turn ended within a step's callback: let the threads leave it
            self._go[mode].release()
        for thread in threads:
            thread.join()


def measure_here(name: str, xla: str, rounds: int) -> dict[str, Any]:
    """Seconds of each turn; runs in a process of its own."""
    import keras
    import numpy as np
    import tensorflow as tf
    from trainings import TRAININGS, train_step

    from nanreplay import Recorder

    training, turns = TRAININGS[name], Turns(WARM_UP + rounds)
    x, y = training.data()
    first = training.model(
        jit_compile=xla == "on"
    )  # so that none of the three is the first that TensorFlow compiles
    first.fit(x[: training.batch], y[: training.batch], batch_size=training.batch, verbose=0)
    models = {mode: training.model(jit_compile=xla == "on") for mode in MODES}
    steps_in_all = STEPS * (WARM_UP + rounds) * training.steps_per_execution
    folder = tempfile.TemporaryDirectory()
    recorder = Recorder(Path(folder.name) / "run.h5")

    def fit(mode: str) -> None:
        told = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: turns.step_ends(mode)
        )
        data = (
            tf.data.Dataset.from_tensor_slices((x, y))
            .batch(training.batch)
            .repeat()
            .prefetch(tf.data.AUTOTUNE)
        )
        callbacks = [recorder, told] if mode == "recorder" else [told]
        models[mode].fit(data, steps_per_epoch=steps_in_all, verbose=0, callbacks=callbacks)

    def loop(mode: str) -> None:
        model = models[mode]
        step = train_step(model, jit_compile=xla == "on")
        if name == "eager_loop":
            step = step.python_function
        elif name == "train_on_batch":
            step = loss_on_batch(model)
        elif name in ("trainer", "tiny_trainer"):
            step = plain_step(step)
        if mode == "recorder":
            step = recorder.wrap(step, model=model, optimizer=model.optimizer)
        data = (
            tf.data.Dataset.from_tensor_slices((x, y))
            .batch(training.batch)
            .repeat()
            .prefetch(tf.data.AUTOTUNE)
        )
        for batch in data.take(steps_in_all):
            float(step(*batch))
            turns.step_ends(mode)

    turns.run(loop if name in LOOPS else fit)
    recorder.close()
    folder.cleanup()
    bare, recorded = (models[mode].get_weights() for mode in MODES[:2])
    return {
        "steps_per_execution": training.steps_per_execution,
        "first_s": {mode: round(each[0], 3) for mode, each in turns.seconds.items()},
        "seconds": {
            mode: [round(one, 5) for one in each[WARM_UP:]] for mode, each in turns.seconds.items()
        },
        "processor_s": {
            mode: [round(one, 5) for one in each[WARM_UP:]]
            for mode, each in turns.processor_s.items()
        },
        "same_weights": all(
            np.array_equal(one, other) for one, other in zip(bare, recorded, strict=True)
        ),
    }


def plain_step(compiled: Callable[..., Any]) -> Callable[..., float]:
    """A step of plain Python that calls a compiled one: it unpacks the batch and gives a number."""

    def step(*batch: Any) -> float:
        x, y = batch
        return float(compiled(x, y))

    return step


def loss_on_batch(model: Any) -> Callable[..., float]:
    """A step that is `train_on_batch` of a Keras model."""

    def step(x: Any, y: Any) -> float:
        return float(model.train_on_batch(x, y)[0])

    return step


def ratios(seconds: dict[str, list[float]]) -> list[float]:
    """Recorded turn to the mean of the bare ones, round by round."""
    return [
        recorded / (one + other) * 2
        for one, recorded, other in zip(*(seconds[mode] for mode in MODES), strict=True)
    ]


def noise(seconds: dict[str, list[float]]) -> float:
    """Median ratio of the two bare trainings."""
    return statistics.median(
        other / one for one, other in zip(seconds["bare"], seconds["bare again"], strict=True)
    )


def row(name: str, xla: str, found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    from_bare = ratios(found["seconds"])
    low, middle, high = statistics.quantiles(from_bare, n=4)
    processor = statistics.median(ratios(found["processor_s"]))
    step_ms = (
        1000 * statistics.median(found["seconds"]["bare"]) / STEPS / found["steps_per_execution"]
    )
    control = f"{noise(found['seconds']):.3f} ({noise(found['processor_s']):.3f})"
    same = "yes" if found["same_weights"] else "**no**"
    bare_first_s, recorded_first_s, again_s = (found["first_s"][mode] for mode in MODES)
    first = f"{recorded_first_s / (bare_first_s + again_s) * 2:.2f} ({recorded_first_s:.1f} s)"
    return [
        name,
        xla,
        f"**{middle:.3f}**",
        f"{low:.3f} to {high:.3f}",
        f"{processor:.3f}",
        control,
        f"{step_ms:.1f}",
        first,
        same,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--xla", choices=("off", "on", "both"), default="both")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure_here(given.here, given.xla, given.rounds)))
        return
    facts, rows, raw = machine(), [], []
    for name, xla in itertools.product(
        given.models.split(","), ["off", "on"] if given.xla == "both" else [given.xla]
    ):
        if xla == "on" and name in WITHOUT_XLA:
            continue
        command = [
            sys.executable,
            __file__,
            "--here",
            name,
            "--xla",
            xla,
            "--rounds",
            str(given.rounds),
        ]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=ENVIRONMENT,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append(row(name, xla, found))
        raw.append({"model": name, "xla": xla, **found})
        print(rows[-1], file=sys.stderr, flush=True)
    header = [
        "model",
        "XLA",
        "time / bare",
        "middle half",
        "processor time / bare",
        "bare again / bare (processor)",
        "ms / bare step",
        "first steps / bare",
        "weights as bare",
    ]
    measured = f"Median of {given.rounds} rounds of {STEPS} steps each."
    text = f"{machine_line(facts)} {measured}\n\n{table(header, rows)}"
    write_results("overhead_paired", text, {"machine": facts, "rows": raw})


if __name__ == "__main__":
    main()
