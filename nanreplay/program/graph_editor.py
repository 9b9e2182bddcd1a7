"""Editing a recorded program: what its step does not need goes, ops are added, moved, replaced.

The graph stays a GraphDef. Captures are made smaller with `pruned`; fixes and local versions of
distributed programs are made with `ProgramEditor`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

import tensorflow as tf

from nanreplay.errors import ReplayError
from nanreplay.program.graph_nodes import (
    count_outputs,
    data_inputs,
    functions_by_name,
    mentioned_functions,
    op_name,
    output_types,
)
from nanreplay.program.safety import all_nodes, copied_graph, parse_graph
from nanreplay.records import CaptureSpec, InputSpec, OpInfo, ProgramRecord, Signature, ops_by_key
from nanreplay.tensorflow_internals.tf_eager import op_definition

# Leaving out what the step does not need: ops that lead nowhere, functions that nobody calls, names
# of devices.


def needed_part(graph: Any, names: Sequence[str]) -> Any:
    """Return a copy of a GraphDef with these ops of its main graph and what they depend on.

    Its library stays whole. `WrappedFunction.prune` gives the same, by making every op anew in
    Python; that takes several times as long.
    """
    nodes = _by_name(graph.node)
    reached: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            for source in nodes[name].input:
                pending.append(op_name(source))
    needed = tf.compat.v1.GraphDef()
    needed.versions.CopyFrom(graph.versions)
    needed.library.CopyFrom(graph.library)
    needed.node.extend(node for node in graph.node if node.name in reached)
    return needed


def pruned(record: ProgramRecord) -> ProgramRecord:
    """Return a program with what its step runs and calls alone, and without devices."""
    wanted = list(map(op_name, _wanted(record.signature)))
    graph = needed_part(parse_graph(record.graph), wanted)
    _prune_library(graph)
    forget_placement(graph)
    kept = set()
    for function, node in all_nodes(graph):
        kept.add((function, node.name))
    # What is known of a forward op is asked for through its backward op, even if it is gone.
    forward_ops = set()
    for info in record.ops:
        if (info.function, info.name) in kept:
            forward_ops.add((info.forward_function, info.forward))
    kept |= forward_ops
    ops = tuple(info for info in record.ops if (info.function, info.name) in kept)
    return replace(record, graph=graph.SerializeToString(deterministic=True), ops=ops)


def losses_alone(record: ProgramRecord) -> ProgramRecord:
    """Return the part of a program that its losses need: it gives them, and changes nothing."""
    signature, graph = record.signature, parse_graph(record.graph)
    placeholders = [spec.tensor for spec in signature.inputs]
    placeholders += [spec.tensor for spec in signature.captures]
    needed = needed_part(graph, list(map(op_name, (*placeholders, *signature.losses))))
    _prune_library(needed)
    names = {node.name for node in needed.node}
    own = replace(
        signature,
        outputs=(),
        output_names=(),
        control_outputs=(),
        gradients=(),
        watch=None,
        watch_layout=(),
        fed=tuple(spec for spec in signature.fed if op_name(spec.tensor) in names),
    )
    ops = tuple(info for info in record.ops if info.function or info.name in names)
    return replace(record, graph=needed.SerializeToString(), signature=own, ops=ops)


def _prune_library(graph: Any) -> None:
    """Leave out functions that the main graph calls neither directly nor through others."""
    functions = functions_by_name(graph)
    gradients = {}
    for entry in graph.library.gradient:
        gradients[entry.function_name] = entry.gradient_func
    called: set[str] = set()
    pending = list(mentioned_functions(graph.node))
    while pending:
        name = pending.pop()
        if name not in functions or name in called:
            continue
        called.add(name)
        pending += mentioned_functions(functions[name].node_def)
        if name in gradients:
            pending.append(gradients[name])
    library = type(graph.library)(
        function=[entry for entry in graph.library.function if entry.signature.name in called],
        gradient=[entry for entry in graph.library.gradient if entry.function_name in called],
    )
    graph.library.CopyFrom(library)


def _wanted(signature: Signature) -> Iterator[str]:
    """Names of everything of a program that a replay may ask for."""
    fed: Iterable[InputSpec | CaptureSpec] = chain(
        signature.inputs, signature.captures, signature.fed
    )
    for spec in fed:
        yield spec.tensor
    yield from (*signature.outputs, *signature.control_outputs, *signature.losses)
    for gradient in signature.gradients:
        yield from filter(None, (gradient.tensor, gradient.indices))
    if signature.watch:
        yield signature.watch


def forget_colocations(graph: Any) -> None:
    """Leave out which op belongs beside which.

    `pfor` names ops that are elsewhere, and no graph can be imported with such a name.
    """
    for _, node in all_nodes(graph):
        node.attr.pop("_class", None)


def forget_placement(graph: Any) -> None:
    """Leave out devices, colocations (`_class`) and what only a debugger reads.

    A colocation names another op, which may be gone.
    """
    forget_colocations(graph)
    for _, node in all_nodes(graph):
        node.device = ""
        node.ClearField("experimental_debug_info")
        node.attr.pop("_user_specified_name", None)
    for function in graph.library.function:
        for argument in function.arg_attr.values():
            argument.attr.pop("_user_specified_name", None)
    graph.ClearField("debug_info")


# Editing: new ops between existing ones, other inputs, other op types.

OpKey = tuple[str, str]
"""(function, op name); function is "" for the main graph."""
SCOPE = "nanreplay_fix"
"""Scope of the ops that an editor adds."""


class ProgramEditor:
    """A copy of a program's graph that is being changed.

    Tensors are named as their function names them: `op:0` in the main graph, `op:output:0` or the
    name of an argument in a function of the library.

    Args:
        record: The program; it is left as it is.
    """

    def __init__(self, record: ProgramRecord) -> None:
        """Copy the graph."""
        self.record = record
        self._graph = copied_graph(record.graph)
        self._functions = functions_by_name(self._graph)
        self._nodes: dict[str, dict[str, Any]] = {"": _by_name(self._graph.node)}
        """The nodes of the main graph ("") and of each function, by name."""
        for name, function in self._functions.items():
            self._nodes[name] = _by_name(function.node_def)
        self.infos: Mapping[OpKey, OpInfo] = ops_by_key(record.ops)
        self._count = 0

    @cached_property
    def gradients(self) -> Mapping[OpKey, Sequence[OpKey]]:
        """The ops that compute the gradient of each op."""
        by_forward: dict[OpKey, list[OpKey]] = defaultdict(list)
        for key, info in self.infos.items():
            if info.forward:
                by_forward[info.forward_function, info.forward].append(key)
        return by_forward

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
            inside = f" in function {function!r}" if function else ""
            raise ReplayError(f"The program holds no op {name!r}{inside}.")
        return self._nodes[function][name]

    def holds(self, key: OpKey) -> bool:
        """Whether the program has an op."""
        function, name = key
        return name in self._nodes.get(function, {})

    def locate(self, key: OpKey) -> OpKey:
        """Return where the program has an op that was found in another trace of the step.

        TensorFlow numbers the functions of each trace anew: `__inference_step_12` may be
        `__inference_step_98` here. Function names are compared without their numbers.

        Raises:
            ReplayError: It has no such op.
        """
        function, name = key
        if name in self._nodes.get(function, {}):
            return key
        alike = []
        for other, nodes in self._nodes.items():
            if _stem(other) == _stem(function) and name in nodes:
                alike.append(other)
        # Of two functions of that name, none can be told to be the one that was meant.
        if len(alike) != 1:
            raise ReplayError(f"The program {self.record.id} holds no op {name!r}.")
        return alike[0], name

    def ops(self, types: Container[str]) -> Iterator[OpKey]:
        """Return the ops of some types, in the main graph and in functions."""
        for function, nodes in self._nodes.items():
            for name, node in nodes.items():
                if node.op in types:
                    yield (function, name)

    def ops_of(self, function: str) -> list[str]:
        """Return the names of all ops of a function."""
        return list(self._nodes[function])

    def rename_output(self, key: OpKey, old: str, new: str) -> None:
        """Follow the name of an op's output after its type was changed.

        Only functions of the library name outputs; the main graph numbers them.
        """
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
        return [_full_name(name, key[0]) for name in data_inputs(self.node(key))]

    def set_input(self, key: OpKey, position: int, tensor: str) -> None:
        """Let an op take another tensor."""
        self.node(key).input[position] = tensor

    def outputs(self, key: OpKey) -> list[str]:
        """Return the names of an op's output tensors."""
        node = self.node(key)
        definition = self._definition(node)
        if not key[0]:
            return [f"{node.name}:{k}" for k in range(len(output_types(definition, node)))]
        names = []
        for argument in definition.output_arg:
            count = count_outputs(argument, node)
            for k in range(count):
                names.append(f"{node.name}:{argument.name}:{k}")
        return names

    def consumers(self, function: str, tensor: str) -> list[tuple[OpKey, int]]:
        """Return the ops that take a tensor, and at which position."""
        spelled = (tensor,) if function else (tensor, tensor.removesuffix(":0"))
        consumers = []
        for name, node in self._nodes[function].items():
            for position, source in enumerate(node.input):
                if source in spelled:
                    consumers.append(((function, name), position))
        return consumers

    def reroute(
        self, function: str, old: str, new: str, only: Callable[[OpKey], bool] = lambda key: True
    ) -> int:
        """Let the ops that take `old` take `new`; returns how many inputs changed.

        Ops that this editor added keep `old`: they compute `new` from it.
        """
        changed = 0
        for key, position in self.consumers(function, old):
            if not key[1].startswith(SCOPE) and only(key):
                self.set_input(key, position, new)
                changed += 1
        return changed

    def dtype(self, function: str, tensor: str) -> Any:
        """Return the `tf.DType` of a tensor."""
        name, _, output = tensor.partition(":")
        if function and not output:  # an argument of the function
            arguments = self._functions[function].signature.input_arg
            types = {argument.name: argument.type for argument in arguments}
            return tf.dtypes.as_dtype(types[name])
        node = self.node((function, name))
        number = self.outputs((function, name)).index(tensor)
        return tf.dtypes.as_dtype(output_types(self._definition(node), node)[number])

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
        scope = scope or f"{SCOPE}_{self._count}"
        self._count += 1
        # The ops are traced in a graph of their own, in which placeholders stand for the tensors,
        # and then copied.
        with tf.Graph().as_default() as graph:
            placeholders = []
            for i, tensor in enumerate(tensors):
                dtype = self.dtype(function, tensor)
                placeholders.append(tf.compat.v1.placeholder(dtype, name=f"{scope}/given_{i}"))
            with tf.name_scope(scope):
                results = tf.nest.flatten(compute(*placeholders))
        names = [placeholder.op.name for placeholder in placeholders]
        stand_for = dict(zip(names, tensors, strict=True))
        definition = graph.as_graph_def()
        if definition.library.function:
            raise ReplayError("A fix may not call functions.")
        for node in definition.node:
            if node.name not in stand_for:
                self._append(function, node, stand_for)
        # A function may return one of the tensors that it was given.
        names = []
        for tensor in results:
            name = stand_for.get(tensor.op.name)
            if name is None:
                name = self.outputs((function, tensor.op.name))[tensor.value_index]
            names.append(name)
        return names

    def inline(self, name: str, function: str) -> list[str]:
        """Put the body of a branch in the place of an If of the main graph.

        Args:
            name: The If. It becomes an IdentityN of what the branch returns.
            function: The branch to take, whatever the condition.

        Returns:
            The names of the new ops.
        """
        node, body = self._nodes[""][name], self._functions[function]
        # A tensor of the branch to its name in the main graph: `dense/MatMul:product:0` becomes
        # `cond/dense/MatMul:0`, an argument becomes the input of the If (after the condition).
        arguments = [argument.name for argument in body.signature.input_arg]
        in_main = dict(zip(arguments, data_inputs(node)[1:], strict=True))
        for inner in body.node_def:
            outputs = self.outputs((function, inner.name))
            for k, output in enumerate(outputs):
                in_main[output] = f"{name}/{inner.name}:{k}"
        for inner in body.node_def:
            self._add_inlined(name, inner, in_main)
        types = [argument.type for argument in body.signature.output_arg]
        node.op = "IdentityN"
        del node.input[:]
        returned = []
        for argument in body.signature.output_arg:
            returned.append(body.ret[argument.name])
        node.input.extend(in_main[tensor] for tensor in returned)
        node.attr.clear()
        node.attr["T"].list.type.extend(types)
        return [f"{name}/{inner.name}" for inner in body.node_def]

    def _add_inlined(self, outer: str, inner: Any, in_main: Mapping[str, str]) -> None:
        added = self._graph.node.add()
        added.CopyFrom(inner)
        added.name = f"{outer}/{inner.name}"
        self._nodes[""][added.name] = added
        for position, source in enumerate(inner.input):
            is_control = source.startswith("^")
            added.input[position] = f"^{outer}/{source[1:]}" if is_control else in_main[source]

    def remove_function(self, name: str) -> None:
        """Leave out a function of the library that nothing calls any more."""
        self._graph.library.function.remove(self._functions.pop(name))
        del self._nodes[name]

    def _append(self, function: str, node: Any, stand_for: Mapping[str, str]) -> None:
        """Copy a node of a traced graph and give its inputs the names that `function` has."""
        nodes = self._functions[function].node_def if function else self._graph.node
        added = nodes.add()
        added.CopyFrom(node)
        added.attr.pop("_class", None)  # names the placeholder that stood for a tensor
        self._nodes[function][node.name] = added
        for position, source in enumerate(node.input):
            name, _, output = source.lstrip("^").partition(":")
            if name in stand_for:
                added.input[position] = stand_for[name]
            elif function and not source.startswith("^"):
                added.input[position] = self.outputs((function, name))[int(output or 0)]

    def _definition(self, node: Any) -> Any:
        """The OpDef of a node; the signature of the function that it calls, where it calls one."""
        function = self._functions.get(node.op)
        return op_definition(node.op) if function is None else function.signature


def _by_name(nodes: Any) -> dict[str, Any]:
    return {node.name: node for node in nodes}


def _stem(function: str) -> str:
    """The name of a function without the number of its trace."""
    return function.rstrip("0123456789_")


def _full_name(tensor: str, function: str) -> str:
    """A tensor's full name: the main graph leaves `:0` out."""
    return tensor if function or ":" in tensor else f"{tensor}:0"
