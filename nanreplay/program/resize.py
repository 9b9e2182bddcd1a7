"""A recorded program for a batch of another size, as a minimized capture needs it.

It was traced for one size, which many of its constants may hold. Nothing here proves that the
program still computes the same: whoever changes it replays it and looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program.graph_nodes import constant_array, op_name
from nanreplay.program.safety import all_nodes, copied_graph
from nanreplay.records import InputSpec, ProgramRecord, Signature, VariableInfo

_MAKES_COUNTS = frozenset(
    "Cast Range Pack Maximum Minimum FloorDiv Prod ConcatV2 StridedSlice TensorListReserve".split()
)
"""Ops that make a shape or a count of rows of a number."""
_CONTROL_FLOW = frozenset("While StatelessWhile If StatelessIf Case StatelessCase".split())
_MAX_RANK = 8
"""TensorFlow's kernels take tensors of up to 8 dimensions: a longer vector is no shape."""


def resized(
    record: ProgramRecord, old: int, new: int, variables: Sequence[VariableInfo]
) -> ProgramRecord:
    """Return a program for `new` rows in place of `old`.

    Placeholders change their first dimension. Constants that hold shapes change numbers that are
    the batch size: all of them, or where a layer is as wide as the batch the first of each shape.
    A number that was worked out while tracing, such as the divisor of a mean's gradient, stays.

    Args:
        record: The program.
        old: Rows that it was traced for.
        new: Rows that it shall take.
        variables: The capture's variables, whose sizes must not be taken for the batch's.
    """
    graph = copied_graph(record.graph)
    signature = record.signature
    placeholders = set()
    for spec in signature.inputs:
        if _has_rows(spec, old):
            placeholders.add(op_name(spec.tensor))
    first_only = old in _layer_widths(signature, variables)
    count_inputs = set(_inputs_of_counts(graph))
    for function, node in all_nodes(graph):
        # What tracing inferred would contradict the new size; TensorFlow infers it again.
        if node.op != "ReadVariableOp":
            node.attr.pop("_output_shapes", None)
        if not function and node.name in placeholders:
            node.attr["shape"].shape.dim[0].size = new
        elif node.op == "Const":
            is_count = (function, node.name) in count_inputs
            _resize_constant(node, old, new, first_only=first_only, is_count=is_count)
        elif node.op in _CONTROL_FLOW and "output_shapes" in node.attr:
            node.attr["output_shapes"].list.ClearField("shape")
    _forget_input_shapes(graph)
    changed = replace(
        signature,
        inputs=tuple(_resized(spec, old, new) for spec in signature.inputs),
        fed=tuple(_resized(spec, old, new) for spec in signature.fed),
    )
    return replace(record, graph=graph.SerializeToString(deterministic=True), signature=changed)


def _layer_widths(signature: Signature, variables: Sequence[VariableInfo]) -> set[int | None]:
    """Sizes that a shape may hold for another reason than the batch."""
    widths: set[int | None] = set()
    for info in variables:
        widths.update(info.shape)
    for spec in signature.inputs:
        widths.update((spec.shape or ())[1:])
    return widths


def _forget_input_shapes(graph: Any) -> None:
    """Leave out the shapes that functions were traced for; TensorFlow infers them anew."""
    for function in graph.library.function:
        function.attr.pop("_input_shapes", None)
        for argument in function.arg_attr.values():
            argument.attr.pop("_output_shapes", None)


def takes_any_size(inputs: Iterable[InputSpec]) -> bool:
    """Whether no placeholder fixes the size of its first dimension."""
    return all(spec.shape is None or not spec.shape or spec.shape[0] is None for spec in inputs)


def _resized(spec: InputSpec, old: int, new: int) -> InputSpec:
    return replace(spec, shape=(new, *(spec.shape or ())[1:])) if _has_rows(spec, old) else spec


def _has_rows(spec: InputSpec, size: int) -> bool:
    return bool(spec.shape) and spec.shape is not None and spec.shape[0] == size


def _inputs_of_counts(graph: Any) -> Iterator[tuple[str, str]]:
    """(function, op) of what goes into ops that make shapes or counts."""
    for function, node in all_nodes(graph):
        if node.op in _MAKES_COUNTS:
            for source in node.input:
                yield (function, op_name(source))


def _resize_constant(node: Any, old: int, new: int, *, first_only: bool, is_count: bool) -> None:
    if node.attr["dtype"].type not in (tf.int32.as_datatype_enum, tf.int64.as_datatype_enum):
        return
    value = constant_array(node.attr["value"].tensor)
    is_old = value == old
    # A vector of few whole numbers may be a shape; a single number is only taken for the batch size
    # where an op makes a shape or a count of it.
    if value.ndim == 1 and 0 < value.size <= _MAX_RANK:
        if first_only:
            is_old[1:] = False
    elif value.ndim or not is_count or first_only:
        return
    if np.any(is_old):
        resized_value = np.where(is_old, new, value).astype(value.dtype)
        proto = tf.make_tensor_proto(resized_value, shape=value.shape)
        node.attr["value"].tensor.CopyFrom(proto)
