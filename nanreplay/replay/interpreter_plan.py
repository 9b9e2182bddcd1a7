"""Plans of the interpreter: a function or graph prepared once, to be run many times.

A plan holds the ops that are needed, sorted, with attributes decoded as eager kernels take them.
Each tensor has a slot, a position in a list of values, and each step says which slots it reads,
which it fills, and which nobody reads after it.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import tensorflow as tf

from nanreplay.errors import ReplayError, UnsupportedOpError
from nanreplay.program.graph_nodes import constant_array, count_outputs, output_types
from nanreplay.tensorflow_internals.tf_eager import op_definition

# Decoding node attributes (AttrValue protos) to what eager kernels take.


def decode_attributes(node: Any, definition: Any, rename: Mapping[str, str]) -> tuple[Any, ...]:
    """Return names and values of a node's attributes in turn, as eager execution takes them.

    Args:
        node: The NodeDef.
        definition: Its OpDef. Attributes that it does not declare (`_output_shapes`, ...) are left
            out.
        rename: Name under which each library function was registered.
    """
    flat: list[Any] = []
    for declared in definition.attr:
        if declared.name in node.attr and declared.type != "tensor":
            flat += [declared.name, _decode(node.attr[declared.name], declared.type, rename)]
    return tuple(flat)


def decode_constant(node: Any) -> Any:
    """Return the tensor that a `Const` node holds."""
    proto = node.attr["value"].tensor
    kind = tf.dtypes.as_dtype(proto.dtype)
    if (kind.is_floating or kind.is_integer or kind.is_bool) and not kind.is_quantized:
        # a program has thousands of them, and a kernel that parses takes several times as long
        return tf.convert_to_tensor(constant_array(proto))
    return tf.io.parse_tensor(proto.SerializeToString(), kind)


def called_functions(node: Any) -> list[str]:
    """Return the names of library functions that a node's attributes mention."""
    names: list[str] = []
    for value in node.attr.values():
        if value.HasField("func"):
            names.append(value.func.name)
        elif value.HasField("list"):
            for function in value.list.func:
                names.append(function.name)
    return names


def _decode(value: Any, kind: str, rename: Mapping[str, str]) -> Any:
    """One AttrValue, whose type is named as an OpDef does: `int`, `list(shape)`, `func`, ..."""
    is_list = kind.startswith("list(")
    kind = kind.removeprefix("list(").removesuffix(")")
    field = _FIELDS.get(kind, kind)
    if is_list:
        return [_decode_scalar(scalar, kind, rename) for scalar in getattr(value.list, field)]
    return _decode_scalar(getattr(value, field), kind, rename)


def _decode_scalar(scalar: Any, kind: str, rename: Mapping[str, str]) -> Any:
    if kind == "func":
        return rename.get(scalar.name, scalar.name)
    if kind == "shape":
        return None if scalar.unknown_rank else [dim.size for dim in scalar.dim]
    return int(scalar) if kind == "type" else scalar


_FIELDS = {"string": "s", "int": "i", "float": "f", "bool": "b"}
"""Field of an AttrValue by type; the fields of other types are named like the type."""
# Plans.

LOOPS = frozenset({"While", "StatelessWhile"})
BRANCHES = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})
LAUNCHES = frozenset({"XlaLaunch", "XlaLaunchV2"})
"""Calls that XLA compiles whatever their function says."""
CALLS = {
    "PartitionedCall": "f",
    "StatefulPartitionedCall": "f",
    **dict.fromkeys(LAUNCHES, "function"),
}
"""Ops that call a function with all their inputs, and the attribute that names it."""
_TF1_CONTROL_FLOW = frozenset(
    "Switch Merge Enter Exit NextIteration LoopCond "
    "RefSwitch RefMerge RefEnter RefExit RefNextIteration".split()
)
_TF1_CONTROL_FLOW_REASON = "control flow of TensorFlow 1 cannot be interpreted"
# The DataType enum as integers, since a plan compares them for every op.
VARIANT, RESOURCE = 21, 20
TensorRef: TypeAlias = tuple[int, int]
"""A tensor within one body: (index of its node, number of its output), or (-1, argument)."""


