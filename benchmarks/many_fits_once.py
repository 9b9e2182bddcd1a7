"""One measurement of `many_fits.py` in a process of its own: trains many models one after the
other, and prints how memory grew.

Usage: python many_fits_once.py bare|recorder|incident|dump FITS FOLDER
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

ROWS, FEATURES, BATCH = 256, 64, 32


def resident_mib() -> float:
    """What this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def build() -> Any:
    """The next trial of a search: a new model after `clear_session`, as KerasTuner makes it."""
    keras.backend.clear_session()
    layers = [
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential([keras.Input((FEATURES,)), *layers])
    model.compile("adam", "mse")
    return model


def fit(mode: str, folder: Path, x: Any, y: Any) -> None:
    """Train one model; `incident` and the bare training beside it end with a NaN in the last
    batch."""
    callbacks: list[Any] = []
    if mode != "bare":
        from nanreplay import NonFiniteError, Recorder

        callbacks = [Recorder(folder / "run.h5", on_nan="raise")]
        if mode == "dump":
            callbacks.append(
                keras.callbacks.LambdaCallback(on_train_end=lambda logs: callbacks[0].dump())
            )
    with contextlib.suppress(NonFiniteError) if mode == "incident" else contextlib.nullcontext():
        build().fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)


def main(mode: str, fits: str, folder: str) -> None:
    """Train `fits` models, and print what is resident after each."""
    generator = np.random.default_rng(1)
    x, y = generator.random((ROWS, FEATURES), np.float32), generator.random((ROWS, 1), np.float32)
    if mode == "incident":
        x[-1, 0] = np.nan
    resident = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(int(fits)):
            fit(mode, Path(folder), x, y)
            gc.collect()
            resident.append(resident_mib())
    facts: dict[str, Any] = {"resident_mib": resident, "ops": 0}
    if mode in ("dump", "incident"):
        from nanreplay import Capture

        with Capture(Path(folder) / "run.h5") as capture:
            facts["ops"] = sum(len(capture.program(name).ops) for name in capture.programs)
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
