"""The program of a training step: a graph that the training itself traced, with what it takes and what it gives."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tensorflow as tf

from nanreplay.program.observation import Observation, merged, notes_of, observation_from_names
from nanreplay.records import EACH_ITERATION
from nanreplay.tensorflow_internals import tf_datasets, tf_functions, tf_variables

# Readable names for the arrays that a compiled step is given, fetches and returns.

_REPLICA = re.compile(r"(?:^|/)replica_(\d+)/")


def argument_leaves(arguments: Sequence[Any]) -> list[Any]:
    """The arrays among the flat arguments of a call."""
    return [value for value in arguments if value.dtype not in (tf.resource, tf.variant)]


def argument_paths(function: Any, arguments: Sequence[Any]) -> list[str]:
    """A readable path for each array among the arguments: `0/ids`, `targets`; the only argument's own index is left out."""
    n_leaves = len(argument_leaves(arguments))
    args, kwargs = function.structured_input_signature
    only = args[0] if len(args) == 1 and not kwargs else (*args,) if not kwargs else (*args, kwargs)
    found = [path for path, leaf in tf_datasets.flatten_with_paths(only) if _is_data_spec(leaf)]
    return found if len(found) == n_leaves else [str(number) for number in range(n_leaves)]


def _is_data_spec(leaf: Any) -> bool:
    return isinstance(leaf, tf.TensorSpec) and leaf.dtype not in (tf.resource, tf.variant)


def signature_paths(graph: Any, count: int) -> list[str]:
    """A readable path for each of `count` arguments of a FuncGraph; their numbers where its signature holds others."""
    args, kwargs = graph.structured_input_signature or (tuple[Any, ...](), {})
    only = args[0] if len(args) == 1 and not kwargs else (*args,) if not kwargs else (*args, kwargs)
    found = [path for path, leaf in tf_datasets.flatten_with_paths(only) if _is_data_spec(leaf)]
    return found if len(found) == count else [str(number) for number in range(count)]


def element_specs(function: Any) -> list[Any]:
    """Specs of the elements of the iterators and datasets among a function's arguments."""
    args, kwargs = function.structured_input_signature
    return [
        spec
        for leaf in tf.nest.flatten((args, kwargs))
        if (spec := tf_datasets.element_spec(leaf)) is not None
    ]


def fetched_paths(function: Any, fetched: Sequence[Any], *, in_loop: bool) -> list[str]:
    """A readable path for each tensor that a step fetches; of those of several replicas, the replica first.

    Args:
        function: The ConcreteFunction.
        fetched: The tensors.
        in_loop: Whether each iteration of a loop fetches such.
    """
    replicas = [_replica_of(tensor) for tensor in fetched]
    if any(replicas):
        is_asked = [tensor.op.type == "OptionalHasValue" for tensor in fetched]
        replicas = [
            -1 if asked else replica for asked, replica in zip(is_asked, replicas, strict=True)
        ]
        numbers = [replicas[:index].count(replica) for index, replica in enumerate(replicas)]
        found = [
            f"replica_{replica}/{number}" if replica >= 0 else f"has_value/{number}"
            for replica, number in zip(replicas, numbers, strict=True)
        ]
    else:
        found = _paths_of_elements(function, len(fetched)) if fetched else []
    return [f"{EACH_ITERATION}{path}" for path in found] if in_loop else found


def _replica_of(tensor: Any) -> int:
    """The replica that takes a tensor: ops of all but the first say so in their names."""
    users, pending = [], [tensor]
    while pending:
        for op in pending.pop().consumers():
            if op.type == "Identity":
                pending += op.outputs
            else:
                users.append(_REPLICA.search(op.name))
    return int(users[0][1]) if users and users[0] is not None and all(users) else 0


def _paths_of_elements(function: Any, count: int) -> list[str]:
    specs = element_specs(function)
    found = (
        [path for path, leaf in tf_datasets.flatten_with_paths(specs[0]) if leaf is not None]
        if len(specs) == 1
        else []
    )
    if found and count % len(found) == 0:
        several = count // len(found)
        return found if several == 1 else [f"{k}/{path}" for k in range(several) for path in found]
    return [str(number) for number in range(count)]


def output_names(graph: Any) -> list[str]:
    """A readable name for each output, such as `loss`."""
    named = tf_datasets.flatten_with_paths(graph.structured_outputs)
    names = [path for path, leaf in named if leaf is not None and tf.is_tensor(leaf)]
    return names if len(names) == len(graph.outputs) else [tensor.name for tensor in graph.outputs]


