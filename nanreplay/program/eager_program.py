"""From one eager execution of a step to a flat program: every op that ran, in order, as a GraphDef.

An eager step has no graph. Running it once under an op callback shows each op with its inputs and outputs; a tensor that
no op of the step made is a variable's handle, an array of the batch, or a constant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.program.eager_graph import FlatGraph
from nanreplay.program.fingerprint import Fingerprint
from nanreplay.program.listening import listening
from nanreplay.program.observation import BackwardSpan, Observation, Region, merged
from nanreplay.program.observe import EagerObserver
from nanreplay.program.op_facts import SourceTable, is_user_file
from nanreplay.program.program_record import (
    describe_functions,
    fingerprint_layout,
    learning_rate_of,
    with_forward_layers,
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


@dataclass
class EagerRun:
    """One observed eager execution of a step."""

    ops: list[EagerOp] = field(default_factory=list)
    seen: Observation = field(default_factory=Observation)
    result: Any = None
    error: Exception | None = None
    """What the step raised, or None."""
    graphs: dict[str, Any] = field(default_factory=dict)
    """FuncGraphs of the compiled functions that it called, by name."""
    handed_out: list[Any] = field(default_factory=list)
    """What compiled functions returned that compute a gradient: the loss is among it."""
    functions: dict[str, Any] = field(default_factory=dict)
    """FunctionDefs of those that were called by their names, which TensorFlow may forget soon."""
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
    run = EagerRun()
    observer = EagerObserver(clock=lambda: len(run.ops))

    def callback(
        op_type: Any, inputs: Any, attrs: Any, outputs: Any, op_name: Any = None, graph: Any = None
    ) -> None:
        if graph is None:
            kind = op_type.decode() if isinstance(op_type, bytes) else op_type
            if tf_eager.op_definition(kind) is None and kind not in run.functions:
                run.functions.update(
                    {
                        function.signature.name: function
                        for function in tf_functions.function_library(kind)
                    }
                )
            named = {_text(attrs[i]): attrs[i + 1] for i in range(0, len(attrs or ()), 2)}
            run.ops.append(
                EagerOp(kind, tuple(inputs), named, tuple(outputs), observer.stack, _user_frames())
            )

    with observer as run.seen, listening(run), tf_eager.explicit_reads():
        undo = tf_eager.add_op_callback(callback)
        try:
            run.result = step()
        except Exception as error:
            run.error = error
        finally:
            undo()
    if run.result is None and run.handed_out:
        run.result = run.handed_out
    run.seen.note_result(run.result)
    run.n_replicas = observer.n_replicas
    return run


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _user_frames() -> tuple[UserFrame, ...]:
    frames = []
    frame: Any = sys._getframe(2)
    while frame is not None:
        if is_user_file(frame.f_code.co_filename):
            frames.append(UserFrame(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
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
        sources: Collects stacks.
    """
    builder = FlatGraph(variable_index, leaves, paths, run.functions)
    for op in run.ops:
        builder.add(op)
    seen = run.seen
    gradients = []
    for gradient, variable in seen.gradients():
        index = variable_index.get(id(tf_variables.handle_of(variable)))
        dense = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        if index is not None:
            indices = (
                builder.tensor(gradient.indices) if isinstance(gradient, tf.IndexedSlices) else None
            )
            gradients.append(GradientSpec(index, builder.tensor(dense), indices))
    losses = tuple(builder.tensor(loss) for loss in seen.losses())
    returned = [
        leaf for leaf in tf.nest.flatten(run.result, expand_composites=True) if tf.is_tensor(leaf)
    ]
    outputs = tuple(dict.fromkeys(builder.tensor(leaf) for leaf in returned))
    signature = Signature(
        compilation="eager",
        inputs=tuple(builder.inputs),
        captures=tuple(builder.captures),
        outputs=outputs,
        output_names=outputs,
        control_outputs=tuple(builder.effects),
        losses=losses,
        gradients=tuple(gradients),
        watch=None,
        watch_layout=fingerprint_layout(watch.entries, variable_index),
        learning_rate=learning_rate_of(seen, variable_index),
        loss_scaled=seen.loss_scale is not None or bool(seen.unscaled),
        root_layer=seen.root_layer,
    )
    ops = [*_ops(run, builder, sources, losses), *_ops_of_functions(run, sources)]
    record = ProgramRecord(
        program_id, builder.graph.SerializeToString(), signature, ops, builder.constants
    )
    return FlatProgram(record, builder.leaves, builder.paths)


