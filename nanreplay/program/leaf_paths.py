"""Readable names for the arrays that a compiled step is given, fetches and returns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nanreplay.program import private_tf
from nanreplay.records import EACH_ITERATION

_REPLICA = re.compile(r"(?:^|/)replica_(\d+)/")


def argument_leaves(arguments: Sequence[Any]) -> list[Any]:
    """The arrays among the flat arguments of a call."""
    return [value for value in arguments if value.dtype not in (tf.resource, tf.variant)]


def argument_paths(function: Any, arguments: Sequence[Any]) -> list[str]:
    """A readable path for each array among the arguments: `0/ids`, `targets`; the only argument's own index is left out."""
    n_leaves = len(argument_leaves(arguments))
    args, kwargs = function.structured_input_signature
    only = args[0] if len(args) == 1 and not kwargs else (*args,) if not kwargs else (*args, kwargs)
    found = [path for path, leaf in private_tf.flatten_with_paths(only) if _is_data_spec(leaf)]
    return found if len(found) == n_leaves else [str(number) for number in range(n_leaves)]


def _is_data_spec(leaf: Any) -> bool:
    return isinstance(leaf, tf.TensorSpec) and leaf.dtype not in (tf.resource, tf.variant)


def signature_paths(graph: Any, count: int) -> list[str]:
    """A readable path for each of `count` arguments of a FuncGraph; their numbers where its signature holds others."""
    args, kwargs = graph.structured_input_signature or (tuple[Any, ...](), {})
    only = args[0] if len(args) == 1 and not kwargs else (*args,) if not kwargs else (*args, kwargs)
    found = [path for path, leaf in private_tf.flatten_with_paths(only) if _is_data_spec(leaf)]
    return found if len(found) == count else [str(number) for number in range(count)]


def element_specs(function: Any) -> list[Any]:
    """Specs of the elements of the iterators and datasets among a function's arguments."""
    args, kwargs = function.structured_input_signature
    return [spec for leaf in tf.nest.flatten((args, kwargs)) if (spec := private_tf.element_spec(leaf)) is not None]


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
        replicas = [-1 if asked else replica for asked, replica in zip(is_asked, replicas, strict=True)]
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
    found = [path for path, leaf in private_tf.flatten_with_paths(specs[0]) if leaf is not None] if len(specs) == 1 else []
    if found and count % len(found) == 0:
        several = count // len(found)
        return found if several == 1 else [f"{k}/{path}" for k in range(several) for path in found]
    return [str(number) for number in range(count)]


def output_names(graph: Any) -> list[str]:
    """A readable name for each output, such as `loss`."""
    named = private_tf.flatten_with_paths(graph.structured_outputs)
    names = [path for path, leaf in named if leaf is not None and tf.is_tensor(leaf)]
    return names if len(names) == len(graph.outputs) else [tensor.name for tensor in graph.outputs]
