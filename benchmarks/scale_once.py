"""One training of `scale.py` in a process of its own: a model of some state and number of layers,
recorded with the recorder's defaults.

Usage: python scale_once.py nan|sigterm|bare STATE_MIB LAYERS FOLDER [STEPS]

`nan` trains to a NaN in the batch of its last step, the 24th unless told, `bare` does so without a
recorder, and `sigterm` sends itself that signal after its last step; each prints what it took.
Before the signal as many bytes as the state has are written to a plain file, twice: the second time
says what the disk takes by itself. Memory that nobody has used for a while is slow to write to at
first.

With a STATE_MIB of 0 the model has one layer with LAYERS small weights, and a momentum of each.
With 0 LAYERS it is an embedding of that size without slots, whose gradients are sparse.
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
EMBEDDED = 256
"""Width of an embedding."""


@keras.saving.register_keras_serializable("scale")
class ManyWeights(keras.layers.Layer):
    """Adds the sum of many small weights to its input."""

    def __init__(self, count: int, **options: Any) -> None:
        super().__init__(**options)
        self.count = count

    def build(self, shape: Any) -> None:
        self.added = [
            self.add_weight(shape=shape[-1:], name=f"added_{i}") for i in range(self.count)
        ]

    def call(self, x: Any) -> Any:
        return x + sum(self.added)


def build(state_mib: int, layers: int) -> Any:
    """A stack of square layers, whose weights and Adam's slots have that size together.

    With a state of 0 one layer with so many weights; with 0 layers an embedding.
    """
    keras.utils.set_random_seed(1)
    if not state_mib:
        model = keras.Sequential([keras.Input((8,)), ManyWeights(layers)])
        model.compile(keras.optimizers.SGD(1e-6, momentum=0.9), "mse", jit_compile=False)
        return model
    if not layers:
        words = state_mib * MIB // 4 // EMBEDDED
        embedding = keras.layers.Embedding(words, EMBEDDED, embeddings_initializer="zeros")
        head = [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(8)]
        model = keras.Sequential([keras.Input((8,)), embedding, *head])
        model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
        return model
    width = max(8, int((state_mib * MIB / 3 / 4 / layers) ** 0.5))
    stack = []
    for _ in range(layers):
        stack += [keras.layers.Dense(width, activation="tanh"), keras.layers.LayerNormalization()]
    model = keras.Sequential([keras.Input((width,)), *stack])
    model.compile("adam", "mse", jit_compile=False)
    return model


def data(model: Any, steps: int, *, is_bad: bool) -> tuple[Any, Any]:
    """Inputs and targets of all steps; the last target may hold a NaN."""
    random = np.random.default_rng(1)
    shape = (ROWS * steps, model.input_shape[-1])
    x = y = random.normal(size=shape).astype("float32")
    if isinstance(model.layers[0], keras.layers.Embedding):
        x = random.integers(0, model.layers[0].input_dim, shape)
    if is_bad:
        y[-1, 0] = np.nan
    return x, y


class Times(keras.callbacks.Callback):
    """When steps end; sends SIGTERM after the last one where that is wanted."""

    def __init__(self, path: Path, state_mib: int, ends_after: int | None) -> None:
        super().__init__()
        self.path, self.state_mib, self.ends_after = path, state_mib, ends_after
        self.began_s = 0.0
        self.at_s: list[float] = []
        """Processor time, which hardly depends on what else the machine does."""
        self.plain = 0.0, 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        self.began_s = time.process_time()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.at_s.append(time.process_time())
        if len(self.at_s) == self.ends_after:
            for _ in range(2):
                self.plain = write_plainly(self.path.with_suffix(".bin"), self.state_mib)
            threading.Thread(target=self.wait_for_file, daemon=True).start()
            os.kill(os.getpid(), signal.SIGTERM)

    def wait_for_file(self) -> None:
        """Tell after which time the file has its name; the process ends by itself after that."""
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        while not self.path.exists():
            time.sleep(0.001)  # the process ends soon after
        facts = {
            "file_s": time.perf_counter() - began_s,
            "file_cpu_s": time.process_time() - began_cpu_s,
            "file_mib": self.path.stat().st_size / MIB,
            "plain_s": self.plain[0],
            "plain_cpu_s": self.plain[1],
        }
        print(json.dumps(facts), flush=True)


def write_plainly(path: Path, size_mib: int) -> tuple[float, float]:
    """Seconds, and seconds of processor time, that random bytes take to a file.

    Nobody waits for them to be on the disk.
    """
    piece = np.random.default_rng(1).bytes(64 * MIB)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    with path.open("wb", buffering=0) as file:
        for start_mib in range(0, size_mib, 64):
            left = memoryview(piece)[: min(64, size_mib - start_mib) * MIB]
            while len(left):
                left = left[file.write(left) :]
        taken = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    path.unlink()
    return taken


def main(mode: str, state: str, layers: str, folder: str, count: str = str(STEPS)) -> None:
    """Train, and print what it took."""
    model, steps = build(int(state), int(layers)), int(count)
    x, y = data(model, steps, is_bad=mode != "sigterm")
    path = Path(folder) / "run.h5"
    times = Times(path, int(state), steps if mode == "sigterm" else None)
    callbacks: list[Any] = [times]
    if mode != "bare":
        from nanreplay import Recorder

        callbacks = [Recorder(path, on_nan="stop"), times]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        began_s = time.perf_counter()
        model.fit(x, y, batch_size=ROWS, shuffle=False, verbose=0, callbacks=callbacks)
        elapsed_s = time.perf_counter() - began_s
    gaps = np.diff(times.at_s)[4:]
    facts: dict[str, Any] = {
        "fit_s": elapsed_s,
        "first_step_s": times.at_s[0] - times.began_s,
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
