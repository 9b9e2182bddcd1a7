"""Whether a program may run unasked: what its ops reach, how its functions call each other, how large its tensors become.

Checked before anything is replayed. A capture comes from elsewhere, and TensorFlow graphs are programs. `op_classes` says
what each op reaches; this module keeps those out that reach beyond tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from nanreplay.errors import UnsafeProgramError, UnsupportedOpError
from nanreplay.program.call_graph import check_calls
from nanreplay.program.op_classes import PYTHON_OPS, WRITTEN_FILES, reach_of
from nanreplay.program.private_tf import op_definition
from nanreplay.program.sizes import check_constant_sizes

__all__ = ["PYTHON_OPS", "all_nodes", "check_graph", "parse_graph", "python_ops"]


def check_graph(graph: Any, *, trust: bool = False) -> None:
    """Refuse a program with ops that reach beyond tensors, in its main graph or in any function.

    Args:
        graph: A GraphDef or its bytes.
        trust: Let unsafe ops pass; ops that this TensorFlow lacks never do, nor functions that call themselves.

    Raises:
        UnsafeProgramError: Ops that touch files, the network, processes or foreign code; functions that never end.
        UnsupportedOpError: An op that this TensorFlow does not know.
        MemoryLimitError: It holds a tensor that is larger than the memory it may take.
    """
    parsed = parse_graph(graph)
    library = {function.signature.name for function in parsed.library.function}
    for name in library:
        if op_definition(name) is not None:
            raise UnsafeProgramError(f"The program is broken: its function {name!r} has the name of an op.")
    unsafe: dict[str, None] = {}
    for function, node in all_nodes(parsed):
        if node.op in library or node.op in WRITTEN_FILES:
            continue
        if op_definition(node.op) is None:
            raise UnsupportedOpError(node.op, node.name, "this TensorFlow has no such op")
        reach = _reach(node)
        if reach is not None:
            unsafe[f"{node.op} {node.name!r}" + (f" in function {function!r}" if function else "") + f" ({reach})"] = None
    if unsafe and not trust:
        raise UnsafeProgramError(_refusal(list(unsafe)))
    check_calls(parsed)
    check_constant_sizes(all_nodes(parsed))


def _reach(node: Any) -> str | None:
    """What a node reaches beyond tensors. Ops of Python are not meant here; see `python_ops`."""
    if node.op == "PrintV2":
        return "files" if node.attr["output_stream"].s.startswith(b"file://") else None
    return reach_of(node.op)


def python_ops(graph: Any) -> list[str]:
    """Return the names of ops that call Python: `op`, or `function::op` in a library function.

    A program that holds some can be replayed only when their recorded outputs are given (as feeds, or by the
    interpreter's `on_error`); the interpreter never runs them.
    """
    nodes = all_nodes(parse_graph(graph))
    return [f"{function}::{node.name}" if function else node.name for function, node in nodes if node.op in PYTHON_OPS]


def parse_graph(graph: Any) -> Any:
    """Return a GraphDef, parsing it from its bytes when need be.

    Raises:
        UnsafeProgramError: The bytes are no GraphDef.
    """
    if not isinstance(graph, bytes):
        return graph
    try:
        return tf.compat.v1.GraphDef.FromString(graph)
    except Exception as error:
        raise UnsafeProgramError("The program is not a readable GraphDef; the capture is damaged.") from error


def all_nodes(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield (function, node) over a GraphDef and its library; the function is "" for the main graph."""
    for node in graph.node:
        yield "", node
    for function in graph.library.function:
        for node in function.node_def:
            yield function.signature.name, node


def _refusal(unsafe: list[str]) -> str:
    shown = ", ".join(unsafe[:5]) + (f" and {len(unsafe) - 5} more" if len(unsafe) > 5 else "")
    return f"The program holds ops that reach beyond tensors: {shown}. Pass trust only for a capture of your own."
