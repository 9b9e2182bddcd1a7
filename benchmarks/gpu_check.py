"""What a GPU makes of recording and replaying: run it where there is one, and paste what it prints.

Five minutes. It trains a small network of each kind (images with channels first, an LSTM of cuDNN,
half precision) bare and recorded, and says: what recording costs, whether the trained weights have
the same bits, whether the file replays on the GPU bit for bit, and in a process without the GPU to
the same answer.

Usage: python benchmarks/gpu_check.py [--steps 300] [--allow-cpu]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import nanreplay
from nanreplay import Capture, NonFiniteError, Recorder, Replay

ROWS, ROUNDS = 64, 3


class Convolved(keras.layers.Layer):
    """Images with channels first, as only a GPU's kernels take them; without one, channels last."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(3, 3, shape[1], 16), initializer="he_normal")

    def call(self, x: Any) -> Any:
        kernel = tf.cast(self.kernel.value, x.dtype)
        layout = "NCHW" if tf.config.list_physical_devices("GPU") else "NHWC"
        return tf.nn.conv2d(x, kernel, 1, "SAME", data_format=layout)


class Logarithm(keras.layers.Layer):
    """Turns a zero into an infinity."""

    def call(self, x: Any) -> Any:
        return tf.math.log(tf.abs(x))


def images(policy: str) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 8)),
            Logarithm(name="logarithm"),
            Convolved(dtype=policy),
            layers.Flatten(),
            layers.Dense(1, dtype="float32"),
        ]
    )


def sequences(policy: str) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 64)),
            Logarithm(name="logarithm"),
            layers.LSTM(32, dtype=policy),
            layers.Dense(1, dtype="float32"),
        ]
    )


KINDS: dict[str, tuple[Callable[[str], Any], str, tuple[int, ...], str | bool]] = {
    "images, float32": (images, "float32", (8, 8, 8), False),
    "images, mixed_float16": (images, "mixed_float16", (8, 8, 8), False),
    "images, XLA": (images, "float32", (8, 8, 8), True),
    "LSTM of cuDNN": (sequences, "float32", (8, 64), False),
}


def data(shape: tuple[int, ...], steps: int, *, bad: bool) -> tuple[Any, Any]:
    """Batches of random numbers; a zero in row 5 of the last step but one where it is to fail."""
    random = np.random.default_rng(0)
    x = random.uniform(0.5, 2.0, (steps * ROWS, *shape)).astype("float32")
    if bad:
        x[(steps - 2) * ROWS + 5].reshape(-1)[3] = 0.0
    return x, x.reshape(len(x), -1).mean(axis=1, keepdims=True)


def fit(kind: str, steps: int, recorder: Recorder | None, *, bad: bool) -> tuple[float, str]:
    """Train once; milliseconds a step after the first epoch, and a digest of the weights."""
    build, policy, shape, jit = KINDS[kind]
    keras.utils.set_random_seed(1)
    model = build(policy)
    model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=jit)
    x, y = data(shape, steps, bad=bad)
    options: dict[str, Any] = {"batch_size": ROWS, "shuffle": False, "verbose": 0}
    callbacks = [] if recorder is None else [recorder]
    if not bad:
        model.fit(x[: 8 * ROWS], y[: 8 * ROWS], callbacks=callbacks, **options)  # traces
    began_s = time.perf_counter()
    with contextlib.suppress(NonFiniteError):
        model.fit(x, y, callbacks=callbacks, **options)
    elapsed_ms = (time.perf_counter() - began_s) * 1000 / steps
    digest = sha256()
    for variable in model.variables:
        digest.update(np.asarray(variable).tobytes())
    return elapsed_ms, digest.hexdigest()[:12]


def check(kind: str, steps: int, folder: Path) -> dict[str, Any]:
    """Everything about one kind of network."""
    ratios, digests = [], set()
    for round_number in range(ROUNDS):  # pairs, so that what the machine does besides cancels
        bare_ms, bare = fit(kind, steps, None, bad=False)
        recorder = Recorder(folder / f"healthy_{round_number}.h5")
        recorded_ms, recorded = fit(kind, steps, recorder, bad=False)
        ratios.append(recorded_ms / bare_ms)
        digests |= {bare, recorded}
    path = folder / "run.h5"
    path.unlink(missing_ok=True)
    fit(kind, 40, Recorder(path), bad=True)
    with Capture(path) as capture:
        failed, noted = capture.incident.step, list(capture.incident.notes)
        with Replay(capture) as replay:
            results = replay.run_window("recorded")
    return {
        "network": kind,
        "recorded / bare": round(statistics.median(ratios), 3),
        "ms a step, bare": round(bare_ms, 3),
        "same weights": len(digests) == 1,
        "step of the file (38 is right)": failed,
        "replays here bit for bit": all(result.bit_exact for result in results),
        "answer here": answer(path, {}),
        "answer on the CPU": answer(path, {"CUDA_VISIBLE_DEVICES": "-1"}),
        "notes of the file": noted,
    }


def answer(path: Path, variables: dict[str, str]) -> str:
    """What `nanreplay bisect` says of a file, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "nanreplay", "bisect", str(path), "--json", "--no-fixes"],
        capture_output=True, text=True, check=False, env={**os.environ, **variables},
    )  # fmt: skip
    if done.returncode not in (0, 1, 3):
        return f"exit {done.returncode}: {done.stderr.strip()[-300:]}"
    report = json.loads(done.stdout)
    return f"{report['verdict']['kind']}: {report['sentence']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="Steps of a timed training.")
    parser.add_argument("--allow-cpu", action="store_true", help="Run without a GPU, as a trial.")
    options = parser.parse_args()
    devices = tf.config.list_physical_devices("GPU")
    if not devices and not options.allow_cpu:
        print("TensorFlow sees no GPU here; --allow-cpu runs it all the same.", file=sys.stderr)
        return 2
    details = [tf.config.experimental.get_device_details(device) for device in devices]
    print(f"nanreplay {nanreplay.__version__}, TensorFlow {tf.__version__}, {details or 'no GPU'}")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            for name, value in check(kind, options.steps, Path(folder)).items():
                print(f"  {name}: {value}", flush=True)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
