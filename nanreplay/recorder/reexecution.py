"""Re-executing the last steps while the file is written.

It gives proof that the file replays, the step that failed first, and the numbers of each step. It
is used by `dump`, and by `eager_rerun` for what a step that ran twice gave.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.program.compiled_program import CompiledProgram
from nanreplay.program.fingerprint import Layout, fingerprint_after
from nanreplay.program.nonfinite_values import (
    has_nonfinite,
    nonfinite_kind,
    read_variable,
    real,
    squares_fit,
)
from nanreplay.recorder.derivatives import (
    Derivatives,
    derivative_names,
    derivatives_of,
    measure,
    measure_change,
)
from nanreplay.recorder.one_run import FirstState, OneRun, bits_of
from nanreplay.recorder.step_sizes import values_of_gradient
from nanreplay.recorder.timeline_ring import StepNumbers
from nanreplay.records import BatchRecord, ProgramRecord, Trigger, VariableInfo
from nanreplay.tensorflow_internals import tf_distribution

ValueKind = Literal["gradients", "weights", "states"]
Purpose = Literal["step", "derivatives", "both"]
"""The step as it was trained, its losses and gradients alone, or the step that gives them too."""
CompiledPrograms: TypeAlias = dict[tuple[str, Purpose], CompiledProgram]
"""By id of the program, and what for."""


@dataclass(slots=True)
class Reexecution:
    """What re-executing the window gave."""

    reproduced: bool = False
    """Whether a step gave a non-finite value again."""
    max_ulp: int = 0
    """Largest difference of a fingerprint from the recorded one, in units in the last place."""
    departs: int | None = None
    """The first step whose fingerprint came out otherwise."""
    weights: dict[int, dict[int, NDArray[Any]]] = field(default_factory=dict)
    """By step and variable, after the step."""
    gradients: dict[int, dict[int, NDArray[Any]]] = field(default_factory=dict)
    """By step and variable."""
    numbers: dict[int, StepNumbers] = field(default_factory=dict)
    incident: tuple[int, Trigger] | None = None
    """The first step that made something non-finite, and what."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a re-execution is for."""

    full: Collection[int]
    """Steps whose weights and gradients are wanted."""
    numbers_from: int
    """First step whose losses and norms are wanted."""
    dated_from: int
    """First step that may have been the first to fail."""
    ignored: Collection[int]
    """Variables that were non-finite before training began."""
    before: Collection[int] = ()
    """Variables whose values before the step that fails are wanted; before the last one where none
    may have failed."""
    weights: bool = True
    """Whether the weights after the steps of `full` are wanted."""
    first_state: FirstState | None = None
    """What the first step begins with, once more, where it can be had without memory."""


