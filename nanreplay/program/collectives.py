"""Several replicas of a step: their collective ops in a program, their threads in training.

A replay runs all replicas of a process on one device: `local_program` puts plain ops in the place
of those by which the replicas exchanged gradients. While a training is traced, `ReplicaThreads`
tells the recorder which replica's thread is going on.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any

import tensorflow as tf

from nanreplay.errors import MissingWorkersError
from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.program.graph_nodes import constant_array, data_inputs, op_name
from nanreplay.program.nondeterministic_ops import fed_ops, unrecorded_ops
from nanreplay.program.safety import all_nodes, parse_graph
from nanreplay.records import CaptureSpec, OpInfo, ProgramRecord
from nanreplay.tensorflow_internals import tf_distribution

# Gathers inside of branches, brought out of them. Replicas exchange sparse gradients
# (IndexedSlices) by an If: where all parts are of one length, it gathers them as they are, else it
# pads them to the longest one, gathers, and cuts the padding off again. The padding branch is right
# in both cases.

REDUCE, GATHER = "CollectiveReduceV2", "CollectiveGatherV2"
_EXCHANGES = frozenset({REDUCE, GATHER, "CollectiveReduceV3", "NcclAllReduce"})
"""Ops of which each replica has one: they take a tensor of each, and give each the same."""
_BRANCHES = ("then_branch", "else_branch")


def inline_gathers(record: ProgramRecord) -> ProgramRecord:
    """Return a program whose gathers of sparse gradients are in its main graph."""
    editor = ProgramEditor(record)
    added: list[OpInfo] = []
    inlined: set[str] = set()
    for _, name in [key for key in editor.ops({"If", "StatelessIf"}) if not key[0]]:
        padding_branch = _padding_branch(editor, name)
        if padding_branch is None:
            continue
        outer = editor.infos.get(("", name))
        for branch in _BRANCHES:
            inlined.add(editor.node(("", name)).attr[branch].func.name)
        for op in editor.inline(name, padding_branch):
            inner = editor.infos.get((padding_branch, op[len(name) + 1 :]))
            if outer is not None and inner is not None:
                added.append(replace(outer, name=op, type=inner.type, stack=inner.stack))
    for function in inlined:
        editor.remove_function(function)
    return replace(editor.edited(), ops=(*record.ops, *added)) if added else record


def _padding_branch(editor: ProgramEditor, name: str) -> str | None:
    """The branch of such an If that pads what it gathers; None for any other If.

    Its condition asks whether the longest part is as long as the shortest: Equal(Max, Min).
    """
    node = editor.node(("", name))
    branches = [node.attr[branch].func.name for branch in _BRANCHES]
    if not all(_gathers(editor, branch) for branch in branches):
        return None
    condition = editor.node(("", op_name(node.input[0])))
    compared = set()
    for source in data_inputs(condition):
        compared.add(editor.node(("", op_name(source))).op)
    return branches[1] if condition.op == "Equal" and compared == {"Max", "Min"} else None


def _gathers(editor: ProgramEditor, function: str) -> bool:
    return any(editor.node((function, op)).op == GATHER for op in editor.ops_of(function))


# Collective ops of a recorded program, replaced by ops that compute on one device what the replicas
# computed together, bit for bit.

_ALIGNMENT = 64
"""Bytes to which the ring's parts of a tensor are aligned (EIGEN_MAX_ALIGN_BYTES)."""
_MERGE: dict[bytes, Callable[..., Any]] = {
    b"Add": tf.raw_ops.AddV2,
    b"Mul": tf.raw_ops.Mul,
    b"Min": tf.raw_ops.Minimum,
    b"Max": tf.raw_ops.Maximum,
}
_OF_NCCL = {b"sum": b"Add", b"prod": b"Mul", b"min": b"Min", b"max": b"Max"}
"""What the ops of NCCL call the same."""
_OF_ALL_DEVICES = frozenset({"NcclReduce", "NcclBroadcast"})
"""Ops that a step has once for all replicas."""


def has_collectives(graph: Any) -> bool:
    """Whether a GraphDef, or a function of it, holds ops by which replicas exchange tensors."""
    return any(node.op in _EXCHANGES | _OF_ALL_DEVICES for _, node in all_nodes(graph))


