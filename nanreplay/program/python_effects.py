"""Noticing that Python code sets a variable between two compiled steps: a callback, a loop, a tuner.

While a watch is on, the functions through which TensorFlow's Python code assigns variables tell of it. That costs nothing
but where something is assigned.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program import observe
from nanreplay.tensorflow_internals import tf_datasets, tf_variables

# Putting functions of ours in place of TensorFlow's generated ones, for a while.


def replace_functions(
    places: Iterable[tuple[Any, str]],
    stand_in: Callable[[str, Callable[..., Any]], Callable[..., Any]],
) -> Callable[[], None]:
    """Replace functions of modules; returns what puts them back.

    Args:
        places: Module and name of each.
        stand_in: Given the name and the function, makes what is called in its place.
    """
    originals = [(module, name, getattr(module, name)) for module, name in places]
    for module, name, original in originals:
        setattr(module, name, stand_in(name, original))

    def undo() -> None:
        for place in reversed(originals):
            setattr(*place)

    return undo


# What an eager step drew from states that are no variables, so that it can be run once more with
# the same.


class RandomDraws:
    """What one eager run of a step drew, in order."""

    def __init__(self) -> None:
        self._drawn: deque[tuple[str, Any]] = deque()
        self._host: tuple[Any, Any] | None = None
        self.elements: list[Any] = []
        """Tensors that were fetched from iterators of `tf.data`."""

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Note what this thread draws eagerly; numbers are drawn as ever."""
        self._host = random.getstate(), np.random.get_state()

        def note(name: str, draw: Callable[[], Any]) -> Any:
            drawn = draw()
            self._drawn.append((name, drawn))
            if name in _FETCHES:
                self.elements += [
                    each
                    for each in tf.nest.flatten(drawn)
                    if each.dtype not in (tf.variant, tf.resource)
                ]
            return drawn

        with _drawing(note):
            yield

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Give the noted numbers once more, in the same order; a step that draws others draws anew from there on."""

        def give(name: str, draw: Callable[[], Any]) -> Any:
            if self._drawn and self._drawn[0][0] == name:
                return self._drawn.popleft()[1]
            self._drawn.clear()
            return draw()

        assert self._host is not None
        now = random.getstate(), np.random.get_state()
        _set_host(*self._host)
        try:
            with _drawing(give):
                yield
        finally:
            _set_host(*now)


def _set_host(python: Any, numpy: Any) -> None:
    random.setstate(python)
    np.random.set_state(numpy)


_FETCHES = frozenset(name for _, name in tf_datasets.fetch_functions())


class _ThreadDraws(threading.local):
    def __init__(self) -> None:
        self.draws: Callable[[str, Callable[[], Any]], Any] | None = None


_thread = _ThreadDraws()


def _inherit() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What the replicas of a step draw in threads of their own is drawn by the step."""
    draws = _thread.draws

    @contextlib.contextmanager
    def enter() -> Iterator[None]:
        _thread.draws = draws
        yield

    return enter


observe.replica_threads.inherited.append(_inherit)
_lock = threading.Lock()
_users = 0
_undo_all: list[Callable[[], None]] = []


@contextlib.contextmanager
def _drawing(draws: Callable[[str, Callable[[], Any]], Any]) -> Iterator[None]:
    """Ask `draws` for what this thread draws; TensorFlow's functions are replaced while any thread does so."""
    _count(1)
    before, _thread.draws = _thread.draws, draws
    try:
        yield
    finally:
        _thread.draws = before
        _count(-1)


def _count(change: int) -> None:
    global _users
    with _lock:
        _users += change
        if _users and not _undo_all:
            _undo_all.append(
                replace_functions(
                    [*tf_variables.random_functions(), *tf_datasets.fetch_functions()], _stand_in
                )
            )
        elif not _users and _undo_all:
            _undo_all.pop()()


def _stand_in(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
        draws = _thread.draws
        if draws is None or not tf.executing_eagerly():
            return original(*args, **kwargs)
        return draws(name, lambda: original(*args, **kwargs))

    return draw


# --- program.assignments

_watches: weakref.WeakSet[AssignmentTracker] = weakref.WeakSet()
_undo: list[Callable[[], None]] = []


class AssignmentTracker:
    """Notes which variables were assigned outside of a graph.

    Args:
        known: Index of each variable that matters, by the id of its handle; may grow.
    """

    def __init__(self, known: Mapping[int, int]) -> None:
        self._known = known
        self._changed: set[int] = set()
        self._failed: Exception | None = None
        weakref.finalize(
            self, _put_back_after_last
        ).atexit = False  # a recorder may be forgotten without an end

    @property
    def is_on(self) -> bool:
        """Whether assignments are noted."""
        return self in _watches

    def start(self) -> None:
        """Note assignments from now on."""
        _watches.add(self)
        if not _undo:
            _undo.append(replace_functions(tf_variables.assignment_functions(), _telling))

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
