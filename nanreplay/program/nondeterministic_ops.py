"""Ops whose outputs do not follow from the batch and the variables: they are recorded and fed.

A random op that draws from a state of its kernel's own, a Python function, a lookup table, an
iterator, a clock, another worker: run again, each may give something else. The recorder keeps
their outputs in the main graph with the batch, and replays are fed with them in the place of the
ops. Inside of a loop, a branch or a function they cannot be had from outside; these are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.program.graph_nodes import (
    constant_array,
    data_inputs,
    functions_by_name,
    mentioned_functions,
    op_name,
    output_types,
)
from nanreplay.program.safety import (
    WRITTEN_FILES,
    all_nodes,
    copied_graph,
    parse_graph,
    writes_files,
)
from nanreplay.records import Signature
from nanreplay.tensorflow_internals.tf_eager import op_definition

_NONDETERMINISTIC = re.compile(
    r"""
    # a state of the kernel's own
    RandomUniform | RandomUniformInt | RandomStandardNormal
  | TruncatedNormal | ParameterizedTruncatedNormal
  | RandomGamma | RandomPoisson(V2)? | RandomShuffle | RandomCrop | Multinomial
  | NonDeterministicInts | Skipgram | SampleDistortedBoundingBox(V2)?
  | (All|Uniform|LogUniform|LearnedUnigram|FixedUnigram|ThreadUnsafeUnigram)CandidateSampler
    # Python
  | PyFunc | PyFuncStateless | EagerPyFunc
    # tables, iterators, queues
  | LookupTable(Find|Size|Export)(V2)?
  | (One|Multi)?Iterator(GetNext|GetNextSync) | MultiDeviceIteratorGetNextFromShard
  | Queue(Dequeue.*|Size|IsClosed)(V\d)?
    # a clock
  | Timestamp
    # other workers
  | Collective(Reduce|Gather|BcastRecv|ReduceScatter|AllToAll)(V\d)? | NcclAllReduce
    """,
    re.VERBOSE,
)
WRITES_OUTSIDE = frozenset(
    """
    LookupTableInsert LookupTableInsertV2 LookupTableImport LookupTableImportV2
    LookupTableRemoveV2 QueueEnqueue QueueEnqueueV2 QueueEnqueueMany QueueEnqueueManyV2 QueueClose
    QueueCloseV2
    """.split()
)
"""Ops that change a table or a queue, of which a replay is given what was read."""
SUMMARIES = frozenset(
    """
    WriteSummary WriteScalarSummary WriteHistogramSummary WriteImageSummary WriteAudioSummary
    WriteRawProtoSummary WriteGraphSummary FlushSummaryWriter CloseSummaryWriter ImportEvent
    """.split()
)
"""Ops that write what a training logs, and give nothing back: a replay leaves them out."""
NEVER_RUN = SUMMARIES | WRITTEN_FILES
"""Ops that no replay runs, compiled or op by op."""
_LEFT_OUT = WRITES_OUTSIDE | NEVER_RUN
_NOT_HELD = frozenset({tf.resource.as_datatype_enum, tf.variant.as_datatype_enum})


def is_nondeterministic(op_type: str) -> bool:
    """Whether an op of this type may give something else on the same batch and variables."""
    return _NONDETERMINISTIC.fullmatch(op_type) is not None


def nondeterministic_tensors(graph: Any) -> list[Any]:
    """Return the outputs of such ops in the main graph of a trace, but of those that give handles.

    Replicas that exchange tensors within the graph need nobody else.
    """
    exchanged = set()
    if any(op.type.startswith("Collective") for op in graph.get_operations()):
        exchanged = exchanged_inside(graph.as_graph_def())
    tensors: list[Any] = []
    for op in graph.get_operations():
        if not is_nondeterministic(op.type) or op.name in exchanged:
            continue
        if all(map(_can_be_held, op.outputs)):
            tensors += op.outputs
    return tensors


def takes_first_free(op_type: str, n_inputs: int) -> bool:
    """Whether an op starts its sum with the first input whose buffer nobody else holds.

    AddN does, from three inputs on: it adds in place. Which buffers are free thus changes the order
    of the sum, and with it the last bit.
    """
    return op_type == "AddN" and n_inputs > 2


def _is_left_out(node: Any) -> bool:
    return node.op in _LEFT_OUT or writes_files(node)


def _can_be_held(tensor: Any) -> bool:
    return tensor.dtype.as_datatype_enum not in _NOT_HELD


def exchanged_inside(graph: Any) -> set[str]:
    """Return the names of collective ops all of whose replicas a GraphDef holds.

    Ops in its functions count, too. Ops that exchange tensors stand together: in the main graph, or
    in one branch.
    """
    names: set[str] = set()
    for body in [graph.node, *(function.node_def for function in graph.library.function)]:
        nodes = {node.name: node for node in body}
        # All devices that exchange tensors by an op of NCCL are in the graph.
        collectives = []
        for node in body:
            if node.op == "NcclAllReduce":
                names.add(node.name)
            elif node.op.startswith("Collective") and is_nondeterministic(node.op):
                collectives.append(node)
        known_sizes = []
        for node in collectives:
            size = _size_of_exchange(node, nodes)
            if size is not None:
                known_sizes.append(size)
        if known_sizes and max(known_sizes) <= len({node.device for node in collectives}):
            names.update(node.name for node in collectives)
    return names


def _size_of_exchange(node: Any, nodes: Mapping[str, Any]) -> int | None:
    """How many replicas a collective op exchanges tensors with; None where no constant says it."""
    is_listed = node.op.endswith("V3")  # its third input lists the replicas
    source = nodes.get(op_name(node.input[2 if is_listed else 1]))
    if source is None or source.op != "Const":
        return None
    value = constant_array(source.attr["value"].tensor)
    return int(value.size) if is_listed else int(value)


def unrecorded_ops(graph: Any, signature: Signature) -> list[str]:
    """Return what a replay would run anew, with an outcome of its own.

    Each is told as `<type> <op>` or `<type> <function>::<op>`.
    """
    parsed = parse_graph(graph)
    recorded, exchanged = fed_ops(signature), exchanged_inside(parsed)
    descriptions = []
    for function, node in all_nodes(parsed):
        if not is_nondeterministic(node.op) or node.name in exchanged:
            continue
        if function:
            descriptions.append(f"{node.op} {function}::{node.name}")
        elif node.name not in recorded:
            descriptions.append(f"{node.op} {node.name}")
    return descriptions


def fed_ops(signature: Signature) -> frozenset[str]:
    """Return the names of the ops whose outputs were recorded."""
    return frozenset(spec.tensor.rpartition(":")[0] for spec in signature.fed)


# Cutting a graph: placeholders in the place of ops whose outputs were recorded.


class CutGraph(NamedTuple):
    """A graph that is fed with recorded outputs of ops."""

    graph: Any
    """A GraphDef; a placeholder stands where such an op was."""
    feeds: Mapping[str, str]
    """Name of each recorded tensor to that of its placeholder's tensor."""
    places: Mapping[str, str]
    """Name of a recorded tensor to that of the one that ops take instead, where that is another."""
    idle: frozenset[str]
    """Captured resources, by tensor name, that no op is left to take."""
    unused: frozenset[str]
    """Captured resources that are handed on to branches and functions, where nothing uses them."""
    taken: Sequence[str] = ()
    """Names of the ops whose outputs the recorded ops took.

    They run, so that the graph optimizer fuses nothing that it did not fuse in training, where
    something used them.
    """


