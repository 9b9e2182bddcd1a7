"""Taking texts and numbers out of a recorded program, for a capture that is given to others.

Messages, printed text, paths and, on demand, large arrays go; names of ops and functions stay, so
that the program still runs. `nanreplay redact` uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.capture.arrays import as_array
from nanreplay.program.graph_editor import forget_placement
from nanreplay.program.graph_nodes import constant_array, data_inputs, op_name
from nanreplay.program.safety import all_nodes, copied_graph
from nanreplay.records import ProgramRecord

_OPS_THAT_TELL = frozenset(
    {"Assert", "PrintV2", "Print", "StringFormat", "CheckNumerics", "CheckNumericsV2"}
)
"""Ops that only tell people something."""
_NEUTRAL_TEXTS = {"message": b"", "prefix": b"", "token": b"", "shared_name": b"", "container": b""}
"""What attributes become that hold text for people, or names of resources."""


def without_texts(record: ProgramRecord, scrub: Callable[[str], str]) -> tuple[ProgramRecord, int]:
    """Return a program without what it says to people, and how many text constants stayed.

    A text constant stays, scrubbed, where an op needs it for more than a message.

    Args:
        record: The program.
        scrub: Takes out of any other text what must not be in it.
    """
    graph = copied_graph(record.graph)
    forget_placement(graph)
    needed = _needed_by_computation(graph)
    n_left = 0
    for function, node in all_nodes(graph):
        is_needed = (function, node.name) in needed
        for name, value in node.attr.items():
            if value.HasField("tensor") and value.tensor.dtype == tf.string.as_datatype_enum:
                n_left += is_needed
                _rewrite_constant(value.tensor, scrub if is_needed else lambda text: "")
            elif name == "template" and node.op == "StringFormat":
                # The op refuses a template without one placeholder for each input.
                value.s = b" ".join([b"{}"] * len(node.attr["T"].list.type))
                node.attr["placeholder"].s = b"{}"
            elif name in _NEUTRAL_TEXTS and value.HasField("s"):
                value.s = _NEUTRAL_TEXTS[name]
            elif value.HasField("s"):
                value.s = _scrubbed(value.s, scrub)
            elif value.list.s:
                value.list.s[:] = [_scrubbed(text, scrub) for text in value.list.s]
    return replace(record, graph=graph.SerializeToString(deterministic=True)), n_left


def _needed_by_computation(graph: Any) -> set[tuple[str, str]]:
    """(function, op) of what ops take as data that do more than tell people something."""
    needed: set[tuple[str, str]] = set()
    for function, node in all_nodes(graph):
        if node.op in _OPS_THAT_TELL:
            continue
        for source in data_inputs(node):
            needed.add((function, op_name(source)))
    return needed


def with_other_numbers(
    record: ProgramRecord, change: Callable[[Any], Any], more_than: int
) -> tuple[ProgramRecord, int]:
    """Return a program whose constant arrays are others, and how many were changed.

    Args:
        record: The program.
        change: Makes an array of the same shape and type.
        more_than: Arrays with no more elements stay.
    """
    graph = copied_graph(record.graph)
    n_changed = 0
    for _, node in all_nodes(graph):
        if node.op == "Const":
            n_changed += _change_constant(node, change, more_than)
    constants = []
    for constant in record.constants:
        array = as_array(constant)
        is_long = array.size > more_than
        constants.append(change(array) if is_long else array)
        n_changed += is_long
    graph_bytes = graph.SerializeToString(deterministic=True)
    return replace(record, graph=graph_bytes, constants=tuple(constants)), n_changed


def _change_constant(node: Any, change: Callable[[Any], Any], more_than: int) -> bool:
    """Change the numbers of a Const; not where they are few, or all the same (zeros, a mask)."""
    kind = tf.dtypes.as_dtype(node.attr["dtype"].type)
    if not (kind.is_floating or kind.is_integer or kind.is_bool):
        return False
    array = constant_array(node.attr["value"].tensor)
    if array.size <= more_than or not np.any(array != array.reshape(-1)[0]):
        return False
    proto = tf.make_tensor_proto(change(array), dtype=kind, shape=array.shape)
    node.attr["value"].tensor.CopyFrom(proto)
    return True


def _rewrite_constant(tensor: Any, scrub: Callable[[str], str]) -> None:
    texts = constant_array(tensor)
    scrubbed = np.array([_scrubbed(text, scrub) for text in texts.reshape(-1)], object)
    proto = tf.make_tensor_proto(scrubbed.reshape(texts.shape), dtype=tf.string, shape=texts.shape)
    tensor.CopyFrom(proto)


def _scrubbed(text: bytes, scrub: Callable[[str], str]) -> bytes:
    """A text without what must not be in it; bytes that are no text stay."""
    try:
        return scrub(text.decode()).encode()
    except UnicodeDecodeError:
        return text
