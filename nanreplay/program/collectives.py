"""Collective ops of a recorded program: replicas exchange gradients with them. Here all replicas run on one device.

The recorded program stays as it was recorded. `local_program` gives the one that is replayed: its collective ops are replaced by
plain ones between the replicas' tensors, which add up in the order in which TensorFlow does, so that the bits are the same.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from nanreplay.errors import MissingWorkersError
from nanreplay.program.branches import inline_gathers
from nanreplay.program.constants import constant_array
from nanreplay.program.edit import OpKey, ProgramEditor
from nanreplay.program.outside import fed_ops
from nanreplay.program.safety import all_nodes, parse_graph
from nanreplay.records import OpInfo, ProgramRecord

REDUCE, GATHER = "CollectiveReduceV2", "CollectiveGatherV2"
_ALIGNMENT = 64
"""Bytes to which the ring's parts of a tensor are aligned (EIGEN_MAX_ALIGN_BYTES)."""
_MERGE: dict[bytes, Callable[..., Any]] = {
    b"Add": tf.raw_ops.AddV2, b"Mul": tf.raw_ops.Mul, b"Min": tf.raw_ops.Minimum, b"Max": tf.raw_ops.Maximum,
}  # fmt: skip


def has_collectives(graph: Any) -> bool:
    """Whether a GraphDef, or a function of it, holds ops by which replicas exchange tensors."""
    return any(node.op in (REDUCE, GATHER) for _, node in all_nodes(graph))


def collective_keys(record: ProgramRecord) -> set[str]:
    """Names of the tensors that number the calls of collective ops; a local program does without."""
    graph = parse_graph(record.graph)
    kinds = {f"{node.name}:0": node.attr["dtype"].type for node in graph.node if node.op == "Placeholder"}
    unfed = (spec.tensor for spec in record.signature.captures if spec.variable is None and spec.constant is None)
    return {tensor for tensor in unfed if kinds[tensor] == tf.int32.as_datatype_enum} if has_collectives(graph) else set()


def local_program(record: ProgramRecord) -> ProgramRecord:
    """Return a program that runs on one device what the recorded one runs on one device a replica; `record` without collective ops.

    Raises:
        MissingWorkersError: It holds the replicas of one worker only, and what others gave was not recorded.
    """
    recorded = fed_ops(record.signature)
    if not any(node.op in (REDUCE, GATHER) and node.name not in recorded for _, node in all_nodes(parse_graph(record.graph))):
        return record
    editor = ProgramEditor(inline_gathers(record))
    added: list[OpInfo] = []
    for keys in _groups(editor, recorded):
        added += _replace(editor, keys)
    edited = editor.edited()
    captures = tuple(spec for spec in edited.signature.captures if spec.variable is not None or spec.constant is not None)
    unused = {spec.tensor for spec in edited.signature.captures} - {spec.tensor for spec in captures}
    taken = {name for name in unused if editor.consumers("", name)}
    kept = tuple(spec for spec in edited.signature.captures if spec in captures or spec.tensor in taken)
    return replace(edited, ops=(*edited.ops, *added), signature=replace(edited.signature, captures=kept))


def _groups(editor: ProgramEditor, recorded: Container[str]) -> Iterable[list[OpKey]]:
    """Collective ops that exchange tensors with each other, in the order of the replicas.

    TensorFlow counts the collective ops of each device, in the order in which they were traced; those of one number belong together.
    """
    counted: dict[tuple[str, str], int] = defaultdict(int)
    found: dict[tuple[str, int], list[OpKey]] = defaultdict(list)
    for key in editor.ops({REDUCE, GATHER}):
        if key[1] in recorded and not key[0]:
            continue
        device = editor.node(key).device
        found[key[0], counted[key[0], device]].append(key)
        counted[key[0], device] += 1
    for keys in found.values():
        nodes = [editor.node(key) for key in keys]
        size = _group_size(editor, keys[0])
        if len(keys) != size or len({node.op for node in nodes}) > 1:
            raise MissingWorkersError(
                f"The step exchanges tensors between {size} replicas inside of a branch or a function, where they could not be "
                f"recorded, and this capture holds {len(keys)} of the replicas."
            )
        yield [key for _, key in sorted(zip(map(_device_order, nodes), keys, strict=True))]


def _group_size(editor: ProgramEditor, key: OpKey) -> int:
    source = editor.data_inputs(key)[1].partition(":")[0]
    return int(constant_array(editor.node((key[0], source)).attr["value"].tensor))


def _device_order(node: Any) -> list[Any]:
    """Tasks by number, then devices by number."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", node.device)]


def _replace(editor: ProgramEditor, keys: Sequence[OpKey]) -> list[OpInfo]:
    """Put an Identity of what all replicas exchange in the place of each of their ops."""
    function, first = keys[0][0], editor.node(keys[0])
    tensors = [editor.data_inputs(key)[0] for key in keys]
    before = set(editor.ops_of(function))
    (result,) = editor.add(function, functools.partial(_exchanged, first), tensors, scope=f"{first.name}/local")
    for key in keys:
        node = editor.node(key)
        kind = node.attr["T"]
        del node.input[:]
        node.op, node.device = "Identity", ""
        node.input.append(result)
        node.attr.clear()
        node.attr["T"].CopyFrom(kind)
        editor.rename_output(key, "data", "output")
    info = editor.infos.get(keys[0])
    made = [name for name in editor.ops_of(function) if name not in before]
    plain = OpInfo(function, "", "", "", "update", "optimizer", -1, "", "") if info is None else replace(info, replica=-1)
    return [replace(plain, name=name, type=editor.node((function, name)).op) for name in made]


def _exchanged(node: Any, *tensors: Any) -> Any:
    if node.op == GATHER:
        return tf.concat(tensors, axis=0)
    merge = _MERGE[node.attr["merge_op"].s]
    total = _ring(merge, tensors) if len(tensors) > 2 else functools.reduce(lambda a, b: merge(x=a, y=b), tensors)
    if node.attr["final_op"].s == b"Div":
        total = tf.raw_ops.Div(x=total, y=tf.cast(len(tensors), total.dtype))
    return total


def _ring(merge: Callable[..., Any], tensors: Sequence[Any]) -> Any:
    """What `RingReducer` computes: a tensor is cut into as many parts as there are replicas, and part k is merged from replica k on."""
    count, flat = len(tensors), [tf.reshape(tensor, [-1]) for tensor in tensors]
    total = tf.size(flat[0])
    width = flat[0].dtype.size
    each = (total + count - 1) // count
    each += (_ALIGNMENT - (each * width) % _ALIGNMENT) // width
    parts = []
    for k in range(count):
        span = [part[tf.minimum(k * each, total) : tf.minimum((k + 1) * each, total)] for part in (*flat[k:], *flat[:k])]
        parts.append(_in_order(merge, span))
    return tf.reshape(tf.concat(parts, axis=0), tf.shape(tensors[0]))


def _in_order(merge: Callable[..., Any], vectors: Sequence[Any]) -> Any:
    """Merge from left to right. Rows and columns in turn: the graph optimizer would join a chain of sums of one shape."""
    merged = vectors[0]
    for place, vector in enumerate(vectors[1:]):
        shape = [-1] if place % 2 else [-1, 1]
        merged = merge(x=tf.reshape(merged, shape), y=tf.reshape(vector, shape))
    return tf.reshape(merged, [-1])
