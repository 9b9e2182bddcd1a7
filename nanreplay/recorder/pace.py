"""How fast steps run, and so how often their state is copied and their variables are looked at.

`Keeper` times steps and keyframes (`Pace`), `Recording` plans looks at variables (`LookPace`).
`LateReader` reads what steps gave without making the training wait for the device.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import tensorflow as tf

from nanreplay.program.nonfinite_values import read_variable

# How long steps take, and what a keyframe costs: medians of the last ones, so that single slow
# steps say nothing.

SAMPLE_BYTES = 2**26
"""The copy of a larger variable is timed on this much of it."""
_COPIED = (tf.float32, tf.float64, tf.float16, tf.bfloat16, tf.int32, tf.int64)
"""DTypes whose copy is timed: TensorFlow has a `DeepCopy` of them on every device."""
BOUND = 4.0
"""The seen cost of a keyframe is trusted within this factor of what a copy of the state takes."""
FEWEST = 3
"""Times from which on a median is taken."""


class Pace:
    """Times from the start of one step to the start of the next, those after a keyframe apart.

    A keyframe costs twice: reading the variables before the step, and the copy that TensorFlow
    makes of each when the step writes to it while the keyframe holds its buffer. Both show in the
    time to the next step.
    """

    def __init__(self) -> None:
        self.begun: deque[tuple[int, float, bool | None]] = deque()
        """Steps that began since a time was asked for.

        A step's number; when it began, before anything was done for it, in seconds; and whether it
        has a keyframe, or None where its time does not count, because it is traced or compiled.
        """
        self._plain_s: deque[float] = deque(maxlen=32)
        """Times of steps without a keyframe."""
        self._extra_s: deque[float] = deque(maxlen=8)
        """What steps with a keyframe took more."""
        self._began_s = 0.0
        self._began_at = 0
        self._with_keyframe: bool | None = None
        """Whether the step that runs has a keyframe; None where its time does not count."""

    def _count(self) -> None:
        """Learn from the steps that began how long those before them took.

        A call may run several steps.
        """
        while self.begun:
            step, now_s, with_keyframe = self.begun.popleft()
            elapsed_s, steps = now_s - self._began_s, max(1, step - self._began_at)
            if self._with_keyframe is False:
                self._plain_s.append(elapsed_s / steps)
            elif self._with_keyframe and len(self._plain_s) >= FEWEST:
                self._extra_s.append(elapsed_s - steps * statistics.median(self._plain_s))
            self._began_s, self._began_at, self._with_keyframe = now_s, step, with_keyframe

    def pause(self) -> None:
        """What passes until the next step is no step: validation, the end of an epoch."""
        self._count()
        self._with_keyframe = None

    @property
    def step_s(self) -> float | None:
        """Time of a step; None while it is not known."""
        self._count()
        return statistics.median(self._plain_s) if len(self._plain_s) >= FEWEST else None

    def keyframe_s(self, copy_s: float) -> float:
        """What a keyframe adds to the steps, given the time that a copy of the state takes."""
        self._count()
        if len(self._extra_s) < FEWEST:
            return copy_s
        return min(max(statistics.median(self._extra_s), copy_s / BOUND), copy_s * BOUND)


def time_copy(handles: Sequence[Any], sizes: Sequence[int]) -> float:
    """Seconds that a copy of all variables takes.

    Reading them is timed, and the copy is told from that of the largest one: with a largest
    variable of 1 MB that takes 0.1 ms, a state of 10 MB takes 1 ms.
    """
    began_s = time.perf_counter()
    values = list(map(read_variable, handles))
    read_s = time.perf_counter() - began_s
    candidates = []
    for size, value in zip(sizes, values, strict=True):
        if value.dtype in _COPIED:
            candidates.append((size, value))
    if not candidates:
        return read_s
    _, largest = max(candidates, key=lambda candidate: candidate[0])
    flat = tf.reshape(largest, [-1])
    sample = flat[: SAMPLE_BYTES // flat.dtype.size]
    sample_bytes = max(1, int(sample.shape[0]) * int(sample.dtype.size))
    sample_s = min(_copy_s(sample) for _ in range(2))
    return read_s + sample_s * sum(sizes) / sample_bytes


def _copy_s(tensor: Any) -> float:
    began_s = time.perf_counter()
    copied = tf.raw_ops.DeepCopy(x=tensor)
    copied[:1].numpy()  # on a GPU the copy has been made once a number of it is here
    return time.perf_counter() - began_s


# How often variables are looked at

FIRST_LOOKS = 8
"""Steps at the beginning of a training that are all looked at."""
LOOK_SHARE = 0.0025
"""What looking at variables may add to the time of the steps."""
LONGEST = 64
"""Steps after which variables are looked at again at the latest."""


class LookPace:
    """How often variables are looked at.

    In the first steps always, then as often as costs next to nothing.
    """

    def __init__(self) -> None:
        self.every = 1
        """Steps after which to look again."""
        self.wanted = LONGEST
        """Steps after which to look again, as far as time goes."""
        self.is_always = False
        """Whether every step is looked at, whatever it costs."""
        self.next_step = 0
        """The step after which to look again."""
        self._last = -1
        self._n_looks = 0
        self._look_s: deque[float] = deque(maxlen=8)

    def begin(self, step: int) -> None:
        """A look begins, after `step`."""
        self._last = step
        self._n_looks += 1
        self._plan_next()

    def _plan_next(self) -> None:
        is_soon = self.is_always or self._n_looks < FIRST_LOOKS
        self.next_step = self._last + 1 if is_soon else self._last + self.every

    def note(self, look_s: float, step_s: float | None, most: int) -> None:
        """Learn what a look took, and plan for the next.

        Args:
            look_s: What the last look took.
            step_s: What a step takes; None while it is not known.
            most: Steps that may run between looks, so that each can be replayed.
        """
        self._look_s.append(look_s)
        if not step_s:
            return
        affordable = math.ceil(statistics.median(self._look_s) / (LOOK_SHARE * step_s))
        self.wanted = max(1, min(affordable, LONGEST))
        self.every = max(1, min(self.wanted, most)) if self._n_looks > FIRST_LOOKS else 1
        self._plan_next()


# Reading late

LAGS = {"CPU": 0}
"""Steps that may run before a step's numbers have been read, by type of device.

