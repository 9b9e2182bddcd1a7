"""Noticing that Python code sets a variable between two compiled steps: a callback, a loop, a tuner.

While a watch is on, the functions through which TensorFlow's Python code assigns variables tell of it. That costs nothing
but where something is assigned.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from nanreplay.program import private_tf
from nanreplay.program.patches import replace_functions

_watches: weakref.WeakSet[AssignmentWatch] = weakref.WeakSet()
_undo: list[Callable[[], None]] = []


class AssignmentWatch:
    """Notes which variables were assigned outside of a graph.

    Args:
        known: Index of each variable that matters, by the id of its handle; may grow.
    """

    def __init__(self, known: Mapping[int, int]) -> None:
        self._known = known
        self._changed: set[int] = set()
        self._failed: Exception | None = None
        weakref.finalize(self, _put_back_after_last).atexit = False  # a recorder may be forgotten without an end

    @property
    def is_on(self) -> bool:
        """Whether assignments are noted."""
        return self in _watches

    def start(self) -> None:
        """Note assignments from now on."""
        _watches.add(self)
        if not _undo:
            _undo.append(replace_functions(private_tf.assignment_functions(), _telling))

    def stop(self) -> None:
        """Note no more of them; TensorFlow is as before when no other watch is on."""
        _watches.discard(self)
        _put_back_after_last()

    def take(self) -> list[int]:
        """Return the indices of the variables that were assigned since the last call.

        Raises:
            Exception: One that occurred while an assignment was noted; it did not reach the code that assigns.
        """
        if self._failed is not None:
            raise self._failed
        if not self._changed:
            return []
        changed, self._changed = self._changed, set()
        return sorted(changed)

    def note(self, handle: Any) -> None:
        """A variable is being assigned."""
        try:
            self._note(handle)
        except Exception as error:
            self._failed = error

    def _note(self, handle: Any) -> None:
        index = self._known.get(id(handle))
        if index is not None:
            self._changed.add(index)


def _telling(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def assign(*args: Any, **kwargs: Any) -> Any:
        if args and tf.executing_eagerly():
            for watch in tuple(_watches):
                watch.note(args[0])
        return original(*args, **kwargs)

    return assign


def _put_back_after_last() -> None:
    if _undo and not any(True for _ in _watches):  # its length may still count one that is gone
        _undo.pop()()
