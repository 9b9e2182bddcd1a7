"""The random numbers that an eager step drew from its kernels' own state, so that it can be run once more with the same ones."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from nanreplay.program import private_tf
from nanreplay.program.patches import replace_functions


class Draws:
    """What one eager run of a step drew, in order."""

    def __init__(self) -> None:
        self._drawn: deque[tuple[str, Any]] = deque()

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Note what this thread draws eagerly; numbers are drawn as ever."""

        def note(name: str, draw: Callable[[], Any]) -> Any:
            found = draw()
            self._drawn.append((name, found))
            return found

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

        with _drawing(give):
            yield


class _Thread(threading.local):
    def __init__(self) -> None:
        self.draws: Callable[[str, Callable[[], Any]], Any] | None = None


_thread = _Thread()
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
            _undo.append(replace_functions(private_tf.random_functions(), _stand_in))
        elif not _users and _undo:
            _undo.pop()()


def _stand_in(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
        draws = _thread.draws
        if draws is None or not tf.executing_eagerly():
            return original(*args, **kwargs)
        return draws(name, lambda: original(*args, **kwargs))

    return draw
