"""Which compiled functions train, and what a call of one tells of a step: its program, its batch, its outputs.

A compiled function trains when its trace holds a gradient and writes variables. Often it only hands its arguments on: a function
around the step, Keras's function around `one_step_on_data`. The program is then the innermost function that holds all that
trains, so that a step is a step, whatever is built around it.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.program.observation import notes_of
from nanreplay.program.traced_program import LoopFetch, is_handle, source_of
from nanreplay.tensorflow_internals import tf_functions

FETCHES = frozenset(
    {"IteratorGetNext", "IteratorGetNextSync", "MultiDeviceIteratorGetNextFromShard"}
)
"""Ops that take the next element of an iterator."""
FETCHES_OPTIONAL = frozenset({"IteratorGetNextAsOptional"})
_WHILES = frozenset({"While", "StatelessWhile"})
LOOPS_OVER_DATA = frozenset({"ReduceDataset", "ScanDataset", "MakeIterator"})
"""Ops of a loop over a dataset inside of a graph."""
_WRITES = re.compile(
    r"Assign\w*VariableOp|Resource(Sparse)?Apply\w+|ResourceScatter\w+|ResourceStridedSliceAssign"
)
_GRADIENT = re.compile(r"(^|/)(gradient_tape|gradients(_\d+)?)/")
_handing_out: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""What `hands_gradient_out` found, by FuncGraph."""
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")
_FUNCTIONS_OF: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_CALLS, ("f",)),
    **dict.fromkeys(("While", "StatelessWhile"), ("cond", "body")),
    **dict.fromkeys(("If", "StatelessIf"), ("then_branch", "else_branch")),
    **dict.fromkeys(("Case", "StatelessCase"), ("branches",)),
}
"""The attributes that name the functions that an op runs."""


class Caller(NamedTuple):
    """An op that runs a function of the library."""

    graph: Any
    """The graph that holds the op."""
    op: Any
    first: int
    """Input of the op that is the function's first argument."""


class ValueSource(NamedTuple):
    """Where an input of the program comes from."""

    kind: str
    """`argument` (of the call), `fetched` (from an iterator), `taken` (by ops that took it out of what was fetched), `held` (captured
    by the function)."""
    number: int
    """Number of the argument, of the fetched component, of the output, of the function's input."""
    tensor: Any = None
    """What was fetched or taken."""


