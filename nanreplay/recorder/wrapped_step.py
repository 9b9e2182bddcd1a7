"""What `Recorder.wrap` returns: called in place of the user's own step, whatever that is.

It finds out from the calls themselves whether a step trains in compiled functions or in Python.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import tensorflow as tf

from nanreplay.program import listening
from nanreplay.recorder.compiled_calls import CompiledCalls
from nanreplay.recorder.eager_step import EagerStep
from nanreplay.recorder.recording import Recording
from nanreplay.tensorflow_internals import tf_functions, tf_traces


class WrappedStep:
    """Calls the user's step and records what trains in it.

    A step that only calls compiled functions is recorded as these: each that trains is a step of
    its own. A step that computes a gradient, or applies one, in Python is one eager step, whatever
    compiled functions it calls. Which of the two it is shows in the calls themselves. Within a
    `tf.function` of the user's own the step is part of that function, which is recorded then.

    Args:
        recording: The recording.
        step: The user's step.
        calls: Records compiled functions.
        eager: Records the step as an eager one.
    """

    def __init__(
        self, recording: Recording, step: Callable[..., Any], calls: CompiledCalls, eager: EagerStep
    ) -> None:
        self._recording = recording
        self._step = step
        self._calls = calls
        self._eager = eager
        self._is_function = is_compiled_function(step)
        self._is_compiled: bool | None = True if self._is_function else None
        """Whether compiled functions train; None while that is not known."""
        self._traces: tf_traces.KnownTraces | None = None
        """Which traces of the step TensorFlow chose, where it is a `tf.function`."""
        if tf_traces.is_polymorphic(step):
            self._traces = tf_traces.KnownTraces(step)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step once; returns what it returns."""
        if not tf_functions.is_top_level():
            listening.claim_trace(self._calls)
            return tf_functions.autograph_converted(self._step)(*args, **kwargs)
        # Asked in each call: `tf.config.run_functions_eagerly` may be set between two of them.
        runs_eagerly = tf.config.functions_run_eagerly()
        if self._is_compiled and not runs_eagerly:
            return self._run_compiled(args, kwargs)
        if self._is_compiled is False or runs_eagerly:
            with listening.listening(self._eager):
                return self._eager(*args, **kwargs)
        return self._run_undecided(args, kwargs)

    def _run_compiled(self, args: Any, kwargs: Any) -> Any:
        calls, trained_before = self._calls, self._calls.trained
        calls.is_eager = False
        calls.named = self._step if self._is_function else None
        listener = listening.start_listening(calls)
        try:
            trace = self._known_trace(args, kwargs)
            if trace is not None and self._traces is not None:
                return self._traces.run(functools.partial(calls.call_trace, trace, args))
            result = self._step(*args, **kwargs)
        finally:
            listening.start_listening(listener)
            calls.named = None
        if calls.is_eager and calls.trained == trained_before:
            self._is_compiled = False
        elif self._traces is not None and calls.trained == trained_before + 1 and not kwargs:
            self._recording.guard(self._learn_trace, args)
        return result

    def _known_trace(self, args: Any, kwargs: Any) -> Any:
        """The trace that a `tf.function` would choose for a call that is recorded; else None.

        To have TensorFlow choose takes longer than to record.
        """
        traces, recording = self._traces, self._recording
        if traces is None or kwargs or not recording.lifecycle.is_active:
            return None
        if tf_functions.is_tape_recording():
            return None
        return recording.guard(traces.find, args)

    def _learn_trace(self, args: Any) -> None:
        """TensorFlow has chosen a trace of the step for `args`, and it has trained."""
        last = self._calls.last
        trace = None if last is None else last.function()
        if self._traces is None or trace is None:
            return
        if tf_functions.is_trace_of(trace, self._step):
            self._traces.learn(args, trace)

    def _run_undecided(self, args: Any, kwargs: Any) -> Any:
        """Record the call in both ways, until it shows which it is.

        It begins as an eager step. The first compiled function that trains ends that
        (`forget_call`), and is a step of its own.
        """
        calls, trained_before = self._calls, self._calls.trained
        calls.is_eager, calls.before_step = False, self._eager.forget_call
        try:
            with listening.listening(self):
                result = self._eager(*args, **kwargs)
        finally:
            calls.before_step = None
        if calls.is_eager:
            self._is_compiled = False
        elif calls.trained > trained_before:
            self._is_compiled = True
        return result

    def call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Note the variables of a compiled function, then record it if it trains."""
        self._eager.note_variables([*inputs, *captured])
        return self._calls.call(function, inputs, captured, run)

    def trained_eagerly(self) -> None:
        """Note that Python code trains by itself."""
        self._calls.trained_eagerly()


def is_compiled_function(step: Any) -> bool:
    """Whether a step is a `tf.function` or a ConcreteFunction."""
    return hasattr(step, "get_concrete_function") or hasattr(step, "structured_input_signature")


def as_function(wrapped: Callable[..., Any], step: Any) -> Callable[..., Any]:
    """A plain function that runs `wrapped`, named and documented as `step`.

    AutoGraph leaves it to convert what it calls.
    """

    def recorded(*args: Any, **kwargs: Any) -> Any:
        return wrapped(*args, **kwargs)

    named = getattr(step, "python_function", step)
    functools.update_wrapper(recorded, named, updated=())
    return cast("Callable[..., Any]", tf_functions.autograph_artifact(recorded))
