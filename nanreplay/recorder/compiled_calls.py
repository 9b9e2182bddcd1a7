"""Calls of compiled functions, seen from outside: each one that trains is a step, whoever makes it.

What trains is the very function that would train without a recorder; where it fetches its batch by
itself, a variant of it that tells what it fetched (see `program/fetching`). A `Recorder` has one
`CompiledCalls`, which hears of calls while a batch of `fit` or a wrapped step runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from nanreplay.program import listening
from nanreplay.program.nonfinite_values import read_variable
from nanreplay.program.traced_program import is_variable
from nanreplay.recorder.function_preparation import FunctionPreparation
from nanreplay.recorder.lifecycle import Suspicion, exception_trigger
from nanreplay.recorder.recorded_function import BatchCollector, RecordedFunction
from nanreplay.recorder.recording import Recording
from nanreplay.recorder.ring import StepEntry
from nanreplay.recorder.trace_chooser import TraceChooser
from nanreplay.tensorflow_internals import tf_functions


@dataclass(eq=False)
class CompiledCalls:
    """Records the compiled functions that are called while it is told of them.

    Args:
        recording: The recording.
        on_suspicion: Called after a step in which something is not as it should be, and with a step
            that raised.
    """

    recording: Recording
    on_suspicion: Callable[[Suspicion], None]
    trained: int = 0
    """How many steps were recorded."""
    is_eager: bool = False
    """Whether Python code computed or applied a gradient, since this was last set to False."""
    on_error: Callable[[BaseException], None] = lambda error: None
    """Told of what a recorded step raised, after all else."""
    last: RecordedFunction | None = None
    """The function that ran last."""
    fit_began: tuple[int, int] | None = None
    """(steps seen, lines said) as the `fit` that runs now began; None outside of one."""
    before_step: Callable[[], None] | None = None
    """Called before each step is recorded."""
    named: Any = None
    """The `tf.function`, or ConcreteFunction, that the user named as a step.

    It is one, whatever it does. Other functions are steps if they train.
    """
    _recorded: dict[tuple[Any, ...], RecordedFunction] = field(default_factory=dict)
    """By (id of the function, ids of the variables among its arguments)."""
    _plain: dict[int, RecordedFunction] = field(default_factory=dict)
    """Those that take no variables, by the id of the function: they are found faster."""

    def __post_init__(self) -> None:
        self._preparation = FunctionPreparation(self.recording)
        self._batches = BatchCollector(self.recording)
        self.known_traces = TraceChooser(self)

    def trained_eagerly(self) -> None:
        """Note that Python code trains by itself."""
        self.is_eager = True

    def note_within_tape(self, function: Any) -> None:
        """A compiled function that a tape of Python code records is an op of it, and may train."""
        if self.recording.guard(lambda: self._preparation.does_train(function)):
            self.trained_eagerly()

    # Calls

    def call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Run a compiled function, and record it if it trains.

        Args:
            function: The ConcreteFunction.
            inputs: Its flat arguments.
            captured: What it captured: its captured inputs.
            run: Runs it as it would run without a recorder.
        """
        recording = self.recording
        if not recording.lifecycle.is_active:
            return self._run_unrecorded(run)
        begun = recording.guard(self._begin, function, inputs, captured)
        if begun is None:
            return run()
        recorded, entry = begun
        variant = recorded.variant
        try:
            if tf_functions.is_tape_recording():  # what runs then has a gradient of its own
                result = run()
                flat = returned = tf_functions.flat_outputs(result)
            elif variant is None:
                returned = flat = tf_functions.run_flat(function, [*inputs, *captured])
            else:
                flat = variant.run([*inputs, *captured])
                returned = flat[: variant.n_original]
            result = tf_functions.pack_outputs(function, returned)
        except BaseException as error:
            self._raised(recorded, entry, error)
            raise
        outputs = None
        if recorded.steps_in_call:
            outputs = recording.guard(recorded.outputs_of_last, flat)
        suspicion = recording.guard(self._after, recorded, entry, flat, outputs)
        if suspicion is not None:
            self._suspect(suspicion)
        return result

    def call_directly(
        self, function: Any, inputs: list[Any], captured: list[Any]
    ) -> tuple[bool, list[Any] | None]:
        """Run a function that has been recorded before.

        Args:
            function: The ConcreteFunction; has a variant that returns what its program returns.
            inputs: Its flat arguments.
            captured: What it captured: its captured inputs.

        Returns:
            Whether it ran, and what its program returned in its last step; None where the data
            ended before that.
        """
        recording = self.recording
        begun = recording.guard(self._begin, function, inputs, captured)
        if begun is None:
            return False, None
        recorded, entry = begun
        variant = recorded.variant
        if variant is None:
            return False, None
        try:
            flat = variant.run([*inputs, *captured])
        except BaseException as error:
            self._raised(recorded, entry, error)
            raise
        # Outside of the guard: without them `fit` cannot go on.
        if recorded.steps_in_call:
            outputs = recorded.outputs_of_last(flat)
        else:
            outputs = flat[recorded.returned]
        suspicion = recording.guard(self._after, recorded, entry, flat, outputs)
        if suspicion is not None:
            self._suspect(suspicion)
        return True, outputs

    def _run_unrecorded(self, run: Callable[[], Any]) -> Any:
        """Run a function that is not recorded.

        After a failure of the recorder's own, the numbers that it returns are still looked at.
        """
        result = run()
        if self.recording.lifecycle.has_failed:
            with listening.muted():
                suspicion = self.recording.health.after_failure(result, self.recording.step)
            if suspicion is not None:
                self.on_suspicion(suspicion)
        return result

    # Before a step

    def _begin(
        self, function: Any, inputs: list[Any], captured: list[Any]
    ) -> tuple[RecordedFunction, StepEntry] | None:
        """Keep what a step is given; None where the function is none."""
        recorded = self._plain.get(id(function))
        # The id of a function that is gone may become that of another one.
        if recorded is None or recorded.function() is not function:
            recorded = self._function(function, inputs, captured)
        if recorded is None:
            return None
        if recorded.variant is not None and tf_functions.is_tape_recording():
            self._preparation.refuse_within_tape(function)  # the variant has no gradient
            return None
        if self.before_step is not None:
            self.before_step()
        leaves = inputs
        if recorded.array_positions is not None:
            leaves = [inputs[position] for position in recorded.array_positions]
        entry = self.recording.before(recorded.slot.id, leaves, recorded.slot.traced.leaf_paths)
        return recorded, entry

    def _function(
        self, function: Any, inputs: list[Any], captured: list[Any]
    ) -> RecordedFunction | None:
        """The function, ready to be recorded; it is prepared at its first call.

        A function that takes variables as arguments is prepared for each set of them: they are
        different programs.
        """
        variables = []
        for value in inputs:
            if value.dtype == tf.resource and is_variable(value):
                variables.append(id(value))
        key = (id(function), tuple(variables))
        recorded = self._recorded.get(key)
        if recorded is not None and recorded.function() is function:
            return recorded
        recorded = self._preparation.prepare(function, inputs, captured, self.named)
        if recorded is not None:
            self._recorded[key] = recorded
            # TensorFlow traces anew where a variable takes the place of another resource.
            if not variables:
                self._plain[id(function)] = recorded
        return recorded

    def note_other(self, function: Any, inputs: list[Any], captured: list[Any]) -> None:
        """A function that is no step is about to run."""
        if self.recording.lifecycle.is_active:
            note = self._preparation.note_other
            self.recording.guard(note, function, inputs, captured)

    # After a step

    def _after(
        self,
        recorded: RecordedFunction,
        entry: StepEntry,
        flat: list[Any],
        outputs: list[Any] | None,
    ) -> Suspicion | None:
        """Note a step that has run.

        Args:
            recorded: The function.
            entry: The entry of the call's first step.
            flat: Flat outputs of the call.
            outputs: Where one call runs several steps: what the last one returned, if it did.
        """
        recording, variant = self.recording, recorded.variant
        self.trained += 1
        self.last = recorded
        steps = 1
        numbers: dict[str, Any] = {}
        for name, position in recorded.outputs:
            if position < len(flat):
                numbers[name] = flat[position]
        if variant is not None:
            n_outside = len(recorded.slot.traced.outside)
            if n_outside and recording.ring is not None:
                # The variant returns these last: outputs of random ops, tables and Python ops.
                recording.keeper.hold(recording.ring, entry, flat[len(flat) - n_outside :])
            if recorded.fetches_one:
                recorded.waiting.append(entry)
                if len(recorded.waiting) >= recorded.most_waiting:
                    self._batches.take(recorded)
            elif variant.batches is not None:
                steps = self._batches.note_call(recorded, entry)
                if not steps:
                    recording.forget_unfinished()
                    return None
        if recorded.steps_in_call and outputs is not None:
            numbers = {}
            for name, index in recorded.slot.outputs:
                numbers[name] = outputs[index]
        mean = self._mean(recorded, flat)
        return recording.after(recorded.slot, numbers, steps=steps, mean=mean)

    def _mean(self, recorded: RecordedFunction, flat: list[Any]) -> tuple[Any, Any] | None:
        """(total, count) of the running mean of the losses, as it is after the step."""
        variant, slot = recorded.variant, recorded.slot
        if variant is not None and variant.has_mean:
            first = variant.n_original + variant.n_returned
            return flat[first], flat[first + 1]
        if slot.mean is None:
            return None
        total, count = slot.mean
        return read_variable(total), read_variable(count)

    def _suspect(self, suspicion: Suspicion) -> None:
        try:
            self.on_suspicion(suspicion)
        except BaseException as error:
            self.on_error(error)
            raise

    def _raised(self, recorded: RecordedFunction, entry: StepEntry, error: BaseException) -> None:
        """A step has raised `error`, which goes on afterwards."""
        try:
            self._record_raised(recorded, entry, error)
        finally:
            self.on_error(error)

    def _record_raised(
        self, recorded: RecordedFunction, entry: StepEntry, error: BaseException
    ) -> None:
        recording = self.recording
        trigger = recording.guard(functools.partial(exception_trigger, error))
        if trigger is None:
            recording.guard(recording.forget_unfinished)
            return
        recording.guard(lambda: self._batches.keep_after_error(recorded, entry))
        earlier = recording.guard(recording.flush)
        self.on_suspicion(earlier or Suspicion(trigger, recording.step, is_certain=True))

    # Files, and the end

    def take_all(self) -> None:
        """Take what steps have fetched from the staging areas: a file is about to be written."""
        for recorded in self._recorded.values():
            self._batches.take_all(recorded)

    def release(self) -> None:
        """Let go of the functions."""
        self._preparation.release()
        self._recorded.clear()
        self._plain.clear()
