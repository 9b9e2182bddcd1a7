"""Ops whose outputs do not follow from the batch and the variables: what the recorder keeps of them, and what replays are fed.

A random op that draws from a state of its kernel's own, a Python function, a lookup table, an iterator, a clock, another
worker: run again, each may give something else. Their outputs in the main graph are recorded with the batch. Inside a loop,
a branch or a function they cannot be had from outside, and are named.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.program.graph_nodes import constant_array, output_types
from nanreplay.program.safety import WRITTEN_FILES, all_nodes, parse_graph
from nanreplay.records import Signature
from nanreplay.tensorflow_internals.tf_eager import op_definition

_OUTSIDE = re.compile(
    r"""
    RandomUniform | RandomUniformInt | RandomStandardNormal | TruncatedNormal | ParameterizedTruncatedNormal    # kernel's own state
  | RandomGamma | RandomPoisson(V2)? | RandomShuffle | RandomCrop | Multinomial | NonDeterministicInts | Skipgram
  | (All|Uniform|LogUniform|LearnedUnigram|FixedUnigram|ThreadUnsafeUnigram)CandidateSampler | SampleDistortedBoundingBox(V2)?
  | PyFunc | PyFuncStateless | EagerPyFunc                                                                      # Python
  | LookupTable(Find|Size|Export)(V2)?                                                                          # tables
  | (One|Multi)?Iterator(GetNext|GetNextSync) | MultiDeviceIteratorGetNextFromShard | Queue(Dequeue.*|Size|IsClosed)(V\d)?
  | Timestamp                                                                                                   # a clock
  | Collective(Reduce|Gather|BcastRecv|ReduceScatter|AllToAll)(V\d)? | NcclAllReduce                            # other workers
    """,
    re.VERBOSE,
)
WRITES_OUTSIDE = frozenset(
    "LookupTableInsert LookupTableInsertV2 LookupTableImport LookupTableImportV2 LookupTableRemoveV2 "
    "QueueEnqueue QueueEnqueueV2 QueueEnqueueMany QueueEnqueueManyV2 QueueClose QueueCloseV2".split()
)
"""Ops that change a table or a queue, of which a replay is given what was read."""
SUMMARIES = frozenset(
    "WriteSummary WriteScalarSummary WriteHistogramSummary WriteImageSummary WriteAudioSummary WriteRawProtoSummary "
    "WriteGraphSummary FlushSummaryWriter CloseSummaryWriter ImportEvent".split()
)
"""Ops that write what a training logs, and give nothing back: a replay leaves them out."""
NEVER_RUN = SUMMARIES | WRITTEN_FILES
"""Ops that no replay runs, compiled or op by op."""
_LEFT_OUT = WRITES_OUTSIDE | NEVER_RUN
_NOT_HELD = frozenset({tf.resource.as_datatype_enum, tf.variant.as_datatype_enum})


def is_nondeterministic(op_type: str) -> bool:
    """Whether an op of this type may give something else when it is run again on the same batch and variables."""
    return _OUTSIDE.fullmatch(op_type) is not None


def nondeterministic_tensors(graph: Any) -> list[Any]:
    """Return the outputs of such ops in the main graph of a trace, but of those that give handles.

    Replicas that exchange tensors within the graph need nobody else.
    """
    among = (
        exchanged_inside(graph.as_graph_def())
        if any(op.type.startswith("Collective") for op in graph.get_operations())
        else set()
    )
    ops = [op for op in graph.get_operations() if is_nondeterministic(op.type) and op.name not in among]
    return [
        tensor
        for op in ops
        if all(_can_be_held(each) for each in op.outputs)
        for tensor in op.outputs
    ]


def takes_first_free(op_type: str, n_inputs: int) -> bool:
    """Whether an op starts its sum with the first input whose buffer nobody else holds."""
    return op_type == "AddN" and n_inputs > 2


def _can_be_held(tensor: Any) -> bool:
    return tensor.dtype.as_datatype_enum not in _NOT_HELD


def exchanged_inside(graph: Any) -> set[str]:
    """Return the names of collective ops of a GraphDef, in functions too, all of whose replicas the graph holds."""
    found: set[str] = set()
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    for body in bodies:  # the ops of one number stand together: in the main graph, or in one branch
        nodes = [node for node in body if node.op.startswith("Collective") and is_nondeterministic(node.op)]
        named = {node.name: node for node in body}
        groups = [named.get(node.input[1].partition(":")[0]) for node in nodes]
        known = [
            int(constant_array(each.attr["value"].tensor))
            for each in groups
            if each is not None and each.op == "Const"
        ]
        if known and max(known) <= len({node.device for node in nodes}):
            found |= {node.name for node in nodes}
    return found


def unrecorded_ops(graph: Any, signature: Signature) -> list[str]:
    """Return what a replay would run anew, with an outcome of its own: `op` or `function::op`, with the op's type."""
    recorded, inside = fed_ops(signature), exchanged_inside(parse_graph(graph))
    found = []
    for function, node in all_nodes(parse_graph(graph)):
        if (
            is_nondeterministic(node.op)
            and (function or node.name not in recorded)
            and node.name not in inside
        ):
            found.append(
                f"{node.op} {function}::{node.name}" if function else f"{node.op} {node.name}"
            )
    return found


def fed_ops(signature: Signature) -> frozenset[str]:
    """Return the names of the ops whose outputs were recorded."""
    return frozenset(spec.tensor.rpartition(":")[0] for spec in signature.fed)


