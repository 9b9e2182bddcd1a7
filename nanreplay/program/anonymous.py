"""Taking texts out of a recorded program: messages, printed text, paths. Names of ops and functions stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program.graph_editor import forget_placement
from nanreplay.program.graph_nodes import constant_array
from nanreplay.program.safety import all_nodes, parse_graph
from nanreplay.records import ProgramRecord

_SPEAKING = frozenset(
    {"Assert", "PrintV2", "Print", "StringFormat", "CheckNumerics", "CheckNumericsV2"}
)
"""Ops that only tell people something."""
_SPOKEN = {"message": b"", "prefix": b"", "token": b"", "shared_name": b"", "container": b""}
"""Attributes that hold text for people, or names of resources."""


def without_texts(record: ProgramRecord, scrub: Callable[[str], str]) -> tuple[ProgramRecord, int]:
    """Return a program without what it says to people, and how many text constants its ops need and so are left.

    Args:
        record: The program.
        scrub: Takes out of any other text what must not be in it.
    """
    graph = tf.compat.v1.GraphDef()
    graph.CopyFrom(parse_graph(record.graph))
    forget_placement(graph)
    needed = {
        (function, source.lstrip("^").partition(":")[0])
        for function, node in all_nodes(graph)
        if node.op not in _SPEAKING
        for source in node.input
        if not source.startswith("^")
    }
    left = 0
    for function, node in all_nodes(graph):
        is_needed = (function, node.name) in needed
        for name, value in node.attr.items():
            if value.HasField("tensor") and value.tensor.dtype == tf.string.as_datatype_enum:
                left += is_needed
                _rewrite_constant(value.tensor, scrub if is_needed else lambda text: "")
            elif name == "template" and node.op == "StringFormat":
                value.s = b" ".join([b"{}"] * len(node.attr["T"].list.type))
                node.attr["placeholder"].s = b"{}"
            elif name in _SPOKEN and value.HasField("s"):
                value.s = _SPOKEN[name]
            elif value.HasField("s"):
                value.s = _scrubbed(value.s, scrub)
            elif value.list.s:
                value.list.s[:] = [_scrubbed(text, scrub) for text in value.list.s]
    return replace(record, graph=graph.SerializeToString(deterministic=True)), left


def with_other_numbers(
    record: ProgramRecord, change: Callable[[Any], Any], more_than: int
) -> tuple[ProgramRecord, int]:
    """Return a program in which arrays that it holds as constants are others, and how many these are.

    Args:
        record: The program.
        change: Makes an array of the same shape and type.
        more_than: Arrays with no more elements stay.
    """
    graph = tf.compat.v1.GraphDef()
    graph.CopyFrom(parse_graph(record.graph))
    changed = 0
    for _, node in all_nodes(graph):
        kind = tf.dtypes.as_dtype(node.attr["dtype"].type) if node.op == "Const" else None
        if kind is not None and (kind.is_floating or kind.is_integer or kind.is_bool):
            array = constant_array(node.attr["value"].tensor)
            if array.size > more_than and np.any(array != array.reshape(-1)[0]):
                node.attr["value"].tensor.CopyFrom(
                    tf.make_tensor_proto(change(array), dtype=kind, shape=array.shape)
                )
                changed += 1
    constants = []
    for constant in record.constants:
        array = np.asarray(constant)
        is_long = array.size > more_than
        constants.append(change(array) if is_long else array)
        changed += is_long
    return replace(
        record, graph=graph.SerializeToString(deterministic=True), constants=tuple(constants)
    ), changed


def _rewrite_constant(tensor: Any, scrub: Callable[[str], str]) -> None:
    texts = constant_array(tensor)
    made = np.array([_scrubbed(text, scrub) for text in texts.reshape(-1)], object).reshape(
        texts.shape
    )
    tensor.CopyFrom(tf.make_tensor_proto(made, dtype=tf.string, shape=texts.shape))


def _scrubbed(text: bytes, scrub: Callable[[str], str]) -> bytes:
    try:
        return scrub(text.decode()).encode()
    except UnicodeDecodeError:
        return text
