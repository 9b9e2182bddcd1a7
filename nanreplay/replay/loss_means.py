"""Which mean a step returns as its loss.

Keras's `fit` returns one: its `loss` is `total / count` of a metric over the epoch so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nanreplay.records import Signature


def mean_of_losses(
    signature: Signature, nodes: Mapping[str, Any], inputs_of: Mapping[str, Sequence[str]]
) -> tuple[int, int] | None:
    """Indices of the total and count of a mean whose value a step returns as its loss.

    Args:
        signature: How the step's program is called.
        nodes: Ops of its main graph by name.
        inputs_of: Tensor names of the data inputs of each.
    """
    variables: dict[str, int | None] = {}
    for spec in signature.captures:
        variables[spec.tensor] = spec.variable
    for name, tensor in zip(signature.output_names, signature.outputs, strict=False):
        node = _source(nodes, tensor)
        is_loss = name.rpartition("/")[2] == "loss"
        if not is_loss or node is None or node.op not in ("DivNoNan", "RealDiv"):
            continue
        read = []
        for operand in inputs_of[node.name]:
            source = _source(nodes, operand)
            if source is not None and source.op == "ReadVariableOp":
                read.append(variables.get(inputs_of[source.name][0]))
        if len(read) == 2 and read[0] is not None and read[1] is not None:
            return read[0], read[1]
    return None


def _source(nodes: Mapping[str, Any], tensor: str) -> Any:
    """The op that makes a tensor, copies skipped; None without one."""
    node = nodes.get(tensor.partition(":")[0])
    while node is not None and node.op == "Identity":
        node = nodes.get(node.input[0].partition(":")[0])
    return node
