"""Re-executing the last steps while the file is written: proof that it replays, what began when, and the numbers of each step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.program.compiled_program import CompiledProgram
from nanreplay.program.fingerprint import (
    Layout,
    fingerprint_after,
    has_nonfinite,
    largest,
    nonfinite_kind,
    read_variable,
    real,
)
from nanreplay.recorder.timeline_ring import StepNumbers
from nanreplay.records import BatchRecord, ProgramRecord, Trigger, VariableInfo

Kind = Literal["gradients", "weights"]
PIECE = 2**20
"""Elements that are compared at once."""


@dataclass(slots=True)
class Reexecution:
    """What re-executing the window gave."""

    reproduced: bool = False
    """Whether a step gave a non-finite value again."""
    max_ulp: int = 0
    """Largest difference of a fingerprint from the recorded one."""
    departs: int | None = None
    """The first step whose fingerprint came out otherwise."""
    weights: dict[int, dict[int, NDArray[Any]]] = field(default_factory=dict)
    gradients: dict[int, dict[int, NDArray[Any]]] = field(default_factory=dict)
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


class Reexecutor:
    """Runs recorded steps on variables of its own, so that the training's state is not touched.

    Args:
        programs: Programs by id.
        variables: Infos of all variables.
    """

    def __init__(
        self, programs: Mapping[str, ProgramRecord], variables: Sequence[VariableInfo]
    ) -> None:
        self._programs = programs
        self._infos = variables
        self._compiled: dict[tuple[str, bool], CompiledProgram] = {}

    def run(
        self,
        keyframes: dict[int, dict[int, Any]],
        batches: Mapping[int, BatchRecord],
        wanted: Wanted,
        on_full: Callable[[Kind, int, Mapping[int, Any]], None] = lambda kind, step, values: None,
        on_step: Callable[[], None] = lambda: None,
    ) -> Reexecution:
        """Re-execute `batches` in order of their steps, to the first one that fails.

        What is handed over is not kept, and `keyframes` is emptied on the way: variables take over the buffers of a
        keyframe that nobody else holds, so that no second state is allocated for them.

        Args:
            keyframes: State just before steps, of the first one at least.
            batches: Batches by step, without gaps.
            wanted: What for.
            on_full: Given `gradients` or `weights`, the step, and the values by variable.
            on_step: Called after each step.
        """
        base = keyframes.pop(min(batches))
        variables = [self._variable(index, base) for index in range(len(self._infos))]
        found = Reexecution()
        for step in sorted(batches):
            batch = batches[step]
            for index, value in {**keyframes.pop(step, {}), **batch.overrides}.items():
                variables[index].assign(value)
            numbers = StepNumbers()
            asked: tuple[list[Any], dict[int, Any]] = ([], {})
            if step in wanted.full or step >= wanted.numbers_from:
                asked = self._losses_and_gradients(batch, variables, numbers)
                if step in wanted.full:
                    on_full(
                        "gradients",
                        step,
                        {index: dense_gradient(each) for index, each in asked[1].items()},
                    )
            outputs = self._update(step, batch, variables, found, numbers)
            found.numbers[step] = numbers
            if step in wanted.full:
                trainable = [
                    index for index, info in enumerate(self._infos) if info.role == "trainable"
                ]
                on_full(
                    "weights",
                    step,
                    {index: read_variable(variables[index].handle) for index in trainable},
                )
            on_step()
            if step >= wanted.dated_from:
                trigger = self._failed(batch, outputs, asked, variables, wanted)
                if trigger is not None:
                    found.incident, found.reproduced = (step, trigger), True
                    return found
        return found

    def _variable(self, index: int, keyframe: dict[int, Any]) -> Any:
        info = self._infos[index]
        value = keyframe.pop(index, None)
        if value is None:
            value = tf.zeros(info.shape, info.dtype)
        return tf.Variable(tf.identity(value), dtype=info.dtype, shape=info.shape, trainable=False)

    def _update(
        self,
        step: int,
        batch: BatchRecord,
        variables: Sequence[Any],
        found: Reexecution,
        numbers: StepNumbers,
    ) -> Sequence[Any]:
        """Run the step as it was trained, and compare it with what was recorded."""
        trainable = [index for index, info in enumerate(self._infos) if info.role == "trainable"]
        before = {index: read_variable(variables[index].handle) for index in trainable}
        record = self._programs[batch.program]
        outputs, _ = self._program(batch.program, asked=False)(
            batch.arrays, variables, record.constants
        )
        changes = {}
        for index in trainable:
            after = np.asarray(read_variable(variables[index].handle))
            changes[index] = change(np.asarray(before.pop(index)), after)
        numbers.update_ratios = {index: ratio for index, (ratio, _) in changes.items()}
        numbers.weight_norms = {index: norm for index, (_, norm) in changes.items()}
        self._compare(step, outputs, batch, variables, found)
        return outputs

    def _program(self, program: str, *, asked: bool) -> CompiledProgram:
        key = (program, asked)
        if key not in self._compiled:
            record = self._programs[program]
            signature, extra = record.signature, []
            if asked:  # what losses and gradients do not need is left out, the update above all
                extra = _asked(signature)
                signature = replace(signature, outputs=(), watch=None, control_outputs=())
            self._compiled[key] = CompiledProgram(
                record.graph, signature, jit=signature.compilation == "xla", extra_fetches=extra
            )
        return self._compiled[key]

    def _losses_and_gradients(
        self, batch: BatchRecord, variables: Sequence[Any], numbers: StepNumbers
    ) -> tuple[list[Any], dict[int, Any]]:
        """Losses and gradients of one step. What it writes goes to stand-ins, which share the buffers of what it only reads."""
        record = self._programs[batch.program]
        names = _asked(record.signature)
        if not names:
            return [], {}
        copies = [tf.Variable(tf.identity(variable), trainable=False) for variable in variables]
        found = dict(
            zip(
                names,
                self._program(batch.program, asked=True)(batch.arrays, copies, record.constants)[1],
                strict=True,
            )
        )
        losses = [found[name] for name in record.signature.losses]
        gradients = {}
        for spec in record.signature.gradients:
            gradient = found[spec.tensor]
            if spec.indices:
                shape = tf.constant(self._infos[spec.variable].shape, tf.int64)
                gradient = tf.IndexedSlices(gradient, tf.cast(found[spec.indices], tf.int64), shape)
            gradients[spec.variable] = gradient
        numbers.losses = [float(tf.reduce_sum(real(loss))) for loss in losses]
        with np.errstate(all="ignore"):
            for index, gradient in gradients.items():
                values = real(
                    gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
                )
                numbers.gradient_norms = {
                    **numbers.gradient_norms,
                    index: float(np.sqrt(2.0 * float(tf.nn.l2_loss(values)))),
                }
                numbers.gradient_maxima = {**numbers.gradient_maxima, index: float(largest(values))}
        return losses, gradients

    def _compare(
        self,
        step: int,
        outputs: Sequence[Any],
        batch: BatchRecord,
        variables: Sequence[Any],
        found: Reexecution,
    ) -> None:
        signature = self._programs[batch.program].signature
        values = fingerprint_after(signature, outputs, variables, batch.fingerprint)
        if values is None or batch.fingerprint is None:
            return
        recorded = np.asarray(batch.fingerprint)
        distance = Layout.parse(signature.watch_layout).distance(
            values.astype(recorded.dtype), recorded
        )
        if distance and found.departs is None:
            found.departs = step
        found.max_ulp = max(found.max_ulp, distance)

    def _failed(
        self,
        batch: BatchRecord,
        outputs: Sequence[Any],
        asked: tuple[list[Any], dict[int, Any]],
        variables: Sequence[Any],
        wanted: Wanted,
    ) -> Trigger | None:
        """What the step made non-finite: its loss, else a gradient that reached a variable, else a variable."""
        signature = self._programs[batch.program].signature
        returned = dict(zip(signature.outputs, outputs, strict=True))
        losses = asked[0] or [returned.get(name) for name in signature.losses]
        for number, loss in enumerate(losses):
            if loss is not None and (kind := nonfinite_kind(real(loss))):
                return Trigger("loss", signature.loss_name(number), kind)
        bad = next(
            (
                index
                for index, info in enumerate(self._infos)
                if self._is_bad(index, info, variables, wanted.ignored)
            ),
            None,
        )
        if bad is not None:
            for index, gradient in asked[1].items():
                kind = nonfinite_kind(
                    gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
                )
                if kind:
                    return Trigger("gradient", self._infos[index].path, kind)
        return (
            None
            if bad is None
            else Trigger(
                "variable",
                self._infos[bad].path,
                nonfinite_kind(read_variable(variables[bad].handle)),
            )
        )

    def _is_bad(
        self, index: int, info: VariableInfo, variables: Sequence[Any], ignored: Collection[int]
    ) -> bool:
        if (
            index in ignored
            or info.role in ("metric", "seed")
            or ("float" not in info.dtype and "complex" not in info.dtype)
        ):
            return False
        if info.role == "optimizer" and not info.shape:
            return False
        return has_nonfinite(read_variable(variables[index].handle))


def _asked(signature: Any) -> list[str]:
    names = [
        *signature.losses,
        *(name for spec in signature.gradients for name in (spec.tensor, spec.indices) if name),
    ]
    return list(dict.fromkeys(names))


def dense_gradient(gradient: Any) -> NDArray[Any]:
    """A gradient as an array, which shares the tensor's buffer; sparse rows are added up in their places."""
    return np.asarray(tf.convert_to_tensor(gradient))


def change(before: NDArray[Any], after: NDArray[Any]) -> tuple[float, float]:
    """|after - before| / |before|, 0 where nothing changed, and |after|; in pieces, since all are taken to float64."""
    changed, size, reached, old, new = 0.0, 0.0, 0.0, before.reshape(-1), after.reshape(-1)
    with np.errstate(all="ignore"):
        for start in range(0, len(old), PIECE):
            piece, after_it = (
                old[start : start + PIECE].astype(np.float64),
                new[start : start + PIECE].astype(np.float64),
            )
            difference = after_it - piece
            changed += float(np.dot(difference, difference))
            size += float(np.dot(piece, piece))
            reached += float(np.dot(after_it, after_it))
        distance, size, norm = (
            float(np.sqrt(changed)),
            float(np.sqrt(size)),
            float(np.sqrt(reached)),
        )
    return 0.0 if distance == 0 else distance / size if size else float("inf"), norm
