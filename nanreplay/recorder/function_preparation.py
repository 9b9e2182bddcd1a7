"""What is found out once of each compiled function: whether it trains, and how it is recorded.

`CompiledCalls` asks for it when a function is called for the first time, with the first of its
arguments; from then on the `RecordedFunction` that is made here serves each call.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nanreplay.program.fetching import InstrumentedFunction
from nanreplay.program.loss_keys import source_of
from nanreplay.program.step_programs import program_of
from nanreplay.program.traced_program import TracedProgram, element_specs, is_handle
from nanreplay.program.training_functions import TrainingFunction
from nanreplay.recorder import notices
from nanreplay.recorder.open_shapes import tell_open_shapes
from nanreplay.recorder.program_slots import Fetch
from nanreplay.recorder.recorded_function import RecordedFunction
from nanreplay.recorder.recording import Recording
from nanreplay.tensorflow_internals import tf_functions

_LOOP_OVER_DATA = (
    "it trains in a loop over its data inside of one tf.function, where the batches cannot be had. "
    "To record it, loop in Python: `for batch in data: step(batch)`, with `step` compiled."
)
_STEPS_OF_KERAS = (
    "fit runs several steps of it in one call, written out one after the other, where their "
    "batches cannot be had. To record it, leave `model.unrolled_steps_per_execution` at 1, or "
    "compile with `steps_per_execution=1`."
)
_WITHIN_TAPE = (
    "it fetches or draws within a GradientTape of its caller's, where that cannot be kept. "
    "To record it, call it outside of the tape."
)


class FunctionPreparation:
    """Makes compiled functions ready to be recorded.

    Args:
        recording: The recording.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._known: dict[int, tuple[Any, TrainingFunction]] = {}
        """(weak reference to the function, what is known of it) by the id of the function."""
        self._refused: set[int] = set()

    def prepare(
        self, function: Any, inputs: list[Any], captured: list[Any], named_step: Any
    ) -> RecordedFunction | None:
        """Make a function ready; None where it does not train, or cannot be recorded.

        Args:
            function: The ConcreteFunction that is about to be called.
            inputs: Its flat arguments.
            captured: What it captured.
            named_step: The `tf.function` that the user named as the step, or None: a trace of it is
                a step whatever it does.
        """
        training = self._training(function)
        if not training.trains and not tf_functions.is_trace_of(function, named_step):
            self._note_writes(training, [*inputs, *captured])
            return None
        program = program_of(training, captured, inputs)
        if program is None:
            is_of_keras = tf_functions.runs_steps_of_keras(function)
            self._refuse(training, _STEPS_OF_KERAS if is_of_keras else _LOOP_OVER_DATA)
            return None
        variables = self._recording.variables
        program = replace(
            program, layer_names=variables.layer_names, optimizer_names=variables.optimizer_names
        )
        recorded = self._make(training, program)
        positions = []
        for index, value in enumerate(inputs):
            if not is_handle(value):
                positions.append(index)
        if len(positions) < len(inputs):
            recorded.array_positions = positions
        return recorded

    def does_train(self, function: Any) -> bool:
        """Whether a function computes a gradient and writes variables."""
        return self._training(function).trains

    def note_other(self, function: Any, inputs: list[Any], captured: list[Any]) -> None:
        """A function that is no step is about to run."""
        self._note_writes(self._training(function), [*inputs, *captured])

    def release(self) -> None:
        """Let go of the functions."""
        self._known.clear()

    def _training(self, function: Any) -> TrainingFunction:
        known = self._known.get(id(function))
        # The id of a function that is gone may have become that of another one.
        if known is None or known[0]() is not function:
            known = self._known[id(function)] = weakref.ref(function), TrainingFunction(function)
        return known[1]

    def _note_writes(self, training: TrainingFunction, given: list[Any]) -> None:
        """Ask for a keyframe where a function that is no step sets what steps use.

        So do functions that apply gradients that were added up, or that take an average.
        """
        variables = self._recording.variables
        for position in training.written_inputs:
            index = variables.index.get(id(given[position]))
            if index is not None and variables.infos[index].role not in ("metric", "seed"):
                self._recording.request_keyframe()
                return

    def _make(self, training: TrainingFunction, program: TracedProgram) -> RecordedFunction:
        fetches = bool(training.fetching)
        variant = None
        if fetches or program.outside:
            variant = InstrumentedFunction(training, program)
        fetch = _fetch_of(training, program, variant) if fetches and variant is not None else None
        slot = self._recording.add_program(program, fetch)
        captured = [value for _, value in program.captures]
        tell_open_shapes(self._recording, captured, program.graph.variables)
        if fetches and _runs_several_steps(training, program):
            return RecordedFunction(
                weakref.ref(training.function),
                slot,
                variant,
                outputs=[],
                optional_kinds=[tensor.dtype for tensor in program.outputs],
                steps_in_call=True,
            )
        outputs = output_positions(training, program, variant)
        # What the caller makes of a number before it returns it cannot be compared.
        returned = {name for name, _ in outputs}
        slot.outputs = [output for output in slot.outputs if output[0] in returned]
        return RecordedFunction(
            weakref.ref(training.function),
            slot,
            variant,
            outputs,
            is_stacked=program.loop is not None,
        )

    def refuse_within_tape(self, function: Any) -> None:
        """Say that a function is not recorded where a tape of its caller's records it, too."""
        self._refuse(self._training(function), _WITHIN_TAPE)

    def _refuse(self, training: TrainingFunction, reason: str) -> None:
        """Say once what cannot be recorded, and which line would record it."""
        if id(training) in self._refused:
            return
        self._refused.add(id(training))
        name = getattr(training.function, "name", "a tf.function")
        name = name.decode() if isinstance(name, bytes) else str(name)
        # TensorFlow names the trace of `step` `__inference_step_1234`.
        shown = name.removeprefix("__inference_").rstrip("0123456789").rstrip("_")
        notices.say(f"`{shown}` is not recorded: {reason}")


