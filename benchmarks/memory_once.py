"""One measurement of `memory.py` in a process of its own: trains to a NaN, and prints the peak of its memory.

Usage: python memory_once.py bare|recorder STATE_MIB BATCH_MIB LIMIT_MIB FOLDER
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

WIDTH = 1024
MIB = 2**20


def build(state_mib: int) -> Any:
    """A model whose weights and Adam's slots have that size together."""
    units = max(1, state_mib * MIB // 3 // 4 // WIDTH)
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(units, use_bias=False), keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=False)
    return model


def data(batch_mib: int, steps: int) -> Any:
    """Batches of that size, made as they are needed; the last one holds a NaN."""
    rows = max(1, batch_mib * MIB // 4 // WIDTH)

    def batch(step: Any) -> tuple[Any, Any]:
        x = tf.random.stateless_uniform([rows, WIDTH], [step, 1])
        return tf.where(step == steps - 1, x * float("nan"), x), tf.zeros([rows, 1])

    return tf.data.Dataset.range(steps).map(batch)


def main(mode: str, state: str, batch: str, limit: str, folder: str) -> None:
    """Train two epochs, enough for the batches to fill the limit."""
    steps = 8 if int(state) > 1000 else 40
    model, batches = build(int(state)), data(int(batch), 2 * steps)
    path = Path(folder) / "run.h5"
    facts: dict[str, Any] = {}
    if mode == "recorder":
        from nanreplay import Capture, Recorder

        recorder = Recorder(path, on_nan="stop", memory_limit=f"{limit}MiB", disk_limit="8GiB")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(batches.repeat(), epochs=2, steps_per_epoch=steps, verbose=0, callbacks=[recorder])
        facts["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with Capture(path) as capture:
            facts |= {"keyframes": len(capture.keyframe_steps), "batches": len(capture.steps), "notes": list(capture.incident.notes)}
            facts["incident"] = [capture.incident.step, capture.incident.reproduced, capture.incident.bit_exact]
    else:
        model.fit(batches.repeat(), epochs=2, steps_per_epoch=steps, verbose=0)
        facts["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
