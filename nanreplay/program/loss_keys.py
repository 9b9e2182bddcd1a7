"""Under which keys a step returns its losses: `d_loss` of `return {"d_loss": d_loss, ...}`.

A Keras model returns the mean of an epoch in the place of a loss; its key is that of the loss too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_AS_THEY_ARE = frozenset({"Identity", "Cast", "Sum", "Mean", "Reshape", "Squeeze", "ExpandDims"})
"""Ops that a metric puts a value of one element through, before it adds it."""
_READS = "ReadVariableOp"


def key_in(path: str) -> str:
    """Return a path among the results of a step where it holds a key; "" for a mere position."""
    is_key = ":" not in path and any(not part.isdecimal() for part in path.split("/") if part)
    return path if is_key else ""


def keys_by_id(named: Sequence[tuple[str, Any]]) -> dict[int, str]:
    """Return the key of each tensor that is returned under one, by the id of the tensor."""
    keys: dict[int, str] = {}
    for path, tensor in named:
        if key_in(path):
            keys.setdefault(id(tensor), path)
    return keys


def keys_of_losses(
    losses: Sequence[Any], named: Sequence[tuple[str, Any]], graph: Any
) -> tuple[str, ...]:
    """Return the key of each loss of a graph; "" for one that is returned under none.

    Args:
        losses: Tensors of the graph.
        named: (path, tensor) of what the graph returns.
        graph: The FuncGraph.
    """
    sources = [id(source_of(loss)) for loss in losses]
    key_of = keys_by_id([(path, source_of(tensor)) for path, tensor in named])
    if key_of and not all(source in key_of for source in sources):
        key_of = {**_keys_of_means(named, graph), **key_of}
    found = tuple(key_of.get(source, "") for source in sources)
    return found if any(found) else ()


def _keys_of_means(named: Sequence[tuple[str, Any]], graph: Any) -> Mapping[int, str]:
    """The key of each mean that is returned, by the ids of the tensors that were added to it."""
    totals: dict[int, str] = {}
    for path, tensor in named:
        operands = mean_operands(tensor)
        if operands is not None and key_in(path):
            totals.setdefault(id(operands[0].inputs[0]), path)
    keys: dict[int, str] = {}
    for op in graph.get_operations() if totals else ():
        if op.type in ("AssignVariableOp", "AssignAddVariableOp"):
            key = totals.get(id(op.inputs[0]))
            if key is not None:
                for tensor in _added(op.inputs[1]):
                    keys.setdefault(id(tensor), key)
    return keys


def mean_operands(tensor: Any) -> tuple[Any, Any] | None:
    """Return the ops that read (total, count) where a tensor is total / count; else None."""
    op = source_of(tensor).op
    if op.type not in ("DivNoNan", "RealDiv"):
        return None
    total, count = (source_of(operand).op for operand in op.inputs)
    return (total, count) if total.type == count.type == _READS else None


def _added(value: Any) -> Iterator[Any]:
    """What is added to a total that is written, and what that was before a sum of one element."""
    op = source_of(value).op
    if op.type in ("AddV2", "Add"):
        terms = [term for term in op.inputs if source_of(term).op.type != _READS]
        if len(terms) != 1:
            return
        value = terms[0]
    while True:
        yield source_of(value)
        op = source_of(value).op
        if op.type not in _AS_THEY_ARE:
            return
        value = op.inputs[0]


def source_of(tensor: Any) -> Any:
    """Return the tensor that `tensor` is a copy of, by Identity ops."""
    while tensor.op.type == "Identity" and len(tensor.op.inputs):
        tensor = tensor.op.inputs[0]
    return tensor
