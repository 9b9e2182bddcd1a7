"""From one eager execution of a step to a flat program: every op that ran, in order, as a GraphDef.

An eager step has no graph. Running it once under an op callback shows each op with its inputs and
outputs; a tensor that no op of the step made is a variable's handle, an array of the batch, or a
constant. The recorder does so for steps that are not compiled, and `rerun` for the user's current
code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.program.eager_graph import FlatGraph
from nanreplay.program.fingerprint import Fingerprint
from nanreplay.program.forward_ops import with_forward_layers
from nanreplay.program.function_names import is_made_of
from nanreplay.program.graph_nodes import data_inputs, op_name
from nanreplay.program.keras_parts import parts_of
from nanreplay.program.listening import listening
from nanreplay.program.observation import BackwardSpan, Observation, Region, layer_path, merged
from nanreplay.program.observe import EagerObserver
from nanreplay.program.op_facts import PHASE_OF_REGION, SourceTable, is_user_file
from nanreplay.program.program_record import (
    describe_functions,
    fingerprint_layout,
    learning_rate_of,
    optimizer_classes,
    without_root,
)
from nanreplay.program.training_functions import hands_gradient_out
from nanreplay.records import GradientSpec, OpInfo, ProgramRecord, Signature
from nanreplay.tensorflow_internals import tf_eager, tf_functions, tf_variables


@dataclass(slots=True)
class EagerOp:
    """One op that ran."""

    type: str
    inputs: tuple[Any, ...]
    attrs: Mapping[str, Any]
    outputs: tuple[Any, ...]
    stack: tuple[Region, ...]
    frames: tuple[Any, ...]


@dataclass(slots=True)
class UserFrame:
    """A Python frame as `traceback.FrameSummary` names it."""

    filename: str
    lineno: int
    name: str


_OF_DATASETS = re.compile(
    r".*Dataset(V\d+)?|(MultiDevice)?Iterator(V\d+)?|(Make|MultiDevice)Iterator(Init)?"
    r"|Anonymous(MultiDevice)?Iterator(V\d+)?|Delete(MultiDevice)?Iterator"
    r"|(Anonymous|Delete|Dummy)(Random)?SeedGenerator(Reset)?|(Anonymous|Delete|Dummy)MemoryCache"
)
"""Ops that make datasets and iterators. What these give is part of the batch, however it was made.
"""


@dataclass
class EagerRun:
    """One observed eager execution of a step."""

    ops: list[EagerOp] = field(default_factory=list)
    seen: Observation = field(default_factory=Observation)
    result: Any = None
    error: Exception | None = None
    """What the step raised, or None."""
    raised: EagerOp | None = None
    """The last of `ops`, where it raised; None where the step ended, or Python code raised."""
    graphs: dict[str, Any] = field(default_factory=dict)
    """FuncGraphs of the compiled functions that it called, by name."""
    handed_out: list[Any] = field(default_factory=list)
    """What compiled functions returned that compute a gradient: the loss is among it."""
    functions: dict[str, Any] = field(default_factory=dict)
    """FunctionDefs, by name, of functions that were called as ops of their names.

    TensorFlow forgets them once nothing refers to them.
    """
    first_tensor: int = 0
    """Number of a tensor that is older than those that the step made."""
    n_replicas: int = 0
    """In how many threads a strategy ran its replicas."""

    def call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Note a compiled function that is called; it runs as ever."""
        self.graphs[tf_functions.runtime_name(function)] = tf_functions.func_graph(function)
        result = run()
        if hands_gradient_out(function):
            self.handed_out.append(result)
        return result

    def trained_eagerly(self) -> None:
        """That is what an eager step does."""


class FlatProgram(NamedTuple):
    """A flat program, and the arrays that it is fed with."""

    record: ProgramRecord
    leaves: Sequence[Any]
    """The batch's arrays, and those that came from outside of TensorFlow with NaN in them."""
    paths: Sequence[str]


def observe_eager(step: Callable[[], Any]) -> EagerRun:
    """Run `step` eagerly once and note every op."""
    run = EagerRun(first_tensor=tf_eager.number_of(tf.constant([0.0])))
    observer = EagerObserver(clock=lambda: len(run.ops))

    def callback(
        op_type: Any, inputs: Any, attrs: Any, outputs: Any, op_name: Any = None, graph: Any = None
    ) -> None:
        if graph is not None:  # a trace within the step; its graph is noted by itself
            return
        if _OF_DATASETS.fullmatch(_decoded(op_type)):
            return
        run.ops.append(noted(op_type, inputs, attrs or (), outputs))

    def noted(op_type: Any, inputs: Any, attrs: Any, outputs: Any) -> EagerOp:
        decoded_type = _decoded(op_type)
        _keep_function(run, decoded_type)
        # `attrs` alternates names and values.
        by_name = {}
        for i in range(0, len(attrs), 2):
            by_name[_decoded(attrs[i])] = attrs[i + 1]
        return EagerOp(
            decoded_type, tuple(inputs), by_name, tuple(outputs), observer.stack, _user_frames()
        )

    failed: dict[int, EagerOp] = {}

    def note_failure(op_type: Any, inputs: Any, attrs: Any) -> None:
        failed[len(run.ops)] = noted(op_type, inputs, attrs, ())

    with observer as run.seen, listening(run), tf_eager.explicit_reads():
        undo = tf_eager.add_op_callback(callback)
        try:
            with tf_eager.failing_ops(note_failure):
                run.result = step()
        except Exception as error:
            run.error = error
            # An op that raised before others ran was caught by the step's own code.
            if len(run.ops) in failed:
                run.ops.append(failed[len(run.ops)])
                run.raised = run.ops[-1]
        finally:
            undo()
    if run.result is None and run.handed_out:
        run.result = run.handed_out
    run.seen.note_result(run.result)
    run.n_replicas = observer.n_replicas
    return run


