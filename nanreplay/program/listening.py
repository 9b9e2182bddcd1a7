"""Who is told of what a thread does: the notes of the current trace, and listeners of calls.

The replaced functions of `observe` ask here where to note, and whom to tell of the call of a
compiled function. State is per thread, but for the listeners in `ambient`.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import tensorflow as tf

from nanreplay.program.observation import Mark, Observation, Region, RegionKind, notes_of
from nanreplay.tensorflow_internals import tf_functions


class CallListener(Protocol):
    """Is told of calls of compiled functions."""

    def call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Run a ConcreteFunction in the place of its caller; `run` does so as TensorFlow would."""

    def trained_eagerly(self) -> None:
        """Note that a gradient was computed, or applied, outside of compiled functions."""


class FunctionListener(Protocol):
    """Is told of calls of each `tf.function`, before it chooses a trace."""

    def call(self, function: Any, args: Sequence[Any], run: Callable[[], Any]) -> Any:
        """Call a `tf.function` in the place of its caller; `run` does so as TensorFlow would."""


class AmbientListener(CallListener, Protocol):
    """Is told also of what is in no recorded step."""

    def took_gradient(self, sources: Sequence[Any]) -> None:
        """Note that Python code took a gradient with respect to `sources`, which may train."""


class EagerNotes(Protocol):
    """What an eager step is noted in, see `observe.EagerObserver`."""

    observation: Observation
    clock: Callable[[], int]
    tokens: dict[str, Any]
    n_replicas: int
    about_to_use: Callable[[Any], None]


class ThreadState(threading.local):
    """What the current thread is doing, for the recorder."""

    def __init__(self) -> None:
        self.eager: EagerNotes | None = None
        self.listener: CallListener | None = None
        self.chooser: FunctionListener | None = None
        self.is_muted = False
        self.stack: list[Region] = []
        """What is running, outermost first."""


thread_state = ThreadState()
ambient: list[AmbientListener] = []
"""Listeners of all threads; the last one is told."""

bystanders: weakref.WeakSet[Any] = weakref.WeakSet()
"""Told by `note_other(function, inputs, captured)` of compiled functions in no recorded step."""


def tell_bystanders(function: Any, inputs: list[Any], captured: list[Any]) -> None:
    """Tell recorders of a function that runs between their steps: it may set what they use."""
    if thread_state.is_muted or not tf_functions.is_top_level():
        return
    for bystander in tuple(bystanders):
        bystander.note_other(function, inputs, captured)


@contextlib.contextmanager
def listening(listener: CallListener | None) -> Iterator[None]:
    """Tell `listener` of the compiled functions that this thread calls, and nobody else."""
    before, thread_state.listener = thread_state.listener, listener
    try:
        yield
    finally:
        thread_state.listener = before


def start_listening(listener: CallListener | None) -> CallListener | None:
    """Tell `listener` of what this thread calls, until `stop_listening`; returns the one before.

    Two functions and no context manager, for a step that begins and ends in different calls.
    """
    before, thread_state.listener = thread_state.listener, listener
    return before


def stop_listening(listener: CallListener) -> None:
    """Do not tell `listener` any more of what this thread calls."""
    if thread_state.listener is listener:
        thread_state.listener = None


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Tell nobody of what this thread does: it is the recorder's own work."""
    before, thread_state.is_muted = thread_state.is_muted, True
    try:
        yield
    finally:
        thread_state.is_muted = before


def current_notes() -> Observation | None:
    """Where what happens now is noted; None for what nobody wants to know."""
    if thread_state.is_muted:
        return None
    try:
        if tf.executing_eagerly():
            return None if thread_state.eager is None else thread_state.eager.observation
        graph = tf.compat.v1.get_default_graph()
        return notes_of(graph) if isinstance(graph, tf_functions.FuncGraph) else None
    except Exception:  # an error of ours must not reach the step, which runs unobserved then
        return None


def op_clock() -> tuple[int, int]:
    """The graph that ops go into (0 for none), and how many it holds, or have run."""
    if tf.executing_eagerly():
        return 0, 0 if thread_state.eager is None else thread_state.eager.clock()
    graph = tf.compat.v1.get_default_graph()
    return id(graph), tf_functions.op_count(graph)


def mark_regions() -> None:
    """Note that the current stack holds from the next op on."""
    seen = current_notes()
    if seen is not None:
        graph, start = op_clock()
        seen.marks.setdefault(graph, []).append(Mark(start, tuple(thread_state.stack)))


@contextlib.contextmanager
def region(kind: RegionKind, name: str = "") -> Iterator[None]:
    """Attribute the ops made inside to `kind`."""
    outer = len(thread_state.stack)
    try:
        thread_state.stack.append(Region(kind, name, op_clock()[0]))
        mark_regions()
        yield
    finally:
        del thread_state.stack[outer:]
        mark_regions()


def is_unheard() -> bool:
    """Whether this thread runs Python code of which no recorder is told."""
    return not thread_state.is_muted and thread_state.listener is None and tf.executing_eagerly()


def listener_for(function: Any) -> CallListener | None:
    """Who is told of a call: nobody within a trace, or of the recorder's own work."""
    if thread_state.is_muted or not tf_functions.is_top_level():
        return None
    if thread_state.listener is not None:
        return thread_state.listener
    owner = notes_of(tf_functions.func_graph(function), make=False)
    if owner is not None and owner.listener is not None:
        listener = owner.listener()
        if listener is not None:
            return cast("CallListener", listener)
    return ambient[-1] if ambient else None


def claim_trace(listener: CallListener) -> None:
    """Let `listener` be told of calls of the function that is being traced now.

    A step that it records is part of that function. It is held weakly, since graphs may live for
    ever.
    """
    graph = tf.compat.v1.get_default_graph()
    if isinstance(graph, tf_functions.FuncGraph):
        notes_of(tf_functions.outermost_graph(graph)).listener = weakref.ref(listener)
