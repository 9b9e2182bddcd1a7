"""Trainings that are made to end in many ways, each in a process of its own: python endings.py
FOLDER prints how each ended."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nanreplay import Recorder
from nanreplay.recorder import signals

Scenario = Callable[[Path], None]


def model() -> Any:
    keras.utils.set_random_seed(1)
    made = keras.Sequential([keras.layers.Dense(2)])
    made.compile("sgd", "mse", jit_compile=False)
    made.build((None, 3))
    return made


def batches(count: int = 6) -> Iterator[Any]:
    for _ in range(count):
        yield np.ones((2, 3), "float32"), np.ones((2, 2), "float32")


class At(keras.callbacks.Callback):
    """Does something after the step `batch`, between two steps."""

    def __init__(self, batch: int, act: Callable[[], Any]) -> None:
        super().__init__()
        self.batch, self.act = batch, act

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self.batch:
            self.act()


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def sigterm_between_steps(path: Path) -> None:
    model().fit(
        batches(), callbacks=[Recorder(path), At(2, lambda: send(signal.SIGTERM))], verbose=0
    )


def sigterm_in_an_eager_step(path: Path) -> None:
    def step(x: Any) -> Any:
        if x == 3:
            send(signal.SIGTERM)
        return tf.cast(x, tf.float32)

    recorded = Recorder(path).wrap(step)
    for x in range(6):
        recorded(tf.constant(x))


def sigterm_in_an_eager_step_without_end(path: Path) -> None:
    def step(x: Any) -> Any:
        while x == 3:
            pass
        return tf.cast(x, tf.float32)

    signals.GRACE_S = 0.2
    recorded = Recorder(path).wrap(step)
    for x in range(6):
        if x == 3:
            threading.Timer(0.1, send, [signal.SIGTERM]).start()
        recorded(tf.constant(x))


def sigterm_while_data_never_comes(path: Path) -> None:
    signals.GRACE_S = 0.2
    never: queue.Queue[Any] = queue.Queue()

    def starved() -> Iterator[Any]:
        yield from batches(4)
        yield never.get()

    def send_soon() -> None:
        threading.Timer(0.3, send, [signal.SIGTERM]).start()

    # Batches are fetched ahead of the steps: only the last step knows that all have run
    callbacks = [Recorder(path), At(3, send_soon)]
    model().fit(starved(), steps_per_epoch=6, callbacks=callbacks, verbose=0)


def sigterm_in_a_forked_process(path: Path) -> None:
    def fork() -> None:
        child = os.fork()
        if child == 0:
            send(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM

    signals.GRACE_S = 0.1
    model().fit(batches(), callbacks=[Recorder(path), At(2, fork)], verbose=0)


def exit_in_a_callback(path: Path) -> None:
    model().fit(batches(), callbacks=[Recorder(path), At(2, lambda: sys.exit(7))], verbose=0)


SCENARIOS: list[Scenario] = [
    sigterm_between_steps, sigterm_in_an_eager_step, sigterm_in_an_eager_step_without_end,
    sigterm_while_data_never_comes,
    sigterm_in_a_forked_process, exit_in_a_callback,
]  # fmt: skip


def run(scenario: Scenario, folder: Path) -> int:
    """Start the scenario; returns its process."""
    child = os.fork()  # nothing of TensorFlow has run yet: only imported libraries are shared
    if child == 0:
        sys.stderr = (folder / f"{scenario.__name__}.err").open("w", buffering=1)
        code = 1
        try:
            scenario(folder / f"{scenario.__name__}.h5")
            code = 0
        except SystemExit as error:
            code = int(str(error))
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


if __name__ == "__main__":
    signal.alarm(500)  # a scenario that hangs
    print(
        json.dumps(
            {
                each.__name__: os.waitstatus_to_exitcode(
                    os.waitpid(run(each, Path(sys.argv[1])), 0)[1]
                )
                for each in SCENARIOS
            }
        )
    )