@dataclass
class TrainingFunction:
    """What is known of a ConcreteFunction that may train.

    Args:
        function: The ConcreteFunction.
    """

    function: Any
    graphs: Mapping[str, Any] = field(init=False)
    """FuncGraphs of the functions that it calls, by name."""

    def __post_init__(self) -> None:
        self.graph = tf_functions.func_graph(self.function)
        self.graphs = tf_functions.library_graphs(self.graph)

    @cached_property
    def has_gradient(self) -> bool:
        """Whether a gradient is computed in it."""
        return any(map(has_own_gradient, (self.graph, *self.graphs.values())))

    @cached_property
    def writes(self) -> bool:
        """Whether it writes a float variable that it was given, other than by counting."""
        return any(True for graph in (self.graph, *self.graphs.values()) for _ in variable_writes(graph))

    @cached_property
    def written_captures(self) -> frozenset[int]:
        """Positions, among what the function captured, of variables that it writes, as far as that can be told."""
        n_arguments = len(self.graph.inputs) - self.n_captures
        origins = (
            self.origin(graph, op.inputs[0])
            for graph in (self.graph, *self.graphs.values())
            for op in variable_writes(graph)
        )
        return frozenset(
            origin.number - n_arguments
            for origin in origins
            if origin is not None and origin.kind == "held"
        )

    @property
    def trains(self) -> bool:
        """Whether it computes a gradient and writes variables."""
        return self.has_gradient and self.writes

    @cached_property
    def fetching(self) -> list[tuple[Any, Any]]:
        """(graph, op) of all that takes elements of iterators and datasets."""
        kinds = FETCHES | FETCHES_OPTIONAL | LOOPS_OVER_DATA
        return [
            (graph, op)
            for graph in (self.graph, *self.graphs.values())
            for op in graph.get_operations()
            if op.type in kinds
        ]

    @cached_property
    def sources(self) -> list[Any] | None:
        """Ops of its own graph that fetch the batch, and those that take apart what they fetched; None where it trains in one.

        A step that is given the iterator of a strategy takes an Optional for each replica, asks them whether they hold
        something, and branches to get it: all of this takes handles, and gives the batch.
        """
        found, training = self._sources_in(self.graph)
        return None if training else found

    @cached_property
    def loop(self) -> LoopFetch | None:
        """The loop of its own graph that fetches and trains in each iteration; None where there is no such, or more happens."""
        outside, training = self._sources_in(self.graph)
        if outside or len(training) != 1 or training[0].type not in _WHILES:
            return None
        (op,) = training
        body = self.graphs[op.node_def.attr["body"].func.name]
        counter = body.inputs[0]
        if (
            self._fetches_in(op.node_def.attr["cond"].func.name)
            or counter.dtype != tf.int32
            or "loop_counter" not in counter.name
        ):
            return None
        found, training = self._sources_in(body)
        return None if training or not found else LoopFetch(op, body, found)

    def _sources_in(self, graph: Any) -> tuple[list[Any], list[Any]]:
        """Ops of a graph that fetch, or take apart what was fetched; and those that fetch and train."""
        found, training, handles = [], [], set[int]()
        for op in graph.get_operations():
            called = {name for name, _ in called_functions(op)}
            takes = any(id(tensor) in handles for tensor in op.inputs)
            if (
                not takes
                and op.type not in FETCHES | FETCHES_OPTIONAL | LOOPS_OVER_DATA
                and not any(map(self._fetches_in, called))
            ):
                continue
            if op.type in LOOPS_OVER_DATA or any(self._trains_in(name) for name in called):
                training.append(op)
            else:
                found.append(op)
                handles.update(id(tensor) for tensor in op.outputs if is_handle(tensor))
        return found, training

    def _fetches_in(self, name: str) -> bool:
        graph = self.graphs.get(name)
        inside = (
            set()
            if graph is None
            else {id(each) for each in (graph, *tf_functions.library_graphs(graph).values())}
        )
        return any(id(each) in inside for each, _ in self.fetching)

    def _trains_in(self, name: str) -> bool:
        graph = self.graphs.get(name)
        if graph is None:
            return False
        graphs = (graph, *tf_functions.library_graphs(graph).values())
        return any(has_own_gradient(each) or any(True for _ in variable_writes(each)) for each in graphs)

    @cached_property
    def is_xla(self) -> bool:
        """Whether XLA compiles the function as a whole."""
        return bool(self.function.function_def.attr["_XlaMustCompile"].b)

    @cached_property
    def callers(self) -> Mapping[str, Sequence[Caller]]:
        """What runs each function of the library, by its name."""
        found: dict[str, list[Caller]] = {}
        for graph in (self.graph, *self.graphs.values()):
            for op in graph.get_operations():
                for name, first in called_functions(op):
                    found.setdefault(name, []).append(Caller(graph, op, first))
        return found

    @cached_property
    def innermost(self) -> tuple[Any, Caller | None]:
        """The innermost graph that holds all that trains, and what calls it (None for the function's own graph)."""
        graph, caller = self.graph, None
        names = {id(each): name for name, each in self.graphs.items()}
        while True:
            inside = [
                each for each in self._calls_of(graph) if self._holds_training(self.graphs[each[0]])
            ]
            own = has_own_gradient(graph) or any(True for _ in variable_writes(graph))
            if own or len(inside) != 1:
                return graph, caller
            name, found = inside[0]
            if len(self.callers.get(name, ())) != 1 or id(self.graphs[name]) not in names:
                return graph, caller
            graph, caller = self.graphs[name], found

    def _calls_of(self, graph: Any) -> list[tuple[str, Caller]]:
        """Plain calls of functions in `graph`, and in its loops and branches."""
        found, pending, seen = [], [graph], {id(graph)}
        while pending:
            each = pending.pop()
            for op in each.get_operations():
                for name, first in called_functions(op):
                    if name not in self.graphs or id(self.graphs[name]) in seen:
                        continue
                    if op.type in _CALLS:
                        found.append((name, Caller(each, op, first)))
                    elif not has_own_gradient(self.graphs[name]) and not any(
                        True for _ in variable_writes(self.graphs[name])
                    ):
                        seen.add(id(self.graphs[name]))
                        pending.append(self.graphs[name])
        return found

    def _holds_training(self, graph: Any) -> bool:
        return any(
            has_own_gradient(each) for each in (graph, *tf_functions.library_graphs(graph).values())
        )

    def origin(self, graph: Any, tensor: Any) -> ValueSource | None:
        """Where a tensor of a graph comes from, through copies, loops and calls that only hand it on; None for anything else."""
        names = {id(each): name for name, each in self.graphs.items()}
        for _ in range(1000):
            tensor = source_of(tensor)
            op = tensor.op
            if op.type in FETCHES or op.type == "OptionalGetValue":
                return ValueSource("fetched", tensor.value_index, tensor)
            is_source = graph is self.graph and any(op is source for source in self.sources or ())
            if is_source and composite_source(op) is None:
                return ValueSource("taken", tensor.value_index, tensor)
            position = next(
                (index for index, each in enumerate(graph.inputs) if each is tensor), None
            )
            if position is None:
                tensor = composite_source(op)
                if tensor is None:
                    return None
                continue
            if graph is self.graph:
                n_arguments = len(graph.inputs) - self.n_captures
                return (
                    ValueSource("argument", position)
                    if position < n_arguments
                    else ValueSource("held", position)
                )
            callers = self.callers.get(names.get(id(graph), ""), ())
            if len(callers) != 1:
                return None
            graph, op, first = callers[0]
            tensor = op.inputs[first + position]
        return None

    @cached_property
    def n_captures(self) -> int:
        """How many inputs of the function hold what it captured."""
        return len(self.graph.captures) + len(tf_functions.deferred_captures(self.graph))


