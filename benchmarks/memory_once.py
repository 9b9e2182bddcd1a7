"""One measurement of `memory.py` in a process of its own: trains to a NaN, and prints the peak of
its memory.

Usage: python memory_once.py bare|recorder STATE_MIB BATCH_MIB LIMIT_MIB|auto FOLDER

With "auto" the recorder's limits are its defaults.
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

WIDTH, ROWS = 1024, 64
MIB = 2**20


def build(state_mib: int) -> Any:
    """A model whose weights and Adam's slots have that size together; what it computes does not
    grow with the batch."""
    units = max(1, state_mib * MIB // 3 // 4 // WIDTH)
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(units, use_bias=False),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential([keras.Input((None, WIDTH)), *layers])
    model.compile("adam", "mse", jit_compile=False)
    return model


def data(batch_mib: int, steps: int) -> Any:
    """Batches of that size, made as they are needed; the last one holds a NaN."""
    length = max(1, batch_mib * MIB // 4 // WIDTH // ROWS)

    def batch(step: Any) -> tuple[Any, Any]:
        x = tf.fill(
            [ROWS, length, WIDTH],
            tf.where(step == steps - 1, float("nan"), tf.cast(step, tf.float32) / 100),
        )
        return x, tf.zeros([ROWS, 1])

    options = tf.data.Options()
    options.autotune.enabled = (
        False  # else as many batches are made ahead as there is room for, now more and now fewer
    )
    return tf.data.Dataset.range(steps).map(batch).with_options(options)


def steps_for(state_mib: int, batch_mib: int, limit: str) -> int:
    """Steps of an epoch: two epochs fill the limit with batches twice, or the window and, since an
    epoch begins with one, two keyframes."""
    if state_mib > 1000:
        return 8
    return 6 if limit == "auto" else min(40, max(6, int(limit) // batch_mib))


def main(mode: str, state: str, batch: str, limit: str, folder: str) -> None:
    """Train two epochs, enough for the batches to fill the limit."""
    steps = steps_for(int(state), int(batch), limit)
    model, batches = build(int(state)), data(int(batch), 2 * steps)
    path = Path(folder) / "run.h5"
    facts: dict[str, Any] = {}
    if mode == "recorder":
        from nanreplay import Capture, Recorder

        limits: dict[str, Any] = {}
        if limit != "auto":
            limits = {"memory_limit": f"{limit}MiB", "disk_limit": "8GiB"}
        recorder = Recorder(path, on_nan="stop", **limits)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.fit(
                batches.repeat(), epochs=2, steps_per_epoch=steps, verbose=0, callbacks=[recorder]
            )
        facts["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with Capture(path) as capture:
            facts |= {
                "keyframes": len(capture.keyframe_steps),
                "batches": len(capture.steps),
                "notes": list(capture.incident.notes),
                "said": [str(each.message) for each in said if "nanreplay" in str(each.message)],
                "file_mib": path.stat().st_size / MIB,
            }
            facts["incident"] = [
                capture.incident.step,
                capture.incident.reproduced,
                capture.incident.bit_exact,
            ]
    else:
        model.fit(batches.repeat(), epochs=2, steps_per_epoch=steps, verbose=0)
        facts["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
