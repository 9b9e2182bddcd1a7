"""From a live trace to a `ProgramRecord`: the graph's bytes, its signature, and what is known of each op."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from nanreplay.program.collectives import replica_of
from nanreplay.program.fetching import fed_name, feed_loop
from nanreplay.program.fingerprint import FingerprintEntry
from nanreplay.program.graph_editor import forget_colocations
from nanreplay.program.observation import Mark, Observation, notes_of
from nanreplay.program.op_facts import PhaseFlow, SourceTable, classify_ops
from nanreplay.program.traced_program import LoopFetch, TracedProgram, is_variable
from nanreplay.records import CaptureSpec, GradientSpec, InputSpec, OpInfo, ProgramRecord, Signature
from nanreplay.tensorflow_internals import tf_functions, tf_variables

_TAPE_GRADIENT = re.compile(r"gradient_tape/(.+)/[^/]+$")
_SYMBOLIC_GRADIENT = re.compile(r"(?:^|/)gradients(?:_\d+)?/(.+)_grad/")


def describe_program(
    program: TracedProgram,
    program_id: str,
    *,
    variable_index: Mapping[int, int],
    metrics: frozenset[int],
    sources: SourceTable,
    layout: Sequence[str],
) -> ProgramRecord:
    """Describe a traced step.

    Args:
        program: The trace.
        program_id: Its name in the file.
        variable_index: Index in the table of variables, by id of the handle.
        metrics: Indices of metric variables; what only they read is no part of the training.
        sources: Collects stacks and their frames.
        layout: Names of the elements of its fingerprint.
    """
    signature, constants = _signature(program, variable_index, layout)
    graph = program.graph.as_graph_def(add_shapes=False)
    feed_sources(graph, program)
    if program.loop is not None:
        feed_loop(graph, program.loop)
    forget_colocations(graph)
    return ProgramRecord(
        id=program_id,
        graph=graph.SerializeToString(),
        signature=signature,
        ops=describe_ops(program, signature, metrics, sources),
        constants=constants,
    )


def feed_sources(graph: Any, program: TracedProgram) -> None:
    """Put placeholders in the places of ops that fetch the batch, in a GraphDef."""
    made = program.fetched
    fetched = {tensor.name: f"{_fed_name(tensor)}:0" for tensor in made}
    if not fetched:
        return
    removed = {
        op.name: [_fed_name(tensor) for tensor in op.outputs if tensor.name in fetched]
        for op in program.sources
    }
    kept = [node for node in graph.node if node.name not in removed]
    for node in kept:
        node.input[:] = [
            name for each in node.input for name in _fed_inputs(each, fetched, removed)
        ]
    del graph.node[:]
    graph.node.extend(kept)
    for tensor in made:
        node = graph.node.add(name=_fed_name(tensor), op="Placeholder")
        node.attr["dtype"].type = tensor.dtype.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(tensor.shape.as_proto())


def _fed_name(tensor: Any) -> str:
    return f"{tensor.op.name}/output_{tensor.value_index}"


def _fed_inputs(
    name: str, fetched: Mapping[str, str], removed: Mapping[str, Sequence[str]]
) -> list[str]:
    if name.startswith("^"):
        return [f"^{each}" for each in removed[name[1:]][:1]] if name[1:] in removed else [name]
    full = name if ":" in name else f"{name}:0"
    return [fetched.get(full, name)]


def _signature(
    program: TracedProgram, variable_index: Mapping[int, int], layout: Sequence[str]
) -> tuple[Signature, list[Any]]:
    graph, seen = program.graph, program.seen
    captures, constants = _captures(program, variable_index)
    n_leaves = len(program.leaf_paths)
    fetched = {id(tensor) for tensor in program.fetched}
    fed = tuple(
        _input_spec(tensor, n_leaves + number, tensor.name)
        for number, tensor in enumerate(program.outside)
    )
    inputs = []
    in_loop = (
        {id(tensor): number for number, tensor in enumerate(program.loop.fetched)}
        if program.loop is not None
        else {}
    )
    for tensor, leaf in program.inputs:
        if program.loop is not None and id(tensor) in in_loop:
            inputs.append(
                _loop_input(
                    program.loop, in_loop[id(tensor)], tensor, leaf, program.leaf_paths[leaf]
                )
            )
            continue
        name = f"{_fed_name(tensor)}:0" if id(tensor) in fetched else tensor.name
        inputs.append(replace(_input_spec(tensor, leaf, program.leaf_paths[leaf]), tensor=name))
    removed = {op.name for op in program.sources}
    return Signature(
        compilation="xla" if program.compilation == "xla" else "graph",
        inputs=tuple(inputs),
        captures=captures,
        outputs=tuple(tensor.name for tensor in program.outputs),
        output_names=tuple(program.output_names),
        control_outputs=tuple(op.name for op in graph.control_outputs if op.name not in removed),
        losses=tuple(tensor.name for tensor in program.losses),
        gradients=_gradients(program, variable_index),
        watch=None,
        watch_layout=tuple(layout),
        learning_rate=learning_rate_of(seen, variable_index),
        loss_scaled=bool(seen.unscaled),
        policy=_policy(seen),
        root_layer=seen.root_layer,
        fed=fed,
        loss_of=tuple(f"replica {replica}" for replica in seen.loss_replicas())
        if _are_differentiated(program)
        else (),
    ), constants


def _are_differentiated(program: TracedProgram) -> bool:
    return len(program.losses) == len(program.seen.losses())


def _input_spec(tensor: Any, leaf: int, path: str) -> InputSpec:
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return InputSpec(tensor.name, leaf, path, tensor.dtype.name, shape)


def _loop_input(loop: LoopFetch, number: int, tensor: Any, leaf: int, path: str) -> InputSpec:
    spec = _input_spec(tensor, leaf, path)
    shape = None if spec.shape is None else (None, *spec.shape)
    return replace(spec, tensor=f"{fed_name(loop, number)}:0", shape=shape)


def _captures(
    program: TracedProgram, variable_index: Mapping[int, int]
) -> tuple[tuple[CaptureSpec, ...], list[Any]]:
    captures: list[CaptureSpec] = []
    constants: list[Any] = []
    for inside, held in program.captures:
        if held is None:  # the key of a collective op
            captures.append(CaptureSpec(inside.name))
        elif held.dtype == tf.resource or held.dtype == tf.variant:
            index = (
                variable_index.get(id(held))
                if held.dtype == tf.resource and is_variable(held)
                else None
            )
            captures.append(CaptureSpec(inside.name, variable=index))
        else:
            captures.append(CaptureSpec(inside.name, constant=len(constants)))
            constants.append(held)
    return tuple(captures), constants


def _gradients(
    program: TracedProgram, variable_index: Mapping[int, int]
) -> tuple[GradientSpec, ...]:
    """Gradients that the main graph holds; those of functions, loops and branches that it calls cannot be asked for."""
    specs: list[GradientSpec] = []
    for gradient, variable in program.seen.gradients():
        index = variable_index.get(id(tf_variables.handle_of(variable)))
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        if index is None or getattr(values, "graph", None) is not program.graph:
            continue
        if isinstance(gradient, tf.IndexedSlices):
            specs.append(GradientSpec(index, gradient.values.name, gradient.indices.name))
        else:
            specs.append(GradientSpec(index, gradient.name))
    return tuple(specs)


def fingerprint_layout(
    entries: Sequence[FingerprintEntry], variable_index: Mapping[int, int]
) -> tuple[str, ...]:
    """Names of the elements of an eager step's fingerprint, e.g. `loss:0`, `gradient_sum:12`."""
    layout = []
    for entry in entries:
        subject = (
            entry.subject
            if isinstance(entry.subject, int)
            else variable_index.get(id(entry.subject), -1)
        )
        layout.append(entry.kind if entry.subject is None else f"{entry.kind}:{subject}")
    return tuple(layout)


