"""Trainings in sessions of TensorFlow 1: they are not recorded, and that is said in one line.

A session runs a graph of which nothing is called from Python, so that neither its batches nor its
variables can be had.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from nanreplay.recorder import notices

_GRADIENT_SCOPE = re.compile(r"(^|/)gradients(_\d+)?/")
"""The name scope that `tf.gradients` opens."""
_UPDATES = re.compile(r"(Resource)?(Sparse)?Apply\w+|Assign(Add|Sub)?(VariableOp)?")


class SessionNotice:
    """Says once that a program trains in a session."""

    def __init__(self) -> None:
        self._is_said = False

    def tell(self) -> None:
        """Say it, unless it was said before."""
        if self._is_said:
            return
        self._is_said = True
        notices.say(
            "a training in a tf.compat.v1.Session is not recorded. To record it, train "
            "with eager execution: `step = recorder.wrap(tf.function(step))`."
        )


class SessionWatch:
    """Sees the graphs that sessions run, and tells of one that trains.

    Args:
        notice: Told of it.
    """

    def __init__(self, notice: SessionNotice) -> None:
        self._notice = notice
        self._seen: dict[int, int] = {}
        """How many versions each graph had when it was looked at, by its id."""
        self._stop: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Watch from now on."""
        # The class that defines `run` has no public name.
        bases = tf.compat.v1.Session.__mro__
        owner: Any = next(base for base in bases if "run" in vars(base))
        original = owner.run

        @functools.wraps(original)
        def run(session: Any, *args: Any, **kwargs: Any) -> Any:
            self._look(session)
            return original(session, *args, **kwargs)

        def stop() -> None:
            owner.run = original

        owner.run, self._stop = run, stop

    def stop(self) -> None:
        """Watch no more."""
        self._stop()
        self._stop = lambda: None

    def _look(self, session: Any) -> None:
        graph = getattr(session, "graph", None)
        if not isinstance(graph, tf.Graph) or self._seen.get(id(graph)) == graph.version:
            return
        self._seen[id(graph)] = graph.version
        if trains_in_session(graph):
            self._notice.tell()


def trains_in_session(graph: Any) -> bool:
    """Whether a graph of TensorFlow 1 computes gradients and updates variables."""
    ops = graph.get_operations()
    has_gradient = any(_GRADIENT_SCOPE.search(op.name) for op in ops)
    return has_gradient and any(_UPDATES.fullmatch(op.type) for op in ops)
