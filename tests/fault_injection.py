"""Faults of a machine, on purpose: bits flip in one step of a real training while it is recorded,
unseen by the recorder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import tensorflow as tf

from nanreplay.program import listening
from nanreplay.program.compiled_program import CompiledProgram
from nanreplay.program.nonfinite_values import read_variable
from nanreplay.program.op_facts import SourceTable
from nanreplay.program.program_record import describe_program
from nanreplay.recorder.compiled_calls import CompiledCalls
from nanreplay.tensorflow_internals import tf_datasets

Place = Literal["weight", "stored weight", "gradient", "activation", "batch"]
_UNSIGNED = {2: tf.uint16, 4: tf.uint32, 8: tf.uint64}


@dataclass(frozen=True)
class Fault:
    """Bits of one element that flip in one step."""

    place: Place
    """`weight`: a variable, after the recorder copied the state; `stored weight`: before it did;
    else a tensor of the step."""
    step: int
    name: str = ""
    """Part of a variable's path (weight, gradient), or type of the op whose output it is
    (activation)."""
    element: int = 0
    """Place in the flattened tensor."""
    bits: tuple[int, ...] = (30,)
    """Bits from the lowest; 30 of a float32 is the highest of its exponent."""


def inject(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> list[Fault]:
    """Arrange for the fault to happen in the next training that is recorded; the list holds it once
    it did."""
    happened: list[Fault] = []
    begin = CompiledCalls._begin

    def faulty_begin(
        self: CompiledCalls, function: Any, inputs: list[Any], captured: list[Any]
    ) -> Any:
        due = self.recording.step == fault.step and not happened
        if due and fault.place == "stored weight":
            _flip_variable(self, fault)
            happened.append(fault)
        begun = begin(self, function, inputs, captured)
        if begun is None or not due or happened:
            return begun
        happened.append(fault)
        if fault.place == "weight":
            _flip_variable(self, fault)
            return begun
        recorded, entry = begun
        return replace(recorded, variant=_Faulty(self, recorded, fault, len(inputs))), entry

    monkeypatch.setattr(CompiledCalls, "_begin", faulty_begin)
    return happened


class _Faulty:
    """Runs one step with a fault in it, in the place of an `InstrumentedFunction`."""

    def __init__(self, calls: CompiledCalls, recorded: Any, fault: Fault, n_inputs: int) -> None:
        variant, traced = recorded.variant, recorded.slot.traced
        self._calls, self._recorded, self._fault, self._n_inputs = calls, recorded, fault, n_inputs
        self._variant = variant
        self.n_original = len(traced.outputs) if variant is None else variant.n_original
        self.n_returned = 0 if variant is None else variant.n_returned
        self.has_mean = variant is not None and variant.has_mean
        self.batches = None if variant is None else variant.batches
        self.returned = None

    def run(self, tensors: list[Any]) -> list[Any]:
        slot, variant = self._recorded.slot, self._variant
        if variant is None:
            return self._outputs(tensors[: self._n_inputs])
        shapes = [tf.TensorShape(None)] * len(variant.kinds)
        components = tf.raw_ops.IteratorGetNext(
            iterator=tensors[0], output_types=variant.kinds, output_shapes=shapes
        )
        optional = tf.raw_ops.OptionalFromValue(components=components)
        with tf.device("CPU:0"):
            tf.raw_ops.Stage(values=[optional], shared_name=variant.batches.name)
        spec = slot.fetch.spec
        outputs = self._outputs(
            components if spec is None else tf_datasets.decoded_element(spec, components)
        )
        mean = [read_variable(handle) for handle in slot.mean] if self.has_mean else []
        return [tf.raw_ops.OptionalFromValue(components=outputs), *outputs, *mean]

    def _outputs(self, leaves: list[Any]) -> list[Any]:
        """What the program returns, with the fault in its batch or in one of its tensors."""
        recording, slot, fault = self._calls.recording, self._recorded.slot, self._fault
        described = describe_program(
            slot.traced, slot.id, variable_index=recording.variables.index,
            metrics=recording.variables.of_role("metric"),
            sources=SourceTable("none"), layout=[],
        )  # fmt: skip
        graph = tf.compat.v1.GraphDef.FromString(described.graph)
        if fault.place == "batch":
            first = next(index for index, leaf in enumerate(leaves) if leaf.dtype.is_floating)
            leaves = [
                tf.constant(flip(leaf.numpy(), fault)) if index == first else leaf
                for index, leaf in enumerate(leaves)
            ]
        else:
            graph = _with_flip(
                graph,
                _target(slot.traced.graph, described.signature, recording.variables.infos, fault),
                fault,
            )
        program = CompiledProgram(
            graph, described.signature, jit=described.signature.compilation == "xla"
        )
        variables = [SimpleNamespace(handle=handle) for handle in recording.variables.handles]
        with listening.muted():  # the recorder sees the step that this stands in for
            return program(leaves, variables, described.constants)[0]


def flip(values: Any, fault: Fault) -> Any:
    """A copy of an array with bits flipped in one element."""
    copy = np.array(values)
    bits = copy.reshape(-1).view(f"u{copy.dtype.itemsize}")
    for bit in fault.bits:
        bits[fault.element % bits.size] ^= bits.dtype.type(1 << bit)
    return copy


def _flip_variable(calls: CompiledCalls, fault: Fault) -> None:
    table = calls.recording.variables
    index = next(i for i, info in enumerate(table.infos) if fault.name in info.path and info.shape)
    value = read_variable(table.handles[index])
    tf.raw_ops.AssignVariableOp(
        resource=table.handles[index], value=tf.constant(flip(value.numpy(), fault))
    )


def _target(graph: Any, signature: Any, infos: Sequence[Any], fault: Fault) -> str:
    if fault.place == "gradient":
        return next(
            str(spec.tensor)
            for spec in signature.gradients
            if fault.name in infos[spec.variable].path
        )
    return next(
        str(op.outputs[0].name)
        for op in graph.get_operations()
        if op.type == fault.name and op.outputs[0].dtype.is_floating
    )


def _with_flip(graph: Any, tensor: str, fault: Fault) -> Any:
    """The graph in which everybody who used `tensor` uses it with bits flipped in one element."""
    workshop = tf.Graph()
    with workshop.as_default():
        tf.graph_util.import_graph_def(graph, name="")
        source = workshop.get_tensor_by_name(tensor)
        kind = _UNSIGNED[source.dtype.size]
        mask = sum(1 << bit for bit in fault.bits)
        flat = tf.bitcast(tf.reshape(source, [-1]), kind)
        there = tf.equal(tf.range(tf.size(flat)), fault.element % tf.size(flat))
        flipped = tf.bitwise.bitwise_xor(
            flat, tf.where(there, tf.cast(mask, kind), tf.cast(0, kind))
        )
        result = tf.reshape(tf.bitcast(flipped, source.dtype), tf.shape(source))
    before = {node.name for node in graph.node}
    edited = workshop.as_graph_def()
    name, _, output = tensor.partition(":")
    aliases = {tensor, name} if output == "0" else {tensor}
    for node in edited.node:
        if node.name in before:
            node.input[:] = [result.op.name if each in aliases else each for each in node.input]
    return edited
