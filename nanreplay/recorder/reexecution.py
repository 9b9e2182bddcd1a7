"""Re-executing the last steps while the file is written.

It gives proof that the file replays, the step that failed first, and the numbers of each step. It
is used by `dump`, and by `eager_rerun` for what a step that ran twice gave.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.capture.arrays import as_array
from nanreplay.program.compiled_program import CompiledProgram
from nanreplay.program.fingerprint import Layout, fingerprint_after, largest
from nanreplay.program.nonfinite_values import (
    has_nonfinite,
    nonfinite_kind,
    read_variable,
    real,
    squares_fit,
)
from nanreplay.recorder.timeline_ring import StepNumbers
from nanreplay.records import BatchRecord, ProgramRecord, Signature, Trigger, VariableInfo

ValueKind = Literal["gradients", "weights", "states"]
CompiledPrograms: TypeAlias = dict[tuple[str, bool], CompiledProgram]
"""By (id of the program, whether it gives losses and gradients only)."""
PIECE = 2**15
"""Elements that are compared at once."""
TINY_SQUARE = 1e-20
"""A smaller sum of squares is added up in float64: squares of its numbers may be 0 in float32."""


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
    sizes: bool = True
    """Whether the sizes of gradients, and what the weights changed by, are wanted with losses."""


@dataclass(slots=True)
class _Derivatives:
    """The losses and the gradients of one step, where they were asked for."""

    losses: list[Any] = field(default_factory=list)
    gradients: dict[int, Any] = field(default_factory=dict)
    """By variable; those of embeddings are IndexedSlices."""

    def dense(self) -> dict[int, NDArray[Any]]:
        """The gradients as arrays."""
        return {index: dense_gradient(value) for index, value in self.gradients.items()}


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
        base = keyframes.pop(min(batches))
        variables = []
        for index in range(len(self._infos)):
            variables.append(self._variable(index, base))
        result = Reexecution()
        for step in sorted(batches):
            batch = batches[step]
            for index, value in {**keyframes.pop(step, {}), **batch.overrides}.items():
                variables[index].assign(value)
            numbers, derivatives = StepNumbers(), _Derivatives()
            is_numbered = step in wanted.full or step >= wanted.numbers_from
            if is_numbered:
                derivatives = self._differentiate(batch, variables)
            is_measured = is_numbered and wanted.sizes
            if is_measured:
                _measure(derivatives, numbers)
            is_full = step in wanted.full
            if is_full:
                on_full("gradients", step, derivatives.dense())
            before = _values(variables, wanted.before) if is_numbered else {}
            outputs = self._update(step, batch, variables, result, numbers if is_measured else None)
            result.numbers[step] = numbers
            if is_full and wanted.weights:
                on_full("weights", step, _values(variables, self._trainable))
            on_step()
            trigger = None
            if step >= wanted.dated_from:
                trigger = self._failed(batch, outputs, derivatives, variables, wanted.ignored)
            is_last = step == max(batches) < wanted.dated_from
            if before and (trigger is not None or is_last):
                on_full("states", step, before)
            if trigger is not None:
                result.incident, result.reproduced = (step, trigger), True
                # An earlier step than was thought has failed.
                if wanted.full and is_numbered and not is_full:
                    on_full("gradients", step, derivatives.dense())
                    if wanted.weights:
                        on_full("weights", step, _values(variables, self._trainable))
                return result
        return result

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
        base = keyframes.pop(min(batches))
        variables = []
        for index in range(len(self._infos)):
            variables.append(self._variable(index, base))
        for earlier in sorted(batches):
            batch = batches[earlier]
            for index, value in {**keyframes.pop(earlier, {}), **batch.overrides}.items():
                variables[index].assign(value)
            if earlier < step:
                self._update(earlier, batch, variables, Reexecution(), None)
        return _values(variables, indices)

    def _variable(self, index: int, keyframe: dict[int, Any]) -> Any:
        """A variable that takes over its value of the keyframe; zeros where that has none."""
        info = self._infos[index]
        value = keyframe.pop(index, None)
        if value is None:
            value = tf.zeros(info.shape, info.dtype)
        return tf.Variable(tf.identity(value), dtype=info.dtype, shape=info.shape, trainable=False)

    def _program(self, program_id: str, *, derivatives_only: bool) -> CompiledProgram:
        """The compiled program of steps; made once for each purpose."""
        key = (program_id, derivatives_only)
        if key not in self._compiled:
            record = self._programs[program_id]
            signature, extra = record.signature, []
            if derivatives_only:
                # What losses and gradients do not need is left out, the update above all.
                extra = _derivative_names(signature)
                signature = replace(signature, outputs=(), watch=None, control_outputs=())
            self._compiled[key] = CompiledProgram(
                record.graph,
                signature,
                jit=signature.compilation == "xla",
                extra_fetches=extra,
                checks_feeds=False,
            )
        return self._compiled[key]

    # The step as it was trained

    def _update(
        self,
        step: int,
        batch: BatchRecord,
        variables: Sequence[Any],
        result: Reexecution,
        numbers: StepNumbers | None,
    ) -> Sequence[Any]:
        """Run the step as it was trained, and compare it with what was recorded.

        What it changed goes into `numbers`, where that is wanted: it takes a copy of the weights.
        """
        before = {} if numbers is None else _values(variables, self._trainable)
        record = self._programs[batch.program]
        program = self._program(batch.program, derivatives_only=False)
        outputs, _ = program(batch.arrays, variables, record.constants)
        if numbers is not None:
            ratios, norms = {}, {}
            for index in self._trainable:
                after = as_array(read_variable(variables[index].handle))
                # Let go of each old value on the way, so that no second state is held.
                ratios[index], norms[index] = change(as_array(before.pop(index)), after)
            numbers.update_ratios, numbers.weight_norms = ratios, norms
        self._compare(step, outputs, batch, variables, result)
        return outputs

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

    def _differentiate(self, batch: BatchRecord, variables: Sequence[Any]) -> _Derivatives:
        """Losses and gradients of one step.

        What it writes on its way goes to stand-ins. Most steps write nothing before the update.
        """
        record = self._programs[batch.program]
        signature = record.signature
        names = _derivative_names(signature)
        if not names:
            return _Derivatives()
        program = self._program(batch.program, derivatives_only=True)
        stand_ins = list(variables)
        for index in program.written:
            value = read_variable(variables[index].handle)
            stand_ins[index] = tf.Variable(tf.identity(value), trainable=False)
        _, fetched = program(batch.arrays, stand_ins, record.constants)
        value_of = dict(zip(names, fetched, strict=True))
        losses = [value_of[name] for name in signature.losses]
        gradients = {}
        for spec in signature.gradients:
            gradient = value_of[spec.tensor]
            if spec.indices:
                indices = tf.cast(value_of[spec.indices], tf.int64)
                shape = tf.constant(self._infos[spec.variable].shape, tf.int64)
                gradient = tf.IndexedSlices(gradient, indices, shape)
            gradients[spec.variable] = gradient
        return _Derivatives(losses, gradients)

    # Dating

    def _failed(
        self,
        batch: BatchRecord,
        outputs: Sequence[Any],
        derivatives: _Derivatives,
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
        for number, loss in enumerate(losses):
            kind = "" if loss is None else nonfinite_kind(real(loss))
            if kind:
                return Trigger("loss", signature.loss_name(number), kind)
        bad = self._first_bad(variables, ignored)
        if bad is None:
            return None
        for index, gradient in derivatives.gradients.items():
            kind = nonfinite_kind(_values_of(gradient))
            if kind:
                return Trigger("gradient", self._infos[index].path, kind)
        kind = nonfinite_kind(read_variable(variables[bad].handle))
        return Trigger("variable", self._infos[bad].path, kind)

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


def _derivative_names(signature: Signature) -> list[str]:
    """Names of the tensors of losses and gradients, each once."""
    names = list(signature.losses)
    for spec in signature.gradients:
        for name in (spec.tensor, spec.indices):
            if name:
                names.append(name)
    return list(dict.fromkeys(names))


def _measure(derivatives: _Derivatives, numbers: StepNumbers) -> None:
    """Put the losses and the sizes of the gradients into `numbers`."""
    numbers.losses = [float(tf.reduce_sum(real(loss))) for loss in derivatives.losses]
    norms, maxima = {}, {}
    for index, gradient in derivatives.gradients.items():
        norms[index], maxima[index] = size_of_gradient(real(_values_of(gradient)))
    numbers.gradient_norms, numbers.gradient_maxima = norms, maxima


def size_of_gradient(values: Any) -> tuple[float, float]:
    """(norm, largest absolute value) of a tensor; the norm is infinite where float32 overflows.

    NumPy looks at a small tensor in a tenth of the time that calls of kernels take, and a model may
    have thousands of them.
    """
    if "CPU" not in values.device or not values.shape.num_elements():
        # tf.nn.l2_loss is sum(x^2) / 2
        with np.errstate(all="ignore"):
            return float(np.sqrt(2.0 * float(tf.nn.l2_loss(values)))), float(largest(values))
    flat = np.asarray(values).reshape(-1)
    total, maxima = 0.0, []
    with np.errstate(all="ignore"):
        for start in range(0, len(flat), PIECE):
            piece = flat[start : start + PIECE]
            total += float(np.dot(piece, piece))
            maxima += [piece.max(), -piece.min()]
        half = flat.dtype.type(total / 2)
        return float(np.sqrt(2.0 * float(half))), float(np.max(maxima))


def _values_of(gradient: Any) -> Any:
    """The numbers of a gradient; of a sparse one, those of its rows."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def dense_gradient(gradient: Any) -> NDArray[Any]:
    """A gradient as an array, which shares the tensor's buffer.

    Rows of a sparse one are added up in their places.
    """
    return as_array(tf.convert_to_tensor(gradient))


