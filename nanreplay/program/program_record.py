"""From a live trace to a `ProgramRecord`: the graph's bytes, its signature, facts of each op.

The recorder describes each traced program once, for the capture file; `eager_program` uses the
description of functions and layers for eager steps.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from nanreplay.program.collectives import replica_of
from nanreplay.program.fetching import fed_name, feed_loop
from nanreplay.program.fingerprint import FingerprintEntry
from nanreplay.program.forward_ops import forward_ops, with_forward_layers
from nanreplay.program.function_names import FunctionNames
from nanreplay.program.graph_editor import forget_colocations
from nanreplay.program.keras_parts import parts_of
from nanreplay.program.observation import Mark, Observation, notes_of
from nanreplay.program.op_facts import PhaseFlow, SourceTable, classify_ops
from nanreplay.program.traced_program import TracedProgram, is_handle, is_variable
from nanreplay.records import CaptureSpec, GradientSpec, InputSpec, OpInfo, ProgramRecord, Signature
from nanreplay.tensorflow_internals import tf_functions, tf_variables


def describe_program(
    program: TracedProgram,
    program_id: str,
    *,
    variable_index: Mapping[int, int],
    metrics: frozenset[int],
    sources: SourceTable,
    layout: Sequence[str],
    with_ops: bool = True,
) -> ProgramRecord:
    """Describe a traced step.

    Args:
        program: The trace.
        program_id: Its name in the file.
        variable_index: Index in the table of variables, by id of the handle.
        metrics: Indices of metric variables; what only they read is no part of the training.
        sources: Collects stacks and their frames.
        layout: Names of the elements of its fingerprint.
        with_ops: Describe each op as well, which takes most of the time; running needs none.
    """
    signature, constants = _signature(program, variable_index, layout)
    graph = program.graph.as_graph_def(add_shapes=False)
    _note_variable_shapes(graph, program.graph)
    feed_sources(graph, program)
    if program.loop is not None:
        feed_loop(graph, program.loop)
    forget_colocations(graph)
    return ProgramRecord(
        id=program_id,
        graph=graph.SerializeToString(),
        signature=signature,
        ops=describe_ops(program, signature, metrics, sources) if with_ops else (),
        constants=constants,
    )


def _note_variable_shapes(graph: Any, traced: Any) -> None:
    """Write the shapes of variables to the ops of a GraphDef that read them.

    A placeholder of a GraphDef has forgotten what variable it is the handle of. TensorFlow infers
    shapes anew when it imports the graph, and refuses some ops of which it then knows too little:
    a `MatrixDiagV3` that tells how many rows it makes, of a diagonal of unknown length.
    """
    for node in graph.node:
        if node.op == "ReadVariableOp":
            shape = traced.get_tensor_by_name(f"{node.name}:0").shape
            node.attr["_output_shapes"].list.shape.add().CopyFrom(shape.as_proto())


def feed_sources(graph: Any, program: TracedProgram) -> None:
    """Put placeholders in the places of ops that fetch the batch, in a GraphDef."""
    if not program.fetched:
        return
    # Tensor name to that of the placeholder's tensor; op name to those of its placeholders.
    fetched = {}
    for tensor in program.fetched:
        fetched[tensor.name] = f"{_fed_name(tensor)}:0"
    removed: dict[str, list[str]] = {}
    for op in program.sources:
        removed[op.name] = [_fed_name(tensor) for tensor in op.outputs if tensor.name in fetched]
    kept = [node for node in graph.node if node.name not in removed]
    for node in kept:
        inputs: list[str] = []
        for name in node.input:
            inputs += _fed_inputs(name, fetched, removed)
        node.input[:] = inputs
    del graph.node[:]
    graph.node.extend(kept)
    for tensor in program.fetched:
        node = graph.node.add(name=_fed_name(tensor), op="Placeholder")
        node.attr["dtype"].type = tensor.dtype.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(tensor.shape.as_proto())


def _fed_name(tensor: Any) -> str:
    return f"{tensor.op.name}/output_{tensor.value_index}"


def _fed_inputs(
    name: str, fetched: Mapping[str, str], removed: Mapping[str, Sequence[str]]
) -> list[str]:
    """What a node takes in the place of an input: a control dependency may go altogether."""
    if name.startswith("^"):
        if name[1:] not in removed:
            return [name]
        return [f"^{placeholder}" for placeholder in removed[name[1:]][:1]]
    full_name = name if ":" in name else f"{name}:0"
    return [fetched.get(full_name, name)]


def _signature(
    program: TracedProgram, variable_index: Mapping[int, int], layout: Sequence[str]
) -> tuple[Signature, list[Any]]:
    graph, seen = program.graph, program.seen
    captures, constants = _captures(program, variable_index)
    n_leaves = len(program.leaf_paths)
    removed = {op.name for op in program.sources}
    replicas = seen.loss_replicas() if _are_differentiated(program) else ()
    signature = Signature(
        compilation="xla" if program.compilation == "xla" else "graph",
        inputs=_inputs(program),
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
        fed=tuple(
            _input_spec(tensor, n_leaves + number, tensor.name)
            for number, tensor in enumerate(program.outside)
        ),
        loss_of=tuple(f"replica {replica}" for replica in replicas),
        loss_keys=() if replicas else program.loss_keys,
        optimizers=optimizer_classes(seen),
        keras_parts=parts_of(seen, seen.root_layer),
    )
    return signature, constants


def _inputs(program: TracedProgram) -> tuple[InputSpec, ...]:
    """How each leaf of the batch is fed; what was fetched has placeholders of its own."""
    fetched = {id(tensor) for tensor in program.fetched}
    loop = program.loop
    loop_fetched = () if loop is None else loop.fetched
    numbers_in_loop = {}
    for number, tensor in enumerate(loop_fetched):
        numbers_in_loop[id(tensor)] = number
    specs = []
    for tensor, leaf in program.inputs:
        spec = _input_spec(tensor, leaf, program.leaf_paths[leaf])
        if loop is not None and id(tensor) in numbers_in_loop:
            # One array holds what all iterations fetched, along a first axis.
            name = fed_name(loop, numbers_in_loop[id(tensor)])
            shape = None if spec.shape is None else (None, *spec.shape)
            spec = replace(spec, tensor=f"{name}:0", shape=shape)
        elif id(tensor) in fetched:
            spec = replace(spec, tensor=f"{_fed_name(tensor)}:0")
        specs.append(spec)
    return tuple(specs)


def _are_differentiated(program: TracedProgram) -> bool:
    return len(program.losses) == len(program.seen.losses())


def _input_spec(tensor: Any, leaf: int, path: str) -> InputSpec:
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return InputSpec(tensor.name, leaf, path, tensor.dtype.name, shape)


def _captures(
    program: TracedProgram, variable_index: Mapping[int, int]
) -> tuple[tuple[CaptureSpec, ...], list[Any]]:
    captures: list[CaptureSpec] = []
    constants: list[Any] = []
    for inside, captured in program.captures:
        if captured is None:  # the key of a collective op
            captures.append(CaptureSpec(inside.name))
        elif is_handle(captured):
            index = variable_index.get(id(captured)) if is_variable(captured) else None
            captures.append(CaptureSpec(inside.name, variable=index))
        else:
            captures.append(CaptureSpec(inside.name, constant=len(constants)))
            constants.append(captured)
    return tuple(captures), constants


def _gradients(
    program: TracedProgram, variable_index: Mapping[int, int]
) -> tuple[GradientSpec, ...]:
    """Gradients that the main graph holds.

    Those of functions, loops and branches that it calls cannot be asked for.
    """
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
        subject = entry.subject
        if not isinstance(subject, int):
            subject = variable_index.get(id(subject), -1)
        layout.append(entry.kind if entry.subject is None else f"{entry.kind}:{subject}")
    return tuple(layout)


def learning_rate_of(seen: Observation, variable_index: Mapping[int, int]) -> int | None:
    """Index of the variable that holds the learning rate, None when there is none (a schedule)."""
    for optimizer in seen.optimizers:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        # Keras's public `learning_rate` is a value where the private one is the variable.
        handle = tf_variables.handle_of(getattr(inner, "_learning_rate", None))
        index = variable_index.get(id(handle))
        if index is not None:
            return index
    return None


def optimizer_classes(seen: Observation) -> tuple[str, ...]:
    """How code names the classes of the optimizers: `keras.optimizers.Adam`, `MyOptimizer`."""
    names = []
    for optimizer in seen.optimizers:
        kind = type(getattr(optimizer, "inner_optimizer", optimizer))
        library = kind.__module__.partition(".")[0]
        legacy = "legacy." if ".legacy" in kind.__module__ else ""
        is_keras = library in ("keras", "tf_keras")
        names.append(f"{library}.optimizers.{legacy}{kind.__name__}" if is_keras else kind.__name__)
    return tuple(dict.fromkeys(names))


def _policy(seen: Observation) -> str:
    """The dtype policies of the layers other than `float32`, sorted."""
    names: set[str] = set()
    for model in seen.layers:
        layers = (model, *getattr(model, "layers", ()))
        for layer in layers:
            names.add(layer.dtype_policy.name)
    return ", ".join(sorted(names - {"float32"}) or ["float32"])


def describe_ops(
    program: TracedProgram, signature: Signature, metrics: frozenset[int], sources: SourceTable
) -> list[OpInfo]:
    """Describe every op of a program's graph and of the functions it calls."""
    graph, seen = program.graph, program.seen
    metric_inputs = set()
    for spec in signature.captures:
        if spec.variable in metrics:
            metric_inputs.add(spec.tensor.rpartition(":")[0])
    graphs = {"": graph, **tf_functions.library_graphs(graph)}
    losses = _op_names(signature.losses)
    gradients = _op_names(signature.gradient_tensors)
    flow = classify_ops(graph, seen, losses, gradients, metric_inputs)
    return describe_functions(graphs, seen, sources, seen.root_layer, flow)