def collective_keys(record: ProgramRecord) -> set[str]:
    """Names of the tensors that number the calls of collective ops; a local program has none."""
    graph = parse_graph(record.graph)
    if not has_collectives(graph):
        return set()
    kinds = {}
    for node in graph.node:
        if node.op == "Placeholder":
            kinds[f"{node.name}:0"] = node.attr["dtype"].type
    keys = set()
    for spec in record.signature.captures:
        if not _is_held(spec) and kinds[spec.tensor] == tf.int32.as_datatype_enum:
            keys.add(spec.tensor)
    return keys


def unrecorded_ops_of(record: ProgramRecord) -> list[str]:
    """Return what a replay of a program would run anew, with an outcome of its own.

    Each is told as `<type> <op>` or `<type> <function>::<op>`. Replicas that exchange sparse
    gradients do so in branches, one for each replica; only side by side do their ops show that
    they need nobody else.
    """
    ops = unrecorded_ops(record.graph, record.signature)
    if not any(op.startswith(GATHER) for op in ops):
        return ops
    inlined = inline_gathers(record)
    return unrecorded_ops(inlined.graph, inlined.signature)


def _is_held(spec: CaptureSpec) -> bool:
    """Whether the capture file holds what is fed to a captured input."""
    return spec.variable is not None or spec.constant is not None


def local_program(record: ProgramRecord) -> ProgramRecord:
    """Return a program that runs on one device what the recorded one runs on one a replica.

    That is `record` itself where it holds no collective ops.

    Raises:
        MissingWorkersError: It holds the replicas of one worker only, and what others gave was not
            recorded.
    """
    recorded = fed_ops(record.signature)
    exchanging = []
    for _, node in all_nodes(parse_graph(record.graph)):
        if node.op in _EXCHANGES | _OF_ALL_DEVICES:
            exchanging.append(node)
    if all(node.name in recorded for node in exchanging):
        return record
    editor = ProgramEditor(inline_gathers(record))
    added: list[OpInfo] = []
    for keys in _groups(editor, recorded):
        added += _replace(editor, keys)
    for key in list(editor.ops(_OF_ALL_DEVICES)):
        added += _replace(editor, [key])
    _drop_communicators(editor)
    edited = editor.edited()
    # The keys that numbered the calls of collective ops are fed to nothing now.
    captures = []
    for spec in edited.signature.captures:
        if _is_held(spec) or editor.consumers("", spec.tensor):
            captures.append(spec)
    signature = replace(edited.signature, captures=tuple(captures))
    return replace(edited, ops=(*edited.ops, *added), signature=signature)


def _groups(editor: ProgramEditor, recorded: Container[str]) -> Iterator[list[OpKey]]:
    """Collective ops that exchange tensors with each other, in the order of the replicas.

    TensorFlow numbers the collective ops of each device in the order in which they were traced;
    those of one number belong together. With two replicas that each reduce a kernel and a bias,
    the groups are (kernel of 0, kernel of 1) and (bias of 0, bias of 1).

    Args:
        editor: Of the program.
        recorded: Names of ops whose outputs were recorded; they do not run.
    """
    n_of_device: dict[tuple[str, str], int] = defaultdict(int)
    groups: dict[tuple[str, int], list[OpKey]] = defaultdict(list)
    named_groups: dict[tuple[str, bytes], list[OpKey]] = defaultdict(list)
    """Those of NCCL, which go by a name that they share."""
    for key in editor.ops(_EXCHANGES):
        function, name = key
        node = editor.node(key)
        if name in recorded and not function:
            continue
        if node.op == "NcclAllReduce":
            named_groups[function, node.attr["shared_name"].s].append(key)
            continue
        groups[function, n_of_device[function, node.device]].append(key)
        n_of_device[function, node.device] += 1
    for keys in (*groups.values(), *named_groups.values()):
        nodes = [editor.node(key) for key in keys]
        size = _group_size(editor, keys[0])
        if len(keys) != size or len({node.op for node in nodes}) > 1:
            raise MissingWorkersError(
                f"The step exchanges tensors between {size} replicas inside of a branch or "
                "a function, where they could not be recorded, and this capture holds "
                f"{len(keys)} of the replicas."
            )
        yield [key for _, key in sorted(zip(map(_device_order, nodes), keys, strict=True))]