@dataclass(slots=True)
class Step:
    """One op of a plan."""

    name: str
    type: str
    node: Any
    """The NodeDef."""
    kind: str
    """`leaf`, `loop`, `branch` or `call`."""
    inputs: tuple[int, ...]
    """Slots of the data inputs."""
    first: int
    """Slot of output 0; the others follow."""
    n_outputs: int
    attrs: tuple[Any, ...] = ()
    """Names and values in turn, as eager kernels take them."""
    free: tuple[int, ...] = ()
    """Slots that nobody reads after this step."""
    callees: tuple[str, ...] = ()
    """Functions of a call-like op: (callee,), (condition, body), or the branches in order."""
    needs_library: bool = False
    """Whether the kernel calls library functions by itself and they are yet to be registered."""
    output_kinds: tuple[int, ...] = ()
    """DataType enum of each output."""
    stores: bool = False
    """Whether an input or output is a variant or a resource, whose provenance is followed."""
    constant: list[Any] = field(default_factory=list)
    """The decoded tensor of a Const, once it ran; the plans of a graph share it."""
    lowered: list[Any] = field(default_factory=list)
    """What runs in its place on this machine, or None, once it ran; the plans share it."""
    leads_to_xla: bool = False
    """Whether a call was compiled by XLA (`jit_compile=True` inside the step)."""


@dataclass(slots=True)
class ExecutionPlan:
    """Steps in the order in which they run."""

    function: str
    """Library function; "" for the main graph."""
    steps: list[Step]
    n_slots: int
    results: tuple[int, ...]
    """Slots of the outputs, in the order asked for."""
    arguments: int = 0
    """Slots 0 .. arguments - 1 are given by the caller."""