def describe_functions(
    graphs: Mapping[str, Any],
    seen: Observation,
    sources: SourceTable,
    root: str | None,
    main: PhaseFlow | None = None,
    definitions: Mapping[str, Any] | None = None,
) -> list[OpInfo]:
    """Describe every op of several graphs.

    Args:
        graphs: FuncGraphs by the name of the function, "" for the main graph.
        seen: What was noted while they were traced.
        sources: Collects stacks.
        root: Name of the outermost model.
        main: Phases of the main graph.
        definitions: FunctionDefs that TensorFlow may have forgotten, by name.
    """
    names = FunctionNames(graphs, definitions)
    forward, custom = forward_ops(graphs, seen, names)
    flows = {"": main} if main is not None else {}
    for name, graph in graphs.items():
        losses, gradients = own_losses_and_gradients(graph) if name else (set(), set())
        if losses or gradients:
            flows[name] = classify_ops(graph, seen, losses, gradients, ())
    devices = seen.replica_devices if len(seen.replica_devices) > 1 else ()
    infos: list[OpInfo] = []
    stack_of = tf_functions.stack_reader()
    for function, graph in graphs.items():
        marks = seen.marks.get(id(graph), [])
        arguments = {tensor.op.name for tensor in graph.inputs}
        ops = graph.get_operations()
        vectorized = _vectorized_ops(ops)
        for index, op in enumerate(ops):
            if function and op.name in arguments:
                continue  # the FunctionDef has no node of it
            written = vectorized.get(index, index)
            layers = _layers_at(marks, written, id(graph))
            flow = flows.get(function)
            phase, where = "", "layer" if layers else ""
            if flow is not None:
                phase, where = flow.of(op.name, bool(layers))
            forward_function, forward_name = forward.get(
                (function, op.name), forward.get((function, ops[written].name), ("", ""))
            )
            info = OpInfo(
                function=function,
                name=names.node_name(function, op.name),
                type=op.type,
                layer_path=without_root(layers, root),
                phase=phase,
                where=where,
                stack=sources.add(stack_of(ops[written])),
                forward=names.node_name(forward_function, forward_name),
                forward_function=forward_function,
                replica=-1 if function else replica_of(op.name, op.device, devices),
            )
            infos.append(info)
    return with_forward_layers(infos, custom)


