"""From a live trace to a `ProgramRecord`: the graph's bytes, its signature, and what is known of each op."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from nanreplay.program import private_tf
from nanreplay.program.observation import Mark, Observation
from nanreplay.program.phases import Flow, classify
from nanreplay.program.replicas import replica_of
from nanreplay.program.sources import SourceTable
from nanreplay.program.trace import TracedProgram, is_variable
from nanreplay.program.watch import WatchEntry
from nanreplay.records import CaptureSpec, GradientSpec, InputSpec, OpInfo, ProgramRecord, Signature

_SYMBOLIC_GRADIENT = re.compile(r"(?:^|/)gradients(?:_\d+)?/(.+)_grad/")


def describe_program(
    program: TracedProgram,
    program_id: str,
    *,
    variable_index: Mapping[int, int],
    metrics: frozenset[int],
    leaf_paths: Sequence[str],
    sources: SourceTable,
) -> ProgramRecord:
    """Describe a traced step.

    Args:
        program: The trace.
        program_id: Its name in the file.
        variable_index: Index in the table of variables, by id of the handle.
        metrics: Indices of metric variables; what only they read is no part of the training.
        leaf_paths: A readable path for each array of the flattened batch.
        sources: Collects stacks and their frames.
    """
    graph = program.trace.graph
    signature, constants = _signature(program, variable_index, leaf_paths)
    return ProgramRecord(
        id=program_id,
        graph=graph.as_graph_def(add_shapes=False).SerializeToString(),
        signature=signature,
        ops=describe_ops(graph, program.trace.seen, signature, metrics, sources),
        constants=constants,
    )


def _signature(program: TracedProgram, variable_index: Mapping[int, int], leaf_paths: Sequence[str]) -> tuple[Signature, list[Any]]:
    trace, graph = program.trace, program.trace.graph
    captures, constants = _captures(graph, variable_index)
    data = graph.inputs[: len(graph.inputs) - len(captures)]
    fed = tuple(_input_spec(tensor, len(leaf_paths) + i, tensor.name) for i, tensor in enumerate(trace.outside))
    result, vector, _ = program.function.structured_outputs
    names = [path for path, leaf in private_tf.flatten_with_paths((result, vector)) if leaf is not None]
    outputs = tuple(tensor.name for tensor in graph.outputs[: len(graph.outputs) - len(fed)])
    watch = outputs[-1] if trace.watch.vector is not None else None
    seen = trace.seen
    return Signature(
        compilation="xla" if program.compilation == "xla" else "graph",
        inputs=tuple(_input_spec(tensor, leaf, leaf_paths[leaf]) for leaf, tensor in enumerate(data)),
        captures=captures,
        outputs=outputs,
        output_names=tuple(names) if len(names) == len(outputs) else tuple(outputs),
        control_outputs=tuple(op.name for op in graph.control_outputs),
        losses=tuple(tensor.name for tensor in seen.losses() if tensor.graph is graph),
        gradients=_gradients(seen, variable_index),
        watch=watch,
        watch_layout=watch_layout(trace.watch.entries, variable_index),
        learning_rate=learning_rate_of(seen, variable_index),
        loss_scaled=seen.loss_scale is not None or bool(seen.unscaled),
        policy=_policy(seen),
        root_layer=seen.root_layer,
        fed=fed,
        loss_of=tuple(f"replica {replica}" for replica in seen.loss_replicas()),
    ), constants


def _input_spec(tensor: Any, leaf: int, path: str) -> InputSpec:
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return InputSpec(tensor.name, leaf, path, tensor.dtype.name, shape)


def _captures(graph: Any, variable_index: Mapping[int, int]) -> tuple[tuple[CaptureSpec, ...], list[Any]]:
    captures: list[CaptureSpec] = []
    constants: list[Any] = []
    for outside, inside in graph.captures:
        if outside.dtype == tf.resource or outside.dtype == tf.variant:
            index = variable_index.get(id(outside)) if outside.dtype == tf.resource and is_variable(outside) else None
            captures.append(CaptureSpec(inside.name, variable=index))
        else:
            captures.append(CaptureSpec(inside.name, constant=len(constants)))
            constants.append(outside)
    captures += [CaptureSpec(inside.name) for inside in private_tf.deferred_captures(graph)]  # keys of collective ops
    return tuple(captures), constants


def _gradients(seen: Observation, variable_index: Mapping[int, int]) -> tuple[GradientSpec, ...]:
    specs: list[GradientSpec] = []
    for gradient, variable in seen.gradients():
        index = variable_index.get(id(private_tf.handle_of(variable)))
        if index is None:
            continue
        if isinstance(gradient, tf.IndexedSlices):
            specs.append(GradientSpec(index, gradient.values.name, gradient.indices.name))
        else:
            specs.append(GradientSpec(index, gradient.name))
    return tuple(specs)


def watch_layout(entries: Sequence[WatchEntry], variable_index: Mapping[int, int]) -> tuple[str, ...]:
    """Names of the watch's elements, e.g. `loss:0`, `gradient_sum:12`, `learning_rate`."""
    layout = []
    for entry in entries:
        subject = entry.subject if isinstance(entry.subject, int) else variable_index.get(id(entry.subject), -1)
        layout.append(entry.kind if entry.subject is None else f"{entry.kind}:{subject}")
    return tuple(layout)


def learning_rate_of(seen: Observation, variable_index: Mapping[int, int]) -> int | None:
    """Index of the variable that holds the learning rate, None when there is none (a schedule)."""
    for optimizer in seen.optimizers:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        index = variable_index.get(id(private_tf.handle_of(getattr(inner, "_learning_rate", None))))
        if index is not None:
            return index
    return None


