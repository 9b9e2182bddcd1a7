"""Tracing a training step with the watch inside it: the recorded program is the program that trains."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tensorflow as tf

from nanreplay.program import private_gradients, private_tf
from nanreplay.program.observation import Observation
from nanreplay.program.observe import Observer
from nanreplay.program.outside import outside_tensors, without_forwarding
from nanreplay.program.watch import Watch, build_watch


@dataclass(frozen=True)
class Trace:
    """One trace of a step; its graph goes with it."""

    graph: Any
    """The FuncGraph."""
    seen: Observation
    watch: Watch
    outside: Sequence[Any]
    """Outputs of ops that another run would not repeat, which the program returns."""

    def __post_init__(self) -> None:
        weakref.finalize(self, private_gradients.forget_gradients, self.graph).atexit = False


@dataclass(frozen=True)
class TracedProgram:
    """A traced step that can run, with what its trace showed."""

    function: Any
    """The ConcreteFunction; returns (result of the step, watch vector, outputs of ops that another run would not repeat)."""
    trace: Trace
    compilation: str
    """`graph` or `xla`."""

    @cached_property
    def flat_call(self) -> Callable[[Sequence[Any]], Any]:
        """Calls `function` with the flattened tensors of its arguments."""
        return private_tf.flat_call(self.function)

    @property
    def handles(self) -> list[Any]:
        """Handles of the variables that the program captures."""
        return variable_handles(self.trace.graph)


class TracedStep:
    """A training step as one `tf.function` whose every trace is observed.

    Args:
        step: Python function of the step; called only while tracing.
        jit_compile: As for `tf.function`.
        reduce_retracing: As for `tf.function`.
        autograph: Convert `step` as `tf.function` would.
        input_signature: As for `tf.function`.
        unwatched: Given what the trace showed, says which variables (handles) the watch leaves out.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        *,
        jit_compile: bool | None,
        reduce_retracing: bool = True,
        autograph: bool = False,
        input_signature: Any = None,
        unwatched: Callable[[Observation], Sequence[Any]] = lambda seen: (),
    ) -> None:
        self._step = private_tf.autograph_converted(step) if autograph else step
        self._unwatched = unwatched
        self._traces: dict[int, Trace] = {}
        self._failed: Exception | None = None
        self._jit_compile = bool(jit_compile)
        self.function = tf.function(
            self._watched, jit_compile=jit_compile, reduce_retracing=reduce_retracing, autograph=False, input_signature=input_signature
        )

    def program(self, *args: Any, **kwargs: Any) -> TracedProgram:
        """Trace (or find the trace) for these arguments."""
        function = self.function.get_concrete_function(*args, **kwargs)
        if self._failed is not None:
            raise self._failed
        return TracedProgram(function, self._traces[id(function.graph)], "xla" if self._jit_compile else "graph")

    def _watched(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, list[Any]]:
        graph = tf.compat.v1.get_default_graph()
        observer = Observer()
        with contextlib.ExitStack() as stack:
            self._try(lambda: stack.enter_context(observer))
            result = self._step(*args, **kwargs)
            watched: tuple[Any, list[Any]] = self._try(lambda: self._watch(graph, observer, result)) or (tf.zeros([0]), [])
        self._failed = self._failed or observer.failed
        return result, *watched

    def _try(self, work: Callable[[], Any]) -> Any:
        """Keep an error of ours until the trace has ended: only then TensorFlow initialises the variables that the step made."""
        try:
            return work()
        except Exception as error:
            self._failed = error
            return None

    def _watch(self, graph: Any, observer: Observer, result: Any) -> tuple[Any, list[Any]]:
        if observer.failed is not None:
            raise observer.failed
        seen = observer.observation
        seen.note_result(result)
        with observer.region("watch"):
            watch = build_watch(seen, watched_handles(graph, self._unwatched(seen)), xla=self._jit_compile)
            outside = outside_tensors(graph)
            returned = outside if self._jit_compile else [without_forwarding(tensor) for tensor in outside]
        self._traces[id(graph)] = Trace(graph, seen, watch, outside)
        return watch.vector if watch.vector is not None else tf.zeros([0]), returned


def variable_handles(graph: Any) -> list[Any]:
    """Handles of the variables that `graph` captures, in the order of its placeholders."""
    return [outside for outside, _ in graph.captures if is_variable(outside)]


def is_variable(tensor: Any) -> bool:
    """Whether an eager tensor is the handle of a variable (not of a table, an iterator, ...)."""
    return tensor.dtype == tf.resource and private_tf.variable_type(tensor) is not None


def watched_handles(graph: Any, unwatched: Sequence[Any]) -> list[Any]:
    """Handles of the float variables that `graph` captures and that are not in `unwatched`."""
    ignored = {id(handle) for handle in unwatched}
    return [handle for handle in variable_handles(graph) if id(handle) not in ignored and _is_float(handle)]


def _is_float(handle: Any) -> bool:
    kind = private_tf.variable_type(handle)
    return kind is not None and bool(tf.dtypes.as_dtype(kind[0]).is_floating)
