"""The failing step of an eager loop, run once more with every op noted.

The ops become a flat program, and the second run is the proof that it gives the same. `EagerStep`
uses it at an incident, while the state before the step is still held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.capture.arrays import as_array
from nanreplay.program.eager_program import (
    EagerRun,
    FlatProgram,
    describe_eager,
    observe_eager,
    takes_from_python,
)
from nanreplay.program.fingerprint import Fingerprint, build_fingerprint, ulp_distance
from nanreplay.program.nonfinite_values import has_nonfinite
from nanreplay.program.op_facts import SourceTable
from nanreplay.program.program_record import fingerprint_layout
from nanreplay.program.python_effects import RandomDraws
from nanreplay.program.traced_program import is_float_variable
from nanreplay.recorder.program_slots import EagerIncident
from nanreplay.recorder.recording import Recording
from nanreplay.recorder.reexecution import Reexecution
from nanreplay.recorder.ring import StepEntry
from nanreplay.recorder.step_sizes import change, dense_gradient
from nanreplay.recorder.timeline_ring import StepNumbers
from nanreplay.recorder.variable_table import VariableTable
from nanreplay.tensorflow_internals import tf_variables

_SEVERAL_REPLICAS = (
    "The step ran several replicas eagerly: TensorFlow adds up their gradients in threads of its "
    "own, where no op can be seen. With `strategy.run` in a tf.function the step can be replayed."
)
_TOOK_OTHERS = (
    "When the step ran once more for this file, it took other numbers from Python: a generator, "
    "arrays or a state that are neither its arguments nor variables. So its program is not here. "
    "Give the batch to the step as an argument, and keep its state in variables."
)
_WENT_ANOTHER_WAY = (
    "When the step ran once more for this file, it went another way: it depends on a state of "
    "Python's that is neither an argument nor a variable. So its program is not here."
)
_OTHER_ULP = 2**16
"""Sums whose terms threads add in another order differ by less: by under 1% in float32."""
_NOT_ENDED = (
    "The step raised, and its ops were recorded until then: a fix is tried until then, too."
)


class EagerRerun:
    """Runs one step once more.

    Args:
        recording: The recording.
        entry: The step.
        again: Makes the same call once more.
        draws: The random numbers that the step drew; it is given the same ones.
    """

    def __init__(
        self,
        recording: Recording,
        entry: StepEntry,
        again: Callable[[], Any],
        draws: RandomDraws,
    ) -> None:
        self._recording = recording
        self._entry = entry
        self._again = again
        self._draws = draws

    def record(self, recorded: Any) -> None:
        """Run the step from the state before it, and keep its ops as a flat program.

        Args:
            recorded: The fingerprint of the first run; None where there is none, as after an
                exception.
        """
        recording, ring, step = self._recording, self._recording.ring, self._entry.step
        if ring is None or not ring.entries or step not in ring.keyframes:
            return  # there was no room for the state before it
        before, after = ring.keyframes[step], recording.read_state()
        self._put_back(before)
        try:
            with self._draws.repeated():
                run = observe_eager(self._again)
            if run.n_replicas > 1:
                recording.notes.append(_SEVERAL_REPLICAS)
                return
            if run.raised is not None:
                recording.notes.append(_NOT_ENDED)
            handles = checked_handles(recording.variables)
            fingerprint = build_fingerprint(
                run.seen, handles, run.seen.learning_rate, run.seen.loss_scale
            )
            values = vector_of(fingerprint)
            why_not = self._difference(run, values, recorded)
            if why_not:
                recording.notes.append(why_not)
                return
            proof = self._prove(run, before, values, recorded)
        finally:
            self._put_back(after)
        if recorded is None:
            names = fingerprint_layout(fingerprint.entries, recording.variables.index)
            self._entry.fingerprint = dict(zip(names, values, strict=True))
        recording.eager = EagerIncident(step, self._describer(run, fingerprint), proof)

    def _difference(self, run: EagerRun, values: Any, recorded: Any) -> str:
        """Why the second run is not the step that was trained; empty where it may be.

        Where all that it took is held, another result tells of a fault of the machine, or of a
        race.
        """
        if recorded is None:
            return ""
        if len(values) != len(recorded):
            return _WENT_ANOTHER_WAY
        if ulp_distance(values, recorded) < _OTHER_ULP:
            return ""
        entry, index = self._entry, self._recording.variables.index
        is_open = takes_from_python(run, index, entry.leaves, entry.paths)
        return _TOOK_OTHERS if is_open else ""

    def _put_back(self, state: Mapping[int, Any]) -> None:
        handles = self._recording.variables.handles
        for index, value in state.items():
            tf.raw_ops.AssignVariableOp(resource=handles[index], value=value)

    def _describer(
        self, run: EagerRun, fingerprint: Fingerprint
    ) -> Callable[[str, SourceTable], FlatProgram]:
        """What makes the flat program of the run, once a file is written."""
        entry, index = self._entry, self._recording.variables.index

        def describe(program_id: str, sources: SourceTable) -> FlatProgram:
            return describe_eager(
                run,
                program_id,
                fingerprint,
                variable_index=index,
                leaves=entry.leaves,
                paths=entry.paths,
                names_data=entry.names_data,
                sources=sources,
            )

        return describe

    def _prove(
        self, run: EagerRun, before: Mapping[int, Any], values: Any, recorded: Any
    ) -> Reexecution:
        """Compare the second run with the first, and take its weights and gradients."""
        variables, step = self._recording.variables, self._entry.step
        proof = Reexecution(reproduced=has_nonfinite(values))
        if recorded is not None:
            proof.max_ulp = ulp_distance(values, recorded)
        if proof.max_ulp:
            self._recording.notes.append(
                "The step gave other numbers when it was run once more: it draws from a state that "
                "is no variable."
            )
        trainable = variables.of_role("trainable")
        state = self._recording.read_state()
        after = {index: value.numpy() for index, value in state.items() if index in trainable}
        proof.weights[step] = after
        ratios = {}
        for trained, value in after.items():
            if trained in before:
                ratios[trained] = change(as_array(before[trained]), value)[0]
        proof.numbers[step] = StepNumbers(update_ratios=ratios)
        for gradient, variable in run.seen.gradients():
            index = variables.index.get(id(tf_variables.handle_of(variable)))
            if index is not None:
                proof.gradients.setdefault(step, {})[index] = dense_gradient(gradient)
        return proof


def checked_handles(variables: VariableTable) -> list[Any]:
    """Handles of the variables that an eager fingerprint measures: float, no metrics, no seeds."""
    unchecked = {id(handle) for handle in variables.unchecked()}
    checked = []
    for handle in variables.handles:
        if id(handle) not in unchecked and is_float_variable(handle):
            checked.append(handle)
    return checked


def vector_of(fingerprint: Fingerprint) -> Any:
    """The numbers of a fingerprint as a numpy vector; an empty one where nothing was measured."""
    return np.zeros(0, np.float32) if fingerprint.vector is None else fingerprint.vector.numpy()
