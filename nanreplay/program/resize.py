"""A recorded program for a batch of another size. It was traced for one size, which many of its constants may hold.

Nothing here proves that the program still computes the same: whoever changes it replays it and looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program.graph_nodes import constant_array
from nanreplay.program.safety import all_nodes, parse_graph
from nanreplay.records import InputSpec, ProgramRecord, VariableInfo

_COUNTS = frozenset(
    {
        "Cast",
        "Range",
        "Pack",
        "Maximum",
        "Minimum",
        "FloorDiv",
        "Prod",
        "ConcatV2",
        "StridedSlice",
        "TensorListReserve",
    }
)
"""Ops that make a shape or a count of rows of a number."""


def resized(
    record: ProgramRecord, old: int, new: int, variables: Sequence[VariableInfo]
) -> ProgramRecord:
    """Return a program for `new` rows in place of `old`.

    Placeholders change their first dimension, constants that hold shapes change numbers that are the batch size: all of them,
    or where a layer is as wide as the batch the first of each shape. A number that was worked out while tracing, such as the
    divisor of a mean's gradient, stays.

    Args:
        record: The program.
        old: Rows that it was traced for.
        new: Rows that it shall take.
        variables: The capture's variables, whose sizes must not be taken for the batch's.
    """
    graph = tf.compat.v1.GraphDef()
    graph.CopyFrom(parse_graph(record.graph))
    signature = record.signature
    fed = {spec.tensor.partition(":")[0] for spec in signature.inputs if _has_rows(spec, old)}
    widths = {size for info in variables for size in info.shape} | {
        size for spec in signature.inputs for size in (spec.shape or ())[1:]
    }
    first_only = old in widths
    counted = set(_inputs_of_counts(graph))
    for function, node in all_nodes(graph):
        node.attr.pop("_output_shapes", None)
        if not function and node.name in fed:
            node.attr["shape"].shape.dim[0].size = new
        elif node.op == "Const":
            _resize_constant(
                node, old, new, first_only=first_only, is_count=(function, node.name) in counted
            )
        elif "output_shapes" in node.attr and node.op in (
            "While",
            "StatelessWhile",
            "If",
            "StatelessIf",
            "Case",
            "StatelessCase",
        ):
            node.attr["output_shapes"].list.ClearField("shape")
    for library in graph.library.function:
        library.attr.pop("_input_shapes", None)
        for argument in library.arg_attr.values():
            argument.attr.pop("_output_shapes", None)
    inputs, given = (
        [_resized(spec, old, new) for spec in specs] for specs in (signature.inputs, signature.fed)
    )
    changed = replace(signature, inputs=tuple(inputs), fed=tuple(given))
    return replace(record, graph=graph.SerializeToString(deterministic=True), signature=changed)


def takes_any_size(inputs: Iterable[InputSpec]) -> bool:
    """Whether no placeholder fixes the size of its first dimension."""
    return all(spec.shape is None or not spec.shape or spec.shape[0] is None for spec in inputs)


def _resized(spec: InputSpec, old: int, new: int) -> InputSpec:
    return replace(spec, shape=(new, *(spec.shape or ())[1:])) if _has_rows(spec, old) else spec


def _has_rows(spec: InputSpec, size: int) -> bool:
    return bool(spec.shape) and spec.shape is not None and spec.shape[0] == size


def _inputs_of_counts(graph: Any) -> Iterator[tuple[str, str]]:
    for function, node in all_nodes(graph):
        if node.op in _COUNTS:
            yield from ((function, source.lstrip("^").partition(":")[0]) for source in node.input)


def _resize_constant(node: Any, old: int, new: int, *, first_only: bool, is_count: bool) -> None:
    if node.attr["dtype"].type not in (tf.int32.as_datatype_enum, tf.int64.as_datatype_enum):
        return
    value = constant_array(node.attr["value"].tensor)
    if value.ndim == 1 and 0 < value.size <= 8:
        places = value == old
        if first_only:
            places[1:] = False
    elif value.ndim == 0 and is_count and not first_only:
        places = value == old
    else:
        return
    if np.any(places):
        made = tf.make_tensor_proto(
            np.where(places, new, value).astype(value.dtype), shape=value.shape
        )
        node.attr["value"].tensor.CopyFrom(made)
