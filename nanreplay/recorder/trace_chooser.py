"""Calling the traces of a step without having TensorFlow choose each of them anew.

`CompiledCalls` has one `TraceChooser`, which a wrapped step asks for whatever `tf.function` it
calls. To have TensorFlow choose takes longer than to record a short step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from nanreplay.tensorflow_internals import tf_functions
from nanreplay.tensorflow_internals.tf_traces import KnownTraces

if TYPE_CHECKING:
    from nanreplay.recorder.compiled_calls import CompiledCalls


class TraceChooser:
    """Remembers which trace TensorFlow chose, of each `tf.function` that trains.

    Args:
        calls: Records compiled functions.
    """

    def __init__(self, calls: CompiledCalls) -> None:
        self._calls = weakref.proxy(calls)
        self._known: weakref.WeakKeyDictionary[Any, KnownTraces] = weakref.WeakKeyDictionary()

    def call(self, function: Any, args: Sequence[Any], run: Callable[[], Any]) -> Any:
        """Call a `tf.function` in a step.

        Args:
            function: The `tf.function`.
            args: What it is given, all of it by position.
            run: Calls it as TensorFlow does.
        """
        calls = self._calls
        recording = calls.recording
        if not recording.lifecycle.is_active or tf_functions.is_tape_recording():
            return run()
        if tf.config.functions_run_eagerly():
            return run()
        known = self._known.get(function)
        found = None if known is None else recording.guard(known.find, args)
        if known is not None and found is not None:
            return known.run(lambda: self._run(*found))
        trained_before = calls.trained
        result = run()
        if calls.trained == trained_before + 1 and calls.last is not None:
            recording.guard(self._learn, function, args, calls.last.function())
        return result

    def _run(self, trace: Any, inputs: list[Any]) -> Any:
        captured = trace.captured_inputs

        def run() -> Any:
            flat = tf_functions.run_flat(trace, [*inputs, *captured])
            return tf_functions.pack_outputs(trace, flat)

        return self._calls.call(trace, inputs, captured, run)

    def _learn(self, function: Any, args: Sequence[Any], trace: Any) -> None:
        """A trace has trained in a call of `function`."""
        known = self._known.get(function)
        if known is None:
            known = self._known[function] = KnownTraces(function)
        known.learn(args, trace)