class CutGraph(NamedTuple):
    """A graph that is fed with recorded outputs of ops."""

    graph: Any
    """A GraphDef; a placeholder stands where such an op was."""
    feeds: Mapping[str, str]
    """Name of each recorded tensor to that of its placeholder's tensor."""
    places: Mapping[str, str]
    """Name of a recorded tensor to that of the tensor that ops take in its place, where that is another one."""
    idle: frozenset[str]
    """Captured resources, by tensor name, that no op is left to take."""
    unused: frozenset[str]
    """Captured resources that are handed on, to branches and functions, but that nothing uses there."""
    taken: Sequence[str] = ()
    """Names of the ops whose outputs the recorded ops took. They run, so that the graph optimizer fuses nothing that it did not fuse
    in training, where something used them."""


def cut_recorded_ops(graph: Any, signature: Signature) -> CutGraph:
    """Return a graph with placeholders for the recorded outputs of ops, and without what writes into tables and queues.

    Args:
        graph: A GraphDef; it is left as it is.
        signature: How the program is called.
    """
    recorded = fed_ops(signature)
    unheld = {
        spec.tensor
        for spec in signature.captures
        if spec.variable is None and spec.constant is None
    }
    if (
        not recorded
        and not unheld
        and not any(node.op in _LEFT_OUT for _, node in all_nodes(graph))
    ):
        return CutGraph(graph, {}, {}, frozenset(), frozenset())
    copied = tf.compat.v1.GraphDef()
    copied.CopyFrom(graph)
    kinds = {
        node.name: output_types(op_definition(node.op), node)
        for node in copied.node
        if node.name in recorded
    }
    feeds, places, added = _placeholders(
        signature, kinds, _summed(graph) if signature.compilation == "graph" else frozenset()
    )
    used: set[str] = set()
    taken: list[str] = []
    for function in copied.library.function:
        for node in function.node_def:
            if node.op in _LEFT_OUT:
                _leave_out(node)
    for node in copied.node:
        if node.op in _LEFT_OUT:
            _leave_out(node)
        if node.name in recorded:
            taken += [name.partition(":")[0] for name in node.input if not name.startswith("^")]
            node.CopyFrom(added.pop(node.name))
        node.input[:] = [
            places.get(name if ":" in name else f"{name}:0", name) for name in node.input
        ]
        used.update(name.partition(":")[0] for name in node.input if not name.startswith("^"))
    copied.node.extend(added.values())
    idle = frozenset(name for name in unheld if name.rpartition(":")[0] not in used)
    unused = frozenset(name for name in unheld - idle if not _is_used(copied, name))
    running = {node.name for node in copied.node if node.op not in ("Placeholder", "NoOp")}
    return CutGraph(
        copied,
        feeds,
        places,
        idle,
        unused,
        [name for name in dict.fromkeys(taken) if name in running],
    )


def _leave_out(node: Any) -> None:
    node.CopyFrom(
        tf.compat.v1.NodeDef(
            name=node.name, op="NoOp", input=[name for name in node.input if name.startswith("^")]
        )
    )


def _is_used(graph: Any, tensor: str) -> bool:
    """Whether an op takes a tensor of the main graph, other than to hand it on to a function, a branch or a loop."""
    functions = {function.signature.name: function for function in graph.library.function}
    pending: list[tuple[str, Any, str]] = [("", graph.node, tensor.removesuffix(":0"))]
    seen: set[tuple[str, str]] = set()
    while pending:
        where, nodes, name = pending.pop()
        if (where, name) in seen:
            continue
        seen.add((where, name))
        for node in nodes:
            for position, source in enumerate(
                each for each in node.input if not each.startswith("^")
            ):
                if source.removesuffix(":0") != name:
                    continue
                inner = list(_inner_arguments(node, position, functions))
                if not inner:
                    return True
                pending += [(each, functions[each].node_def, argument) for each, argument in inner]
    return False


def _inner_arguments(
    node: Any, position: int, functions: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """(function, argument) pairs that an input of a node is handed on to."""
    first = 1 if node.op in ("If", "StatelessIf", "Case", "StatelessCase") else 0
    for value in node.attr.values():
        for function in [value.func] if value.HasField("func") else value.list.func:
            if function.name in functions and position >= first:
                yield (
                    function.name,
                    functions[function.name].signature.input_arg[position - first].name,
                )
    if node.op in functions:
        yield node.op, functions[node.op].signature.input_arg[position].name


def _placeholders(
    signature: Signature, kinds: Mapping[str, list[int]], summed: Container[str]
) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Return `feeds` and `places` of a `CutGraph`, and the nodes to put in, by name."""
    feeds: dict[str, str] = {}
    places: dict[str, str] = {}
    nodes: dict[str, Any] = {}
    for spec in signature.fed:
        op, _, output = spec.tensor.rpartition(":")
        name = f"{op}/output_{output}" if int(output) else op
        node = nodes[name] = tf.compat.v1.NodeDef(name=name, op="Placeholder")
        node.attr["dtype"].type = kinds[op][int(output)]
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(spec.shape).as_proto())
        feeds[spec.tensor] = places[spec.tensor] = f"{name}:0"
        if spec.tensor in summed:  # as in training, the buffer is AddN's alone
            own = nodes[f"{name}/own"] = tf.compat.v1.NodeDef(
                name=f"{name}/own", op="DeepCopy", input=[f"{name}:0"]
            )
            own.attr["T"].type = kinds[op][int(output)]
            places[spec.tensor] = f"{name}/own:0"
    return feeds, {tensor: place for tensor, place in places.items() if tensor != place}, nodes


def _summed(graph: Any) -> frozenset[str]:
    """Names of the tensors of which AddN may take the buffer."""
    inputs = [
        [name for name in node.input if not name.startswith("^")]
        for node in graph.node
        if node.op == "AddN"
    ]
    names = (name for each in inputs if takes_first_free("AddN", len(each)) for name in each)
    return frozenset(name if ":" in name else f"{name}:0" for name in names)
