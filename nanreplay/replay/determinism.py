"""TensorFlow's op determinism: on while a replay is open, given up for an op that lacks it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import tensorflow as tf

from nanreplay.errors import MemoryLimitError, ReplayError, first_line
from nanreplay.replay.kernels import asks_for_determinism
from nanreplay.replay.step_results import step_error
from nanreplay.tensorflow_internals import tf_eager

P = ParamSpec("P")
T = TypeVar("T")

# Op determinism is one switch for the whole process. The replays that are open share it.

_lock = threading.Lock()
_users = 0
_before = False


class DeterminismGivenUpError(Exception):
    """An op has no deterministic kernel; what ran before it has changed the state."""


def begun_anew(method: Callable[P, T]) -> Callable[P, T]:
    """Run a method of a replay once more from its beginning, where op determinism is given up.

    The step that found such an op has run halfway: variables that it wrote before would be written
    twice.
    """

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except DeterminismGivenUpError:
            return method(*args, **kwargs)

    return call


class OpDeterminism:
    """Op determinism as one replay wants it; after the last one it is as before the first."""

    def __init__(self) -> None:
        global _users, _before  # noqa: PLW0603
        self._is_wanted = True
        self._is_released = False
        with _lock:
            if not _users:
                _before = tf_eager.is_deterministic()
            _users += 1
        self.enter()

    def enter(self) -> None:
        """Have it as this replay wants it: something of this replay is about to run."""
        tf_eager.set_deterministic(self._is_wanted)

    def do(self, step: int, work: Callable[[], T], notes: list[str]) -> T:
        """Do some work of a step with op determinism, while each op has such a kernel.

        What TensorFlow raises becomes an error of nanreplay that names the step.

        Args:
            step: The step.
            work: What to do.
            notes: Takes a line where determinism is given up.

        Raises:
            DeterminismGivenUpError: It was given up just now.
        """
        self.enter()
        try:
            return work()
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryLimitError(
                f"Step {step} ran out of memory: {first_line(error)}."
            ) from error
        except (tf.errors.OpError, ReplayError) as error:
            if asks_for_determinism(error) and self._is_wanted:
                self._is_wanted = False
                notes.append(
                    f"Step {step} holds an op that has no deterministic kernel; "
                    "op determinism was turned off."
                )
                raise DeterminismGivenUpError from error
            raised = step_error(step, error)
            raise raised from None if raised is error else error

    def release(self) -> None:
        """The replay is closed."""
        global _users  # noqa: PLW0603
        with _lock:
            if self._is_released:
                return
            self._is_released = True
            _users -= 1
            if not _users:
                tf_eager.set_deterministic(_before)