def cut_recorded_ops(graph: Any, signature: Signature) -> CutGraph:
    """Return a graph with placeholders for the recorded outputs of ops.

    What writes into tables, queues and logs is left out.

    Args:
        graph: A GraphDef; it is left as it is.
        signature: How the program is called.
    """
    recorded = fed_ops(signature)
    unheld = set()
    for spec in signature.captures:
        if spec.variable is None and spec.constant is None:
            unheld.add(spec.tensor)
    writes = any(_is_left_out(node) for _, node in all_nodes(graph))
    if not recorded and not unheld and not writes:
        return CutGraph(graph, {}, {}, frozenset(), frozenset())
    copied = copied_graph(graph)
    for _, node in all_nodes(copied):
        if _is_left_out(node):
            _leave_out(node)
    feeds, places, placeholders = _placeholders(copied, signature)
    used: set[str] = set()
    """Names of the ops that something takes data of."""
    taken: list[str] = []
    for node in copied.node:
        if node.name in recorded:
            taken += map(op_name, data_inputs(node))
            node.CopyFrom(placeholders.pop(node.name))
        node.input[:] = [places.get(_full_name(name), name) for name in node.input]
        used.update(map(op_name, data_inputs(node)))
    copied.node.extend(placeholders.values())
    idle = frozenset(name for name in unheld if name.rpartition(":")[0] not in used)
    unused = frozenset(name for name in unheld - idle if not _is_used(copied, name))
    running = set()
    for node in copied.node:
        if node.op not in ("Placeholder", "NoOp"):
            running.add(node.name)
    ran_for = []
    for name in dict.fromkeys(taken):
        if name in running:
            ran_for.append(name)
    return CutGraph(copied, feeds, places, idle, unused, ran_for)


