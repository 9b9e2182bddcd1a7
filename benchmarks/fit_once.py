"""One measurement of `overhead.py` in a process of its own: trains, and prints seconds of each
epoch and a hash of the weights.

Usage: python fit_once.py MODEL MODE XLA EPOCHS FOLDER
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from trainings import TRAININGS, run_loop, train_step


class EpochTimes(keras.callbacks.Callback):
    """Wall time of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        self.losses.append(float(logs["loss"]))


def callbacks_of(mode: str, folder: Path) -> list[Any]:
    """Turn a mode on; the callbacks it needs."""
    if mode == "recorder":
        from nanreplay import Recorder

        return [Recorder(folder / "run.h5")]
    if mode == "terminate_on_nan":
        return [keras.callbacks.TerminateOnNaN()]
    if mode == "check_numerics":
        tf.debugging.enable_check_numerics()
    elif mode in ("curt_health", "full_health"):
        tf.debugging.experimental.enable_dump_debug_info(
            str(folder), tensor_debug_mode=mode.upper(), circular_buffer_size=-1
        )
    return []


def main(name: str, mode: str, xla: str, epochs: str, folder: str) -> None:
    """Train one epoch to warm up and `epochs` to measure."""
    training = TRAININGS[name]
    x, y = training.data()
    callbacks = callbacks_of(mode, Path(folder))
    model = training.model(jit_compile=xla == "on")
    times = EpochTimes()
    if name == "loop":
        step = train_step(model, jit_compile=xla == "on")
        for callback in callbacks:
            step = callback.wrap(step, model=model, optimizer=model.optimizer)
        for epoch in range(1 + int(epochs)):
            times.on_epoch_begin(epoch)
            times.on_epoch_end(epoch, {"loss": run_loop(step, x, y, training.batch)})
    else:
        model.fit(
            x,
            y,
            batch_size=training.batch,
            epochs=1 + int(epochs),
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, times],
        )
    digest = hashlib.sha256()
    for variable in [*model.variables, *model.optimizer.variables]:
        digest.update(np.asarray(variable).tobytes())
    facts = {
        "epochs_s": times.seconds,
        "losses": times.losses,
        "weights": digest.hexdigest(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
