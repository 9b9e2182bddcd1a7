"""One measurement of `bisect_time.py` in a process of its own: records a training, or bisects a
capture.

Usage: python bisect_once.py record LAYERS FILE | bisect FILE
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

WIDTH, BATCH, BAD_STEP = 128, 64, 20


def make_model(layers: int) -> Any:
    """A residual MLP of `layers` layers, each behind a normalisation."""
    import keras

    inputs = keras.Input((WIDTH,))
    x = inputs
    for _ in range(layers):
        x = x + keras.layers.Dense(WIDTH, activation="tanh")(keras.layers.LayerNormalization()(x))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.Adam(1e-4), "mse", jit_compile=False)
    return model


def record(layers: int, file: str) -> None:
    """Train into a NaN; print the time of an eager step and the number of ops."""
    import keras

    from nanreplay import NonFiniteError, Recorder

    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    x = random.normal(size=((BAD_STEP + 2) * BATCH, WIDTH)).astype("float32")
    y = random.normal(size=(len(x), 1)).astype("float32")
    x[BAD_STEP * BATCH + 5, 7] = 1e30  # its variance overflows in the first normalisation
    model = make_model(layers)
    try:
        model.fit(
            x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0, callbacks=[Recorder(file)]
        )
    except NonFiniteError as error:
        step = error.step
    eager = make_model(layers)
    eager.run_eagerly = True
    times = []
    for start in range(0, 8 * BATCH, BATCH):
        began = time.perf_counter()
        eager.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])
        times.append(time.perf_counter() - began)
    print(json.dumps({"eager_step_s": sorted(times[2:])[len(times[2:]) // 2], "step": step}))


def bisect(file: str) -> None:
    """Explain a capture, then try fixes too; print the times, imports apart, and what a compiled
    step of the window takes."""
    began = time.perf_counter()
    import tensorflow  # noqa: F401

    import nanreplay.bisect
    import nanreplay.diagnose
    import nanreplay.whatif.trial  # noqa: F401
    from nanreplay.report.explain import explain

    imported = time.perf_counter()
    report = explain(file, fixes="none")
    done = time.perf_counter()
    tried = explain(file, fixes="all").fixes
    whatif_s = time.perf_counter() - done - (done - imported)
    from nanreplay import Capture, Replay

    with Capture(file) as capture, Replay(capture) as replay:
        ops = sum(len(capture.program(name).ops) for name in capture.programs)
        replay.run_window("recorded")
        again = time.perf_counter()
        steps = len(replay.run_window("recorded"))
        step_s = (time.perf_counter() - again) / steps
    origin = report.findings.origin
    facts = {
        "import_s": imported - began,
        "bisect_s": done - imported,
        "ops": ops,
        "op": origin and origin.op_type,
    }
    print(
        json.dumps(
            {
                **facts,
                "whatif_s": whatif_s,
                "fixes": len(tried),
                "steps": steps,
                "compiled_step_s": step_s,
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record(int(sys.argv[2]), sys.argv[3])
    else:
        bisect(sys.argv[2])