def _full_name(tensor: str) -> str:
    """A tensor's name with its number, which a GraphDef leaves out where it is 0."""
    return tensor if ":" in tensor else f"{tensor}:0"


def _leave_out(node: Any) -> None:
    """Make a node a NoOp that waits for what the node waited for."""
    controls = []
    for name in node.input:
        if name.startswith("^"):
            controls.append(name)
    node.CopyFrom(tf.compat.v1.NodeDef(name=node.name, op="NoOp", input=controls))


def _is_used(graph: Any, tensor: str) -> bool:
    """Whether an op uses a tensor of the main graph.

    An op that only hands it on to a function, a branch or a loop does not; there, the search goes
    on with the argument.
    """
    functions = functions_by_name(graph)
    pending: list[tuple[str, Any, str]] = [("", graph.node, tensor.removesuffix(":0"))]
    """(function, its nodes, name of the tensor there)."""
    seen: set[tuple[str, str]] = set()
    while pending:
        function, nodes, name = pending.pop()
        if (function, name) in seen:
            continue
        seen.add((function, name))
        for node, position in _takers(nodes, name):
            arguments = list(_inner_arguments(node, position, functions))
            if not arguments:
                return True
            for inner, argument in arguments:
                pending.append((inner, functions[inner].node_def, argument))
    return False


def _takers(nodes: Any, tensor: str) -> Iterator[tuple[Any, int]]:
    """(node, number among its data inputs) of all that takes a tensor."""
    for node in nodes:
        for position, source in enumerate(data_inputs(node)):
            if source.removesuffix(":0") == tensor:
                yield node, position


def _inner_arguments(
    node: Any, position: int, functions: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """(function, argument) pairs that an input of a node is handed on to."""
    # The first input of a branching op is its condition.
    first = 1 if node.op in ("If", "StatelessIf", "Case", "StatelessCase") else 0
    for name in mentioned_functions([node]):
        # A function may also be called as an op of its name: all inputs are arguments then.
        argument = position if name == node.op else position - first
        if name in functions and argument >= 0:
            yield name, functions[name].signature.input_arg[argument].name


def _placeholders(
    graph: Any, signature: Signature
) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Return `feeds` and `places` of a `CutGraph`, and the nodes to put in, by name."""
    recorded = fed_ops(signature)
    kinds = {}
    for recorded_node in graph.node:
        if recorded_node.name in recorded:
            definition = op_definition(recorded_node.op)
            kinds[recorded_node.name] = output_types(definition, recorded_node)
    summed = _summed(graph) if signature.compilation == "graph" else frozenset()
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
        if spec.tensor in summed:
            # The caller holds what it feeds. A copy's buffer is AddN's alone, as in training.
            copy_name = f"{name}/own"
            copy = tf.compat.v1.NodeDef(name=copy_name, op="DeepCopy", input=[f"{name}:0"])
            copy.attr["T"].type = kinds[op][int(output)]
            nodes[copy_name] = copy
            places[spec.tensor] = f"{copy_name}:0"
    moved = {}
    for tensor, place in places.items():
        if tensor != place:
            moved[tensor] = place
    return feeds, moved, nodes


def _summed(graph: Any) -> frozenset[str]:
    """Names of the tensors of which AddN may take the buffer."""
    names: set[str] = set()
    for node in graph.node:
        inputs = data_inputs(node)
        if takes_first_free(node.op, len(inputs)):
            names.update(map(_full_name, inputs))
    return frozenset(names)