def composite_source(op: Any) -> Any:
    """The fetched component that an op takes a ragged or sparse tensor out of; None for any other op.

    The dense shape of a sparse tensor is put together again with what is known of it before.
    """
    if op.type == "Pack" and op.inputs[0].op.type == "Unpack":
        op = op.inputs[0].op.inputs[0].op
        return op.inputs[0] if op.type == "DeserializeSparse" else None
    return op.inputs[0] if op.type in ("RaggedTensorFromVariant", "DeserializeSparse") else None


def has_own_gradient(graph: Any) -> bool:
    """Whether a gradient is asked for in this very graph (not only computed for one that is asked for elsewhere)."""
    seen = notes_of(graph, make=False)
    if seen is not None and seen.tape_gradients:
        return True
    return seen is None and any(_GRADIENT.search(op.name) for op in graph.get_operations())


def hands_gradient_out(function: Any) -> bool:
    """Whether a ConcreteFunction computes a gradient, and writes no variable that trains: others apply it."""
    graph = tf_functions.func_graph(function)
    known = _handing_out.get(graph)
    if known is None:
        graphs = (graph, *tf_functions.library_graphs(graph).values())
        known = any(map(has_own_gradient, graphs)) and not any(
            True for each in graphs for _ in variable_writes(each)
        )
        _handing_out[graph] = known
    return known


def variable_writes(graph: Any) -> Iterator[Any]:
    """Ops of this very graph that write variables, but for counters."""
    for op in graph.get_operations():
        if _WRITES.fullmatch(op.type):
            kind = op.inputs[1].dtype if len(op.inputs) > 1 else tf.float32
            if kind.is_floating or kind.is_complex or op.type.startswith("Resource"):
                yield op


def called_functions(op: Any) -> Iterator[tuple[str, int]]:
    """Functions of the library that an op runs, and which of its inputs is their first argument."""
    keys = _FUNCTIONS_OF.get(op.type)
    if keys is None:
        return
    attributes = op.node_def.attr
    for key in keys:
        first = int(op.type in _BRANCHES)
        if key == "branches":
            yield from ((function.name, first) for function in attributes[key].list.func)
        else:
            yield attributes[key].func.name, first


def is_compiled_call(op: Any, graph: Any) -> bool:
    """Whether XLA compiles what a call runs."""
    if op.node_def.attr["_XlaMustCompile"].b:
        return True
    function = graph._functions.get(op.node_def.attr["f"].func.name) if op.type in _CALLS else None
    return function is not None and bool(function.cached_definition.attr["_XlaMustCompile"].b)
