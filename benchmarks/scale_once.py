"""One training of `scale.py` in a process of its own: a model of some state and number of layers,
recorded with the recorder's defaults.

Usage: python scale_once.py nan|sigterm|bare STATE_MIB LAYERS FOLDER

`nan` trains to a NaN in the batch of its 24th step, `bare` does so without a recorder, and
`sigterm` sends itself that signal after its 24th step; each prints what it took.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

MIB = 2**20
STEPS, ROWS = 24, 8


def build(state_mib: int, layers: int) -> tuple[Any, int]:
    """A stack of square layers, whose weights and Adam's slots have that size together, and its
    width."""
    width = max(8, int((state_mib * MIB / 3 / 4 / layers) ** 0.5))
    keras.utils.set_random_seed(1)
    stack = []
    for _ in range(layers):
        stack += [keras.layers.Dense(width, activation="tanh"), keras.layers.LayerNormalization()]
    model = keras.Sequential([keras.Input((width,)), *stack])
    model.compile("adam", "mse", jit_compile=False)
    return model, width


class Times(keras.callbacks.Callback):
    """When steps end; sends SIGTERM after the last one where that is wanted."""

    def __init__(self, path: Path, *, ends: bool) -> None:
        super().__init__()
        self.path, self.ends = path, ends
        self.at_s: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.at_s.append(time.perf_counter())
        if self.ends and len(self.at_s) == STEPS:
            threading.Thread(target=self.wait_for_file, daemon=True).start()
            os.kill(os.getpid(), signal.SIGTERM)

    def wait_for_file(self) -> None:
        """Tell after which time the file has its name; the process ends by itself after that."""
        began_s = time.perf_counter()
        while not self.path.exists():
            time.sleep(0.01)
        facts = {
            "file_s": time.perf_counter() - began_s,
            "file_mib": self.path.stat().st_size / MIB,
        }
        print(json.dumps(facts), flush=True)


def main(mode: str, state: str, layers: str, folder: str) -> None:
    """Train, and print what it took."""
    model, width = build(int(state), int(layers))
    x = np.random.default_rng(1).normal(size=(ROWS * STEPS, width)).astype("float32")
    if mode != "sigterm":
        x[-1, 0] = np.nan
    path = Path(folder) / "run.h5"
    times = Times(path, ends=mode == "sigterm")
    callbacks: list[Any] = [times]
    if mode != "bare":
        from nanreplay import Recorder

        callbacks = [Recorder(path, on_nan="stop"), times]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        began_s = time.perf_counter()
        model.fit(x, x, batch_size=ROWS, shuffle=False, verbose=0, callbacks=callbacks)
        elapsed_s = time.perf_counter() - began_s
    gaps = np.diff(times.at_s)[4:]
    facts: dict[str, Any] = {
        "fit_s": elapsed_s,
        "step_s": float(np.median(gaps[:-1])),
        # The file is written while the last step is judged.
        "dump_s": float(max(0.0, gaps[-1] - np.median(gaps[:-1]))),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "said": [str(each.message) for each in said if "nanreplay" in str(each.message)],
    }
    if mode == "nan":
        from nanreplay import Capture

        with Capture(path) as capture:
            signature = capture.program(capture.programs[0])
            facts |= {
                "ops": len(signature.ops),
                "file_mib": path.stat().st_size / MIB,
                "keyframes": len(capture.keyframe_steps),
                "batches": len(capture.steps),
                "incident": [capture.incident.step, capture.incident.bit_exact],
                "notes": list(capture.incident.notes),
            }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
