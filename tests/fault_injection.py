"""Faults of a machine, on purpose: bits flip in one step of a real training while it is recorded, unseen by the recorder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import tensorflow as tf

from nanreplay.program.compiled import CompiledProgram
from nanreplay.program.describe import describe_program
from nanreplay.program.sources import SourceTable
from nanreplay.recorder.graph_step import GraphStep
from nanreplay.recorder.session import ProgramSlot

Place = Literal["weight", "stored weight", "gradient", "activation", "batch"]
_UNSIGNED = {2: tf.uint16, 4: tf.uint32, 8: tf.uint64}


@dataclass(frozen=True)
class Fault:
    """Bits of one element that flip in one step."""

    place: Place
    """`weight`: a variable, after the recorder copied the state; `stored weight`: before it did; else a tensor of the step."""
    step: int
    name: str = ""
    """Part of a variable's path (weight, gradient), or type of the op whose output it is (activation)."""
    element: int = 0
    """Place in the flattened tensor."""
    bits: tuple[int, ...] = (30,)
    """Bits from the lowest; 30 of a float32 is the highest of its exponent."""


def inject(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> list[Fault]:
    """Arrange for the fault to happen in the next training that is recorded; the list holds it once it did."""
    happened: list[Fault] = []
    begin = GraphStep._begin

    def faulty_begin(self: GraphStep, args: tuple[Any, ...], leaves: list[Any]) -> Any:
        due = self._session.step == fault.step and not happened
        if due and fault.place == "stored weight":
            _flip_variable(self, fault)
            happened.append(fault)
        slot = begin(self, args, leaves)
        if not due or happened:
            return slot
        happened.append(fault)
        run = _faulty(self, slot, fault)
        flat_call = lambda tensors: run(*tf.nest.pack_sequence_as(args, tensors))  # noqa: E731
        return SimpleNamespace(layout=slot.layout, traced=SimpleNamespace(function=run, flat_call=flat_call))

    monkeypatch.setattr(GraphStep, "_begin", faulty_begin)
    return happened


def _faulty(step: GraphStep, slot: ProgramSlot, fault: Fault) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        if fault.place == "weight":
            _flip_variable(step, fault)
            return slot.traced.function(*args)
        if fault.place == "batch":
            floats = [leaf for leaf in tf.nest.flatten(args) if leaf.dtype.is_floating]
            flipped = {id(floats[0]): tf.constant(flip(floats[0].numpy(), fault))}
            return slot.traced.function(*tf.nest.map_structure(lambda leaf: flipped.get(id(leaf), leaf), args))
        return _run_edited(step, slot, fault, tf.nest.flatten(args))

    return run


def flip(values: Any, fault: Fault) -> Any:
    """A copy of an array with bits flipped in one element."""
    copy = np.array(values)
    bits = copy.reshape(-1).view(f"u{copy.dtype.itemsize}")
    for bit in fault.bits:
        bits[fault.element % bits.size] ^= bits.dtype.type(1 << bit)
    return copy


def _flip_variable(step: GraphStep, fault: Fault) -> None:
    table = step._session.variables
    index = next(i for i, info in enumerate(table.infos) if fault.name in info.path and info.shape)
    kind = table.infos[index].dtype
    value = tf.raw_ops.ReadVariableOp(resource=table.handles[index], dtype=kind)
    tf.raw_ops.AssignVariableOp(resource=table.handles[index], value=tf.constant(flip(value.numpy(), fault)))


def _run_edited(step: GraphStep, slot: ProgramSlot, fault: Fault, leaves: Sequence[Any]) -> Any:
    """Run the step as it is compiled, with one tensor passing through a flip."""
    session, function = step._session, slot.traced.function
    described = describe_program(
        slot.traced, slot.id, variable_index=session.variables.index, metrics=session.variables.of_role("metric"),
        leaf_paths=slot.paths, sources=SourceTable("none"),
    )  # fmt: skip
    graph = tf.compat.v1.GraphDef.FromString(described.graph)
    edited = _with_flip(graph, _target(function.graph, described.signature, session.variables.infos, fault), fault)
    program = CompiledProgram(edited, described.signature, jit=described.signature.compilation == "xla")
    variables = [SimpleNamespace(handle=handle) for handle in session.variables.handles]
    outputs, _ = program([leaf for leaf in leaves if tf.is_tensor(leaf)], variables, described.constants)
    return tf.nest.pack_sequence_as(function.structured_outputs, outputs, expand_composites=True)


def _target(graph: Any, signature: Any, infos: Sequence[Any], fault: Fault) -> str:
    if fault.place == "gradient":
        return next(str(spec.tensor) for spec in signature.gradients if fault.name in infos[spec.variable].path)
    return next(str(op.outputs[0].name) for op in graph.get_operations() if op.type == fault.name and op.outputs[0].dtype.is_floating)


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
        flipped = tf.bitwise.bitwise_xor(flat, tf.where(there, tf.cast(mask, kind), tf.cast(0, kind)))
        result = tf.reshape(tf.bitcast(flipped, source.dtype), tf.shape(source))
    before = {node.name for node in graph.node}
    edited = workshop.as_graph_def()
    name, _, output = tensor.partition(":")
    aliases = {tensor, name} if output == "0" else {tensor}
    for node in edited.node:
        if node.name in before:
            node.input[:] = [result.op.name if each in aliases else each for each in node.input]
    return edited