def _ops(
    run: EagerRun, builder: FlatGraph, sources: SourceTable, losses: tuple[str, ...]
) -> list[OpInfo]:
    root = run.seen.root_layer
    forward = _forward_by_op(run)
    matters = _ancestors(builder, {name.rpartition(":")[0] for name in losses})
    first_backward = next(
        (index for index, op in enumerate(run.ops) if _kind(op) == "backward"), len(run.ops)
    )
    updates = _ancestors(builder, set(builder.effects))
    layers = [
        index
        for index, op in enumerate(run.ops)
        if any(region.kind == "layer" for region in op.stack)
    ]
    last_layer = max((index for index in layers if not _kind(run.ops[index])), default=-1)
    first_layer = min(layers, default=-1)
    found = []
    for index, (op, name) in enumerate(zip(run.ops, builder.names, strict=True)):
        path = without_root(
            "/".join(region.name for region in op.stack if region.kind == "layer"), root
        )
        if name in matters or path or _kind(op):
            phase, where = _phase(op, path, index, (first_layer, last_layer))
        else:
            phase, where = (
                ("update", "optimizer")
                if index > first_backward or name in updates
                else ("forward", "metric")
            )
        target = forward.get(index)
        found.append(
            OpInfo(
                "",
                name,
                op.type,
                path,
                phase,
                where,
                sources.add(op.frames),
                builder.names[target] if target is not None else "",
                "",
            )
        )
    return with_forward_layers(found)


def _ops_of_functions(run: EagerRun, sources: SourceTable) -> list[OpInfo]:
    graphs: dict[str, Any] = {}
    for name, graph in run.graphs.items():
        graphs |= {name: graph, **tf_functions.library_graphs(graph)}
    seen = merged(graphs.values())
    return describe_functions(graphs, seen, sources, seen.root_layer or run.seen.root_layer)


def _kind(op: EagerOp) -> str:
    kinds = [region.kind for region in op.stack]
    return next((kind for kind in ("watch", "optimizer", "backward") if kind in kinds), "")


def _phase(op: EagerOp, path: str, index: int, layers: tuple[int, int]) -> tuple[str, str]:
    """Phase and place of an op of a region or a layer, or of one that the loss depends on."""
    kind = _kind(op)
    if kind:
        return {
            "watch": ("watch", ""),
            "optimizer": ("update", "optimizer"),
            "backward": ("backward", "loss"),
        }[kind]
    if path:
        return "forward", "layer"
    if index < layers[0]:
        return "forward", "input"
    return ("loss", "loss") if index > layers[1] or layers[1] < 0 else ("forward", "loss")


def _ancestors(builder: FlatGraph, wanted: set[str]) -> set[str]:
    inputs = {
        node.name: [
            name.lstrip("^").rpartition(":")[0] for name in node.input if not name.startswith("^")
        ]
        for node in builder.graph.node
    }
    found, pending = set(wanted), list(wanted)
    while pending:
        for name in inputs.get(pending.pop(), ()):
            if name not in found:
                found.add(name)
                pending.append(name)
    return found


def _forward_by_op(run: EagerRun) -> dict[int, int]:
    """Index of the forward op by index of the backward op."""
    made = {id(tensor): index for index, op in enumerate(run.ops) for tensor in op.outputs}
    used: set[int] = set()
    found: dict[int, int] = {}
    for span in run.seen.spans:
        forward = _forward_op(run, span, made, used)
        if forward is not None:
            used.add(forward)
            for index in range(span.start, span.end):
                found.setdefault(index, forward)
    return found


def _forward_op(
    run: EagerRun, span: BackwardSpan, made: Mapping[int, int], used: set[int]
) -> int | None:
    """By the output that the tape kept, else by the inputs, else the last op of that type not yet differentiated."""
    if (
        span.forward is not None
        and id(span.forward) in made
        and run.ops[made[id(span.forward)]].type == span.op_type
    ):
        return made[id(span.forward)]
    kept = {id(tensor) for tensor in span.inputs if tensor is not None}
    candidates = [
        index
        for index in range(span.start - 1, -1, -1)
        if run.ops[index].type == span.op_type and index not in used
    ]
    matching = [
        index
        for index in candidates
        if kept and kept <= {id(tensor) for tensor in run.ops[index].inputs}
    ]
    return next(iter(matching or candidates), None)
