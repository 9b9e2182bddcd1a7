"""Which compiled functions train, and how values reach the step within them.

A compiled function trains when its trace holds a gradient and writes variables. Often it only
hands its arguments on: a function around the step, Keras's function around `one_step_on_data`.
`TrainingFunction.innermost` is then the innermost function that holds all that trains, so that a
step is a step, whatever is built around it. `step_programs` makes a program of it.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.program.loss_keys import source_of
from nanreplay.program.observation import notes_of
from nanreplay.program.traced_program import LoopFetch, is_handle
from nanreplay.tensorflow_internals import tf_functions

FETCHES = frozenset(
    {"IteratorGetNext", "IteratorGetNextSync", "MultiDeviceIteratorGetNextFromShard"}
)
"""Ops that take the next element of an iterator."""
FETCHES_OPTIONAL = frozenset({"IteratorGetNextAsOptional"})
LOOPS_OVER_DATA = frozenset({"ReduceDataset", "ScanDataset", "MakeIterator"})
"""Ops of a loop over a dataset inside of a graph."""
FETCHING = FETCHES | FETCHES_OPTIONAL | LOOPS_OVER_DATA
"""All ops that take elements of iterators and datasets."""
_WHILES = ("While", "StatelessWhile")
_WRITES = re.compile(
    r"Assign\w*VariableOp|Resource(Sparse)?Apply\w+|ResourceScatter\w+|ResourceStridedSliceAssign"
)
_GRADIENT_SCOPE = re.compile(r"(^|/)(gradient_tape|gradients(_\d+)?)/")
"""Name scopes that `GradientTape.gradient` and `tf.gradients` open."""
_handing_out: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""What `hands_gradient_out` found, by FuncGraph."""
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")
_FUNCTIONS_OF: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_CALLS, ("f",)),
    **dict.fromkeys(_WHILES, ("cond", "body")),
    **dict.fromkeys(("If", "StatelessIf"), ("then_branch", "else_branch")),
    **dict.fromkeys(("Case", "StatelessCase"), ("branches",)),
}
"""The attributes that name the functions that an op runs."""
_MAX_STEPS_BACK = 1000
"""A function that calls itself would lead back for ever; real nesting is some ten deep."""


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
    """`argument` (of the call), `fetched` (from an iterator), `taken` (by ops that took it out of
    what was fetched), `held` (captured by the function)."""
    number: int
    """Number of the argument, of the fetched component, of the output, or of the function's input.
    """
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

    @property
    def _all_graphs(self) -> tuple[Any, ...]:
        """Its own graph and those of the functions that it calls."""
        return (self.graph, *self.graphs.values())

    @cached_property
    def has_gradient(self) -> bool:
        """Whether a gradient is computed in it."""
        return any(map(has_own_gradient, self._all_graphs))

    @cached_property
    def writes(self) -> bool:
        """Whether it writes a float variable that it was given, other than by counting."""
        return any(map(writes_variables, self._all_graphs))

    @cached_property
    def written_inputs(self) -> frozenset[int]:
        """Positions, among arguments and captured inputs, of variables that it writes.

        As far as is known: a variable that a function of its own is given may be one of several.
        """
        written: set[int] = set()
        for graph in self._all_graphs:
            for op in variable_writes(graph):
                origin = self.origin(graph, op.inputs[0])
                if origin is not None and origin.kind in ("held", "argument"):
                    written.add(origin.number)
        return frozenset(written)

    @property
    def trains(self) -> bool:
        """Whether it computes a gradient and writes variables."""
        return self.has_gradient and self.writes

    @cached_property
    def fetching(self) -> list[tuple[Any, Any]]:
        """(graph, op) of all that takes elements of iterators and datasets."""
        fetching = []
        for graph in self._all_graphs:
            for op in graph.get_operations():
                if op.type in FETCHING:
                    fetching.append((graph, op))
        return fetching

    @cached_property
    def sources(self) -> list[Any] | None:
        """Ops of its own graph that fetch the batch, and those that take apart what they fetched.

        None where an op fetches and trains (a loop over a dataset).

        A step that is given the iterator of a strategy takes an Optional for each replica, asks
        them whether they hold something, and branches to get it: all of this takes handles, and
        gives the batch.
        """
        fetching, fetching_and_training = self._sources_in(self.graph)
        return None if fetching_and_training else fetching

    @cached_property
    def loop(self) -> LoopFetch | None:
        """The loop of its own graph that fetches and trains in each iteration.

        None where there is no such loop, or where more happens than that.
        """
        outside, loops = self._sources_in(self.graph)
        if outside or len(loops) != 1 or loops[0].type not in _WHILES:
            return None
        op = loops[0]
        attributes = op.node_def.attr
        body = self.graphs[attributes["body"].func.name]
        # The first thing that a While of TensorFlow 2 hands on is the number of the iteration.
        counter = body.inputs[0]
        # TensorFlow 2 names it so; what other loops hand on first is no such number.
        is_counted = counter.dtype == tf.int32 and "loop_counter" in counter.name
        if not is_counted or self._fetches_in(attributes["cond"].func.name):
            return None
        fetching, loops_within = self._sources_in(body)
        return None if loops_within or not fetching else LoopFetch(op, body, fetching)

    def _sources_in(self, graph: Any) -> tuple[list[Any], list[Any]]:
        """Ops of a graph that fetch, or take apart what was fetched; and those that also train."""
        fetching: list[Any] = []
        fetching_and_training: list[Any] = []
        handles: set[int] = set()
        """Ids of handles that ops of `fetching` gave."""
        for op in graph.get_operations():
            called = [name for name, _ in called_functions(op)]
            # What takes an Optional apart fetches as well, though its op type alone does not say
            # so.
            takes_handle = any(id(tensor) in handles for tensor in op.inputs)
            fetches = op.type in FETCHING or any(map(self._fetches_in, called))
            if not takes_handle and not fetches:
                continue
            if op.type in LOOPS_OVER_DATA or any(map(self._trains_in, called)):
                fetching_and_training.append(op)
            else:
                fetching.append(op)
                for tensor in op.outputs:
                    if is_handle(tensor):
                        handles.add(id(tensor))
        return fetching, fetching_and_training

    def _fetches_in(self, name: str) -> bool:
        """Whether a function of the library, or one that it calls, fetches."""
        inside = {id(graph) for graph in self._graphs_of(name)}
        return any(id(graph) in inside for graph, _ in self.fetching)

    def _trains_in(self, name: str) -> bool:
        """Whether a function of the library, or one that it calls, trains in part."""
        graphs = self._graphs_of(name)
        return any(has_own_gradient(graph) or writes_variables(graph) for graph in graphs)

    def _graphs_of(self, name: str) -> tuple[Any, ...]:
        """FuncGraphs of a function of the library and of all that it calls; empty if unknown."""
        graph = self.graphs.get(name)
        return () if graph is None else with_library(graph)

    @cached_property
    def is_xla(self) -> bool:
        """Whether XLA compiles the function as a whole."""
        return bool(self.function.function_def.attr["_XlaMustCompile"].b)

    @cached_property
    def callers(self) -> Mapping[str, Sequence[Caller]]:
        """What runs each function of the library, by its name."""
        callers: dict[str, list[Caller]] = {}
        for graph in self._all_graphs:
            for op in graph.get_operations():
                for name, first in called_functions(op):
                    callers.setdefault(name, []).append(Caller(graph, op, first))
        return callers

    @cached_property
    def innermost(self) -> tuple[Any, Caller | None]:
        """The innermost graph that holds all that trains, and what calls it.

        The caller is None for the function's own graph. The search goes from a graph into the only
        function that it calls and that computes a gradient, while the graph itself neither computes
        one nor writes variables. Of `run(step(one_step))` with all training in `one_step`, it ends
        there.
        """
        graph, caller = self.graph, None
        while True:
            if has_own_gradient(graph) or writes_variables(graph):
                return graph, caller
            training_calls = []
            for called, call in self._calls_of(graph):
                if any(map(has_own_gradient, with_library(self.graphs[called]))):
                    training_calls.append((called, call))
            if len(training_calls) != 1:
                return graph, caller
            called, call = training_calls[0]
            # Called from two places, its ops would stand for two sets of tensors.
            if len(self.callers.get(called, ())) != 1:
                return graph, caller
            graph, caller = self.graphs[called], call

    def _calls_of(self, graph: Any) -> list[tuple[str, Caller]]:
        """Plain calls of functions in `graph`, and in its loops and branches.

        Loops and branches that train by themselves are not entered.
        """
        calls, pending, seen = [], [graph], {id(graph)}
        while pending:
            holder = pending.pop()
            for op in holder.get_operations():
                for name, first in called_functions(op):
                    called = self.graphs.get(name)
                    if called is None or id(called) in seen:
                        continue
                    if op.type in _CALLS:
                        calls.append((name, Caller(holder, op, first)))
                    # A loop that trains by itself is one step as it is: its iterations cannot be
                    # told apart from outside.
                    elif not has_own_gradient(called) and not writes_variables(called):
                        seen.add(id(called))
                        pending.append(called)
        return calls

    def origin(self, graph: Any, tensor: Any) -> ValueSource | None:
        """Where a tensor of a graph comes from; None for what is computed.

        The search goes back through copies, loops and calls that only hand it on: from an argument
        of a function to the input of the op that calls it, and so on outwards.
        """
        names = {id(each): name for name, each in self.graphs.items()}
        for _ in range(_MAX_STEPS_BACK):
            tensor = source_of(tensor)
            op = tensor.op
            if op.type in FETCHES or op.type == "OptionalGetValue":
                return ValueSource("fetched", tensor.value_index, tensor)
            is_source = graph is self.graph and any(op is source for source in self.sources or ())
            if is_source and composite_source(op) is None:
                return ValueSource("taken", tensor.value_index, tensor)
            position = next((i for i, each in enumerate(graph.inputs) if each is tensor), None)
            if position is None:
                tensor = composite_source(op)
                if tensor is None:
                    return None
                continue
            if graph is self.graph:
                n_arguments = len(graph.inputs) - self.n_captures
                return ValueSource("argument" if position < n_arguments else "held", position)
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
    """The fetched component that an op takes a ragged or sparse tensor out of; None for any other.

    The dense shape of a sparse tensor is put together again with what is known of it before: an
    Unpack and a Pack follow.
    """
    if op.type == "Pack" and op.inputs[0].op.type == "Unpack":
        op = op.inputs[0].op.inputs[0].op
        return op.inputs[0] if op.type == "DeserializeSparse" else None
    return op.inputs[0] if op.type in ("RaggedTensorFromVariant", "DeserializeSparse") else None