class Reexecutor:
    """Runs recorded steps on variables of its own, so that the training's state is not touched.

    Args:
        programs: Programs by id.
        variables: Infos of all variables.
        compiled: Where compiled programs are kept, and taken from where they are there already:
            TensorFlow optimizes a graph at its first call, which takes seconds for a large one.
    """

    def __init__(
        self,
        programs: Mapping[str, ProgramRecord],
        variables: Sequence[VariableInfo],
        compiled: CompiledPrograms | None = None,
    ) -> None:
        self._programs = programs
        self._infos = variables
        self._trainable = [i for i, info in enumerate(variables) if info.role == "trainable"]
        self._compiled: CompiledPrograms = {} if compiled is None else compiled

    @tf_distribution.outside_of_scopes()
    def run(
        self,
        keyframes: dict[int, dict[int, Any]],
        batches: Mapping[int, BatchRecord],
        wanted: Wanted,
        on_full: Callable[[ValueKind, int, Mapping[int, Any]], None] = lambda kind, step, vals: (
            None
        ),
        on_step: Callable[[], None] = lambda: None,
    ) -> Reexecution:
        """Re-execute `batches` in order of their steps, to the first one that fails.

        What is handed over is not kept, and `keyframes` is emptied on the way: variables take over
        the buffers of a keyframe that nobody else holds, so that no second state is allocated.

        Args:
            keyframes: State just before steps, of the first one at least.
            batches: Batches by step, without gaps.
            wanted: What for.
            on_full: Given `gradients` or `weights`, the step, and the values by variable.
            on_step: Called after each step.
        """
        result = Reexecution()
        numbered = {step for step in batches if step in wanted.full or step >= wanted.numbers_from}
        once = OneRun(wanted.first_state, min(batches), len(numbered), self._infos)
        for step, batch, variables in self._steps(keyframes, batches):
            numbers = StepNumbers()
            is_numbered, is_full = step in numbered, step in wanted.full
            before: dict[int, Any] = {}
            if is_numbered:
                before = _values(variables, wanted.before)
                others = [index for index in self._trainable if index not in before]
                weights = _values(variables, others)
                weights |= {index: before[index] for index in self._trainable if index in before}
                outputs, derivatives = self._with_derivatives(step, batch, variables, once)
                measure(derivatives, numbers)
                measure_change(weights, variables, numbers)
            else:
                outputs, derivatives = self._update(batch, variables), Derivatives()
            self._compare(step, outputs, batch, variables, result)
            result.numbers[step] = numbers
            if is_full:
                self._hand_over(step, derivatives, variables, wanted, on_full)
            on_step()
            trigger = None
            if step >= wanted.dated_from:
                # Weights whose norm is known to be finite need no second look.
                norms = numbers.weight_norms
                passed = {index for index in norms if math.isfinite(norms[index])}
                passed.update(wanted.ignored)
                trigger = self._failed(batch, outputs, derivatives, variables, passed)
            is_last = step == max(batches) < wanted.dated_from
            if before and (trigger is not None or is_last):
                on_full("states", step, before)
            if trigger is not None:
                result.incident, result.reproduced = (step, trigger), True
                # An earlier step than was thought has failed.
                if wanted.full and is_numbered and not is_full:
                    self._hand_over(step, derivatives, variables, wanted, on_full)
                return result
        return result

    def _hand_over(
        self,
        step: int,
        derivatives: Derivatives,
        variables: Sequence[Any],
        wanted: Wanted,
        on_full: Callable[[ValueKind, int, Mapping[int, Any]], None],
    ) -> None:
        on_full("gradients", step, derivatives.dense())
        if wanted.weights:
            on_full("weights", step, _values(variables, self._trainable))

    @tf_distribution.outside_of_scopes()
    def fails(
        self,
        keyframes: dict[int, dict[int, Any]],
        batches: Mapping[int, BatchRecord],
        first: int,
        ignored: Collection[int],
    ) -> bool:
        """Whether a step gives a loss or a variable that is not finite.

        Args:
            keyframes: As `run` takes them.
            batches: As `run` takes them.
            first: The first step that may.
            ignored: Variables that were non-finite before training began.
        """
        for step, batch, variables in self._steps(keyframes, batches):
            if step < first:
                self._update(batch, variables)
                continue
            derivatives = self._differentiate(batch, variables)
            if self._bad_loss(batch, derivatives.losses) is not None:
                return True  # the step's update is not needed
            outputs = self._update(batch, variables)
            if self._failed(batch, outputs, derivatives, variables, ignored) is not None:
                return True
        return False

    def _steps(
        self, keyframes: dict[int, dict[int, Any]], batches: Mapping[int, BatchRecord]
    ) -> Iterator[tuple[int, BatchRecord, list[Any]]]:
        """Each step, its batch, and the variables just before it, for the caller to run."""
        base = keyframes.pop(min(batches))
        variables = []
        for index in range(len(self._infos)):
            variables.append(self._variable(index, base))
        for step in sorted(batches):
            batch = batches[step]
            for index, value in {**keyframes.pop(step, {}), **batch.overrides}.items():
                variables[index].assign(value)
            yield step, batch, variables

    @tf_distribution.outside_of_scopes()
    def state_before(
        self,
        step: int,
        keyframes: dict[int, dict[int, Any]],
        batches: Mapping[int, BatchRecord],
        indices: Collection[int],
    ) -> Mapping[int, Any]:
        """Re-execute `batches` up to a step that cannot be run; returns variables before it.

        Args:
            step: The last one of `batches`.
            keyframes: As `run` takes them.
            batches: As `run` takes them, that step's among them.
            indices: The variables that are wanted.
        """
        for earlier, batch, variables in self._steps(keyframes, batches):
            if earlier == step:
                return _values(variables, indices)
            self._update(batch, variables)
        raise ValueError(f"Expected step {step} among the batches. Received: {sorted(batches)}")

    def _variable(self, index: int, keyframe: dict[int, Any]) -> Any:
        """A variable that takes over its value of the keyframe; zeros where that has none."""
        info = self._infos[index]
        value = keyframe.pop(index, None)
        if value is None:
            value = tf.zeros(info.shape, info.dtype)
        return tf.Variable(tf.identity(value), dtype=info.dtype, shape=info.shape, trainable=False)

    def _program(self, program_id: str, purpose: Purpose) -> CompiledProgram:
        """The compiled program of steps; made once for each purpose."""
        key = (program_id, purpose)
        if key not in self._compiled:
            record = self._programs[program_id]
            signature = record.signature
            extra = [] if purpose == "step" else derivative_names(signature)
            if purpose == "derivatives":
                # What losses and gradients do not need is left out, the update above all.
                signature = replace(signature, outputs=(), watch=None, control_outputs=())
            self._compiled[key] = CompiledProgram(
                record.graph,
                signature,
                jit=signature.compilation == "xla",
                extra_fetches=extra,
                checks_feeds=False,
                keeps_optimized=purpose == "step",
            )
        return self._compiled[key]

    # The step as it was trained

    def _update(self, batch: BatchRecord, variables: Sequence[Any]) -> Sequence[Any]:
        """Run the step as it was trained; returns what it returned."""
        program = self._program(batch.program, "step")
        outputs, _ = program(batch.arrays, variables, self._programs[batch.program].constants)
        return outputs

    def _with_derivatives(
        self, step: int, batch: BatchRecord, variables: Sequence[Any], once: OneRun
    ) -> tuple[Sequence[Any], Derivatives]:
        """Run the step as it was trained; returns what it returned, its losses and its gradients.

        A second reader of a gradient may change what TensorFlow's graph optimizers make of the
        step, and with it the last bits. So losses and gradients come from a run of their own,
        unless the first step has shown that with them it leaves the same bits.
        """
        if batch.program not in once.leaves_same_bits:
            once.leaves_same_bits[batch.program] = False
            if once.is_worth_trying(step):
                ran = self._tried_once(batch, variables, once)
                once.leaves_same_bits[batch.program] = ran is not None
                if ran is not None:
                    return ran
                once.put_back(batch, variables)
        if once.leaves_same_bits[batch.program]:
            return self._both(batch, variables)
        derivatives = self._differentiate(batch, variables)
        return self._update(batch, variables), derivatives

    def _both(
        self, batch: BatchRecord, variables: Sequence[Any]
    ) -> tuple[Sequence[Any], Derivatives]:
        """Run the step with its losses and gradients fetched."""
        program = self._program(batch.program, "both")
        record = self._programs[batch.program]
        outputs, fetched = program(batch.arrays, variables, record.constants)
        return outputs, derivatives_of(record.signature, self._infos, fetched)

    def _tried_once(
        self, batch: BatchRecord, variables: Sequence[Any], once: OneRun
    ) -> tuple[Sequence[Any], Derivatives] | None:
        """Run the first step with its losses and gradients fetched; None where bits differ."""
        began_s = time.perf_counter()
        expected = self._update(batch, variables)
        # The other program takes as long to compile. Without it, losses and gradients alone are
        # compiled, which takes some half of that.
        if once.saved_s < (time.perf_counter() - began_s) / 2:
            return None
        bits = bits_of(expected, variables)
        once.put_back(batch, variables)
        outputs, derivatives = self._both(batch, variables)
        return (outputs, derivatives) if bits == bits_of(outputs, variables) else None

    def _compare(
        self,
        step: int,
        outputs: Sequence[Any],
        batch: BatchRecord,
        variables: Sequence[Any],
        result: Reexecution,
    ) -> None:
        """Compare the fingerprint of a step with the recorded one, where both are known."""
        signature = self._programs[batch.program].signature
        values = fingerprint_after(signature, outputs, variables, batch.fingerprint)
        if values is None or batch.fingerprint is None:
            return
        recorded = np.asarray(batch.fingerprint)
        layout = Layout.parse(signature.watch_layout)
        distance = layout.distance(values.astype(recorded.dtype), recorded)
        if distance and result.departs is None:
            result.departs = step
        result.max_ulp = max(result.max_ulp, distance)

    # Losses and gradients

    def _differentiate(self, batch: BatchRecord, variables: Sequence[Any]) -> Derivatives:
        """Losses and gradients of one step.

        What it writes on its way goes to stand-ins. Most steps write nothing before the update.
        """
        record = self._programs[batch.program]
        signature = record.signature
        names = derivative_names(signature)
        if not names:
            return Derivatives()
        program = self._program(batch.program, "derivatives")
        stand_ins = list(variables)
        for index in program.written:
            value = read_variable(variables[index].handle)
            stand_ins[index] = tf.Variable(tf.identity(value), trainable=False)
        _, fetched = program(batch.arrays, stand_ins, record.constants)
        return derivatives_of(signature, self._infos, fetched)

    # Dating

    def _failed(
        self,
        batch: BatchRecord,
        outputs: Sequence[Any],
        derivatives: Derivatives,
        variables: Sequence[Any],
        ignored: Collection[int],
    ) -> Trigger | None:
        """What the step made non-finite.

        Its loss, else a gradient that reached a variable, else a variable. A gradient that reached
        none is no incident: an optimizer may have clipped it, or skipped the update.
        """
        signature = self._programs[batch.program].signature
        returned = dict(zip(signature.outputs, outputs, strict=True))
        losses = derivatives.losses or [returned.get(name) for name in signature.losses]
        trigger = self._bad_loss(batch, losses)
        if trigger is not None:
            return trigger
        bad = self._first_bad(variables, ignored)
        if bad is None:
            return None
        for index, gradient in derivatives.gradients.items():
            kind = nonfinite_kind(values_of_gradient(gradient))
            if kind:
                return Trigger("gradient", self._infos[index].path, kind)
        kind = nonfinite_kind(read_variable(variables[bad].handle))
        return Trigger("variable", self._infos[bad].path, kind)

    def _bad_loss(self, batch: BatchRecord, losses: Sequence[Any]) -> Trigger | None:
        """The first loss of a step that is not finite; None stands for one that is not known."""
        signature = self._programs[batch.program].signature
        for number, loss in enumerate(losses):
            kind = "" if loss is None else nonfinite_kind(real(loss))
            if kind:
                return Trigger("loss", signature.loss_name(number), kind)
        return None

    def _first_bad(self, variables: Sequence[Any], ignored: Collection[int]) -> int | None:
        """Index of the first variable that is not finite, of those that say something."""
        for index, info in enumerate(self._infos):
            if index in ignored or info.role in ("metric", "seed"):
                continue
            if "float" not in info.dtype and "complex" not in info.dtype:
                continue
            if info.role == "optimizer" and not info.shape:  # a setting, such as the learning rate
                continue
            value = read_variable(variables[index].handle)
            if not squares_fit(value) and has_nonfinite(value):
                return index
        return None


def _values(variables: Sequence[Any], indices: Collection[int]) -> dict[int, Any]:
    """The values of some variables by index; TensorFlow copies them before the next write."""
    return {index: read_variable(variables[index].handle) for index in indices}
