"""Tracing a training step with the watch inside it: the recorded program is the program that trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from nanreplay.program import private_tf
from nanreplay.program.observe import Observation, Observer
from nanreplay.program.watch import Watch, build_watch


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace of a step."""

    graph: Any
    """The FuncGraph."""
    seen: Observation
    watch: Watch


@dataclass(frozen=True, slots=True)
class TracedProgram:
    """A traced step that can run, with what its trace showed."""

    function: Any
    """The ConcreteFunction; returns (result of the step, watch vector)."""
    trace: Trace
    compilation: str
    """`graph` or `xla`."""

    @property
    def variables(self) -> tuple[Any, ...]:
        """The `tf.Variable`s that the program captures."""
        return tuple(self.trace.graph.variables)


class TracedStep:
    """A training step as one `tf.function` whose every trace is observed.

    Args:
        step: Python function of the step; called only while tracing.
        jit_compile: As for `tf.function`.
        reduce_retracing: As for `tf.function`.
        autograph: Convert `step` as `tf.function` would.
        input_signature: As for `tf.function`.
        unwatched: Variables that are never checked (metrics, seeds), asked for after the step was traced.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        *,
        jit_compile: bool | None,
        reduce_retracing: bool = True,
        autograph: bool = False,
        input_signature: Any = None,
        unwatched: Callable[[], Sequence[Any]] = tuple,
    ) -> None:
        self._step = private_tf.autograph_converted(step) if autograph else step
        self._unwatched = unwatched
        self._traces: dict[int, Trace] = {}
        self._jit_compile = bool(jit_compile)
        self.function = tf.function(
            self._watched, jit_compile=jit_compile, reduce_retracing=reduce_retracing, autograph=False, input_signature=input_signature
        )

    def program(self, *args: Any, **kwargs: Any) -> TracedProgram:
        """Trace (or find the trace) for these arguments."""
        function = self.function.get_concrete_function(*args, **kwargs)
        return TracedProgram(function, self._traces[id(function.graph)], "xla" if self._jit_compile else "graph")

    def _watched(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        graph = tf.compat.v1.get_default_graph()
        observer = Observer()
        with observer as seen:
            result = self._step(*args, **kwargs)
            with observer.region("watch"):
                watch = build_watch(seen, watched_variables(graph.variables, self._unwatched()))
        self._traces[id(graph)] = Trace(graph, seen, watch)
        return result, watch.vector if watch.vector is not None else tf.zeros([0])


def watched_variables(variables: Sequence[Any], unwatched: Sequence[Any]) -> list[Any]:
    """The float variables among `variables` that are not in `unwatched`."""
    ignored = {id(variable.handle) for variable in unwatched}
    return [variable for variable in variables if variable.dtype.is_floating and id(variable.handle) not in ignored]
