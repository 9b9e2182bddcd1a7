"""What `Recorder.wrap` returns: called in place of the user's own step, whatever that is.

It finds out from the calls themselves whether a step trains in compiled functions or in Python.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import tensorflow as tf

from nanreplay.program import listening
from nanreplay.program.eager_program import EagerRun
from nanreplay.program.listening import thread_state
from nanreplay.recorder.compiled_calls import CompiledCalls
from nanreplay.recorder.eager_step import EagerStep
from nanreplay.recorder.recording import Recording
from nanreplay.recorder.sessions import SessionNotice
from nanreplay.tensorflow_internals import tf_functions


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
        self.recording = recording
        self._step = step
        self._calls = calls
        self._eager = eager
        self._in_session = SessionNotice()
        self._is_function = is_compiled_function(step)
        self._is_compiled: bool | None = True if self._is_function else None
        """Whether compiled functions train; None while that is not known."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step once; returns what it returns."""
        if not tf_functions.is_top_level():
            if not tf_functions.is_tracing():
                self._in_session.tell()
                return self._step(*args, **kwargs)
            listening.claim_trace(self._calls)
            return tf_functions.autograph_converted(self._step)(*args, **kwargs)
        if self._is_within_step():
            return self._step(*args, **kwargs)
        # Asked in each call: `tf.config.run_functions_eagerly` may be set between two of them.
        runs_eagerly = tf.config.functions_run_eagerly()
        if self._is_compiled and not runs_eagerly:
            return self._run_compiled(args, kwargs)
        if self._is_compiled is False or runs_eagerly:
            self._eager.is_certain = True
            with listening.listening(self._eager):
                return self._eager(*args, **kwargs)
        return self._run_undecided(args, kwargs)

    def _is_within_step(self) -> bool:
        """Whether a step around this one is recorded by the same recorder, or runs once more."""
        listener = thread_state.listener
        if listener is self._calls or isinstance(listener, EagerRun):
            return True
        if not isinstance(listener, (WrappedStep, EagerStep)):
            return False
        return listener.recording is self.recording

    def _run_compiled(self, args: Any, kwargs: Any) -> Any:
        calls, trained_before = self._calls, self._calls.trained
        calls.is_eager = False
        calls.named = self._step if self._is_function else None
        listener, chooser = listening.start_listening(calls), thread_state.chooser
        thread_state.chooser = calls.known_traces
        try:
            result = self._step(*args, **kwargs)
        finally:
            listening.start_listening(listener)
            thread_state.chooser, calls.named = chooser, None
        if calls.is_eager and calls.trained == trained_before:
            self._is_compiled = False
        return result

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
        if tf_functions.is_tape_recording():
            self._calls.note_within_tape(function)
            return self._eager.call(function, inputs, captured, run)
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