def change(before: NDArray[Any], after: NDArray[Any]) -> tuple[float, float]:
    """(|after - before| / |before|, |after|), Euclidean norms; the first is 0 without a change.

    In pieces that a processor's cache holds, for the arrays may be large. Squares of float32 are
    added up in float32 within a piece, unless that is not finite, or may have lost something. Of an
    embedding a step leaves most as it was.
    """
    totals = np.zeros(3)
    flat_before, flat_after = before.reshape(-1), after.reshape(-1)
    with np.errstate(all="ignore"):
        for start in range(0, len(flat_before), PIECE):
            old = flat_before[start : start + PIECE]
            new = flat_after[start : start + PIECE]
            if np.array_equal(old, new):
                wide = old.astype(np.float64)
                square = float(np.dot(wide, wide))
                totals += (0.0, square, square)
                continue
            squares = _squares(old, new) if old.dtype == np.float32 else None
            if squares is None or not np.isfinite(squares).all() or min(squares) < TINY_SQUARE:
                squares = _squares(old.astype(np.float64), new.astype(np.float64))
            totals += squares
        distance, size, norm = (float(root) for root in np.sqrt(totals))
    if distance == 0:
        return 0.0, norm
    return distance / size if size else float("inf"), norm


def _squares(old: NDArray[Any], new: NDArray[Any]) -> tuple[float, float, float]:
    """Sums of squares of the difference, of the old values and of the new ones."""
    difference = new - old
    return (
        float(np.dot(difference, difference)),
        float(np.dot(old, old)),
        float(np.dot(new, new)),
    )
