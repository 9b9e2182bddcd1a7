"""Re-executing the last steps while the file is written: proof that it replays, and the weights and gradients in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.program.compiled import CompiledProgram
from nanreplay.program.fingerprint import ulp_distance
from nanreplay.program.watch import has_nonfinite
from nanreplay.records import BatchRecord, ProgramRecord, VariableInfo


@dataclass(slots=True)
class Reexecution:
    """What re-executing the window gave."""

    reproduced: bool = False
    """Whether the failing step gave a non-finite value again."""
    max_ulp: int = 0
    """Largest difference of a fingerprint from the recorded one."""
    weights: dict[int, dict[int, NDArray[Any]]] = field(default_factory=dict)
    gradients: dict[int, dict[int, NDArray[Any]]] = field(default_factory=dict)
    update_ratios: dict[int, dict[int, float]] = field(default_factory=dict)


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

    def run(self, keyframes: Mapping[int, Mapping[int, Any]], batches: Mapping[int, BatchRecord], full: Sequence[int]) -> Reexecution:
        """Re-execute `batches` in order of their steps.

        Args:
            keyframes: State just before steps, of the first one at least.
            batches: Batches by step, without gaps.
            full: Steps whose weights and gradients are wanted.
        """
        variables = [self._variable(index, keyframes[min(batches)]) for index in range(len(self._infos))]
        found = Reexecution()
        trainable = [index for index, info in enumerate(self._infos) if info.role == "trainable"]
        before = {index: variables[index].numpy() for index in trainable}
        for step in sorted(batches):
            batch = batches[step]
            for index, value in {**keyframes.get(step, {}), **batch.overrides}.items():
                variables[index].assign(value)
            if step in full:
                found.gradients[step] = self._gradients(batch, variables)
            outputs, _ = self._program(batch.program, gradients=False)(batch.arrays, variables, self._programs[batch.program].constants)
            after = {index: variables[index].numpy() for index in trainable}
            found.update_ratios[step] = {index: update_ratio(before[index], after[index]) for index in trainable}
            if step in full:
                found.weights[step] = after
            self._compare(step, outputs, batch, found, is_last=step == max(batches))
            if step == max(batches) and not found.reproduced:
                slots = [index for index, info in enumerate(self._infos) if info.role == "optimizer"]
                found.reproduced = any(has_nonfinite(variables[index]) for index in slots)
            before = after
        return found

    def _variable(self, index: int, keyframe: Mapping[int, Any]) -> Any:
        info = self._infos[index]
        value = keyframe.get(index)
        if value is None:
            value = tf.zeros(info.shape, info.dtype)
        return tf.Variable(tf.identity(value), dtype=info.dtype, shape=info.shape, trainable=False)

    def _program(self, program: str, *, gradients: bool) -> CompiledProgram:
        key = (program, gradients)
        if key not in self._compiled:
            record = self._programs[program]
            extra = [name for spec in record.signature.gradients for name in (spec.tensor, spec.indices) if name] if gradients else []
            self._compiled[key] = CompiledProgram(
                record.graph, record.signature, jit=record.signature.compilation == "xla", extra_fetches=list(dict.fromkeys(extra))
            )
        return self._compiled[key]

    def _gradients(self, batch: BatchRecord, variables: Sequence[Any]) -> dict[int, NDArray[Any]]:
        """Dense gradients of one step, run on copies so that its update does not count."""
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
        found.max_ulp = max(found.max_ulp, ulp_distance(watch, np.asarray(batch.fingerprint)))
        if is_last:
            found.reproduced = has_nonfinite(watch)


def dense_gradient(gradient: Any) -> NDArray[Any]:
    """A gradient as an array; sparse rows are added up in their places."""
    return np.asarray(tf.convert_to_tensor(gradient).numpy())


def update_ratio(before: NDArray[Any], after: NDArray[Any]) -> float:
    """|after - before| / |before|, 0 where nothing changed."""
    with np.errstate(all="ignore"):
        change = float(np.linalg.norm(np.asarray(after, np.float64) - np.asarray(before, np.float64)))
        size = float(np.linalg.norm(np.asarray(before, np.float64)))
    return 0.0 if change == 0 else change / size if size else float("inf")
