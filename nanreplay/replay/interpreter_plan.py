"""Plans of the interpreter: a function or graph sorted once, with attributes decoded and tensors put into slots."""

from __future__ import annotations

import copy
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from nanreplay.errors import ReplayError, UnsupportedOpError
from nanreplay.program.graph_nodes import count_outputs, output_types
from nanreplay.tensorflow_internals.tf_eager import op_definition

# Decoding node attributes (AttrValue protos) to what eager kernels take. Used by the
# interpreter's plans.


def decode_attributes(node: Any, definition: Any, rename: Mapping[str, str]) -> tuple[Any, ...]:
    """Return names and values of a node's attributes in turn, as eager execution takes them.

    Args:
        node: The NodeDef.
        definition: Its OpDef; attributes that it does not declare (`_output_shapes`, ...) are left out.
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
    return tf.io.parse_tensor(proto.SerializeToString(), tf.dtypes.as_dtype(proto.dtype))


def called_functions(node: Any) -> list[str]:
    """Return the names of library functions that a node's attributes mention."""
    names: list[str] = []
    for value in node.attr.values():
        if value.HasField("func"):
            names.append(value.func.name)
        elif value.HasField("list"):
            names += [function.name for function in value.list.func]
    return names


def _decode(value: Any, kind: str, rename: Mapping[str, str]) -> Any:
    if kind.startswith("list("):
        kind = kind[len("list(") : -1]
        field = {"string": "s", "int": "i", "float": "f", "bool": "b"}.get(kind, kind)
        scalar = _SCALARS.get(kind)
        items = getattr(value.list, field)
        if kind == "func":
            return [rename.get(item.name, item.name) for item in items]
        return [scalar(item) for item in items] if scalar else list(items)
    if kind == "func":
        return rename.get(value.func.name, value.func.name)
    field = {"string": "s", "int": "i", "float": "f", "bool": "b"}.get(kind, kind)
    scalar = _SCALARS.get(kind)
    return scalar(getattr(value, field)) if scalar else getattr(value, field)


def _shape(proto: Any) -> list[int] | None:
    return None if proto.unknown_rank else [dim.size for dim in proto.dim]


_SCALARS: dict[str, Callable[[Any], Any]] = {"shape": _shape, "type": int}
# --- replay.plan

LOOPS = frozenset({"While", "StatelessWhile"})
BRANCHES = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})
CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
TF1_CONTROL_FLOW = frozenset(
    "Switch Merge Enter Exit NextIteration LoopCond RefSwitch RefMerge RefEnter RefExit RefNextIteration".split()
)
VARIANT, RESOURCE = 21, 20


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
    """Whether an input or output is a variant or a resource, so that provenance must be followed."""
    constant: list[Any] = field(default_factory=list)
    """The decoded tensor of a Const, once it ran; the plans of a graph share it."""
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
    """Nodes of a graph or function with inputs resolved to (node index, output) or (-1, argument)."""

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

    def resolve(self, reference: str) -> tuple[int, int]:
        """Return (node, output) of a data input; node is -1 for a function argument."""
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
            fed = {body.resolve(name): slot for slot, name in enumerate(feeds)}
            wanted = [body.resolve(name) for name in fetches]
            roots = [body.resolve(name)[0] for name in targets]
            self._plans[key] = self._plan(body, fed, wanted, roots)
        return self._plans[key]

    def _plan_function(self, name: str) -> ExecutionPlan:
        if name not in self.functions:
            raise ReplayError(
                f"The program is broken: it calls a function {name!r} that its library does not hold."
            )
        function = self.functions[name]
        arguments = [argument.name for argument in function.signature.input_arg]
        body = self._body(name, function.node_def, arguments)
        fed = {(-1, i): i for i in range(len(arguments))}
        wanted = [
            body.resolve(function.ret[output.name]) for output in function.signature.output_arg
        ]
        roots = [body.resolve(node)[0] for node in function.control_ret.values()]
        return self._plan(body, fed, wanted, roots)

    def _body(self, function: str, nodes: Sequence[Any], arguments: Sequence[str]) -> Body:
        body = Body(function, nodes, arguments=list(arguments))
        body.arg_index = {name: i for i, name in enumerate(arguments)}
        for i, node in enumerate(nodes):
            if node.op in TF1_CONTROL_FLOW:
                raise UnsupportedOpError(
                    node.op, node.name, "control flow of TensorFlow 1 cannot be interpreted"
                )
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
        fed: Mapping[tuple[int, int], int],
        wanted: Sequence[tuple[int, int]],
        roots: Sequence[int],
    ) -> ExecutionPlan:
        data, needed, control = _ancestors(body, fed, wanted, roots)
        order = _sorted(
            needed, {n: {s for s, k in data[n] if (s, k) not in fed} | control[n] for n in needed}
        )
        slots = dict(fed)
        free_slot = len(fed)
        first: dict[int, int] = {}
        for n in order:
            first[n] = free_slot
            for k in range(body.counts[n]):
                slots.setdefault((n, k), free_slot + k)
            free_slot += body.counts[n]
        steps = [self._step(body, n, tuple(slots[s] for s in data[n]), first[n]) for n in order]
        results = tuple(_slot(body, slots, tensor) for tensor in wanted)
        _mark_free(steps, keep=set(results))
        return ExecutionPlan(body.function, steps, free_slot, results, len(fed))

    def _step(self, body: Body, n: int, inputs: tuple[int, ...], first: int) -> Step:
        if n not in body.steps:
            body.steps[n] = self._decoded(body, n)
        step = copy.copy(body.steps[n])
        step.inputs, step.first = inputs, first
        return step

    def _decoded(self, body: Body, n: int) -> Step:
        node, definition = body.nodes[n], body.definitions[n]
        step = Step(node.name, node.op, node, "leaf", (), 0, body.counts[n])
        if node.op in self.functions:
            step.kind, step.callees = "call", (node.op,)
        elif node.op in CALLS:
            step.kind, step.callees = "call", (node.attr["f"].func.name,)
        elif node.op in LOOPS:
            step.kind, step.callees = (
                "loop",
                (node.attr["cond"].func.name, node.attr["body"].func.name),
            )
        elif node.op in BRANCHES:
            step.kind, step.callees = "branch", _branches(node)
        else:
            step.attrs = decode_attributes(node, definition, self.registered)
            types = {
                a.type or node.attr[a.type_attr].type
                for a in definition.input_arg
                if not a.type_list_attr
            }
            types |= {
                t
                for a in definition.input_arg
                if a.type_list_attr
                for t in node.attr[a.type_list_attr].list.type
            }
            step.needs_library = bool(called_functions(node))
            step.output_kinds = tuple(output_types(definition, node))
            step.stores = bool(types.union(step.output_kinds) & {VARIANT, RESOURCE})
        if step.kind == "call":
            step.leads_to_xla = self._is_compiled(node, step.callees[0])
        return step

    def _is_compiled(self, node: Any, callee: str) -> bool:
        function = self.functions.get(callee)
        return bool(
            node.attr["_XlaMustCompile"].b or (function and function.attr["_XlaMustCompile"].b)
        )


