"""A program's graph as TensorFlow's graph optimizers left it: what a replay need not do again.

They take most of the time of a compiled program's first call. The dump runs each program once, and
keeps what they made of it for the file; on the same machine it is the program that trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tensorflow.core.framework import graph_pb2

from nanreplay.errors import NanreplayError, ReplayError
from nanreplay.program.graph_nodes import (
    avoid_known_functions,
    functions_by_name,
    mentioned_functions,
    op_name,
)
from nanreplay.program.safety import (
    all_nodes,
    check_graph,
    parse_graph,
    python_ops,
    writes_files,
)
from nanreplay.records import OptimizedGraph
from nanreplay.tensorflow_internals.tf_eager import op_definition

_ARGUMENT, _RESULT = "_Arg", "_Retval"
_FUSED_OPS = frozenset(
    """
    _FusedBatchNormEx _FusedConv2D _FusedConv3D _FusedDepthwiseConv2dNative _FusedMatMul
    _MklFusedBatchMatMulV2 _MklFusedInstanceNorm _MklFusedMish _MklLayerNorm _MklSwish
    _UnaryOpsComposition
    """.split()
)
"""What the graph optimizers put in the place of several ops on a CPU; nothing else makes them."""


class LoadableGraph(NamedTuple):
    """An optimized graph, as `load_graph` takes it."""

    graph: Any
    """A GraphDef."""
    inputs: list[str]
    """Names of its placeholders, in the order in which they are fed."""
    outputs: list[str]
    """Names of the tensors that are returned."""
    effects: list[str]
    """Names of the ops that run for their effect."""


def optimized_graph(
    graphs: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]
) -> OptimizedGraph | None:
    """Return the graph of the one function that was called first; None where that is not all of it.

    Functions that the optimizers have left as calls are not with it.

    Args:
        graphs: GraphDefs that `optimized_graphs` collected.
        inputs: Tensors of the program that the function takes, in order.
        outputs: Tensors of the program that it returns, in order.
    """
    if len(graphs) != 1:
        return None
    (graph,) = graphs
    there = functions_by_name(graph)
    for called in mentioned_functions(graph.node):
        if called not in there and op_definition(called) is None:
            return None
    for node in graph.node:
        node.device = ""
    return OptimizedGraph(graph.SerializeToString(), tuple(inputs), tuple(outputs))


def is_harmless(optimized: OptimizedGraph, *, trust: bool) -> bool:
    """Whether an optimized graph may run, which may come from anybody.

    What a replay leaves out of a program (ops that write files, that call Python) may not be there.
    """
    try:
        graph = parse_graph(optimized.graph)
        check_graph(graph, trust=trust, also=_FUSED_OPS)
    except NanreplayError:
        return False
    return not python_ops(graph) and not any(writes_files(node) for _, node in all_nodes(graph))


def loadable(
    optimized: OptimizedGraph, inputs: Sequence[str], outputs: Sequence[str]
) -> LoadableGraph:
    """Return an optimized graph with placeholders for its arguments.

    Args:
        optimized: What the file holds.
        inputs: Tensors of the program that are to be fed.
        outputs: Tensors of the program that are to be returned.

    Raises:
        ReplayError: The graph takes or returns others.
    """
    if optimized.inputs != tuple(inputs) or optimized.outputs != tuple(outputs):
        raise ReplayError("The optimized graph takes or returns other tensors than its program.")
    graph = graph_pb2.GraphDef()
    parsed = parse_graph(optimized.graph)
    graph.versions.CopyFrom(parsed.versions)
    graph.library.CopyFrom(parsed.library)
    arguments: dict[int, str] = {}
    results: dict[int, str] = {}
    used: set[str] = set()
    for node in parsed.node:
        if node.op == _RESULT:
            if node.input:
                results[node.attr["index"].i] = node.input[0]
            continue
        used.update(map(_source, node.input))
        added = graph.node.add()
        if node.op == _ARGUMENT:
            arguments[node.attr["index"].i] = f"{node.name}:0"
            added.name, added.op = node.name, "Placeholder"
            added.attr["dtype"].type = node.attr["T"].type
            for shape in node.attr["_output_shapes"].list.shape:  # that of a batch is folded in
                added.attr["shape"].shape.CopyFrom(shape)
        else:
            added.CopyFrom(node)
    if set(arguments) != set(range(len(inputs))) or set(results) != set(range(len(outputs))):
        raise ReplayError("The optimized graph lacks an argument or a result of its program.")
    used |= set(map(_source, results.values()))
    # The optimizers take out what nothing needs, so what no op takes is there for its effect.
    ends = [node.name for node in graph.node if node.name not in used and node.op != "Placeholder"]
    avoid_known_functions(graph)
    return LoadableGraph(
        graph,
        [arguments[index] for index in range(len(inputs))],
        [results[index] for index in range(len(outputs))],
        ends,
    )


def _source(name: str) -> str:
    """The op that an input of an op comes from, which it may only wait for."""
    return op_name(name.removeprefix("^"))