def _policy(seen: Observation) -> str:
    names = {layer.dtype_policy.name for model in seen.layers for layer in (model, *getattr(model, "layers", ()))}
    return ", ".join(sorted(names - {"float32"}) or ["float32"])


def describe_ops(graph: Any, seen: Observation, signature: Signature, metrics: frozenset[int], sources: SourceTable) -> list[OpInfo]:
    """Describe every op of `graph` and of the functions it calls."""
    graphs = {"": graph, **private_tf.library_graphs(graph)}
    names = {id(each): name for name, each in graphs.items()}
    forward = _forward_ops(graphs, seen, names)
    flow = classify(graph, seen, signature, metrics)
    devices = seen.replica_devices if len(seen.replica_devices) > 1 else ()
    found: list[OpInfo] = []
    for function, each in graphs.items():
        marks = _marks_of(each, seen)
        for index, op in enumerate(each.get_operations()):
            key = (function, op.name)
            found.append(_describe_op(op, key, _stack_at(marks, index, id(each)), forward, flow, sources, seen.root_layer, devices))
    return with_forward_layers(found)


def _describe_op(
    op: Any,
    key: tuple[str, str],
    layers: str,
    forward: Mapping[tuple[str, str], tuple[str, str]],
    flow: Flow,
    sources: SourceTable,
    root: str | None,
    devices: Sequence[str],
) -> OpInfo:
    function, name = key
    forward_function, forward_name = forward.get(key, ("", ""))
    phase, where = flow.of(name, bool(layers)) if function == "" else ("", "layer" if layers else "")
    return OpInfo(
        function=function, name=name, type=op.type, layer_path=without_root(layers, root), phase=phase, where=where,
        stack=sources.add(op.traceback), forward=forward_name, forward_function=forward_function,
        replica=-1 if function else replica_of(name, op.device, devices),
    )  # fmt: skip


def without_root(path: str, root: str | None) -> str:
    """A chain of layers without the outermost model, which is the same for all; the model alone stays."""
    head, _, rest = path.partition("/")
    return rest if rest and head == root else path


def _marks_of(graph: Any, seen: Observation) -> list[Mark]:
    return seen.marks.get(id(graph), [])


def _stack_at(marks: Sequence[Mark], index: int, graph: int) -> str:
    """Chain of layers that were being called, in this graph, when its `index`-th op was made."""
    at = bisect.bisect_right(marks, index, key=lambda mark: mark.start) - 1
    if at < 0:
        return ""
    return "/".join(region.name for region in marks[at].stack if region.kind == "layer" and region.graph == graph)


def _forward_ops(graphs: Mapping[str, Any], seen: Observation, names: Mapping[int, str]) -> dict[tuple[str, str], tuple[str, str]]:
    """(function, backward op) -> (function, forward op), from the tape's calls and from the names of symbolic gradients."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    operations = {name: graph.get_operations() for name, graph in graphs.items()}
    for span in seen.spans:
        function = names.get(span.graph)
        target = None if span.forward is None else (names.get(id(span.forward.graph), ""), span.forward.op.name)
        if function is None:
            continue
        if target is None:
            target = _by_scope(operations[function], span.scope, span.op_type, function)
        if target is not None:
            for op in operations[function][span.start : span.end]:
                found.setdefault((function, op.name), target)
    for function, graph in graphs.items():
        _add_symbolic(function, graph, graphs, names, operations, found)
    return found


def _by_scope(ops: Sequence[Any], scope: str, op_type: str, function: str) -> tuple[str, str] | None:
    for op in ops:
        if op.type == op_type and op.name.rpartition("/")[0] == scope.rstrip("/"):
            return function, op.name
    return next(((function, op.name) for op in ops if op.type == op_type and op.name.startswith(scope)), None)


def _add_symbolic(
    function: str,
    graph: Any,
    graphs: Mapping[str, Any],
    names: Mapping[int, str],
    operations: Mapping[str, Any],
    found: dict[tuple[str, str], tuple[str, str]],
) -> None:
    """Ops that TensorFlow made by symbolic differentiation of a function are named after the forward op."""
    owner = names.get(id(private_tf.forward_graph(graph)))
    order = [owner] if owner is not None else [name for name in graphs if name != function]
    known = {name: {op.name for op in operations[name]} for name in order}
    for op in operations[function]:
        match = _SYMBOLIC_GRADIENT.search(op.name)
        if match and (function, op.name) not in found:
            target = next(((name, match[1]) for name in order if match[1] in known[name]), None)
            if target is not None:
                found[function, op.name] = target


def with_forward_layers(ops: Sequence[OpInfo]) -> list[OpInfo]:
    """Give backward ops the layer, the place and the stack of the forward op that they differentiate."""
    by_key = {(op.function, op.name): op for op in ops}
    return [_with_forward_layer(op, by_key) for op in ops]


def _with_forward_layer(op: OpInfo, by_key: Mapping[tuple[str, str], OpInfo]) -> OpInfo:
    forward, seen = op, set()
    while forward.forward and (forward.function, forward.name) not in seen:
        seen.add((forward.function, forward.name))
        following = by_key.get((forward.forward_function, forward.forward))
        if following is None:
            break
        forward = following
    if forward is op or op.phase == "update":
        return op
    where = forward.where if forward.where in ("layer", "loss", "input") else op.where
    return replace(op, layer_path=forward.layer_path, where=where, stack=forward.stack)