def _keep_function(run: EagerRun, op_type: str) -> None:
    """Keep the definitions of a function that was called as an op of its name."""
    if tf_eager.op_definition(op_type) is None and op_type not in run.functions:
        functions = tf_functions.function_library(op_type)
        run.functions.update({function.signature.name: function for function in functions})


def _decoded(text: Any) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)


def _user_frames() -> tuple[UserFrame, ...]:
    """The user's own frames around the op that ran, outermost first."""
    frames = []
    frame: Any = sys._getframe(2)  # without this function and the callback
    while frame is not None:
        code = frame.f_code
        if is_user_file(code.co_filename, code.co_name):
            frames.append(UserFrame(code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return tuple(reversed(frames))


def describe_eager(
    run: EagerRun,
    program_id: str,
    watch: Fingerprint,
    *,
    variable_index: Mapping[int, int],
    leaves: Sequence[Any],
    paths: Sequence[str],
    names_data: bool,
    sources: SourceTable,
) -> FlatProgram:
    """Build the flat program of one eager execution.

    Args:
        run: The execution.
        program_id: Its name in the file.
        watch: What was watched; its entries name the fingerprint.
        variable_index: Index in the table of variables, by id of the handle.
        leaves: Arrays of the flattened batch.
        paths: A readable path for each.
        names_data: Whether these begin with variables of the user's loop.
        sources: Collects stacks.
    """
    builder = FlatGraph(variable_index, leaves, paths, run.functions, run.first_tensor)
    for op in run.ops:
        builder.add(op)
    if run.raised is not None:  # nothing depends on it, and a replay is to run it
        builder.effects.append(builder.names[-1])
    seen = run.seen
    gradients = _gradients(seen, builder, variable_index)
    losses = tuple(builder.tensor(loss) for loss in seen.losses())
    returned = tf.nest.flatten(run.result, expand_composites=True)
    values = filter(tf_variables.is_value, returned)
    outputs = tuple(dict.fromkeys(map(builder.tensor, values)))
    signature = Signature(
        compilation="eager",
        inputs=tuple(builder.inputs),
        captures=tuple(builder.captures),
        outputs=outputs,
        output_names=outputs,
        control_outputs=tuple(builder.effects),
        losses=losses,
        loss_keys=seen.loss_keys(),
        gradients=gradients,
        watch=None,
        watch_layout=fingerprint_layout(watch.entries, variable_index),
        learning_rate=learning_rate_of(seen, variable_index),
        loss_scaled=seen.loss_scale is not None or bool(seen.unscaled),
        root_layer=seen.root_layer,
        optimizers=optimizer_classes(seen),
        names_data=names_data,
        keras_parts=parts_of(seen, seen.root_layer),
    )
    ops = [*_describe_ops(run, builder, sources, losses), *_ops_of_functions(run, sources)]
    graph = builder.graph.SerializeToString()
    record = ProgramRecord(program_id, graph, signature, ops, builder.constants)
    return FlatProgram(record, builder.leaves, builder.paths)


def takes_from_python(
    run: EagerRun, variable_index: Mapping[int, int], leaves: Sequence[Any], paths: Sequence[str]
) -> bool:
    """Whether an execution was given arrays that are neither its batch nor variables."""
    builder = FlatGraph(variable_index, leaves, paths, run.functions, run.first_tensor)
    for op in run.ops:
        builder.add(op)
    return builder.has_arrays_of_python


def _gradients(
    seen: Observation, builder: FlatGraph, variable_index: Mapping[int, int]
) -> tuple[GradientSpec, ...]:
    specs = []
    for gradient, variable in seen.gradients():
        index = variable_index.get(id(tf_variables.handle_of(variable)))
        if index is None:
            continue
        if isinstance(gradient, tf.IndexedSlices):
            indices = builder.tensor(gradient.indices)
            specs.append(GradientSpec(index, builder.tensor(gradient.values), indices))
        else:
            specs.append(GradientSpec(index, builder.tensor(gradient), None))
    return tuple(specs)


def _describe_ops(
    run: EagerRun, builder: FlatGraph, sources: SourceTable, losses: tuple[str, ...]
) -> list[OpInfo]:
    """Describe every op that ran, by what was running and by where its value goes."""
    regions = list(map(_region, run.ops))
    layer_chains = [layer_path(op.stack) for op in run.ops]
    in_layer = []
    for index, chain in enumerate(layer_chains):
        if chain:
            in_layer.append(index)
    layers = (
        min(in_layer, default=-1),
        max((index for index in in_layer if not regions[index]), default=-1),
    )
    first_backward = regions.index("backward") if "backward" in regions else len(run.ops)
    forward, custom = _forward_by_op(run)
    raised = set() if run.raised is None else {builder.names[-1]}  # the loss was still to come
    leads_to_loss = _ancestors(builder, {op_name(name) for name in losses} | raised)
    leads_to_state = _ancestors(builder, set(builder.effects) - raised)
    infos = []
    for index, (op, name) in enumerate(zip(run.ops, builder.names, strict=True)):
        path = without_root(layer_chains[index], run.seen.root_layer)
        if name in leads_to_loss or path or regions[index]:
            phase, where = _phase(regions[index], path, index, layers)
        elif index > first_backward or name in leads_to_state:
            phase, where = "update", "optimizer"
        else:
            phase, where = "forward", "metric"
        forward_name = builder.names[forward[index]] if index in forward else ""
        stack = sources.add(op.frames)
        infos.append(OpInfo("", name, op.type, path, phase, where, stack, forward_name, ""))
    return with_forward_layers(infos, {("", builder.names[index]) for index in custom})


def _ops_of_functions(run: EagerRun, sources: SourceTable) -> list[OpInfo]:
    graphs: dict[str, Any] = {}
    for name, graph in run.graphs.items():
        graphs |= {name: graph, **tf_functions.library_graphs(graph)}
    # Under a tape, another function of the same trace runs: one that returns more.
    for name, definition in run.functions.items():
        made_of = []
        for graph in graphs.values():
            if is_made_of(definition, graph):
                made_of.append(graph)
        if name not in graphs and made_of:
            graphs[name] = made_of[0]
    seen = merged(graphs.values())
    root = seen.root_layer or run.seen.root_layer
    return describe_functions(graphs, seen, sources, root, definitions=run.functions)


def _region(op: EagerOp) -> str:
    """The region that decides the phase of an op; "" for none."""
    kinds = [entry.kind for entry in op.stack]
    for kind in PHASE_OF_REGION:
        if kind in kinds:
            return kind
    return ""


def _phase(region: str, path: str, index: int, layers: tuple[int, int]) -> tuple[str, str]:
    """Phase and place of an op of a region or a layer, or of one that the loss depends on.

    Args:
        region: See `_region`.
        path: Chain of the layers that it is in.
        index: Number of the op.
        layers: Numbers of the first op and of the last forward op of a layer, -1 for none.
    """
    first, last = layers
    if region:
        return PHASE_OF_REGION[region]
    if path:
        return "forward", "layer"
    if index < first:
        return "forward", "input"
    return ("loss", "loss") if index > last or last < 0 else ("forward", "loss")


def _ancestors(builder: FlatGraph, wanted: set[str]) -> set[str]:
    """Names of some ops and of all ops that they depend on by data."""
    nodes = {node.name: node for node in builder.graph.node}
    reached, pending = set(wanted), list(wanted)
    while pending:
        node = nodes.get(pending.pop())
        for source in () if node is None else data_inputs(node):
            name = op_name(source)
            if name not in reached:
                reached.add(name)
                pending.append(name)
    return reached


def _forward_by_op(run: EagerRun) -> tuple[dict[int, int], set[int]]:
    """Index of the forward op by index of the backward op; the ops of a user's own gradient."""
    maker = {}
    for index, op in enumerate(run.ops):
        for tensor in op.outputs:
            maker[id(tensor)] = index
    differentiated: set[int] = set()
    forward_by_op: dict[int, int] = {}
    custom: set[int] = set()
    for span in run.seen.spans:
        forward = _forward_op(run, span, maker, differentiated)
        if forward is not None:
            differentiated.add(forward)
            if span.is_custom:
                custom.update(set(range(span.start, span.end)) - set(forward_by_op))
            for index in range(span.start, span.end):
                forward_by_op.setdefault(index, forward)
    return forward_by_op, custom


def _forward_op(
    run: EagerRun, span: BackwardSpan, maker: Mapping[int, int], differentiated: set[int]
) -> int | None:
    """The op whose gradient the ops of `span` compute.

    It is found by the output that the tape kept, else by the inputs, else it is the last op of its
    type that was not differentiated yet: a tape goes backwards.
    """
    if span.forward is not None and id(span.forward) in maker:
        index = maker[id(span.forward)]
        if run.ops[index].type == span.op_type:
            return index
    kept = set()
    for tensor in span.inputs:
        if tensor is not None:
            kept.add(id(tensor))
    # the latest op of the type, or rather the latest that took what the tape kept for its gradient
    latest = None
    for index in reversed(range(span.start)):
        if run.ops[index].type != span.op_type or index in differentiated:
            continue
        if kept and kept <= _input_ids(run.ops[index]):
            return index
        if latest is None:
            latest = index
    return latest


def _input_ids(op: EagerOp) -> set[int]:
    return {id(tensor) for tensor in op.inputs}