def _group_size(editor: ProgramEditor, key: OpKey) -> int:
    """How many replicas an op exchanges tensors with.

    NCCL's op says it. Others have it as their second input, a constant; of the third version, the
    third input lists the replicas.
    """
    node = editor.node(key)
    if node.op == "NcclAllReduce":
        return int(node.attr["num_devices"].i)
    is_listed = node.op == "CollectiveReduceV3"
    source = op_name(editor.data_inputs(key)[2 if is_listed else 1])
    value = constant_array(editor.node((key[0], source)).attr["value"].tensor)
    return int(value.size) if is_listed else int(value)


def _drop_communicators(editor: ProgramEditor) -> None:
    """Make ops that set up an exchange do nothing: run alone, one would wait for others."""
    for function, name in list(editor.ops({"CollectiveInitializeCommunicator"})):
        if not editor.consumers(function, editor.outputs((function, name))[0]):
            node = editor.node((function, name))
            node.CopyFrom(tf.compat.v1.NodeDef(name=name, op="NoOp"))


def _device_order(node: Any) -> list[Any]:
    """Tasks by number, then devices by number: GPU:2 comes before GPU:10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", node.device)]


def _replace(editor: ProgramEditor, keys: Sequence[OpKey]) -> list[OpInfo]:
    """Put an Identity of what all replicas exchange in the place of each of their ops."""
    function, first = keys[0][0], editor.node(keys[0])
    tensors = [editor.data_inputs(key)[0] for key in keys]
    if first.op in _OF_ALL_DEVICES:
        tensors = editor.data_inputs(keys[0])
    before = set(editor.ops_of(function))
    exchange = functools.partial(_exchanged, first)
    (result,) = editor.add(function, exchange, tensors, scope=f"{first.name}/local")
    for key in keys:
        node = editor.node(key)
        kind, node_type = node.attr["T"], node.op
        del node.input[:]
        node.op, node.device = "Identity", ""
        node.input.append(result)
        node.attr.clear()
        node.attr["T"].CopyFrom(kind)
        if node_type != "NcclBroadcast":
            editor.rename_output(key, "data", "output")
    info = editor.infos.get(keys[0])
    if info is None:
        info = OpInfo(function, "", "", "", "update", "optimizer", -1, "", "")
    info = replace(info, replica=-1)  # it belongs to all replicas
    added = []
    for name in editor.ops_of(function):
        if name not in before:
            added.append(name)
    return [replace(info, name=name, type=editor.node((function, name)).op) for name in added]


def _exchanged(node: Any, *tensors: Any) -> Any:
    """What each replica gets from a collective op, of what all of them gave."""
    if node.op == GATHER:
        return tf.concat(tensors, axis=0)
    if node.op == "NcclBroadcast":
        return tf.identity(tensors[0])
    reduction = node.attr["merge_op" if node.op == REDUCE else "reduction"].s
    merge = _MERGE[_OF_NCCL.get(reduction, reduction)]
    if len(tensors) > 2:
        total = _ring(merge, tensors)
    else:  # of two numbers, a ring computes the same in any order
        total = functools.reduce(lambda left, right: merge(x=left, y=right), tensors)
    if node.attr["final_op"].s == b"Div":
        total = tf.raw_ops.Div(x=total, y=tf.cast(len(tensors), total.dtype))
    return total


def _ring(merge: Callable[..., Any], tensors: Sequence[Any]) -> Any:
    """What TensorFlow's `RingReducer` computes, in the same order.

    A tensor is cut into as many parts as there are replicas. Part k starts at replica k, which
    hands it to the next one, and so on around the ring: of three replicas a, b and c, part 0 is
    (a + b) + c, part 1 is (b + c) + a, part 2 is (c + a) + b. Float sums depend on that order.
    Parts are rounded up to whole alignments, so that the last ones may be short or empty.
    """
    count = len(tensors)
    flat = [tf.reshape(tensor, [-1]) for tensor in tensors]
    total = tf.size(flat[0])
    width = flat[0].dtype.size
    length = (total + count - 1) // count
    length += (_ALIGNMENT - (length * width) % _ALIGNMENT) // width
    parts = []
    for k in range(count):
        vectors = []
        for vector in (*flat[k:], *flat[:k]):
            vectors.append(_part(vector, k, length, total))
        parts.append(_in_order(merge, vectors))
    return tf.reshape(tf.concat(parts, axis=0), tf.shape(tensors[0]))


def _part(vector: Any, k: int, length: Any, total: Any) -> Any:
    return vector[tf.minimum(k * length, total) : tf.minimum((k + 1) * length, total)]


def _in_order(merge: Callable[..., Any], vectors: Sequence[Any]) -> Any:
    """Merge from left to right.

    Grappler joins a chain of sums of one shape into one AddN, which adds in another order. So the
    vectors are rows and columns in turn.
    """
    merged = vectors[0]
    for number, vector in enumerate(vectors[1:]):
        shape = [-1] if number % 2 else [-1, 1]
        merged = merge(x=tf.reshape(merged, shape), y=tf.reshape(vector, shape))
    return tf.reshape(merged, [-1])


# The threads that trace replicas. A mirrored strategy traces each replica of a process in a thread
# of its own. They take turns, and what merges them (the sum of gradients, the update) runs in the
# thread that started them.

_SCOPE = re.compile(r"(?:^|/)replica_(\d+)/")


class ReplicaThreads:
    """Hands the stack of the thread that traces a step on to the threads of its replicas.

    What merges the replicas gets the stack of the replica that asks for it.

    Args:
        local: Gives what the current thread holds; its `stack` is handed on.
        switched: Called in the thread that goes on, whenever another one does, with the devices of
            the replicas.
        failed: Told of an error in here, which must not reach the training that is traced.
    """

    def __init__(
        self,
        local: Callable[[], Any],
        switched: Callable[[tuple[str, ...]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._local = local
        self._switched = switched
        self._failed = failed
        self.inherited: list[Callable[[], Callable[[], AbstractContextManager[None]]]] = []
        """What else a thread of a replica has from the one that starts it.

        Called in the starting thread, each gives a context to enter in the replica's.
        """

    def follow(self) -> Callable[[], None]:
        """Follow the threads of replicas; returns what undoes it."""
        return tf_distribution.hook_replica_threads(self._started, self._merging, self._resumed)

    def _started(self, thread: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return self._handing_on(tuple(thread.devices), function)
        except Exception as error:
            self._failed(error)
            return function

    def _handing_on(
        self, devices: tuple[str, ...], function: Callable[..., Any]
    ) -> Callable[..., Any]:
        stack, is_muted = list(self._local().stack), self._local().is_muted
        inherited = [inherit() for inherit in self.inherited]

        def take_over(entered: ExitStack) -> None:
            own = self._local()
            own.stack, own.is_muted = list(stack), is_muted
            self._switched(devices)
            for enter in inherited:
                entered.enter_context(enter())

        def run(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as entered:
                self._guard(lambda: take_over(entered))
                return function(*args, **kwargs)

        return run

    def _merging(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function that merges, under the stack of the replica that asked for it."""
        stack_of_replica: list[Any] = []
        self._guard(lambda: stack_of_replica.extend(self._local().stack))

        def under(stack: list[Any]) -> list[Any]:
            local = self._local()
            own, local.stack = local.stack, stack
            self._switched(())
            return list(own)

        def merge(*args: Any, **kwargs: Any) -> Any:
            own = self._guard(lambda: under(stack_of_replica))
            try:
                return function(*args, **kwargs)
            finally:
                self._guard(lambda: under(own or []))

        return merge

    def _resumed(self) -> None:
        self._guard(lambda: self._switched(()))

    def _guard(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            self._failed(error)
            return None


def replica_of(name: str, device: str, devices: Sequence[str]) -> int:
    """The replica that an op belongs to, by its scope, else by its device.

    -1 when it belongs to none or to all.

    Args:
        name: Name of the op.
        device: The device that it was placed on, "" for none.
        devices: The device of each replica; empty when there are not several.
    """
    if not devices:
        return -1
    replica = replica_in_scope(name)
    if replica is not None:
        return replica
    return devices.index(device) if device in devices else -1


def replica_in_scope(name: str) -> int | None:
    """The replica in an op's name: `tf.distribute` opens a scope for all but the first."""
    scope = _SCOPE.search(name)
    return None if scope is None else int(scope[1])