def _branches(node: Any) -> tuple[str, ...]:
    if node.op in ("If", "StatelessIf"):
        return node.attr["else_branch"].func.name, node.attr["then_branch"].func.name
    return tuple(function.name for function in node.attr["branches"].list.func)


def _slot(body: Body, slots: Mapping[tuple[int, int], int], tensor: tuple[int, int]) -> int:
    if tensor not in slots:
        name = body.nodes[tensor[0]].name
        raise ReplayError(
            f"Op {name!r} has no output {tensor[1]}; it has {body.counts[tensor[0]]}."
        )
    return slots[tensor]


def _ancestors(
    body: Body,
    fed: Mapping[tuple[int, int], int],
    wanted: Iterable[tuple[int, int]],
    roots: Iterable[int],
) -> tuple[dict[int, list[tuple[int, int]]], set[int], dict[int, set[int]]]:
    """Return data inputs, the set of needed nodes, and control inputs, walking back from `wanted` and `roots`."""
    data: dict[int, list[tuple[int, int]]] = {}
    control: dict[int, set[int]] = {}
    needed: set[int] = set()
    pending = [n for n, k in wanted if (n, k) not in fed] + [n for n in roots if n >= 0]
    fully_fed = {n for n, _ in fed if n >= 0 and all((n, k) in fed for k in range(body.counts[n]))}
    while pending:
        n = pending.pop()
        if n in needed:
            continue
        needed.add(n)
        data[n] = [body.resolve(name) for name in body.nodes[n].input if not name.startswith("^")]
        befores = [name[1:] for name in body.nodes[n].input if name.startswith("^")]
        control[n] = {body.index[name] for name in befores if name in body.index} - fully_fed
        control[n] = {m for m in control[n] if body.nodes[m].op != "Placeholder"}
        pending += [s for s, k in data[n] if (s, k) not in fed]
        pending += control[n]
    return data, needed, control


def _sorted(needed: set[int], before: Mapping[int, set[int]]) -> list[int]:
    """Sort topologically; among the ready ones the op that was created first comes first."""
    waiting = {n: len(before[n]) for n in needed}
    after: dict[int, list[int]] = {n: [] for n in needed}
    for n in needed:
        for source in before[n]:
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
    if len(order) < len(needed):
        raise ReplayError("The program is broken: its ops depend on each other in a circle.")
    return order


def _mark_free(steps: Sequence[Step], keep: set[int]) -> None:
    seen = set(keep)
    for step in reversed(steps):
        last = []
        for slot in {*step.inputs, *range(step.first, step.first + step.n_outputs)}:
            if slot not in seen:
                seen.add(slot)
                last.append(slot)
        step.free = tuple(last)
