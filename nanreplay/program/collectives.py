"""Several replicas in one process: the threads that trace them one after another, and what tells whose an op or a batch is.

A mirrored strategy traces each replica of a process in a thread of its own. They take turns, and what merges them (the sum of
gradients, the update) runs in the thread that started them.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any

import tensorflow as tf

from nanreplay.errors import MissingWorkersError
from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.program.graph_nodes import constant_array
from nanreplay.program.nondeterministic_ops import fed_ops
from nanreplay.program.safety import all_nodes, parse_graph
from nanreplay.records import OpInfo, ProgramRecord
from nanreplay.tensorflow_internals import tf_distribution

# Collective ops that are inside of branches, brought out of them: replicas exchange sparse
# gradients that way.

_GATHER = "CollectiveGatherV2"


def inline_gathers(record: ProgramRecord) -> ProgramRecord:
    """Return a program whose gathers of sparse gradients are in its main graph."""
    editor = ProgramEditor(record)
    added: list[OpInfo] = []
    done: set[str] = set()
    for _, name in [key for key in editor.ops({"If", "StatelessIf"}) if not key[0]]:
        padded = _padded_branch(editor, name)
        if padded is not None:
            outer = editor.infos.get(("", name))
            done |= {
                editor.node(("", name)).attr[which].func.name
                for which in ("then_branch", "else_branch")
            }
            for op in editor.inline(name, padded):
                inner = editor.infos.get((padded, op[len(name) + 1 :]))
                if outer is not None and inner is not None:
                    added.append(replace(outer, name=op, type=inner.type, stack=inner.stack))
    for function in done:
        editor.remove_function(function)
    return replace(editor.edited(), ops=(*record.ops, *added)) if added else record


def _padded_branch(editor: ProgramEditor, name: str) -> str | None:
    """The branch that pads what it gathers, for an If that asks whether the longest part is as long as the shortest."""
    node = editor.node(("", name))
    branches = [node.attr[which].func.name for which in ("then_branch", "else_branch")]
    if not all(
        any(editor.node((branch, op)).op == _GATHER for op in editor.ops_of(branch))
        for branch in branches
    ):
        return None
    condition = editor.node(("", node.input[0].partition(":")[0]))
    compared = {
        editor.node(("", source.partition(":")[0])).op
        for source in condition.input
        if not source.startswith("^")
    }
    return branches[1] if condition.op == "Equal" and compared == {"Max", "Min"} else None


# Collective ops of a recorded program: replicas exchange gradients with them. Here all replicas
# run on one device.

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
    kinds = {
        f"{node.name}:0": node.attr["dtype"].type for node in graph.node if node.op == "Placeholder"
    }
    unfed = (
        spec.tensor
        for spec in record.signature.captures
        if spec.variable is None and spec.constant is None
    )
    return (
        {tensor for tensor in unfed if kinds[tensor] == tf.int32.as_datatype_enum}
        if has_collectives(graph)
        else set()
    )


def local_program(record: ProgramRecord) -> ProgramRecord:
    """Return a program that runs on one device what the recorded one runs on one device a replica; `record` without collective ops.

    Raises:
        MissingWorkersError: It holds the replicas of one worker only, and what others gave was not recorded.
    """
    recorded = fed_ops(record.signature)
    if not any(
        node.op in (REDUCE, GATHER) and node.name not in recorded
        for _, node in all_nodes(parse_graph(record.graph))
    ):
        return record
    editor = ProgramEditor(inline_gathers(record))
    added: list[OpInfo] = []
    for keys in _groups(editor, recorded):
        added += _replace(editor, keys)
    edited = editor.edited()
    captures = tuple(
        spec
        for spec in edited.signature.captures
        if spec.variable is not None or spec.constant is not None
    )
    unused = {spec.tensor for spec in edited.signature.captures} - {
        spec.tensor for spec in captures
    }
    taken = {name for name in unused if editor.consumers("", name)}
    kept = tuple(
        spec for spec in edited.signature.captures if spec in captures or spec.tensor in taken
    )
    return replace(
        edited, ops=(*edited.ops, *added), signature=replace(edited.signature, captures=kept)
    )


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
    (result,) = editor.add(
        function, functools.partial(_exchanged, first), tensors, scope=f"{first.name}/local"
    )
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
    plain = (
        OpInfo(function, "", "", "", "update", "optimizer", -1, "", "")
        if info is None
        else replace(info, replica=-1)
    )
    return [replace(plain, name=name, type=editor.node((function, name)).op) for name in made]


def _exchanged(node: Any, *tensors: Any) -> Any:
    if node.op == GATHER:
        return tf.concat(tensors, axis=0)
    merge = _MERGE[node.attr["merge_op"].s]
    total = (
        _ring(merge, tensors)
        if len(tensors) > 2
        else functools.reduce(lambda a, b: merge(x=a, y=b), tensors)
    )
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
        span = [
            part[tf.minimum(k * each, total) : tf.minimum((k + 1) * each, total)]
            for part in (*flat[k:], *flat[:k])
        ]
        parts.append(_in_order(merge, span))
    return tf.reshape(tf.concat(parts, axis=0), tf.shape(tensors[0]))


def _in_order(merge: Callable[..., Any], vectors: Sequence[Any]) -> Any:
    """Merge from left to right. Rows and columns in turn: the graph optimizer would join a chain of sums of one shape."""
    merged = vectors[0]
    for place, vector in enumerate(vectors[1:]):
        shape = [-1] if place % 2 else [-1, 1]
        merged = merge(x=tf.reshape(merged, shape), y=tf.reshape(vector, shape))
    return tf.reshape(merged, [-1])


# --- program.replicas

_SCOPE = re.compile(r"(?:^|/)replica_(\d+)/")


class ReplicaThreads:
    """Hands the stack of the thread that traces a step on to the threads of its replicas, and to what merges them.

    Args:
        local: Gives what the current thread holds; its `stack` is handed on.
        switched: Called in the thread that goes on, whenever another one does, with the devices of the replicas.
    """

    def __init__(
        self, local: Callable[[], Any], switched: Callable[[tuple[str, ...]], None]
    ) -> None:
        self._local = local
        self._switched = switched
        self.inherited: list[Callable[[], Callable[[], AbstractContextManager[None]]]] = []
        """What else a thread of a replica has from the one that starts it: called there, each gives what to enter here."""

    def follow(self) -> Callable[[], None]:
        """Follow the threads of replicas; returns what undoes it."""
        return tf_distribution.hook_replica_threads(self._started, self._merging, self._resumed)

    def _started(self, thread: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        stack, devices, is_muted = (
            list(self._local().stack),
            tuple(thread.devices),
            self._local().is_muted,
        )
        inherited = [inherit() for inherit in self.inherited]

        def run(*args: Any, **kwargs: Any) -> Any:
            own = self._local()
            own.stack, own.is_muted = list(stack), is_muted
            self._switched(devices)
            with ExitStack() as entered:
                for enter in inherited:
                    entered.enter_context(enter())
                return function(*args, **kwargs)

        return run

    def _merging(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function that merges, under the stack of the replica that asked for it."""
        asked = list(self._local().stack)

        def merge(*args: Any, **kwargs: Any) -> Any:
            local = self._local()
            own, local.stack = local.stack, asked
            self._switched(())
            try:
                return function(*args, **kwargs)
            finally:
                local.stack = own
                self._switched(())

        return merge

    def _resumed(self) -> None:
        self._switched(())


def replica_of(name: str, device: str, devices: Sequence[str]) -> int:
    """The replica that an op belongs to, by its scope, else by its device; -1 when it belongs to none or to all.

    Args:
        name: Name of the op.
        device: The device that it was placed on, "" for none.
        devices: The device of each replica; empty when there are not several.
    """
    if not devices:
        return -1
    scope = _SCOPE.search(name)
    if scope is not None:
        return int(scope[1])
    return devices.index(device) if device in devices else -1
