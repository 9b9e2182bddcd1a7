"""The program of a training step: a graph that the training itself traced, its inputs and outputs.

`step_programs` makes a `TracedProgram` of a function that trains, `program_record` describes it
for the capture file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tensorflow as tf

from nanreplay.program.collectives import replica_in_scope
from nanreplay.program.loss_keys import keys_of_losses, mean_operands, source_of
from nanreplay.program.observation import Observation, merged, notes_of, observation_from_names
from nanreplay.records import EACH_ITERATION
from nanreplay.tensorflow_internals import tf_datasets, tf_functions, tf_variables

# Readable names for the arrays that a compiled step is given, fetches and returns.


def argument_leaves(arguments: Sequence[Any]) -> list[Any]:
    """The arrays among the flat arguments of a call."""
    return [value for value in arguments if not is_handle(value)]


def argument_paths(function: Any, arguments: Sequence[Any]) -> list[str]:
    """A readable path for each array among the arguments: `0/ids`, `targets`.

    The index of an only argument is left out.
    """
    n_leaves = len(argument_leaves(arguments))
    return _signature_paths(function.structured_input_signature, n_leaves)


def signature_paths(graph: Any, count: int) -> list[str]:
    """A readable path for each of `count` arguments of a FuncGraph."""
    no_signature: tuple[Any, ...] = ((), {})
    return _signature_paths(graph.structured_input_signature or no_signature, count)


def _signature_paths(signature: tuple[Any, ...], count: int) -> list[str]:
    """Paths of the arrays of a structured input signature, `(args, kwargs)`.

    Their numbers where the signature does not hold `count` of them.
    """
    args, kwargs = signature
    structure: Any = (*args, kwargs)
    if not kwargs:
        structure = args[0] if len(args) == 1 else (*args,)
    leaves = tf_datasets.flatten_with_paths(structure)
    paths = []
    for path, leaf in leaves:
        if _is_data_spec(leaf):
            paths.append(path)
    return paths if len(paths) == count else list(map(str, range(count)))


def _is_data_spec(leaf: Any) -> bool:
    return isinstance(leaf, tf.TensorSpec) and not is_handle(leaf)


def element_specs(function: Any) -> list[Any]:
    """Specs of the elements of the iterators and datasets among a function's arguments."""
    args, kwargs = function.structured_input_signature
    specs = map(tf_datasets.element_spec, tf.nest.flatten((args, kwargs)))
    return [spec for spec in specs if spec is not None]


def fetched_paths(function: Any, fetched: Sequence[Any], *, in_loop: bool) -> list[str]:
    """A readable path for each tensor that a step fetches; of several replicas, the replica first.

    Args:
        function: The ConcreteFunction.
        fetched: The tensors.
        in_loop: Whether each iteration of a loop fetches such.
    """
    replicas = list(map(_replica_of, fetched))
    if any(replicas):
        paths = _paths_by_replica(fetched, replicas)
    else:
        paths = _paths_of_elements(function, len(fetched)) if fetched else []
    return [f"{EACH_ITERATION}{path}" for path in paths] if in_loop else paths


def _paths_by_replica(fetched: Sequence[Any], replicas: Sequence[int]) -> list[str]:
    """`replica_1/0` for the first tensor of the second replica, `has_value/0` for what is asked."""
    counts: Counter[str] = Counter()
    paths = []
    for tensor, replica in zip(fetched, replicas, strict=True):
        is_asked = tensor.op.type == "OptionalHasValue"
        prefix = "has_value" if is_asked else f"replica_{replica}"
        paths.append(f"{prefix}/{counts[prefix]}")
        counts[prefix] += 1
    return paths


def _replica_of(tensor: Any) -> int:
    """The replica that takes a tensor: ops of all but the first say so in their names."""
    replicas: list[int | None] = []
    pending = [tensor]
    while pending:
        for op in pending.pop().consumers():
            if op.type == "Identity":
                pending += op.outputs
            else:
                replicas.append(replica_in_scope(op.name))
    if not replicas or None in replicas:
        return 0
    return replicas[0] or 0