def _fetch_of(
    training: TrainingFunction, program: TracedProgram, variant: InstrumentedFunction
) -> Fetch:
    """What a step fetches; the spec is known where it fetches one element, of the one iterator."""
    specs = element_specs(training.function)
    takes_one = len(training.fetching) == 1 and not program.taken and len(program.sources) < 2
    return Fetch(variant.kinds, specs[0] if takes_one and len(specs) == 1 else None)


def _runs_several_steps(training: TrainingFunction, program: TracedProgram) -> bool:
    """Whether a call of a function that fetches runs one step for each element that it fetches.

    It does where an inner function fetches, and the program itself is not given the batch: a loop
    of the outer function (`steps_per_execution`) then calls the step again and again.
    """
    has_batch = bool(program.sources or program.taken or program.loop)
    in_inner = any(graph is not training.graph for graph, _ in training.fetching)
    return not has_batch and in_inner


def output_positions(
    training: TrainingFunction, program: TracedProgram, variant: InstrumentedFunction | None
) -> Sequence[tuple[str, int]]:
    """Where the numbers that the program returns are among the flat outputs of a call."""
    named = program.layout_of_outputs()
    if program.graph is training.graph:
        return named
    if variant is not None and variant.n_returned:
        return [(name, variant.n_original + index) for name, index in named]
    caller = training.innermost[1]
    if caller is None or caller.graph is not training.graph:
        return []
    # The outer function may return outputs of the inner one as they are, in another order.
    name_of = {index: name for name, index in named}
    positions: dict[str, int] = {}
    for position, output in enumerate(training.graph.outputs):
        tensor = source_of(output)
        if tensor.op is caller.op and tensor.value_index in name_of:
            positions.setdefault(name_of[tensor.value_index], position)
    return list(positions.items())
