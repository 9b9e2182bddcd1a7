"""Re-executing the last steps while the file is written: proof that it replays, and the weights and gradients in full."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.program.compiled import CompiledProgram
from nanreplay.program.fingerprint import Layout
from nanreplay.program.watch import has_nonfinite, nonfinite_kind, read_variable
from nanreplay.records import BatchRecord, ProgramRecord, VariableInfo

Kind = Literal["gradients", "weights"]
PIECE = 2**20
"""Elements that are compared at once."""


@dataclass(slots=True)
class Reexecution:
    """What re-executing the window gave."""

    reproduced: bool = False
    """Whether the failing step gave a non-finite value again."""
    max_ulp: int = 0
    """Largest difference of a fingerprint from the recorded one."""
    departs: int | None = None
    """The first step whose fingerprint came out otherwise."""
    weights: dict[int, dict[int, NDArray[Any]]] = field(default_factory=dict)
    gradients: dict[int, dict[int, NDArray[Any]]] = field(default_factory=dict)
    update_ratios: dict[int, dict[int, float]] = field(default_factory=dict)
    weight_norms: dict[int, dict[int, float]] = field(default_factory=dict)
    earlier: tuple[int, int, str] | None = None
    """The step that was seen to fail was not the first: step, variable, and the worst that it holds."""


class Reexecutor:
    """Runs recorded steps on variables of its own, so that the training's state is not touched.

    Args:
        programs: Programs by id.
        variables: Infos of all variables.
    """

    def __init__(self, programs: Mapping[str, ProgramRecord], variables: Sequence[VariableInfo]) -> None:
        self._programs = programs
        self._infos = variables
        self._compiled: dict[tuple[str, bool], CompiledProgram] = {}

    def run(
        self,
        keyframes: dict[int, dict[int, Any]],
        batches: Mapping[int, BatchRecord],
        full: Collection[int],
        on_full: Callable[[Kind, int, Mapping[int, Any]], None],
        on_step: Callable[[], None] = lambda: None,
        unmeasured: Mapping[int, Sequence[int]] | None = None,
    ) -> Reexecution:
        """Re-execute `batches` in order of their steps.

        What is handed over is not kept, and `keyframes` is emptied on the way: variables take over the buffers of a
        keyframe that nobody else holds, so that no second state is allocated for them.

        Args:
            keyframes: State just before steps, of the first one at least.
            batches: Batches by step, without gaps.
            full: Steps whose weights and gradients are wanted.
            on_full: Given `gradients` or `weights`, the step, and the values by variable.
            on_step: Called after each step.
            unmeasured: Variables by step that were not looked at when the step ran. The first of them that turns out non-finite
                ends the re-execution.
        """
        base = keyframes.pop(min(batches))
        variables = [self._variable(index, base) for index in range(len(self._infos))]
        found = Reexecution()
        trainable = [index for index, info in enumerate(self._infos) if info.role == "trainable"]
        for step in sorted(batches):
            batch = batches[step]
            for index, value in {**keyframes.pop(step, {}), **batch.overrides}.items():
                variables[index].assign(value)
            if step in full:
                on_full("gradients", step, self._gradients(batch, variables))
            before = {index: read_variable(variables[index].handle) for index in trainable}
            outputs, _ = self._program(batch.program, gradients=False)(batch.arrays, variables, self._programs[batch.program].constants)
            after = {index: read_variable(variables[index].handle) for index in trainable}
            changes = {index: change(np.asarray(before.pop(index)), np.asarray(after[index])) for index in trainable}
            found.update_ratios[step] = {index: ratio for index, (ratio, _) in changes.items()}
            found.weight_norms[step] = {index: norm for index, (_, norm) in changes.items()}
            if step in full:
                on_full("weights", step, after)
            del after
            self._compare(step, outputs, batch, found, is_last=step == max(batches))
            on_step()
            for index in (unmeasured or {}).get(step, ()):
                if kind := nonfinite_kind(read_variable(variables[index].handle)):
                    found.earlier, found.reproduced = (step, index, kind), True
                    return found
        if not found.reproduced:
            slots = [index for index, info in enumerate(self._infos) if info.role == "optimizer"]
            found.reproduced = any(has_nonfinite(variables[index]) for index in slots)
        return found

    def _variable(self, index: int, keyframe: dict[int, Any]) -> Any:
        info = self._infos[index]
        value = keyframe.pop(index, None)
        if value is None:
            value = tf.zeros(info.shape, info.dtype)
        return tf.Variable(tf.identity(value), dtype=info.dtype, shape=info.shape, trainable=False)

    def _program(self, program: str, *, gradients: bool) -> CompiledProgram:
        key = (program, gradients)
        if key not in self._compiled:
            record = self._programs[program]
            signature, extra = record.signature, []
            if gradients:  # what they do not need is left out, the update above all
                extra = list(dict.fromkeys(name for spec in signature.gradients for name in (spec.tensor, spec.indices) if name))
                signature = replace(signature, outputs=(), watch=None, control_outputs=())
            self._compiled[key] = CompiledProgram(record.graph, signature, jit=signature.compilation == "xla", extra_fetches=extra)
        return self._compiled[key]

    def _gradients(self, batch: BatchRecord, variables: Sequence[Any]) -> dict[int, NDArray[Any]]:
        """Dense gradients of one step. What it writes goes to stand-ins, which share the buffers of what it only reads."""
        record = self._programs[batch.program]
        if not record.signature.gradients:
            return {}
        copies = [tf.Variable(tf.identity(variable), trainable=False) for variable in variables]
        program = self._program(batch.program, gradients=True)
        names = list(dict.fromkeys(name for spec in record.signature.gradients for name in (spec.tensor, spec.indices) if name))
        found = dict(zip(names, program(batch.arrays, copies, record.constants)[1], strict=True))
        gradients = {}
        for spec in record.signature.gradients:
            gradient = found[spec.tensor]
            if spec.indices:
                shape = tf.constant(self._infos[spec.variable].shape, tf.int64)
                gradient = tf.IndexedSlices(gradient, tf.cast(found[spec.indices], tf.int64), shape)
            gradients[spec.variable] = dense_gradient(gradient)
        return gradients

    def _compare(self, step: int, outputs: Sequence[Any], batch: BatchRecord, found: Reexecution, *, is_last: bool) -> None:
        signature = self._programs[batch.program].signature
        if signature.watch is None or batch.fingerprint is None:
            return
        watch = outputs[signature.outputs.index(signature.watch)].numpy()
        distance = Layout.parse(signature.watch_layout).distance(watch, np.asarray(batch.fingerprint))
        if distance and found.departs is None:
            found.departs = step
        found.max_ulp = max(found.max_ulp, distance)
        if is_last:
            found.reproduced = has_nonfinite(watch)


def dense_gradient(gradient: Any) -> NDArray[Any]:
    """A gradient as an array, which shares the tensor's buffer; sparse rows are added up in their places."""
    return np.asarray(tf.convert_to_tensor(gradient))


def change(before: NDArray[Any], after: NDArray[Any]) -> tuple[float, float]:
    """|after - before| / |before|, 0 where nothing changed, and |after|; in pieces, since all are taken to float64."""
    changed, size, reached, old, new = 0.0, 0.0, 0.0, before.reshape(-1), after.reshape(-1)
    with np.errstate(all="ignore"):
        for start in range(0, len(old), PIECE):
            piece, after_it = old[start : start + PIECE].astype(np.float64), new[start : start + PIECE].astype(np.float64)
            difference = after_it - piece
            changed += float(np.dot(difference, difference))
            size += float(np.dot(piece, piece))
            reached += float(np.dot(after_it, after_it))
        distance, size, norm = float(np.sqrt(changed)), float(np.sqrt(size)), float(np.sqrt(reached))
    return 0.0 if distance == 0 else distance / size if size else float("inf"), norm