def _vectorized_ops(ops: Sequence[Any]) -> dict[int, int]:
    """The op that the code made, for each op that stands for all elements of a vectorized map.

    `tf.vectorized_map` and jacobians trace a function for one element, and make the ops of all from
    those of the one, which nothing uses any more: `loop_body/Log/pfor/Log` from `loop_body/Log`.
    They do so after the function, and the layers that it calls, have returned.

    Returns:
        Numbers of ops in `ops`, to numbers of ops in `ops`.
    """
    heads = {}
    for index, op in enumerate(ops):
        head, found, _ = op.name.rpartition("/pfor/")
        if found:
            heads[index] = head
    wanted = set(heads.values())
    numbers = {op.name: index for index, op in enumerate(ops) if op.name in wanted}
    return {index: numbers[head] for index, head in heads.items() if head in numbers}


def _op_names(tensors: Iterable[str]) -> set[str]:
    """Names of the ops that make some tensors."""
    return {name.rpartition(":")[0] for name in tensors}


def own_losses_and_gradients(graph: Any) -> tuple[set[str], set[str]]:
    """Names of the ops that make losses, and gradients, asked for in this very graph.

    Empty for a graph that does not train by itself.
    """
    seen = notes_of(graph, make=False)
    if seen is None or not seen.tape_gradients:
        return set(), set()
    return (
        _own_ops(graph, seen.losses()),
        _own_ops(graph, [gradient for gradient, _ in seen.gradients()]),
    )


def _own_ops(graph: Any, ends: Iterable[Any]) -> set[str]:
    ops = set()
    for end in ends:
        tensor = end.values if isinstance(end, tf.IndexedSlices) else end
        if getattr(tensor, "graph", None) is graph:
            ops.add(tensor.op.name)
    return ops


def without_root(path: str, root: str | None) -> str:
    """A chain of layers without the outermost model; the model alone stays."""
    head, _, rest = path.partition("/")
    return rest if rest and head == root else path


def _layers_at(marks: Sequence[Mark], index: int, graph: int) -> str:
    """Chain of layers that were being called, in this graph, when its `index`-th op was made."""
    # Marks are sorted by their first op: the last one that begins at or before this op holds.
    at = bisect.bisect_right(marks, index, key=lambda mark: mark.start) - 1
    if at < 0:
        return ""
    names = []
    for region in marks[at].stack:
        if region.kind == "layer" and region.graph == graph:
            names.append(region.name)
    return "/".join(names)
