"""Feeding a loop that fetches in each iteration: what was fetched goes into it as one array, of which each iteration takes its part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from nanreplay.program.functions import output_name
from nanreplay.program.trace import LoopFetch

_FED = "nanreplay_fetched"


def fed_name(loop: LoopFetch, number: int) -> str:
    """Name of the placeholder, in the main graph, of what the iterations fetched as their tensor of this number."""
    return f"{loop.op.name}/{_FED}_{number}"


def feed_loop(graph: Any, loop: LoopFetch) -> None:
    """Put arrays in the place of what the body of a loop fetches, in a GraphDef.

    The loop hands the arrays on from iteration to iteration, and its body takes the part of its number. The number is the
    first thing that every While of TensorFlow 2 hands on.
    """
    node = next(each for each in graph.node if each.name == loop.op.name)
    functions = {function.signature.name: function for function in graph.library.function}
    body, cond = (functions[node.attr[key].func.name] for key in ("body", "cond"))
    places = {}
    for number, tensor in enumerate(loop.fetched):
        _hand_on(graph, node, body, cond, fed_name(loop, number), number, tensor)
        places[output_name(tensor)] = _part_of_iteration(body, number, tensor)
    _without_sources(body, {op.name for op in loop.sources}, places)


def _hand_on(graph: Any, node: Any, body: Any, cond: Any, name: str, number: int, tensor: Any) -> None:
    """Give the loop one array more."""
    kind = tensor.dtype.as_datatype_enum
    shape = tf.TensorShape([None]).concatenate(tensor.shape).as_proto()
    placeholder = graph.node.add(name=name, op="Placeholder")
    placeholder.attr["dtype"].type = kind
    placeholder.attr["shape"].shape.CopyFrom(shape)
    n_data = sum(not each.startswith("^") for each in node.input)
    node.input[:] = [*node.input[:n_data], name, *node.input[n_data:]]
    node.attr["T"].list.type.append(kind)
    if node.attr["output_shapes"].list.shape:
        node.attr["output_shapes"].list.shape.add().CopyFrom(shape)
    for function in (body, cond):
        function.signature.input_arg.add(name=f"{_FED}_{number}", type=kind)
    body.signature.output_arg.add(name=f"{_FED}_{number}_out", type=kind)
    body.ret[f"{_FED}_{number}_out"] = f"{_FED}_{number}"


def _part_of_iteration(body: Any, number: int, tensor: Any) -> str:
    """Add nodes that take the part of an iteration; returns the name of what they give."""
    axis = body.node_def.add(name=f"{_FED}_{number}/axis", op="Const")
    axis.attr["dtype"].type = tf.int32.as_datatype_enum
    axis.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0, tf.int32))
    counter = body.signature.input_arg[0].name
    inputs = [f"{_FED}_{number}", counter, f"{axis.name}:output:0"]
    part = body.node_def.add(name=f"{_FED}_{number}/part", op="GatherV2", input=inputs)
    part.attr["Tparams"].type = tensor.dtype.as_datatype_enum
    part.attr["Tindices"].type = part.attr["Taxis"].type = tf.int32.as_datatype_enum
    part.attr["batch_dims"].i = 0
    return f"{part.name}:output:0"


def _without_sources(body: Any, removed: set[str], places: Mapping[str, str]) -> None:
    kept = [node for node in body.node_def if node.name not in removed]
    for node in kept:
        inputs = [places.get(each, each) for each in node.input]
        node.input[:] = [each for each in inputs if not (each.startswith("^") and each[1:] in removed)]
    del body.node_def[:]
    body.node_def.extend(kept)
    for name, value in list(body.ret.items()):
        body.ret[name] = places.get(value, value)
    for name in [name for name, node in body.control_ret.items() if node in removed]:
        del body.control_ret[name]
        body.signature.control_output.remove(name)
