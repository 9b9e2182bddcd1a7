"""How long steps take, and what a keyframe costs: medians of the last ones, so that single slow steps say nothing."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nanreplay.program.watch import read_variable

SAMPLE_BYTES = 2**26
"""The copy of a larger variable is timed on this much of it."""
_COPIED = (tf.float32, tf.float64, tf.float16, tf.bfloat16, tf.int32, tf.int64)
BOUND = 4.0
"""What a keyframe was seen to cost is trusted within this factor of what a copy of the state takes."""


class Pace:
    """Times from the start of one step to the start of the next, those after a keyframe apart.

    A keyframe costs twice: reading the variables before the step, and the copy that TensorFlow makes of each when the
    step writes to it while the keyframe holds its buffer. Both show in the time to the next step.
    """

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=32)
        self._extra: deque[float] = deque(maxlen=8)
        self._began_s = 0.0
        self._began_at = 0
        self._with_keyframe: bool | None = None

    def begin(self, step: int, *, now_s: float, with_keyframe: bool, is_usual: bool) -> None:
        """Note that a step begins, and with it how long those before took; a call may run several.

        Args:
            step: Its number.
            now_s: The time before anything is done for this step.
            with_keyframe: Whether this step begins with a keyframe.
            is_usual: Whether this step may count; one that is traced or compiled may not.
        """
        elapsed_s, steps = now_s - self._began_s, max(1, step - self._began_at)
        if self._with_keyframe is False:
            self._plain.append(elapsed_s / steps)
        elif self._with_keyframe and len(self._plain) >= 3:
            self._extra.append(elapsed_s - steps * statistics.median(self._plain))
        self._began_s, self._began_at, self._with_keyframe = now_s, step, with_keyframe if is_usual else None

    def pause(self) -> None:
        """What passes until the next step is no step: validation, the end of an epoch."""
        self._with_keyframe = None

    @property
    def step_s(self) -> float | None:
        """Time of a step; None while it is not known."""
        return statistics.median(self._plain) if len(self._plain) >= 3 else None

    def keyframe_s(self, copy_s: float) -> float:
        """What a keyframe adds to the steps, given the time that a copy of the state takes."""
        if len(self._extra) < 3:
            return copy_s
        return min(max(statistics.median(self._extra), copy_s / BOUND), copy_s * BOUND)


FIRST_LOOKS = 8
"""Steps at the beginning of a training that are all looked at."""
LOOK_SHARE = 0.0025
"""What looking at variables may add to the time of the steps."""
LONGEST = 64
"""Steps after which variables are looked at again at the latest."""


class LookPace:
    """How often variables are looked at: in the first steps always, then as often as costs next to nothing."""

    def __init__(self) -> None:
        self.every = 1
        self.wanted = LONGEST
        """Steps after which to look again, as far as time goes."""
        self.is_always = False
        """Whether every step is looked at, whatever it costs."""
        self._last = -1
        self._seen = 0
        self._look_s: deque[float] = deque(maxlen=8)

    def is_due(self, step: int, steps: int, wanted: bool) -> bool:
        """Whether to look after `step`, the last of `steps` that ran in one call."""
        due = wanted or self.is_always or self._seen < FIRST_LOOKS or step - self._last + steps - 1 >= self.every
        self._seen += 1
        if due:
            self._last = step
        return due

    def note(self, look_s: float, step_s: float | None, most: int) -> None:
        """Learn what a look took, and plan for the next.

        Args:
            look_s: What the last look took.
            step_s: What a step takes; None while it is not known.
            most: Steps that may run between looks, so that each can be replayed.
        """
        self._look_s.append(look_s)
        if step_s:
            self.wanted = max(1, min(math.ceil(statistics.median(self._look_s) / (LOOK_SHARE * step_s)), LONGEST))
            self.every = max(1, min(self.wanted, most)) if self._seen > FIRST_LOOKS else 1


def time_copy(handles: Sequence[Any], sizes: Sequence[int]) -> float:
    """Seconds that a copy of all variables takes: the reading timed, the copy told from that of the largest one."""
    began_s = time.perf_counter()
    values = [read_variable(handle) for handle in handles]
    read_s = time.perf_counter() - began_s
    samples = [(size, value) for size, value in zip(sizes, values, strict=True) if value.dtype in _COPIED]
    if not samples:
        return read_s
    largest = tf.reshape(max(samples, key=lambda sample: sample[0])[1], [-1])
    sample = largest[: SAMPLE_BYTES // largest.dtype.size]
    sample_bytes = max(1, int(sample.shape[0]) * int(sample.dtype.size))
    return read_s + min(_copy_s(sample) for _ in range(2)) * sum(sizes) / sample_bytes


def _copy_s(tensor: Any) -> float:
    began_s = time.perf_counter()
    tf.raw_ops.DeepCopy(x=tensor)[:1].numpy()  # on a GPU the copy has been made once a number of it is here
    return time.perf_counter() - began_s
