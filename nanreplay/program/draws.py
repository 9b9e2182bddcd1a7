"""What an eager step drew from states that are no variables, so that it can be run once more with the same.

These are the random numbers of kernels, elements of iterators, and the generators of Python and NumPy.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program import observe, private_tf
from nanreplay.program.patches import replace_functions


class Draws:
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
                self.elements += [each for each in tf.nest.flatten(drawn) if each.dtype not in (tf.variant, tf.resource)]
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


_FETCHES = frozenset(name for _, name in private_tf.fetch_functions())


class _Thread(threading.local):
    def __init__(self) -> None:
        self.draws: Callable[[str, Callable[[], Any]], Any] | None = None


_thread = _Thread()


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
_undo: list[Callable[[], None]] = []


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
        if _users and not _undo:
            _undo.append(replace_functions([*private_tf.random_functions(), *private_tf.fetch_functions()], _stand_in))
        elif not _users and _undo:
            _undo.pop()()


def _stand_in(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
        draws = _thread.draws
        if draws is None or not tf.executing_eagerly():
            return original(*args, **kwargs)
        return draws(name, lambda: original(*args, **kwargs))

    return draw