def learning_rate_of(seen: Observation, variable_index: Mapping[int, int]) -> int | None:
    """Index of the variable that holds the learning rate, None when there is none (a schedule)."""
    for optimizer in seen.optimizers:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        index = variable_index.get(
            id(tf_variables.handle_of(getattr(inner, "_learning_rate", None)))
        )
        if index is not None:
            return index
    return None


def _policy(seen: Observation) -> str:
    names = {
        layer.dtype_policy.name
        for model in seen.layers
        for layer in (model, *getattr(model, "layers", ()))
    }
    return ", ".join(sorted(names - {"float32"}) or ["float32"])


def describe_ops(
    program: TracedProgram, signature: Signature, metrics: frozenset[int], sources: SourceTable
) -> list[OpInfo]:
    """Describe every op of a program's graph and of the functions it calls."""
    graph, seen = program.graph, program.seen
    metric_inputs = {
        spec.tensor.rpartition(":")[0] for spec in signature.captures if spec.variable in metrics
    }
    graphs = {"": graph, **tf_functions.library_graphs(graph)}
    flow = classify_ops(graph, seen, loss_and_gradient_ops(signature), metric_inputs)
    return describe_functions(graphs, seen, sources, seen.root_layer, flow)


def describe_functions(
    graphs: Mapping[str, Any],
    seen: Observation,
    sources: SourceTable,
    root: str | None,
    main: PhaseFlow | None = None,
) -> list[OpInfo]:
    """Describe every op of several graphs.

    Args:
        graphs: FuncGraphs by the name of the function, "" for the main graph.
        seen: What was noted while they were traced.
        sources: Collects stacks.
        root: Name of the outermost model.
        main: Phases of the main graph.
    """
    names = {id(each): name for name, each in graphs.items()}
    forward = _forward_ops(graphs, seen, names)
    flows = {"": main} if main is not None else {}
    flows |= {
        name: classify_ops(each, seen, ends, ())
        for name, each in graphs.items()
        if name and (ends := own_loss_and_gradient_ops(each))
    }
    devices = seen.replica_devices if len(seen.replica_devices) > 1 else ()
    found: list[OpInfo] = []
    for function, each in graphs.items():
        marks = _marks_of(each, seen)
        for index, op in enumerate(each.get_operations()):
            key, layers = (function, op.name), _stack_at(marks, index, id(each))
            found.append(
                _describe_op(op, key, layers, forward, flows.get(function), sources, root, devices)
            )
    return with_forward_layers(found)