def _paths_of_elements(function: Any, count: int) -> list[str]:
    """Paths within the elements of the only iterator; numbers where that does not fit."""
    specs = element_specs(function)
    paths: list[str] = []
    if len(specs) == 1:
        for path, leaf in tf_datasets.flatten_with_paths(specs[0]):
            if leaf is not None:
                paths.append(path)
    if not paths or count % len(paths):
        return list(map(str, range(count)))
    n_elements = count // len(paths)
    if n_elements == 1:
        return paths
    return [f"{number}/{path}" for number in range(n_elements) for path in paths]


def output_names(graph: Any) -> list[str]:
    """A readable name for each output, such as `loss`."""
    named = tf_datasets.flatten_with_paths(graph.structured_outputs)
    names = []
    for path, leaf in named:
        if leaf is not None and tf.is_tensor(leaf):
            names.append(path)
    return names if len(names) == len(graph.outputs) else [tensor.name for tensor in graph.outputs]


# The program.


@dataclass(frozen=True)
class LoopFetch:
    """A loop of a step that fetches in each iteration."""

    op: Any
    """The While op of the main graph."""
    body: Any
    """FuncGraph of its body."""
    sources: Sequence[Any]
    """Ops of the body that fetch, and those that take apart what they fetched."""

    @property
    def fetched(self) -> list[Any]:
        """The tensors of the body that an iteration fetches."""
        return fetched_tensors(self.sources)


