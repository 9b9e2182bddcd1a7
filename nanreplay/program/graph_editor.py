"""Editing a recorded program: new ops between existing ones, other inputs, other op types. The graph stays a GraphDef."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from nanreplay.errors import ReplayError
from nanreplay.program.graph_nodes import count_outputs, output_types
from nanreplay.program.safety import parse_graph
from nanreplay.records import OpInfo, ProgramRecord, Signature
from nanreplay.tensorflow_internals.tf_eager import op_definition

# Leaving out of a recorded program what its step does not need: ops that lead nowhere, functions
# that nobody calls.


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
    graph = needed_part(
        parse_graph(record.graph), [name.partition(":")[0] for name in _wanted(record.signature)]
    )
    functions = {function.signature.name: function for function in graph.library.function}
    gradients = {entry.function_name: entry.gradient_func for entry in graph.library.gradient}
    called, pending = set[str](), [*_mentioned(graph.node)]
    while pending:
        name = pending.pop()
        if name in functions and name not in called:
            called.add(name)
            pending += [
                *_mentioned(functions[name].node_def),
                *([gradients[name]] if name in gradients else []),
            ]
    kept = [function for function in graph.library.function if function.signature.name in called]
    kept_gradients = [entry for entry in graph.library.gradient if entry.function_name in called]
    library = type(graph.library)(function=kept, gradient=kept_gradients)
    graph.library.CopyFrom(library)
    forget_placement(graph)
    held = {("", node.name) for node in graph.node}
    held |= {
        (function.signature.name, node.name)
        for function in graph.library.function
        for node in function.node_def
    }
    held |= {
        (info.forward_function, info.forward)
        for info in record.ops
        if (info.function, info.name) in held
    }
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
            yield from (
                function.name
                for function in ([value.func] if value.HasField("func") else value.list.func)
            )


def forget_colocations(graph: Any) -> None:
    """Leave out which op belongs beside which: `pfor` names ops that are elsewhere, and no graph can be imported with such."""
    for node in [
        *graph.node,
        *(node for function in graph.library.function for node in function.node_def),
    ]:
        node.attr.pop("_class", None)


def forget_placement(graph: Any) -> None:
    """Leave out what only a debugger or a placer reads; `_class` pins ops to places of others that may be gone."""
    for node in [
        *graph.node,
        *(node for function in graph.library.function for node in function.node_def),
    ]:
        node.device = ""
        node.ClearField("experimental_debug_info")
        for name in ("_user_specified_name", "_class"):
            node.attr.pop(name, None)
    for function in graph.library.function:
        for argument in function.arg_attr.values():
            argument.attr.pop("_user_specified_name", None)
    graph.ClearField("debug_info")


# --- program.edit

OpKey = tuple[str, str]
"""(function, op name); function is "" for the main graph."""
_SCOPE = "nanreplay_fix"


class ProgramEditor:
    """A copy of a program's graph that is being changed.

    Tensors are named as their function names them: `op:0` in the main graph, `op:output:0` or an argument's name in a
    function of the library.

    Args:
        record: The program; it is left as it is.
    """

    def __init__(self, record: ProgramRecord) -> None:
        """Copy the graph."""
        self.record = record
        self._graph = tf.compat.v1.GraphDef()
        self._graph.CopyFrom(parse_graph(record.graph))
        self._functions = {
            function.signature.name: function for function in self._graph.library.function
        }
        self._nodes = {"": {node.name: node for node in self._graph.node}}
        self._nodes |= {
            name: {node.name: node for node in function.node_def}
            for name, function in self._functions.items()
        }
        self.infos: Mapping[OpKey, OpInfo] = {
            (info.function, info.name): info for info in record.ops
        }
        self._count = 0

    def edited(self) -> ProgramRecord:
        """Return the changed program."""
        return replace(self.record, graph=self._graph.SerializeToString())

    def node(self, key: OpKey) -> Any:
        """Return an op's NodeDef, which may be changed in place.

        Raises:
            ReplayError: There is no such op.
        """
        function, name = key
        if name not in self._nodes.get(function, {}):
            raise ReplayError(
                f"The program holds no op {name!r}"
                + (f" in function {function!r}." if function else ".")
            )
        return self._nodes[function][name]

    def locate(self, key: OpKey) -> OpKey:
        """Return where the program has an op that was found in another trace of the step, whose functions have other numbers.

        Raises:
            ReplayError: It has no such op.
        """
        function, name = key
        if name in self._nodes.get(function, {}):
            return key
        alike = [
            other
            for other, nodes in self._nodes.items()
            if _stem(other) == _stem(function) and name in nodes
        ]
        if len(alike) != 1:
            raise ReplayError(f"The program {self.record.id} holds no op {name!r}.")
        return alike[0], name

    def ops(self, types: Container[str]) -> Iterator[OpKey]:
        """Return the ops of some types, in the main graph and in functions."""
        for function, nodes in self._nodes.items():
            yield from ((function, name) for name, node in nodes.items() if node.op in types)

    def ops_of(self, function: str) -> list[str]:
        """Return the names of all ops of a function."""
        return list(self._nodes[function])

    def rename_output(self, key: OpKey, old: str, new: str) -> None:
        """Follow the name of an op's output after its type was changed; only functions of the library name outputs."""
        function, name = key
        if not function:
            return
        names = {f"{name}:{old}:0": f"{name}:{new}:0"}
        for node in self._nodes[function].values():
            for position, source in enumerate(node.input):
                node.input[position] = names.get(source, source)
        returned = self._functions[function].ret
        for argument, source in list(returned.items()):
            returned[argument] = names.get(source, source)

    def data_inputs(self, key: OpKey) -> list[str]:
        """Return the names of an op's input tensors."""
        return [_normal(name, key[0]) for name in self.node(key).input if not name.startswith("^")]

    def set_input(self, key: OpKey, position: int, tensor: str) -> None:
        """Let an op take another tensor."""
        self.node(key).input[position] = tensor

    def outputs(self, key: OpKey) -> list[str]:
        """Return the names of an op's output tensors."""
        node = self.node(key)
        if not key[0]:
            return [
                f"{node.name}:{k}" for k in range(len(output_types(self._definition(node), node)))
            ]
        definition = self._definition(node)
        names = []
        for argument in definition.output_arg:
            names += [
                f"{node.name}:{argument.name}:{k}" for k in range(count_outputs(argument, node))
            ]
        return names

    def consumers(self, function: str, tensor: str) -> list[tuple[OpKey, int]]:
        """Return the ops that take a tensor, and at which position."""
        found = []
        for name, node in self._nodes[function].items():
            for position, source in enumerate(node.input):
                if not source.startswith("^") and _normal(source, function) == tensor:
                    found.append(((function, name), position))
        return found

    def reroute(
        self, function: str, old: str, new: str, only: Callable[[OpKey], bool] = lambda key: True
    ) -> int:
        """Let the ops that take `old` take `new`, but for ops that this editor added; returns how many places changed."""
        changed = 0
        for key, position in self.consumers(function, old):
            if not key[1].startswith(_SCOPE) and only(key):
                self.set_input(key, position, new)
                changed += 1
        return changed

    def dtype(self, function: str, tensor: str) -> Any:
        """Return the `tf.DType` of a tensor."""
        name, _, rest = tensor.partition(":")
        if function and not rest:
            arguments = {
                argument.name: argument
                for argument in self._functions[function].signature.input_arg
            }
            return tf.dtypes.as_dtype(arguments[name].type)
        node = self.node((function, name))
        return tf.dtypes.as_dtype(
            output_types(self._definition(node), node)[self.outputs((function, name)).index(tensor)]
        )

    def add(
        self,
        function: str,
        compute: Callable[..., Any],
        tensors: Sequence[str],
        scope: str | None = None,
    ) -> list[str]:
        """Add the ops of a Python function on existing tensors; returns the names of its results.

        Args:
            function: The function of the library to add to, "" for the main graph.
            compute: Takes tensors of unknown shape and returns a tensor or several.
            tensors: What it is given.
            scope: Name scope of the new ops; one of this editor's own unless given.
        """
        scope = scope or f"{_SCOPE}_{self._count}"
        self._count += 1
        fed = {}
        with tf.Graph().as_default() as graph:
            places = [
                tf.compat.v1.placeholder(self.dtype(function, tensor), name=f"{scope}/given_{i}")
                for i, tensor in enumerate(tensors)
            ]
            with tf.name_scope(scope):
                made = tf.nest.flatten(compute(*places))
        for place, tensor in zip(places, tensors, strict=True):
            fed[place.op.name] = tensor
        definition = graph.as_graph_def()
        if definition.library.function:
            raise ReplayError("A fix may not call functions.")
        for node in definition.node:
            if node.name not in fed:
                self._append(function, node, fed)
        return [
            fed.get(tensor.op.name) or self.outputs((function, tensor.op.name))[tensor.value_index]
            for tensor in made
        ]

    def inline(self, name: str, function: str) -> list[str]:
        """Put the body of a branch in the place of an If of the main graph; returns the names of the new ops.

        Args:
            name: The If. It becomes an IdentityN of what the branch returns.
            function: The branch to take, whatever the condition.
        """
        node, body = self._nodes[""][name], self._functions[function]
        given = [source for source in node.input if not source.startswith("^")][1:]
        places = {
            argument.name: source
            for argument, source in zip(body.signature.input_arg, given, strict=True)
        }
        for inner in body.node_def:
            made = self.outputs((function, inner.name))
            places |= {output: f"{name}/{inner.name}:{k}" for k, output in enumerate(made)}
        for inner in body.node_def:
            added = self._graph.node.add()
            added.CopyFrom(inner)
            added.name = f"{name}/{inner.name}"
            self._nodes[""][added.name] = added
            for position, source in enumerate(inner.input):
                added.input[position] = (
                    f"^{name}/{source[1:]}" if source.startswith("^") else places[source]
                )
        types = [argument.type for argument in body.signature.output_arg]
        node.op = "IdentityN"
        del node.input[:]
        node.input.extend(places[body.ret[argument.name]] for argument in body.signature.output_arg)
        node.attr.clear()
        node.attr["T"].list.type.extend(types)
        return [f"{name}/{inner.name}" for inner in body.node_def]

    def remove_function(self, name: str) -> None:
        """Leave out a function of the library that nothing calls any more."""
        self._graph.library.function.remove(self._functions.pop(name))
        del self._nodes[name]

    def _append(self, function: str, node: Any, fed: Mapping[str, str]) -> None:
        holder = self._functions[function].node_def if function else self._graph.node
        added = holder.add()
        added.CopyFrom(node)
        added.attr.pop("_class", None)  # names the placeholder that stood for a tensor
        self._nodes[function][node.name] = added
        for position, source in enumerate(node.input):
            control = source.startswith("^")
            name, _, output = source.lstrip("^").partition(":")
            if name in fed:
                added.input[position] = fed[name]
            elif not control and function:
                added.input[position] = self.outputs((function, name))[int(output or 0)]

    def _definition(self, node: Any) -> Any:
        return (
            self._functions[node.op].signature
            if node.op in self._functions
            else op_definition(node.op)
        )


def _stem(function: str) -> str:
    return function.rstrip("0123456789_")


def _normal(name: str, function: str) -> str:
    """A tensor's full name: the main graph leaves `:0` out."""
    return name if function or ":" in name else f"{name}:0"