def loss_and_gradient_ops(signature: Signature) -> set[str]:
    """Names of the ops that make the losses and gradients of a program."""
    named = [*signature.losses, *(spec.tensor for spec in signature.gradients)]
    return {name.rpartition(":")[0] for name in named}


def own_loss_and_gradient_ops(graph: Any) -> set[str]:
    """Names of the ops that make losses and gradients that are asked for in this very graph: it trains by itself."""
    seen = notes_of(graph, make=False)
    if seen is None or not seen.tape_gradients:
        return set()
    made = [*seen.losses(), *(gradient for gradient, _ in seen.gradients())]
    tensors = [each.values if isinstance(each, tf.IndexedSlices) else each for each in made]
    return {tensor.op.name for tensor in tensors if getattr(tensor, "graph", None) is graph}


def _describe_op(
    op: Any,
    key: tuple[str, str],
    layers: str,
    forward: Mapping[tuple[str, str], tuple[str, str]],
    flow: PhaseFlow | None,
    sources: SourceTable,
    root: str | None,
    devices: Sequence[str],
) -> OpInfo:
    function, name = key
    forward_function, forward_name = forward.get(key, ("", ""))
    phase, where = ("", "layer" if layers else "") if flow is None else flow.of(name, bool(layers))
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
    return "/".join(
        region.name
        for region in marks[at].stack
        if region.kind == "layer" and region.graph == graph
    )


def _forward_ops(
    graphs: Mapping[str, Any], seen: Observation, names: Mapping[int, str]
) -> dict[tuple[str, str], tuple[str, str]]:
    """(function, backward op) -> (function, forward op), from the tape's calls and from the names of symbolic gradients."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    operations = {name: graph.get_operations() for name, graph in graphs.items()}
    for span in seen.spans:
        function = names.get(span.graph)
        forward = getattr(
            span.forward, "graph", None
        )  # none of a tensor of an eager step that calls the function
        target = None if forward is None else (names.get(id(forward), ""), span.forward.op.name)
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


def _by_scope(
    ops: Sequence[Any], scope: str, op_type: str, function: str
) -> tuple[str, str] | None:
    for op in ops:
        if op.type == op_type and op.name.rpartition("/")[0] == scope.rstrip("/"):
            return function, op.name
    return next(
        ((function, op.name) for op in ops if op.type == op_type and op.name.startswith(scope)),
        None,
    )


def _add_symbolic(
    function: str,
    graph: Any,
    graphs: Mapping[str, Any],
    names: Mapping[int, str],
    operations: Mapping[str, Any],
    found: dict[tuple[str, str], tuple[str, str]],
) -> None:
    """Ops that TensorFlow made by symbolic differentiation of a function are named after the forward op."""
    owner = names.get(id(tf_functions.forward_graph(graph)))
    order = [owner] if owner is not None else [name for name in graphs if name != function]
    known = {name: {op.name for op in operations[name]} for name in order}
    for op in operations[function]:
        match = _SYMBOLIC_GRADIENT.search(op.name) or _TAPE_GRADIENT.match(op.name)
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
