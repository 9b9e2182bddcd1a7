"""Which forward op a backward op computes the gradient of, and what it takes over from it.

It follows from what the tape asked for while a step was traced, and from names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nanreplay.program.function_names import FunctionNames
from nanreplay.program.graph_editor import OpKey
from nanreplay.program.observation import Observation
from nanreplay.records import OpInfo, ops_by_key
from nanreplay.tensorflow_internals import tf_functions

# Names of ops in a backward pass, after the forward op: `gradient_tape/mlp/dense/MatMul/MatMul_1`
# by a tape, `gradients/mlp/dense/MatMul_grad/MatMul` by symbolic differentiation.
_TAPE_GRADIENT = re.compile(r"gradient_tape/(.+)/[^/]+$")
_SYMBOLIC_GRADIENT = re.compile(r"(?:^|/)gradients(?:_\d+)?/(.+)_grad/")


def forward_ops(
    graphs: Mapping[str, Any], seen: Observation, names: FunctionNames
) -> tuple[dict[OpKey, OpKey], set[OpKey]]:
    """(function, backward op) -> (function, forward op).

    They follow from the tape's calls, and from the names of symbolic gradients. Ops of gradient
    functions that the user wrote are told as well, by their names in the FunctionDef.
    """
    forward_of: dict[OpKey, OpKey] = {}
    custom: set[OpKey] = set()
    operations = {}
    for name, graph in graphs.items():
        operations[name] = graph.get_operations()
    by_type: dict[str, dict[str, list[str]]] = {}
    for span in seen.spans:
        for function in names.of_graph(span.graph):
            # A tensor of an eager step that calls the function has no graph.
            forward_graph = getattr(span.forward, "graph", None)
            if forward_graph is not None:
                holder = names.forward_function(function, forward_graph) or ""
                target: OpKey | None = (holder, span.forward.op.name)
            else:
                if function not in by_type:
                    by_type[function] = _names_by_type(operations[function])
                alike = by_type[function].get(span.op_type, ())
                target = _by_scope(alike, span.scope, function)
            if target is None:
                continue
            for op in operations[function][span.start : span.end]:
                if span.is_custom and (function, op.name) not in forward_of:
                    custom.add((function, names.node_name(function, op.name)))
                forward_of.setdefault((function, op.name), target)
    for function, graph in graphs.items():
        owner = names.forward_function(function, tf_functions.forward_graph(graph))
        others = [owner] if owner is not None else [name for name in graphs if name != function]
        _add_symbolic(function, others, operations, forward_of)
    return forward_of, custom


def _names_by_type(ops: Sequence[Any]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for op in ops:
        names.setdefault(op.type, []).append(op.name)
    return names


def _by_scope(alike: Sequence[str], scope: str, function: str) -> OpKey | None:
    """The first of some ops that is in a name scope; else the first whose name begins with it."""
    in_scope = []
    for name in alike:
        if name.rpartition("/")[0] == scope.rstrip("/"):
            in_scope.append(name)
    matching_ops = in_scope or [name for name in alike if name.startswith(scope)]
    return (function, matching_ops[0]) if matching_ops else None


def _add_symbolic(
    function: str,
    others: Sequence[str],
    operations: Mapping[str, Sequence[Any]],
    forward_of: dict[OpKey, OpKey],
) -> None:
    """Add ops that are named after the op of another function whose gradient they compute."""
    known: dict[str, set[str]] = {}
    for name in others:
        known[name] = {op.name for op in operations[name]}
    for op in operations[function]:
        match = _SYMBOLIC_GRADIENT.search(op.name) or _TAPE_GRADIENT.match(op.name)
        if match is None or (function, op.name) in forward_of:
            continue
        holders = []
        for name in others:
            if match[1] in known[name]:
                holders.append(name)
        if holders:
            forward_of[function, op.name] = (holders[0], match[1])


def with_forward_layers(ops: Sequence[OpInfo], custom: Collection[OpKey] = ()) -> list[OpInfo]:
    """Give backward ops the layer, the place and the stack of the forward op that they are of.

    Args:
        ops: Ops as they were made.
        custom: Ops of gradient functions that the user wrote. They keep their own stacks, and are
            told as ops by themselves: no forward op has them for its gradient.
    """
    by_key = ops_by_key(ops)
    placed = []
    for op in ops:
        new = _with_forward_layer(op, by_key)
        placed.append(_of_custom(op, new) if (op.function, op.name) in custom else new)
    return placed


def _of_custom(op: OpInfo, placed: OpInfo) -> OpInfo:
    # A gradient function may call layers, as one does that recomputes what was not kept.
    path = op.layer_path or placed.layer_path
    where = "layer" if path else placed.where
    return replace(op, layer_path=path, where=where, forward="", forward_function="")


def _with_forward_layer(op: OpInfo, by_key: Mapping[OpKey, OpInfo]) -> OpInfo:
    forward, seen = op, set()
    while forward.forward and (forward.function, forward.name) not in seen:
        seen.add((forward.function, forward.name))
        following = by_key.get((forward.forward_function, forward.forward))
        if following is None:
            break
        forward = following
    if forward is op or op.phase == "update":
        return op
    where = forward.where if forward.where in ("layer", "loss", "input") else op.where
    return replace(op, layer_path=forward.layer_path, where=where, stack=forward.stack)