On a CPU a step has ended when its call returns.
"""
OTHER_LAG = 4
"""That of GPUs and other devices, which compute while Python prepares the next steps."""


def lag_of(handles: Sequence[Any]) -> int:
    """The lag that suits the device of most variables."""
    if not handles:
        return LAGS["CPU"]
    # "/job:localhost/replica:0/task:0/device:GPU:0" is of type GPU.
    types = []
    for handle in handles:
        types.append(str(handle.device).rpartition("device:")[2].partition(":")[0])
    return LAGS.get(max(types, key=types.count), OTHER_LAG)


class LateReader:
    """Reads numbers in the order of their steps, in a thread that alone waits for the device.

    A training whose host runs ahead of its device goes on meanwhile: only with more than `lag`
    steps to be read does it wait for the first of them. Keras reads its logs in a thread as well.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, Future[Any]]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def add(self, ran: Any) -> None:
        """Read the tensors of a `RanStep` in the thread."""
        self._waiting.append((ran, self._thread().submit(_read, ran)))

    def to_host(self, values: dict[int, Any]) -> None:
        """Move a keyframe off its device.

        One tensor after the other, so that the device holds a second state for a short time only.
        """
        self._thread().submit(_move, values)

    def _thread(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="nanreplay")
        return self._pool

    def take(self, lag: int) -> Iterator[Any]:
        """All but the last `lag` steps; waits until they have been read."""
        while len(self._waiting) > lag:
            ran, reading = self._waiting.popleft()
            reading.result()
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
    """Wait for the numbers of a step.

    TensorFlow keeps the copy that it makes of a tensor on a device, so asking again costs nothing.
    """
    for value in (*ran.outputs.values(), ran.sums):
        if value is not None:
            value.numpy()


def _move(values: dict[int, Any]) -> None:
    for index, value in values.items():
        with tf.device("CPU:0"):
            values[index] = tf.identity(value)