@dataclass(slots=True)
class Body:
    """Nodes of a graph or function, with what is needed to find the node that an input names."""

    function: str
    nodes: Sequence[Any]
    definitions: list[Any] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)
    arg_index: dict[str, int] = field(default_factory=dict)
    offsets: list[dict[str, int]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    steps: dict[int, Step] = field(default_factory=dict)
    """What plans have in common of a node, by index: all but slots."""

    def resolve(self, reference: str) -> TensorRef:
        """Return the tensor that a data input names.

        A function names outputs as `node:output_name:number`, a main graph as `node:number` or,
        for output 0, `node`; an argument of a function is its name alone.
        """
        name, *rest = reference.split(":")
        if name in self.arg_index:
            return -1, self.arg_index[name]
        if name not in self.index:
            raise ReplayError(f"The program is broken: no op {name!r} for the input {reference!r}.")
        node = self.index[name]
        if len(rest) == 2:
            return node, self.offsets[node].get(rest[0], 0) + int(rest[1])
        if rest and not rest[0].isdigit():
            return node, self.offsets[node].get(rest[0], 0)
        return node, int(rest[0]) if rest else 0


class Library:
    """A GraphDef and its functions, with plans made on demand and kept."""

    def __init__(self, graph: Any) -> None:
        """Take a parsed GraphDef."""
        self.graph = graph
        self.functions: dict[str, Any] = {f.signature.name: f for f in graph.library.function}
        self.registered: dict[str, str] = {}
        self._plans: dict[Any, ExecutionPlan] = {}
        self._main: Body | None = None

    def definition(self, node: Any) -> Any:
        """Return the OpDef of a node; a library function may be used as an op type."""
        if node.op in self.functions:
            return self.functions[node.op].signature
        definition = op_definition(node.op)
        if definition is None:
            raise UnsupportedOpError(node.op, node.name, "this TensorFlow has no such op")
        return definition

    def function_plan(self, name: str) -> ExecutionPlan:
        """Return the plan of a whole library function."""
        if name not in self._plans:
            self._plans[name] = self._plan_function(name)
        return self._plans[name]

    def main_plan(
        self, feeds: Sequence[str], fetches: Sequence[str], targets: Sequence[str]
    ) -> ExecutionPlan:
        """Return the plan of the ancestors of `fetches` and `targets`."""
        key = (tuple(feeds), tuple(fetches), tuple(targets))
        if key not in self._plans:
            if self._main is None:
                self._main = self._body("", self.graph.node, ())
            body = self._main
            fed = {}
            for slot, name in enumerate(feeds):
                fed[body.resolve(name)] = slot
            wanted = [body.resolve(name) for name in fetches]
            roots = [body.resolve(name)[0] for name in targets]
            self._plans[key] = self._plan(body, fed, wanted, roots)
        return self._plans[key]

    def _plan_function(self, name: str) -> ExecutionPlan:
        if name not in self.functions:
            raise ReplayError(
                f"The program is broken: it calls a function {name!r} "
                "that its library does not hold."
            )
        function = self.functions[name]
        arguments = []
        for argument in function.signature.input_arg:
            arguments.append(argument.name)
        body = self._body(name, function.node_def, arguments)
        fed = {(-1, i): i for i in range(len(arguments))}
        wanted = []
        for output in function.signature.output_arg:
            wanted.append(body.resolve(function.ret[output.name]))
        roots = []
        for node in function.control_ret.values():
            roots.append(body.resolve(node)[0])
        return self._plan(body, fed, wanted, roots)

    def _body(self, function: str, nodes: Sequence[Any], arguments: Sequence[str]) -> Body:
        body = Body(function, nodes, arguments=list(arguments))
        body.arg_index = {name: i for i, name in enumerate(arguments)}
        for i, node in enumerate(nodes):
            if node.op in _TF1_CONTROL_FLOW:
                raise UnsupportedOpError(node.op, node.name, _TF1_CONTROL_FLOW_REASON)
            definition = self.definition(node)
            offsets, total = {}, 0
            for argument in definition.output_arg:
                offsets[argument.name] = total
                total += count_outputs(argument, node)
            body.index[node.name] = i
            body.definitions.append(definition)
            body.offsets.append(offsets)
            body.counts.append(total)
        return body

    def _plan(
        self,
        body: Body,
        fed: Mapping[TensorRef, int],
        wanted: Sequence[TensorRef],
        roots: Sequence[int],
    ) -> ExecutionPlan:
        data, control = _ancestors(body, fed, wanted, roots)
        before = {n: {*_sources(data[n], fed), *control[n]} for n in data}
        order = _sorted(before)
        slots = dict(fed)
        free_slot = len(fed)
        first: dict[int, int] = {}
        for n in order:
            first[n] = free_slot
            for k in range(body.counts[n]):
                slots.setdefault((n, k), free_slot + k)  # a fed output keeps the slot of its feed
            free_slot += body.counts[n]
        steps = []
        for n in order:
            steps.append(self._step(body, n, tuple(slots[s] for s in data[n]), first[n]))
        results = tuple(_slot(body, slots, tensor) for tensor in wanted)
        _mark_free(steps, keep=set(results))
        return ExecutionPlan(body.function, steps, free_slot, results, len(fed))

    def _step(self, body: Body, n: int, inputs: tuple[int, ...], first: int) -> Step:
        if n not in body.steps:
            body.steps[n] = self._decoded(body, n)
        return dataclasses.replace(body.steps[n], inputs=inputs, first=first)

    def _decoded(self, body: Body, n: int) -> Step:
        """What all plans have in common of a node; slots are filled in by each."""
        node, definition = body.nodes[n], body.definitions[n]
        step = Step(node.name, node.op, node, "leaf", (), 0, body.counts[n])
        if node.op in self.functions:
            step.kind, step.callees = "call", (node.op,)
        elif node.op in CALLS:
            step.kind, step.callees = "call", (node.attr[CALLS[node.op]].func.name,)
        elif node.op in LOOPS:
            step.kind = "loop"
            step.callees = (node.attr["cond"].func.name, node.attr["body"].func.name)
        elif node.op in BRANCHES:
            step.kind, step.callees = "branch", _branches(node)
        else:
            step.attrs = decode_attributes(node, definition, self.registered)
            step.needs_library = bool(called_functions(node))
            step.output_kinds = tuple(output_types(definition, node))
            kinds = _input_types(definition, node).union(step.output_kinds)
            step.stores = bool(kinds & {VARIANT, RESOURCE})
        if step.kind == "call":
            step.leads_to_xla = self._is_compiled(node, step.callees[0])
        return step

    def _is_compiled(self, node: Any, callee: str) -> bool:
        """Whether a call is compiled: TensorFlow marks the calling node, the function, or both."""
        if node.op in LAUNCHES or _is_for_xla(node):
            return True
        function = self.functions.get(callee)
        return function is not None and _is_for_xla(function)


def _input_types(definition: Any, node: Any) -> set[int]:
    """DataType enums of a node's inputs; an OpDef has them fixed, as an attribute, or as a list."""
    types: set[int] = set()
    for argument in definition.input_arg:
        if argument.type_list_attr:
            types.update(node.attr[argument.type_list_attr].list.type)
        else:
            types.add(argument.type or node.attr[argument.type_attr].type)
    return types


def _branches(node: Any) -> tuple[str, ...]:
    """The functions of a branching op, in the order in which its selector counts them."""
    if node.op in ("If", "StatelessIf"):
        return node.attr["else_branch"].func.name, node.attr["then_branch"].func.name
    return tuple(function.name for function in node.attr["branches"].list.func)


def _slot(body: Body, slots: Mapping[TensorRef, int], tensor: TensorRef) -> int:
    if tensor not in slots:
        name = body.nodes[tensor[0]].name
        raise ReplayError(
            f"Op {name!r} has no output {tensor[1]}; it has {body.counts[tensor[0]]}."
        )
    return slots[tensor]


def _ancestors(
    body: Body,
    fed: Mapping[TensorRef, int],
    wanted: Iterable[TensorRef],
    roots: Iterable[int],
) -> tuple[dict[int, list[TensorRef]], dict[int, set[int]]]:
    """Return the data inputs and the control inputs of each node that is needed.

    Walks back from `wanted` and `roots`, and stops at what is fed.
    """
    data: dict[int, list[TensorRef]] = {}
    control: dict[int, set[int]] = {}
    pending = _sources(wanted, fed) + [n for n in roots if n >= 0]
    fully_fed = {n for n, _ in fed if n >= 0 and all((n, k) in fed for k in range(body.counts[n]))}
    while pending:
        n = pending.pop()
        if n in data:
            continue
        names = body.nodes[n].input
        data[n] = [body.resolve(name) for name in names if not name.startswith("^")]
        # A control input on a function's argument, a placeholder or a fed op waits for nothing:
        # their values are there before the run begins.
        befores = []
        for name in names:
            if name.startswith("^"):
                befores.append(name[1:])
        known = {body.index[name] for name in befores if name in body.index} - fully_fed
        control[n] = {m for m in known if body.nodes[m].op != "Placeholder"}
        pending += _sources(data[n], fed)
        pending += control[n]
    return data, control


def _sources(tensors: Iterable[TensorRef], fed: Mapping[TensorRef, int]) -> list[int]:
    """The nodes that must run to make tensors: those of all that are not fed."""
    return [n for n, k in tensors if (n, k) not in fed]


def _sorted(before: Mapping[int, set[int]]) -> list[int]:
    """Sort nodes topologically; among the ready ones the op that was created first comes first.

    That order is near to the order of the user's code, so the first op to turn NaN is also the
    first in the code. With `before` {0: {}, 1: {3}, 2: {0}, 3: {}} it is 0, 2, 3, 1: node 1 waits
    for node 3, and node 2 was created before that.
    """
    waiting = {n: len(sources) for n, sources in before.items()}
    after: dict[int, list[int]] = {n: [] for n in before}
    for n, sources in before.items():
        for source in sources:
            after[source].append(n)
    ready = [n for n, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        n = heapq.heappop(ready)
        order.append(n)
        for m in after[n]:
            waiting[m] -= 1
            if waiting[m] == 0:
                heapq.heappush(ready, m)
    if len(order) < len(before):
        raise ReplayError("The program is broken: its ops depend on each other in a circle.")
    return order


def _mark_free(steps: Sequence[Step], keep: set[int]) -> None:
    """Tell each step which slots may be emptied after it, and keep the results of the plan."""
    # Seen from the end, the first step that touches a slot is the last one that needs it. Outputs
    # count as touched: one that nobody reads is freed by the step that made it.
    needed_later = set(keep)
    for step in reversed(steps):
        touched = {*step.inputs, *range(step.first, step.first + step.n_outputs)}
        step.free = tuple(touched - needed_later)
        needed_later |= touched


def _is_for_xla(node: Any) -> bool:
    """Whether XLA must compile an op or a function; asking leaves no empty attribute behind."""
    return "_XlaMustCompile" in node.attr and bool(node.attr["_XlaMustCompile"].b)