def with_library(graph: Any) -> tuple[Any, ...]:
    """A FuncGraph and those of all functions that it calls."""
    return (graph, *tf_functions.library_graphs(graph).values())


def has_own_gradient(graph: Any) -> bool:
    """Whether a gradient is asked for in this very graph.

    Gradients that are computed in it for one that is asked for elsewhere do not count. Of a graph
    that was traced before anybody looked, the names of the ops tell.
    """
    seen = notes_of(graph, make=False)
    if seen is not None:
        return bool(seen.tape_gradients)
    return any(_GRADIENT_SCOPE.search(op.name) for op in graph.get_operations())


def hands_gradient_out(function: Any) -> bool:
    """Whether a ConcreteFunction computes a gradient that others apply: it writes no variable."""
    graph = tf_functions.func_graph(function)
    is_handing_out = _handing_out.get(graph)
    if is_handing_out is None:
        graphs = with_library(graph)
        is_handing_out = any(map(has_own_gradient, graphs)) and not any(
            map(writes_variables, graphs)
        )
        _handing_out[graph] = is_handing_out
    return is_handing_out


def writes_variables(graph: Any) -> bool:
    """Whether this very graph writes a variable that trains."""
    return any(True for _ in variable_writes(graph))


def variable_writes(graph: Any) -> Iterator[Any]:
    """Ops of this very graph that write variables, but for counters."""
    for op in graph.get_operations():
        if _WRITES.fullmatch(op.type):
            kind = op.inputs[1].dtype if len(op.inputs) > 1 else tf.float32
            if kind.is_floating or kind.is_complex or op.type.startswith("Resource"):
                yield op


def called_functions(op: Any) -> Iterator[tuple[str, int]]:
    """Functions of the library that an op runs, and which of its inputs is their first argument."""
    attributes = op.node_def.attr if op.type in _FUNCTIONS_OF else {}
    first = int(op.type in _BRANCHES)  # the first input of a branching op is its condition
    for key in _FUNCTIONS_OF.get(op.type, ()):
        if key == "branches":
            for function in attributes[key].list.func:
                yield (function.name, first)
        else:
            yield attributes[key].func.name, first


def is_compiled_call(op: Any, graph: Any) -> bool:
    """Whether XLA compiles what a call runs."""
    if op.node_def.attr["_XlaMustCompile"].b:
        return True
    if op.type not in _CALLS:
        return False
    definition = tf_functions.called_definition(graph, op.node_def.attr["f"].func.name)
    return definition is not None and bool(definition.attr["_XlaMustCompile"].b)