@dataclass(frozen=True)
class TracedProgram:
    """A traced step, as it is described in a capture."""

    graph: Any
    """The FuncGraph."""
    inputs: Sequence[tuple[Any, int]]
    """(tensor of the graph, leaf of the batch) pairs."""
    captures: Sequence[tuple[Any, Any]]
    """(placeholder, what it holds) pairs.

    That is an eager tensor (a variable's handle, a constant), or None where only a call knows.
    """
    outputs: Sequence[Any]
    """Tensors of the graph that a step returns."""
    output_names: Sequence[str]
    compilation: str
    """`graph` or `xla`."""
    leaf_paths: Sequence[str]
    """A readable path for each leaf of the batch."""
    outside: Sequence[Any] = ()
    """Outputs of ops that another run would not repeat, which are recorded with the batch."""
    sources: Sequence[Any] = ()
    """Ops that fetch the batch, and those that take apart what they fetched.

    What they give, but for handles, are inputs.
    """
    taken: Sequence[Any] = ()
    """The tensors of the calling function that it took apart for this one, leaf by leaf.

    Empty for a program that nothing of the kind is handed to.
    """
    loop: LoopFetch | None = None
    """What fetches the batch in a loop.

    A leaf holds what all iterations fetched, along a first axis.
    """
    layer_names: Collection[str] = ()
    """Names of the known layers, for a function that was traced before anybody looked."""
    optimizer_names: Collection[str] = ()

    @cached_property
    def seen(self) -> Observation:
        """What was noted while the graph, and the functions that it calls, were traced."""
        graphs = [self.graph, *tf_functions.library_graphs(self.graph).values()]
        if any(notes_of(graph, make=False) is not None for graph in graphs):
            observation = merged(graphs)
        else:
            observation = observation_from_names(graphs, self.layer_names, self.optimizer_names)
        observation.note_result(list(self.outputs))
        return observation

    @property
    def fetched(self) -> list[Any]:
        """The tensors of the main graph that the step fetches."""
        return fetched_tensors(self.sources)

    @property
    def handles(self) -> list[Any]:
        """Handles of the variables that the program captures."""
        return [value for _, value in self.captures if value is not None and is_variable(value)]

    @cached_property
    def losses(self) -> list[Any]:
        """What was differentiated in the main graph; else a scalar that it returns.

        Where the step returns a copy of the loss, the copy stands for it: it is fetched anyway.
        """
        returned = {}
        for tensor in reversed(self.outputs):
            returned[id(source_of(tensor))] = tensor
        losses = []
        for loss in self.seen.losses():
            if loss.graph is self.graph:
                losses.append(returned.get(id(source_of(loss)), loss))
        return losses or self.returned_losses[:1]

    @cached_property
    def returned_losses(self) -> list[Any]:
        """Scalar floats that the step returns; one whose name says loss first."""
        named = zip(self.output_names, self.outputs, strict=True)
        scalars = []
        for name, tensor in named:
            if is_scalar_float(tensor):
                scalars.append((name, tensor))
        # The sort is stable: False, for a name with "loss" in it, comes first.
        return [tensor for _, tensor in sorted(scalars, key=lambda pair: "loss" not in pair[0])]

    def layout_of_outputs(self) -> list[tuple[str, int]]:
        """(name in the fingerprint, index of the output) of each scalar float that is returned."""
        loss_numbers: dict[int, int] = {}
        for loss_number, tensor in enumerate(self.losses):
            # Of a loss that is listed twice, the first number counts.
            loss_numbers.setdefault(id(tensor), loss_number)
        layout = []
        for position, tensor in enumerate(self.outputs):
            if not is_scalar_float(tensor):
                continue
            number = loss_numbers.get(id(tensor))
            name = f"logged:{position}" if number is None else f"loss:{number}"
            layout.append((name, position))
        return layout

    def mean_of_losses(self) -> tuple[Any, Any] | None:
        """Handles of (total, count) of the metric whose mean the step returns as its loss.

        Keras returns the running mean of the losses of an epoch, total / count, and not the loss of
        the step. None where the step returns no such.
        """
        placeholders = self.mean_placeholders()
        if placeholders is None:
            return None
        captured = {}
        for placeholder, value in self.captures:
            captured[id(placeholder)] = value
        return captured[id(placeholders[0])], captured[id(placeholders[1])]

    def mean_placeholders(self) -> tuple[Any, Any] | None:
        """The placeholders of these handles."""
        captured = {id(placeholder) for placeholder, _ in self.captures}
        for name, tensor in zip(self.output_names, self.outputs, strict=True):
            reads = mean_operands(tensor) if name.rpartition("/")[2] == "loss" else None
            if reads is not None and all(id(read.inputs[0]) in captured for read in reads):
                return reads[0].inputs[0], reads[1].inputs[0]
        return None

    @cached_property
    def loss_keys(self) -> tuple[str, ...]:
        """The key under which the step returns each loss; empty where none has one."""
        named = list(zip(self.output_names, self.outputs, strict=True))
        return keys_of_losses(self.losses, named, self.graph)


# What tensors are.


def fetched_tensors(sources: Iterable[Any]) -> list[Any]:
    """What ops that fetch give, but for handles."""
    outputs = []
    for op in sources:
        outputs.extend(op.outputs)
    return [tensor for tensor in outputs if not is_handle(tensor)]


def is_scalar_float(tensor: Any) -> bool:
    """Whether a tensor is one number of a float type."""
    return bool(tensor.dtype.is_floating) and tensor.shape.rank == 0


def is_handle(tensor: Any) -> bool:
    """Whether a tensor stands for something that no array holds."""
    return tensor.dtype in (tf.resource, tf.variant)


def is_variable(tensor: Any) -> bool:
    """Whether an eager tensor is the handle of a variable (not of a table, an iterator, ...)."""
    return tensor.dtype == tf.resource and tf_variables.variable_type(tensor) is not None


def is_float_variable(handle: Any) -> bool:
    """Whether a handle is that of a variable that can hold NaN."""
    kind = tf_variables.variable_type(handle)
    return kind is not None and bool(tf.dtypes.as_dtype(kind[0]).is_floating)
