"""One recorded program, ready to run: compiled as in training, or op by op."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import tensorflow as tf

from nanreplay.errors import UnsupportedOpError
from nanreplay.program.collectives import local_program
from nanreplay.program.compiled_program import CompiledProgram, capture_feed
from nanreplay.program.fingerprint import fingerprint_after, fingerprint_of
from nanreplay.program.float_types import widen
from nanreplay.program.graph_nodes import output_types
from nanreplay.program.nondeterministic_ops import cut, fed_ops, unrecorded_ops
from nanreplay.program.safety import check_graph, parse_graph, python_ops
from nanreplay.records import ArrayLike, OpInfo, ProgramRecord
from nanreplay.replay.interpreter import ErrorHandler, Interpreter, Observer
from nanreplay.replay.provenance import FeedKind
from nanreplay.replay.replay_state import as_type
from nanreplay.tensorflow_internals.tf_eager import op_definition

Mode: TypeAlias = Literal["recorded", "graph", "ops", "float64"]
"""How a step runs: compiled as it was trained (an eager step: op by op), compiled without XLA (an eager step: op by op),
op by op, or op by op with every float as float64."""
_COMPILED_KEPT = 6


class NodeFacts(NamedTuple):
    """One op as the graph holds it."""

    type: str
    attrs: Mapping[str, Any]
    """AttrValue protos by name."""
    outputs: list[str]
    """Names of its output tensors."""


class Program:
    """A recorded program that runs on variables given to it.

    Args:
        record: The program.
        trust: Let ops that touch files, the network or processes run.

    Raises:
        UnsafeProgramError: The program holds such ops, and is not trusted.
        UnsupportedOpError: The program holds ops that this TensorFlow does not know, or that call Python.
    """

    def __init__(self, record: ProgramRecord, *, trust: bool = False) -> None:
        """Check the program; nothing runs yet."""
        check_graph(record.graph, trust=trust)
        record = local_program(record)
        self.record = record
        self.signature = record.signature
        self._trust = trust
        self.graph = parse_graph(record.graph)
        calls = [name for name in python_ops(self.graph) if name not in fed_ops(self.signature)]
        if calls:
            raise UnsupportedOpError(
                "PyFunc", calls[0], "it calls a Python function, which is not in the capture"
            )
        self.narrow_ops: tuple[str, ...] = ()
        """Types of ops that run narrow in `wide`, once it was asked for."""
        self.step_loss: float | None = None
        """The loss of the last step that ran, told of what it added to the mean of the losses; None where it returns its own."""
        self.infos: dict[tuple[str, str], OpInfo] = {
            (op.function, op.name): op for op in record.ops
        }
        self._compiled: OrderedDict[tuple[bool, tuple[str, ...], bool], CompiledProgram] = (
            OrderedDict()
        )
        self._interpreter: Interpreter | None = None

    @property
    def feed_names(self) -> list[tuple[FeedKind, int]]:
        """What each placeholder is fed with, in the order of `feeds`."""
        names: list[tuple[FeedKind, int]] = [("batch", spec.leaf) for spec in self.signature.inputs]
        for spec in self.signature.captures:
            names.append(
                ("constant", spec.constant or 0)
                if spec.variable is None
                else ("variable", spec.variable)
            )
        return names

    @cached_property
    def wide(self) -> Program:
        """The program with every float as float64; it runs on `widened_variables`."""
        record, self.narrow_ops = widen(self.record)
        return Program(record, trust=self._trust)

    def step(
        self, mode: Mode, batch: Sequence[ArrayLike], variables: Sequence[Any], recorded: Any
    ) -> Any:
        """Run one step, update the variables and return its fingerprint (a numpy vector), None without one.

        Args:
            mode: See `Mode`; "float64" is "ops" of `wide`.
            batch: Leaves of the batch.
            variables: `tf.Variable`s by index.
            recorded: The recorded fingerprint; stands in for what only the training's optimizer knew.
        """
        before = self._mean_of_losses(variables)
        values = self._step(mode, batch, variables, recorded)
        after = self._mean_of_losses(variables)
        self.step_loss = None if before is None or after is None else loss_added(before, after)
        return values

    def _step(
        self, mode: Mode, batch: Sequence[ArrayLike], variables: Sequence[Any], recorded: Any
    ) -> Any:
        signature = self.signature
        if mode in ("recorded", "graph") and signature.compilation != "eager":
            program = self.compiled(jit=signature.compilation == "xla" and mode == "recorded")
            outputs, _ = program(batch, variables, self.record.constants)
            return fingerprint_after(signature, outputs, variables, recorded)
        if signature.watch is not None:
            return self.run_ops(batch, variables, fetches=[signature.watch])[
                signature.watch
            ].numpy()
        gradients = {f"{spec.variable}": spec.tensor for spec in signature.gradients}
        names = list(dict.fromkeys([*signature.losses, *signature.outputs, *gradients.values()]))
        found = self.run_ops(batch, variables, fetches=names, whole_functions=mode == "recorded")
        return fingerprint_of(
            signature.watch_layout,
            losses=[found[name] for name in signature.losses],
            outputs=[found[name] for name in signature.outputs],
            gradients={int(index): found[name] for index, name in gradients.items()},
            variables=variables,
            recorded=recorded,
        )

    def _mean_of_losses(self, variables: Sequence[Any]) -> tuple[float, float] | None:
        """What the mean of the losses has added up by now, and of how much."""
        held = self.mean_variables
        return None if held is None else (float(variables[held[0]]), float(variables[held[1]]))

    @cached_property
    def mean_variables(self) -> tuple[int, int] | None:
        """Indices of total and count where the step returns total / count of a metric as its loss, as `fit` of Keras does."""
        captured = {spec.tensor: spec.variable for spec in self.signature.captures}
        for name, tensor in zip(self.signature.output_names, self.signature.outputs, strict=False):
            node = self._source(tensor)
            if (
                name.rpartition("/")[2] != "loss"
                or node is None
                or node.op not in ("DivNoNan", "RealDiv")
            ):
                continue
            reads = [self._source(each) for each in self.inputs_of[node.name]]
            found = [
                captured.get(_tensor(read.input[0]))
                for read in reads
                if read is not None and read.op == "ReadVariableOp"
            ]
            if len(found) == 2 and found[0] is not None and found[1] is not None:
                return found[0], found[1]
        return None

    def _source(self, tensor: str) -> Any:
        """The node of the main graph that makes a tensor, through copies; None where there is none."""
        node = self._nodes.get(tensor.partition(":")[0])
        while node is not None and node.op == "Identity":
            node = self._nodes.get(node.input[0].partition(":")[0])
        return node

    def compiled(
        self, extra_fetches: Sequence[str] = (), *, jit: bool | None = None
    ) -> CompiledProgram:
        """Return the program compiled, as in training unless `jit` says otherwise; the last few are kept."""
        return self._kept(
            self.signature.compilation == "xla" if jit is None else jit, extra_fetches, probed=False
        )

    def _kept(self, jit: bool, names: Sequence[str], *, probed: bool) -> CompiledProgram:
        key = (jit, tuple(names), probed)
        if key not in self._compiled:
            more: dict[str, Any] = {"probe" if probed else "extra_fetches": names}
            self._compiled[key] = CompiledProgram(self.graph, self.signature, jit=jit, **more)
        self._compiled.move_to_end(key)
        while len(self._compiled) > _COMPILED_KEPT:
            self._compiled.popitem(last=False)
        return self._compiled[key]

    def probe(
        self, batch: Sequence[ArrayLike], variables: Sequence[Any]
    ) -> dict[str, tuple[bool, bool]]:
        """Run the compiled program and say of each float tensor of the main graph whether it holds NaN and infinities.

        Measuring may change how the compiler fuses ops, so compare the outcome with that of the step itself.
        """
        ignored = {
            name
            for (function, name), info in self.infos.items()
            if not function and info.phase == "watch"
        }
        names = [
            f"{node.name}:{k}"
            for node in self.graph.node
            if node.name not in ignored
            for k in self._float_outputs(node)
        ]
        program = self._kept(self.signature.compilation == "xla", names, probed=True)
        program(batch, variables, self.record.constants)
        return program.probe_result

    @cached_property
    def inputs_of(self) -> dict[str, list[str]]:
        """Tensor names of the data inputs of each op of the main graph."""
        return {
            node.name: [_tensor(name) for name in node.input if not name.startswith("^")]
            for node in self.graph.node
        }

    def node(self, name: str) -> NodeFacts:
        """Return what the graph says of an op of its main graph."""
        node = self._nodes[name]
        return NodeFacts(
            node.op, node.attr, [f"{name}:{k}" for k in range(len(self._output_types(node)))]
        )

    def kinds(self, tensors: Sequence[str]) -> list[str]:
        """Return the dtype names of tensors of the main graph."""
        found = []
        for tensor in tensors:
            name, _, output = tensor.partition(":")
            found.append(
                tf.dtypes.as_dtype(self._output_types(self._nodes[name])[int(output)]).name
            )
        return found

    def _float_outputs(self, node: Any) -> list[int]:
        return [
            k
            for k, kind in enumerate(self._output_types(node))
            if tf.dtypes.as_dtype(kind).is_floating
        ]

    @cached_property
    def _nodes(self) -> dict[str, Any]:
        return {node.name: node for node in self.graph.node}

    @cached_property
    def _functions(self) -> dict[str, Any]:
        return {
            function.signature.name: function.signature for function in self.graph.library.function
        }

    def _output_types(self, node: Any) -> list[int]:
        definition = self._functions.get(node.op) or op_definition(node.op)
        return output_types(definition, node) if definition is not None else []

    def run_ops(
        self,
        batch: Sequence[ArrayLike],
        variables: Sequence[Any],
        *,
        fetches: Sequence[str],
        update: bool = True,
        observer: Observer | None = None,
        on_error: ErrorHandler | None = None,
        cancelled: Callable[[], bool] | None = None,
        whole_functions: bool = False,
    ) -> dict[str, Any]:
        """Run op by op and return the fetched tensors by name; `update` runs all that the step does.

        With `whole_functions`, compiled functions that an eager step called run compiled.
        """
        if self._interpreter is None:
            self._interpreter = Interpreter(
                self.graph, compile_random=self.signature.compilation == "xla"
            )
        targets = self.signature.control_outputs if update else ()
        wanted = list(dict.fromkeys([*fetches, *(self.signature.outputs if update else ())]))
        tensors = self._interpreter.run(
            self.feeds(batch, variables), wanted, targets=targets, given=self.given(batch),
            observer=observer, on_error=on_error, cancelled=cancelled, whole_functions=whole_functions,
        )  # fmt: skip
        return dict(zip(wanted, tensors, strict=True))

    def feeds(self, batch: Sequence[ArrayLike], variables: Sequence[Any]) -> Mapping[str, Any]:
        """Return tensor name -> value for every placeholder."""
        feeds: dict[str, Any] = {}
        for spec in self.signature.inputs:
            feeds[spec.tensor] = as_type(batch[spec.leaf], spec.dtype)
        for capture in self.signature.captures:
            is_idle = capture.tensor in self._idle
            feeds[capture.tensor] = (
                self._stand_in
                if is_idle
                else capture_feed(capture, variables, self.record.constants)
            )
        return feeds

    def given(self, batch: Sequence[ArrayLike]) -> Mapping[str, Sequence[Any]]:
        """Return the recorded outputs of the ops that do not run again, by name of the op."""
        given: dict[str, list[Any]] = {}
        for spec in self.signature.fed:
            op, _, output = spec.tensor.rpartition(":")
            kind = tf.dtypes.as_dtype(self._output_types(self._nodes[op])[int(output)])
            given.setdefault(op, []).append(as_type(batch[spec.leaf], kind.name))
        return given

    @cached_property
    def _idle(self) -> frozenset[str]:
        """Captured resources (tables, iterators, writers of logs) that are used only by ops that do not run again."""
        found = cut(self.graph, self.signature)
        return found.idle | found.unused

    @cached_property
    def _stand_in(self) -> Any:
        """A handle that is fed in place of a resource that no op uses."""
        return tf.Variable(0.0, trainable=False)

    @cached_property
    def unrecorded(self) -> Sequence[str]:
        """Ops that another run does not repeat and whose outputs were not recorded, with their types."""
        return unrecorded_ops(self.graph, self.signature)


def loss_added(before: tuple[float, float], after: tuple[float, float]) -> float:
    """The loss of a step, given (total, count) of a mean before it and after it; the mean where the total is finite no more."""
    total, count = after
    if before[1] < count and math.isfinite(before[0]):
        total, count = total - before[0], count - before[1]
    return total / count if count else math.nan


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"