# --- program.trace


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
        return [tensor for op in self.sources for tensor in op.outputs if not is_handle(tensor)]


@dataclass(frozen=True)
class TracedProgram:
    """A traced step, as it is described in a capture."""

    graph: Any
    """The FuncGraph."""
    inputs: Sequence[tuple[Any, int]]
    """(tensor of the graph, leaf of the batch) pairs."""
    captures: Sequence[tuple[Any, Any]]
    """(placeholder, what it holds) pairs: an eager tensor (a variable's handle, a constant), or None where only a call knows."""
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
    """Ops that fetch the batch, and those that take apart what they fetched. What they give but handles are inputs."""
    taken: Sequence[Any] = ()
    """Where this is a function that another one calls with what it has taken apart: tensors of that one, leaf by leaf."""
    loop: LoopFetch | None = None
    """What fetches the batch in a loop; a leaf holds what all iterations fetched, along a first axis."""
    layer_names: Collection[str] = ()
    """Names of the layers that are known, for a function that was traced before anybody looked."""
    optimizer_names: Collection[str] = ()

    @cached_property
    def seen(self) -> Observation:
        """What was noted while the graph, and the functions that it calls, were traced."""
        graphs = [self.graph, *tf_functions.library_graphs(self.graph).values()]
        noted = any(notes_of(graph, make=False) is not None for graph in graphs)
        found = (
            merged(graphs)
            if noted
            else observation_from_names(graphs, self.layer_names, self.optimizer_names)
        )
        found.note_result(list(self.outputs))
        return found

    @property
    def fetched(self) -> list[Any]:
        """The tensors of the main graph that the step fetches."""
        return [tensor for op in self.sources for tensor in op.outputs if not is_handle(tensor)]

    @property
    def handles(self) -> list[Any]:
        """Handles of the variables that the program captures."""
        return [held for _, held in self.captures if held is not None and is_variable(held)]

    @cached_property
    def losses(self) -> list[Any]:
        """What was differentiated in the main graph; the returned tensor where it is that value. Else a returned scalar."""
        returned = {id(source_of(tensor)): tensor for tensor in reversed(self.outputs)}
        found = [
            returned.get(id(source_of(loss)), loss)
            for loss in self.seen.losses()
            if loss.graph is self.graph
        ]
        return found or self.returned_losses[:1]

    @cached_property
    def returned_losses(self) -> list[Any]:
        """Scalar floats that the step returns; one whose name says loss first."""
        scalars = [
            (name, tensor)
            for name, tensor in zip(self.output_names, self.outputs, strict=True)
            if is_scalar_float(tensor)
        ]
        return [tensor for _, tensor in sorted(scalars, key=lambda pair: "loss" not in pair[0])]

    def layout_of_outputs(self) -> list[tuple[str, int]]:
        """(name in the fingerprint, index of the output) of each scalar float that is returned."""
        index = {id(tensor): number for number, tensor in reversed(list(enumerate(self.losses)))}
        found = []
        for position, tensor in enumerate(self.outputs):
            if is_scalar_float(tensor):
                number = index.get(id(tensor))
                found.append(
                    (f"logged:{position}" if number is None else f"loss:{number}", position)
                )
        return found

    def mean_of_losses(self) -> tuple[Any, Any] | None:
        """Handles of (total, count) where the step returns total / count of a metric as its loss, as Keras does."""
        held = {id(placeholder): value for placeholder, value in self.captures}
        found = self.mean_placeholders()
        return None if found is None else (held[id(found[0])], held[id(found[1])])

    def mean_placeholders(self) -> tuple[Any, Any] | None:
        """The placeholders of these handles."""
        held = {id(placeholder) for placeholder, _ in self.captures}
        for name, tensor in zip(self.output_names, self.outputs, strict=True):
            op = source_of(tensor).op
            if name.rpartition("/")[2] != "loss" or op.type not in ("DivNoNan", "RealDiv"):
                continue
            reads = [source_of(each).op for each in op.inputs]
            if all(read.type == "ReadVariableOp" and id(read.inputs[0]) in held for read in reads):
                return reads[0].inputs[0], reads[1].inputs[0]
        return None


def source_of(tensor: Any) -> Any:
    """The tensor that `tensor` is a copy of, by Identity ops."""
    while tensor.op.type == "Identity" and len(tensor.op.inputs):
        tensor = tensor.op.inputs[0]
    return tensor


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


def indices_by_handle(handles: Sequence[Any]) -> Mapping[int, int]:
    """Position of each handle by its id."""
    return {id(handle): index for index, handle in enumerate(handles)}
