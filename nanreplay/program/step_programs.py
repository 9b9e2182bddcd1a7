"""From a call of a function that trains to the program of its step, with its inputs and captures.

The program is the innermost function that holds all that trains where its inputs can be followed
to the call, else the function as a whole. The recorder asks for it at the first call of a function.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any

from nanreplay.program.nondeterministic_ops import nondeterministic_tensors
from nanreplay.program.traced_program import (
    TracedProgram,
    argument_paths,
    fetched_paths,
    fetched_tensors,
    is_handle,
    is_variable,
    output_names,
    signature_paths,
)
from nanreplay.program.training_functions import (
    Caller,
    TrainingFunction,
    ValueSource,
    is_compiled_call,
)


def program_of(
    training: TrainingFunction, captured: Sequence[Any], arguments: Sequence[Any]
) -> TracedProgram | None:
    """The program of a function that trains; None where its batch cannot be had.

    Args:
        training: The function.
        captured: What the function captured, as its call is given it.
        arguments: Flat arguments of a call; handles of variables among them count as captured.
    """
    graph, caller = training.innermost
    if caller is not None:
        program = inner_program(training, graph, caller, captured, arguments)
        if program is not None:
            return program
    return _whole_program(training, captured, arguments)


def inner_program(
    training: TrainingFunction,
    graph: Any,
    caller: Caller,
    captured: Sequence[Any],
    arguments: Sequence[Any],
) -> TracedProgram | None:
    """The program of the function that the others only hand their arguments to.

    None where an input comes from elsewhere, or where its batch comes from several sources.
    """
    inputs: list[tuple[Any, int]] = []
    captures: list[tuple[Any, Any]] = []
    taken: list[ValueSource] = []
    kinds = set()
    n_arguments = len(training.graph.inputs) - training.n_captures
    for position, placeholder in enumerate(graph.inputs):
        origin = training.origin(caller.graph, caller.op.inputs[caller.first + position])
        if origin is None:
            return None
        if origin.kind == "held":
            captures.append((placeholder, captured[origin.number - n_arguments]))
        elif origin.kind != "argument":
            kinds.add(origin.kind)
            taken.append(origin)
            inputs.append((placeholder, len(inputs)))
        elif is_handle(arguments[origin.number]):
            captures.append((placeholder, arguments[origin.number]))
        else:
            kinds.add(origin.kind)
            inputs.append((placeholder, origin.number))
    if len(kinds) > 1:
        return None
    tensors = [] if _is_element(kinds, taken) else [source.tensor for source in taken]
    if any(tensor.graph is not training.graph or is_handle(tensor) for tensor in tensors):
        return None
    if kinds == {"argument"}:
        leaves = _leaf_numbers(arguments)
        inputs = [(placeholder, leaves[number]) for placeholder, number in inputs]
        paths = argument_paths(training.function, arguments)
    else:
        paths = signature_paths(graph, len(inputs))
    is_xla = training.is_xla or is_compiled_call(caller.op, caller.graph)
    # Within a loop or a branch, the outputs of an op cannot be had from outside.
    is_called_once = caller.graph is training.graph
    return TracedProgram(
        graph=graph,
        inputs=inputs,
        captures=captures,
        outputs=graph.outputs,
        output_names=output_names(graph),
        compilation="xla" if is_xla else "graph",
        leaf_paths=paths,
        outside=nondeterministic_tensors(graph) if is_called_once else [],
        taken=tensors,
    )


def _is_element(kinds: Collection[str], taken: Sequence[ValueSource]) -> bool:
    """Whether a function is handed one element of an iterator, its components in their order.

    The element is then the batch; else the batch is what was taken, leaf by leaf, in the order of
    the function.
    """
    if kinds != {"fetched"} or len({id(source.tensor.op) for source in taken}) != 1:
        return False
    return all(left.number <= right.number for left, right in itertools.pairwise(taken))


def _whole_program(
    training: TrainingFunction, captured: Sequence[Any], arguments: Sequence[Any]
) -> TracedProgram | None:
    """The program of a function that trains by itself; None where it fetches in another loop."""
    graph, sources, loop = training.graph, training.sources, training.loop
    if sources is None and loop is None:
        return None
    sources = sources or []
    fetched = fetched_tensors(sources) if loop is None else loop.fetched
    n_arguments = len(graph.inputs) - training.n_captures
    leaves = _leaf_numbers(arguments)
    inputs, handles = [], []
    for index, placeholder in enumerate(graph.inputs[:n_arguments]):
        if index in leaves:
            inputs.append((placeholder, leaves[index]))
        else:
            handles.append((placeholder, arguments[index]))
    for number, tensor in enumerate(fetched):
        inputs.append((tensor, len(leaves) + number))
    handles += zip(graph.inputs[n_arguments:], captured, strict=True)
    # A replay is fed with what was fetched, and has no iterator.
    iterators = set()
    for op in sources:
        for tensor in op.inputs:
            if is_handle(tensor):
                iterators.add(id(tensor))
    captures = []
    for placeholder, value in handles:
        if is_variable(value) or id(placeholder) not in iterators:
            captures.append((placeholder, value))
    paths = argument_paths(training.function, arguments)
    paths += fetched_paths(training.function, fetched, in_loop=loop is not None)
    outside = []
    for tensor in nondeterministic_tensors(graph):
        if tensor.op not in sources:
            outside.append(tensor)
    return TracedProgram(
        graph=graph,
        inputs=inputs,
        captures=captures,
        outputs=graph.outputs,
        output_names=output_names(graph),
        compilation="xla" if training.is_xla else "graph",
        leaf_paths=paths,
        outside=outside,
        sources=sources,
        loop=loop,
    )


def _leaf_numbers(arguments: Sequence[Any]) -> dict[int, int]:
    """Number of the leaf of the batch, by number of the flat argument: all but handles."""
    numbers: dict[int, int] = {}
    for index, value in enumerate(arguments):
        if not is_handle(value):
            numbers[index] = len(numbers)
    return numbers
