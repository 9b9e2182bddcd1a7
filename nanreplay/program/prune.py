"""Leaving out of a recorded program what its step does not need: ops that lead nowhere, functions that nobody calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from nanreplay.program.safety import parse_graph
from nanreplay.records import ProgramRecord, Signature


def needed_part(graph: Any, names: Sequence[str]) -> Any:
    """Return a copy of a GraphDef with these ops of its main graph and what they depend on; its library stays whole.

    `WrappedFunction.prune` gives the same, by making every op anew in Python; that takes several times as long.
    """
    nodes, seen, pending = {node.name: node for node in graph.node}, set[str](), list(names)
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += [source.lstrip("^").partition(":")[0] for source in nodes[name].input]
    needed = tf.compat.v1.GraphDef()
    needed.versions.CopyFrom(graph.versions)
    needed.library.CopyFrom(graph.library)
    needed.node.extend(node for node in graph.node if node.name in seen)
    return needed


def pruned(record: ProgramRecord) -> ProgramRecord:
    """Return a program without ops that its step does not run, without functions that it does not call, and without devices."""
    graph = needed_part(parse_graph(record.graph), [name.partition(":")[0] for name in _wanted(record.signature)])
    functions = {function.signature.name: function for function in graph.library.function}
    gradients = {entry.function_name: entry.gradient_func for entry in graph.library.gradient}
    called, pending = set[str](), [*_mentioned(graph.node)]
    while pending:
        name = pending.pop()
        if name in functions and name not in called:
            called.add(name)
            pending += [*_mentioned(functions[name].node_def), *([gradients[name]] if name in gradients else [])]
    kept = [function for function in graph.library.function if function.signature.name in called]
    kept_gradients = [entry for entry in graph.library.gradient if entry.function_name in called]
    library = type(graph.library)(function=kept, gradient=kept_gradients)
    graph.library.CopyFrom(library)
    forget_places(graph)
    held = {("", node.name) for node in graph.node}
    held |= {(function.signature.name, node.name) for function in graph.library.function for node in function.node_def}
    held |= {(info.forward_function, info.forward) for info in record.ops if (info.function, info.name) in held}
    ops = tuple(info for info in record.ops if (info.function, info.name) in held)
    return replace(record, graph=graph.SerializeToString(deterministic=True), ops=ops)


def _wanted(signature: Signature) -> Iterator[str]:
    """Names of everything of a program that a replay may ask for."""
    yield from (spec.tensor for spec in signature.inputs)
    yield from (spec.tensor for spec in signature.captures)
    yield from (spec.tensor for spec in signature.fed)
    yield from (*signature.outputs, *signature.control_outputs, *signature.losses)
    for spec in signature.gradients:
        yield from filter(None, (spec.tensor, spec.indices))
    if signature.watch:
        yield signature.watch


def _mentioned(nodes: Iterable[Any]) -> Iterator[str]:
    """Names of functions that nodes call or hold in an attribute."""
    for node in nodes:
        yield node.op
        for value in node.attr.values():
            yield from (function.name for function in ([value.func] if value.HasField("func") else value.list.func))


def forget_colocations(graph: Any) -> None:
    """Leave out which op belongs beside which: `pfor` names ops that are elsewhere, and no graph can be imported with such."""
    for node in [*graph.node, *(node for function in graph.library.function for node in function.node_def)]:
        node.attr.pop("_class", None)


def forget_places(graph: Any) -> None:
    """Leave out what only a debugger or a placer reads; `_class` pins ops to places of others that may be gone."""
    for node in [*graph.node, *(node for function in graph.library.function for node in function.node_def)]:
        node.device = ""
        node.ClearField("experimental_debug_info")
        for name in ("_user_specified_name", "_class"):
            node.attr.pop(name, None)
    for function in graph.library.function:
        for argument in function.arg_attr.values():
            argument.attr.pop("_user_specified_name", None)
    graph.ClearField("debug_info")
