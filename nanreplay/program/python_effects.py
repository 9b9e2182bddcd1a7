"""What a step's Python code does beside running ops: it draws, fetches and assigns eagerly.

TensorFlow's generated functions are replaced for a while, so that the recorder can note what an
eager step drew and give it the same numbers once more, and which variables a callback, a loop or a
tuner sets between two compiled steps. Where nothing is drawn or assigned, that costs nothing.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program import observe
from nanreplay.tensorflow_internals import tf_datasets, tf_variables

# Putting functions of ours in the place of TensorFlow's generated ones, for a while.


def replace_functions(
    places: Iterable[tuple[Any, str]],
    stand_in: Callable[[str, Callable[..., Any]], Callable[..., Any]],
) -> Callable[[], None]:
    """Replace functions of modules; returns what puts them back.

    Args:
        places: Module and name of each.
        stand_in: Given the name and the function, makes what is called in its place.
    """
    originals = []
    for module, name in places:
        originals.append((module, name, getattr(module, name)))
    for module, name, original in originals:
        setattr(module, name, stand_in(name, original))

    def undo() -> None:
        for place in reversed(originals):
            setattr(*place)

    return undo


# What an eager step drew from states that are no variables, so that it can be run once more with
# the same numbers: states of random kernels, iterators, Python's and NumPy's generators.


@dataclass(frozen=True, slots=True)
class _End:
    """Stands among what was drawn for the error that ends an iterator."""

    message: str


class RandomDraws:
    """What one eager run of a step drew, in order."""

    def __init__(self) -> None:
        self._drawn: deque[tuple[str, Any]] = deque()
        """(name of the function, what it gave) pairs."""
        self._host_states: tuple[Any, Any] | None = None
        """States of the generators of Python and NumPy before the step."""
        self.elements: list[Any] = []
        """Tensors that were fetched from iterators of `tf.data`."""

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Note what this thread draws eagerly; numbers are drawn as ever."""
        self._host_states = random.getstate(), np.random.get_state()

        def note(name: str, draw: Callable[[], Any]) -> Any:
            try:
                drawn = draw()
            except tf.errors.OutOfRangeError as error:  # an iterator has come to its end
                self._drawn.append((name, _End(str(error.message))))
                raise
            self._drawn.append((name, drawn))
            if name in _FETCHES:
                leaves = tf.nest.flatten(drawn)
                self.elements += [
                    leaf for leaf in leaves if leaf.dtype not in (tf.variant, tf.resource)
                ]
            return drawn

        with _drawing(note):
            yield

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Give the noted numbers once more, in the same order.

        A step that draws otherwise draws anew from there on.
        """

        def give(name: str, draw: Callable[[], Any]) -> Any:
            if self._drawn and self._drawn[0][0] == name:
                drawn = self._drawn.popleft()[1]
                if isinstance(drawn, _End):
                    raise tf.errors.OutOfRangeError(None, None, drawn.message)
                return drawn
            self._drawn.clear()
            return draw()

        assert self._host_states is not None
        states_now = random.getstate(), np.random.get_state()
        _set_host_states(*self._host_states)
        try:
            with _drawing(give):
                yield
        finally:
            _set_host_states(*states_now)


def _set_host_states(python: Any, numpy: Any) -> None:
    random.setstate(python)
    np.random.set_state(numpy)


_FETCHES = frozenset(name for _, name in tf_datasets.fetch_functions())


class _ThreadDraws(threading.local):
    """Who is asked for what the current thread draws: `draws(name, draw)`, or nobody."""

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
_n_drawing = 0
"""How many threads draw in this way now; the functions are replaced while there are some."""
_undo_draws: list[Callable[[], None]] = []
"""Puts TensorFlow's functions back; empty while they are its own."""


@contextlib.contextmanager
def _drawing(draws: Callable[[str, Callable[[], Any]], Any]) -> Iterator[None]:
    """Ask `draws` for what this thread draws."""
    _count_drawing(1)
    before, _thread.draws = _thread.draws, draws
    try:
        yield
    finally:
        _thread.draws = before
        _count_drawing(-1)


def _count_drawing(change: int) -> None:
    """Replace TensorFlow's functions for the first thread, and put them back after the last one."""
    global _n_drawing  # noqa: PLW0603
    with _lock:
        _n_drawing += change
        if _n_drawing and not _undo_draws:
            places = [*tf_variables.random_functions(), *tf_datasets.fetch_functions()]
            _undo_draws.append(replace_functions(places, _stand_in))
        elif not _n_drawing and _undo_draws:
            _undo_draws.pop()()


def _stand_in(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
        draws = _thread.draws
        if draws is None or not tf.executing_eagerly():
            return original(*args, **kwargs)
        return draws(name, lambda: original(*args, **kwargs))

    return draw


# Which variables Python code assigns between two compiled steps.

_trackers: weakref.WeakSet[AssignmentTracker] = weakref.WeakSet()
"""Those that are on."""
_undo_assignments: list[Callable[[], None]] = []
"""Puts TensorFlow's functions back; empty while they are its own."""


class AssignmentTracker:
    """Notes which variables were assigned outside of a graph.

    Args:
        known: Index of each variable that matters, by the id of its handle; may grow.
    """

    def __init__(self, known: Mapping[int, int]) -> None:
        self._known = known
        self.is_on = False
        """Whether assignments are noted."""
        self.has_news = False
        """Whether there is anything for `take` to tell."""
        self._changed: set[int] = set()
        self._failed: Exception | None = None
        # A recorder may be forgotten without an end.
        weakref.finalize(self, _put_back_after_last).atexit = False

    def start(self) -> None:
        """Note assignments from now on."""
        self.is_on = True
        _trackers.add(self)
        if not _undo_assignments:
            undo = replace_functions(tf_variables.assignment_functions(), _telling)
            _undo_assignments.append(undo)

    def stop(self) -> None:
        """Note no more of them; TensorFlow is as before when no other tracker is on."""
        self.is_on = False
        _trackers.discard(self)
        _put_back_after_last()

    def take(self) -> list[int]:
        """Return the indices of the variables that were assigned since the last call.

        Raises:
            Exception: One that occurred while an assignment was noted. It did not reach the code
                that assigns.
        """
        if self._failed is not None:
            raise self._failed
        changed, self._changed, self.has_news = self._changed, set(), False
        return sorted(changed)

    def note(self, handle: Any) -> None:
        """A variable is being assigned."""
        try:
            self._note(handle)
        except Exception as error:
            self._failed, self.has_news = error, True

    def _note(self, handle: Any) -> None:
        index = self._known.get(id(handle))
        if index is not None:
            self._changed.add(index)
            self.has_news = True


def _telling(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that tells the trackers of an assignment, in the place of `original`."""

    @functools.wraps(original)
    def assign(*args: Any, **kwargs: Any) -> Any:
        if args and tf.executing_eagerly():
            for tracker in tuple(_trackers):
                tracker.note(args[0])
        return original(*args, **kwargs)

    return assign


def _put_back_after_last() -> None:
    # Not by the length of the set, which may still count a tracker that is gone.
    if _undo_assignments and not any(True for _ in _trackers):
        _undo_assignments.pop()()
