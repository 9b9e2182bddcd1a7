"""Which compiled functions train, and what a call of one tells of a step: its program, its batch, its outputs.

A compiled function trains when its trace holds a gradient and writes variables. Often it only hands its arguments on: a function
around the step, Keras's function around `one_step_on_data`. The program is then the innermost function that holds all that
trains, so that a step is a step, whatever is built around it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nanreplay.program.nondeterministic_ops import nondeterministic_tensors
from nanreplay.program.traced_program import (
    TracedProgram,
    argument_paths,
    fetched_paths,
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
    training: TrainingFunction, held: Sequence[Any], arguments: Sequence[Any]
) -> TracedProgram | None:
    """The program of a function that trains; None where its batch cannot be had.

    Args:
        training: The function.
        held: What the function captured, as its call is given it.
        arguments: Flat arguments of a call; handles of variables among them count as captured.
    """
    graph, caller = training.innermost
    if caller is not None:
        found = inner_program(training, graph, caller, held, arguments)
        if found is not None:
            return found
    return _whole_program(training, held, arguments)


def inner_program(
    training: TrainingFunction,
    graph: Any,
    caller: Caller,
    held: Sequence[Any],
    arguments: Sequence[Any],
) -> TracedProgram | None:
    """The program of the function that the others only hand their arguments to."""
    inputs: list[tuple[Any, int]] = []
    captures: list[tuple[Any, Any]] = []
    taken: list[ValueSource] = []
    kinds = set()
    n_arguments = len(training.graph.inputs) - training.n_captures
    for position, placeholder in enumerate(graph.inputs):
        origin = training.origin(caller.graph, caller.op.inputs[caller.first + position])
        if origin is None:
            return None
        value = (
            held[origin.number - n_arguments]
            if origin.kind == "held"
            else arguments[origin.number]
            if origin.kind == "argument"
            else None
        )
        if origin.kind == "held" or (
            value is not None and value.dtype in (tf.resource, tf.variant)
        ):
            captures.append((placeholder, value))
        else:
            kinds.add(origin.kind)
            taken += [origin] if origin.kind != "argument" else []
            inputs.append(
                (placeholder, origin.number if origin.kind == "argument" else len(inputs))
            )
    if len(kinds) > 1:
        return None
    is_element = (
        kinds == {"fetched"}
        and len({id(each.tensor.op) for each in taken}) == 1
        and _ascend([each.number for each in taken])
    )
    tensors = (
        [] if is_element else [each.tensor for each in taken]
    )  # else leaf by leaf, in the order of the function
    if any(tensor.graph is not training.graph or is_handle(tensor) for tensor in tensors):
        return None
    if kinds == {"argument"}:
        leaves = _leaf_numbers(arguments)
        inputs = [(placeholder, leaves[index]) for placeholder, index in inputs]
        paths = argument_paths(training.function, arguments)
    else:
        paths = signature_paths(graph, len(inputs))
    xla = training.is_xla or is_compiled_call(caller.op, caller.graph)
    outside = nondeterministic_tensors(graph) if caller.graph is training.graph else []
    compilation = "xla" if xla else "graph"
    return TracedProgram(
        graph,
        inputs,
        captures,
        graph.outputs,
        output_names(graph),
        compilation,
        paths,
        outside,
        taken=tensors,
    )


def _ascend(numbers: Sequence[int]) -> bool:
    return all(one <= other for one, other in itertools.pairwise(numbers))


def _whole_program(
    training: TrainingFunction, held: Sequence[Any], arguments: Sequence[Any]
) -> TracedProgram | None:
    graph = training.graph
    n_arguments = len(graph.inputs) - training.n_captures
    sources, loop = training.sources, training.loop
    if sources is None and loop is None:
        return None
    sources = sources or []
    fetched = (
        loop.fetched
        if loop is not None
        else [tensor for op in sources for tensor in op.outputs if not is_handle(tensor)]
    )
    leaves = _leaf_numbers(arguments)
    iterators = {id(tensor) for op in sources for tensor in op.inputs if is_handle(tensor)}
    inputs, captures = [], []
    for index, placeholder in enumerate(graph.inputs[:n_arguments]):
        if index in leaves:
            inputs.append((placeholder, leaves[index]))
        elif is_variable(arguments[index]) or id(placeholder) not in iterators:
            captures.append((placeholder, arguments[index]))
    captures += list(zip(graph.inputs[n_arguments:], held, strict=True))
    captures = [
        (placeholder, value)
        for placeholder, value in captures
        if is_variable(value) or id(placeholder) not in iterators
    ]
    paths = argument_paths(training.function, arguments)
    paths += fetched_paths(training.function, fetched, in_loop=training.loop is not None)
    inputs += [(tensor, len(leaves) + number) for number, tensor in enumerate(fetched)]
    outside = [tensor for tensor in nondeterministic_tensors(graph) if tensor.op not in sources]
    compilation = "xla" if training.is_xla else "graph"
    return TracedProgram(
        graph,
        inputs,
        captures,
        graph.outputs,
        output_names(graph),
        compilation,
        paths,
        outside,
        sources,
        loop=loop,
    )


def _leaf_numbers(arguments: Sequence[Any]) -> dict[int, int]:
    """Number of the leaf of the batch, by number of the flat argument: all but handles."""
    data = [
        index
        for index, value in enumerate(arguments)
        if value.dtype not in (tf.resource, tf.variant)
    ]
    return {index: number for number, index in enumerate(data)}
