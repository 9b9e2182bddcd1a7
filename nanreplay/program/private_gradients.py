"""The private part of TensorFlow that knows the gradients of `tf.custom_gradient`; see `private_tf`."""

from __future__ import annotations

from typing import Any

from tensorflow.python.framework import ops as _ops


def forget_gradients(graph: Any) -> None:
    """Take the custom gradients of a graph that will not run any more out of TensorFlow's registry.

    The registry keeps them for ever, and with them the tensors, the graph and its functions. In every step of a Keras optimizer
    there is one, that of `ReplicaContext.all_reduce`.
    """
    for op in graph.get_operations():
        if op.type == "IdentityN" and "_gradient_op_type" in op.node_def.attr:
            _ops.gradient_registry._registry.pop(op.get_attr("_gradient_op_type").decode(), None)
