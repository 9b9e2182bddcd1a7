"""Reading what steps gave without making the training wait for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import tensorflow as tf

LAGS = {"CPU": 0}
"""Steps that may run before a step's numbers have been read, by type of device: on a CPU a step has ended when its call returns."""
OTHER_LAG = 4
"""That of GPUs and other devices, which compute while Python prepares the next steps."""


def lag_of(handles: Sequence[Any]) -> int:
    """The lag that suits the device of most variables."""
    types = [str(handle.device).rpartition("device:")[2].partition(":")[0] for handle in handles]
    return LAGS.get(max(types, key=types.count), OTHER_LAG) if types else LAGS["CPU"]


class LateReader:
    """Reads numbers in the order of their steps, in a thread that alone waits for the device.

    A training whose host runs ahead of its device goes on meanwhile: only with more than `lag` steps to be read does it
    wait for the first of them. Keras reads its logs in a thread as well.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, Future[Any]]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def add(self, ran: Any) -> None:
        """Read the tensors of a `session.Ran` in the thread."""
        self._waiting.append((ran, self._thread().submit(_read, ran)))

    def to_host(self, values: dict[int, Any]) -> None:
        """Move a keyframe off its device, one tensor after the other, so that the device holds a second state for a short time only."""
        self._thread().submit(_move, values)

    def _thread(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="nanreplay")
        return self._pool

    def take(self, lag: int) -> Iterator[Any]:
        """All but the last `lag` steps; waits until they have been read."""
        while len(self._waiting) > lag:
            ran, is_read = self._waiting.popleft()
            is_read.result()
            yield ran

    def forget(self) -> None:
        """Drop what has not been taken."""
        self._waiting.clear()

    def close(self) -> None:
        """Drop what has not been taken, and end the thread."""
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None


def _read(ran: Any) -> None:
    for value in (*ran.outputs.values(), ran.sums):
        if value is not None:
            value.numpy()  # waits; on a CPU tensor asking again costs nothing, on a device TensorFlow keeps the copy


def _move(values: dict[int, Any]) -> None:
    for index, value in values.items():
        with tf.device("CPU:0"):
            values[index] = tf.identity(value)
