"""How the functions that a program calls name their ops, and which of them it calls.

A trace names an op as it is made. The FunctionDef that runs gives another name to an op whose name
is taken by an output or an argument of the function: an op `truediv` that is returned becomes
`truediv_0`. A capture holds FunctionDefs, so its table of ops has their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanreplay.program.graph_nodes import mentioned_functions
from nanreplay.tensorflow_internals import tf_functions

_FORWARD_FUNCTION = "forward_function_name"
"""Attribute of the FunctionDef of a gradient: which function it is the gradient of."""


class FunctionNames:
    """What the FunctionDefs of some FuncGraphs tell.

    A FuncGraph serves several functions where TensorFlow makes another one of it that returns more,
    for the gradient.

    Args:
        graphs: FuncGraphs by the name of the function, "" for the main graph.
        definitions: FunctionDefs that TensorFlow may have forgotten since.
    """

    def __init__(
        self, graphs: Mapping[str, Any], definitions: Mapping[str, Any] | None = None
    ) -> None:
        kept = definitions or {}
        self._definitions = {
            name: kept.get(name) or tf_functions.known_function(name) for name in graphs if name
        }
        self._node_names = {
            name: node_names(graphs[name], definition)
            for name, definition in self._definitions.items()
            if definition is not None
        }
        self._functions: dict[int, list[str]] = {}
        for name, graph in graphs.items():
            self._functions.setdefault(id(graph), []).append(name)
        self._called = self._reachable(graphs.get(""))

    def node_name(self, function: str, op: str) -> str:
        """The name in a function of what its trace calls `op`."""
        return self._node_names.get(function, {}).get(op, op)

    def of_graph(self, graph: int) -> list[str]:
        """The functions that are made of the FuncGraph with an id."""
        return self._functions.get(graph, [])

    def forward_function(self, function: str, graph: Any) -> str | None:
        """The function that holds ops whose gradients `function` computes.

        Args:
            function: A function, "" for the main graph.
            graph: The FuncGraph of these ops; None where it is not known.
        """
        own = self._definitions.get(function)
        named = None
        # TensorFlow notes in the backward function of a call which forward function it belongs to.
        if own is not None and _FORWARD_FUNCTION in own.attr:
            named = own.attr[_FORWARD_FUNCTION].s.decode()
        functions = self.of_graph(id(graph))
        if graph is None or named in functions:
            return named if named in self._definitions else None
        if function in functions:
            return function
        called = []
        for name in functions:
            if not name or name in self._called:
                called.append(name)
        # Of several functions of one graph the last was made for a gradient, and returns what that
        # needs.
        return next(reversed(called or functions), None)

    def _reachable(self, main: Any) -> set[str]:
        """The functions that the main graph calls, directly or not."""
        operations = main.get_operations() if main is not None else ()
        pending = list(mentioned_functions(op.node_def for op in operations))
        reached: set[str] = set()
        while pending:
            name = pending.pop()
            definition = self._definitions.get(name)
            if name not in reached and definition is not None:
                reached.add(name)
                pending += mentioned_functions(definition.node_def)
        return reached


def is_made_of(definition: Any, graph: Any) -> bool:
    """Whether a FunctionDef was made of a FuncGraph, from its first op to its last."""
    n_nodes = len(definition.node_def)
    return n_nodes > 0 and len(node_names(graph, definition)) == n_nodes


def node_names(graph: Any, definition: Any) -> dict[str, str]:
    """The names in a FunctionDef of the ops of the FuncGraph that it was made of.

    TensorFlow writes the ops down in the order in which they were made, without the arguments. A
    gradient may have added ops to the trace since; they are no part of this function.
    """
    arguments = {tensor.op.name for tensor in graph.inputs}
    ops = []
    for op in graph.get_operations():
        if op.name not in arguments:
            ops.append(op)
    names: dict[str, str] = {}
    for op, node in zip(ops, definition.node_def, strict=False):
        if op.type != node.op or not _is_name_of(node.name, op.name):
            break
        names[op.name] = node.name
    return names


def _is_name_of(node: str, op: str) -> bool:
    """Whether a node's name is that of an op, or that with a number."""
    rest = node.removeprefix(op)
    return node.startswith(op) and (not rest or (rest[0] == "_" and rest[1:].isdecimal()))
