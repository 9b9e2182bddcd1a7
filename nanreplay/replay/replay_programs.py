"""One recorded program, ready to run: compiled as in training, or op by op.

`Replay` makes a `Program` of each program of a capture and runs its steps on the variables that it
keeps. A program is checked for ops that reach beyond tensors before anything runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeAlias

import tensorflow as tf

from nanreplay.errors import UnsupportedOpError
from nanreplay.program.collectives import local_program
from nanreplay.program.compiled_program import CompiledProgram, capture_feed
from nanreplay.program.fingerprint import fingerprint_after, fingerprint_of, loss_added
from nanreplay.program.float_types import widen
from nanreplay.program.graph_editor import losses_alone
from nanreplay.program.graph_nodes import data_inputs, output_types
from nanreplay.program.lowered_graph import lowered_ops
from nanreplay.program.nondeterministic_ops import cut_recorded_ops, fed_ops, unrecorded_ops
from nanreplay.program.optimized_graph import is_harmless
from nanreplay.program.safety import check_graph, parse_graph, python_ops
from nanreplay.records import ArrayLike, OptimizedGraph, ProgramRecord, ops_by_key
from nanreplay.replay.beside import beside
from nanreplay.replay.interpreter import ErrorHandler, Interpreter, Observer
from nanreplay.replay.loss_means import mean_of_losses
from nanreplay.replay.provenance import FeedKind
from nanreplay.replay.replay_state import as_type, number_in
from nanreplay.tensorflow_internals.tf_eager import op_definition
from nanreplay.tensorflow_internals.tf_functions import Optimizers, optimized_by

Mode: TypeAlias = Literal["recorded", "graph", "ops", "float64"]
"""How a step runs.

`recorded`: compiled as it was trained. `graph`: compiled without XLA. `ops`: op by op. `float64`:
op by op with every float as float64. A step that was trained eagerly runs op by op in every mode.
"""
_COMPILED_KEPT = 6
"""Compiled versions of a program that are kept; each holds its own copy of the graph."""
_CompiledKey: TypeAlias = tuple[bool, tuple[str, ...], bool, bool]
"""Whether it is compiled by XLA, names of tensors that it gives besides, whether it probes them,
and whether it is what the graph optimizers made of it at the dump.
"""


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
        read_optimized: Reads what the graph optimizers made of the program at the dump.

    Raises:
        UnsafeProgramError: The program holds such ops, and is not trusted.
        UnsupportedOpError: The program holds ops that this TensorFlow does not know, that call
            Python, or that only a GPU runs.
    """

    def __init__(
        self,
        record: ProgramRecord,
        *,
        trust: bool = False,
        read_optimized: Callable[[], OptimizedGraph | None] = lambda: None,
    ) -> None:
        """Check the program; nothing runs yet."""
        check_graph(record.graph, trust=trust)
        record = local_program(record)
        self.record = record
        self.signature = record.signature
        self._trust = trust
        self._read_optimized = read_optimized
        self.graph = parse_graph(record.graph)
        fed = fed_ops(self.signature)
        called = python_ops(self.graph)
        self.calls_python = bool(called)
        """Whether it calls Python functions: what they change is not recorded."""
        unfed = [name for name in called if name not in fed]
        if unfed:
            reason = "it calls a Python function, which is not in the capture"
            raise UnsupportedOpError("PyFunc", unfed[0], reason)
        self.lowered = lowered_ops(self.graph, fed)
        """Ops that run here in a form of their own, as this machine has no GPU."""
        self.narrow_ops: tuple[str, ...] = ()
        """Types of ops that keep their own float type, of a program in float64."""
        self.step_loss: float | None = None
        """Loss of the last step that ran, taken from the mean of losses that it added to; None
        where the step returns a loss of its own.
        """
        self.infos = ops_by_key(record.ops)
        self.optimizers = Optimizers.ALL
        """TensorFlow's graph optimizers by which steps as they were trained are compiled; with a
        part of them that takes less time, and may give other bits than training's.
        """
        self.meanwhile: Callable[[], None] | None = None
        """Work in Python that is done in another thread while the next compiled step runs.

        TensorFlow compiles it at its first call, for which it takes seconds and no Python.
        """
        self.checks_feeds = True
        """Whether versions that are compiled from now look at types and shapes of their feeds."""
        self._compiled: OrderedDict[_CompiledKey, CompiledProgram] = OrderedDict()

    @property
    def feed_names(self) -> list[tuple[FeedKind, int]]:
        """What each placeholder is fed with, in the order of `feeds`."""
        names: list[tuple[FeedKind, int]] = [("batch", spec.leaf) for spec in self.signature.inputs]
        for spec in self.signature.captures:
            if spec.variable is None:
                names.append(("constant", spec.constant or 0))
            else:
                names.append(("variable", spec.variable))
        return names

    @cached_property
    def optimized(self) -> OptimizedGraph | None:
        """What runs where `optimizers` are none; None where it is not there, or not harmless."""
        optimized = self._read_optimized()
        if optimized is None or not is_harmless(optimized, trust=self._trust):
            return None
        return optimized

    @cached_property
    def wide(self) -> Program:
        """The program with every float as float64; it runs on `widened_variables`."""
        return self._widened(self.record)

    @cached_property
    def wide_losses(self) -> Program:
        """What the losses need of `wide`: mostly a third of its ops, and no optimizer."""
        return self._widened(losses_alone(self.record))

    def _widened(self, record: ProgramRecord) -> Program:
        widened, narrow_ops = widen(record)
        program = Program(widened, trust=self._trust)
        program.narrow_ops = narrow_ops
        return program

    def step(
        self, mode: Mode, batch: Sequence[ArrayLike], variables: Sequence[Any], recorded: Any
    ) -> Any:
        """Run one step, update the variables and return its fingerprint.

        Args:
            mode: See `Mode`; "float64" is "ops" of `wide`.
            batch: Leaves of the batch.
            variables: `tf.Variable`s by index.
            recorded: The recorded fingerprint. It stands in for what only the training's optimizer
                knew.

        Returns:
            A numpy vector; None for a program without a fingerprint.
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
            optimizers = self.optimizers if mode == "recorded" else Optimizers.ALL
            program = self._kept(
                signature.compilation == "xla" and mode == "recorded",
                (),
                is_probed=False,
                is_optimized=optimizers is Optimizers.NONE,
            )
            meanwhile, self.meanwhile = self.meanwhile, None
            with optimized_by(optimizers), beside(meanwhile):
                outputs, _ = program(batch, variables, self.record.constants)
            return fingerprint_after(signature, outputs, variables, recorded)
        if signature.watch is not None:
            fetched = self.run_ops(batch, variables, fetches=[signature.watch])
            return fetched[signature.watch].numpy()
        wanted = (*signature.losses, *signature.outputs, *signature.gradient_tensors)
        names = list(dict.fromkeys(wanted))
        fetched = self.run_ops(batch, variables, fetches=names, whole_functions=mode == "recorded")
        return self.fingerprint_after_ops(fetched, variables, recorded)

    def fingerprint_after_ops(
        self, fetched: Mapping[str, Any], variables: Sequence[Any], recorded: Any
    ) -> Any:
        """Return the fingerprint of a step that has run op by op; None without one.

        Args:
            fetched: Its losses and outputs, and the gradients that the fingerprint tells of.
            variables: `tf.Variable`s by index, after the step.
            recorded: As for `step`.
        """
        signature = self.signature
        if signature.watch is not None:
            return fetched[signature.watch].numpy()
        gradients = {}
        for spec in signature.gradients:
            gradients[spec.variable] = spec.tensor
        return fingerprint_of(
            signature.watch_layout,
            losses=[fetched[name] for name in signature.losses],
            outputs=[fetched[name] for name in signature.outputs],
            gradients={i: fetched[name] for i, name in gradients.items() if name in fetched},
            variables=variables,
            recorded=recorded,
        )

    def _mean_of_losses(self, variables: Sequence[Any]) -> tuple[float, float] | None:
        """Total and count of the mean of losses, as they are now."""
        if self.mean_variables is None:
            return None
        total, count = self.mean_variables
        return number_in(variables[total]), number_in(variables[count])

    @cached_property
    def mean_variables(self) -> tuple[int, int] | None:
        """Indices of the total and count of a mean whose value the step returns as its loss."""
        return mean_of_losses(self.signature, self._nodes, self.inputs_of)

    def compiled(
        self, extra_fetches: Sequence[str] = (), *, jit: bool | None = None
    ) -> CompiledProgram:
        """Return the program compiled; the last few are kept.

        Args:
            extra_fetches: Tensors of the main graph that it gives besides.
            jit: Whether XLA compiles it; as in training unless given.
        """
        if jit is None:
            jit = self.signature.compilation == "xla"
        return self._kept(jit, extra_fetches, is_probed=False)

    def _kept(
        self, jit: bool, names: Sequence[str], *, is_probed: bool, is_optimized: bool = False
    ) -> CompiledProgram:
        key = (jit, tuple(names), is_probed, is_optimized)
        if key not in self._compiled:
            argument: dict[str, Any] = {"probe" if is_probed else "extra_fetches": names}
            argument["checks_feeds"] = self.checks_feeds
            argument["optimized"] = self.optimized if is_optimized else None
            self._compiled[key] = CompiledProgram(self.graph, self.signature, jit=jit, **argument)
        self._compiled.move_to_end(key)
        while len(self._compiled) > _COMPILED_KEPT:
            self._compiled.popitem(last=False)
        return self._compiled[key]

    def probe(
        self, batch: Sequence[ArrayLike], variables: Sequence[Any]
    ) -> dict[str, tuple[bool, bool]]:
        """Run the compiled program and say what each float tensor of the main graph holds.

        Measuring may change how the compiler fuses ops, so compare the outcome with that of the
        step itself.

        Returns:
            Whether it holds NaN, and whether infinities, by name of the tensor.
        """
        fingerprint_ops = set()
        for (function, name), info in self.infos.items():
            if not function and info.phase == "watch":
                fingerprint_ops.add(name)
        names = []
        for node in self.graph.node:
            if node.name not in fingerprint_ops:
                names += [f"{node.name}:{k}" for k in self._float_outputs(node)]
        program = self._kept(self.signature.compilation == "xla", names, is_probed=True)
        program(batch, variables, self.record.constants)
        return program.probe_result

    @cached_property
    def inputs_of(self) -> dict[str, list[str]]:
        """Tensor names of the data inputs of each op of the main graph."""
        return {node.name: list(map(_full_name, data_inputs(node))) for node in self.graph.node}

    def node(self, name: str) -> NodeFacts:
        """Return what the graph says of an op of its main graph."""
        node = self._nodes[name]
        outputs = []
        for k in range(len(self._output_types(node))):
            outputs.append(f"{name}:{k}")
        return NodeFacts(node.op, node.attr, outputs)

    def kinds(self, tensors: Sequence[str]) -> list[str]:
        """Return the dtype names of tensors of the main graph."""
        return [self._dtype(tensor).name for tensor in tensors]

    def _dtype(self, tensor: str) -> Any:
        name, _, output = tensor.rpartition(":")
        return tf.dtypes.as_dtype(self._output_types(self._nodes[name])[int(output)])

    def _float_outputs(self, node: Any) -> list[int]:
        dtypes = map(tf.dtypes.as_dtype, self._output_types(node))
        return [k for k, dtype in enumerate(dtypes) if dtype.is_floating]

    @cached_property
    def _nodes(self) -> dict[str, Any]:
        return {node.name: node for node in self.graph.node}

    @cached_property
    def _functions(self) -> dict[str, Any]:
        functions = self.graph.library.function
        return {function.signature.name: function.signature for function in functions}

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
        """Run op by op and return the fetched tensors by name.

        Args:
            batch: Leaves of the batch.
            variables: `tf.Variable`s by index.
            fetches: Tensor names of the main graph.
            update: Whether all that the step does runs, and not only what `fetches` need.
            observer: As for `Interpreter.run`, like the arguments after it.
            on_error: Called when a kernel raises; returns the op's outputs.
            cancelled: Asked before each op; True ends the run.
            whole_functions: Run compiled functions that an eager step called compiled.
        """
        wanted, targets = self._to_run(fetches, update)
        tensors = self._interpreter.run(
            self.feeds(batch, variables), wanted, targets=targets, given=self.given(batch),
            observer=observer, on_error=on_error, cancelled=cancelled,
            whole_functions=whole_functions,
        )  # fmt: skip
        return dict(zip(wanted, tensors, strict=True))

    def _to_run(self, fetches: Sequence[str], update: bool) -> tuple[list[str], list[str]]:
        """Return the tensors that a run gives, and the ops that it runs for their effect."""
        if not update:
            return list(dict.fromkeys(fetches)), []
        gradients = set()
        for spec in self.signature.gradients:
            gradients.add(spec.tensor.rpartition(":")[0])
        own = []
        for name in gradients & self._nodes.keys():
            if not self._is_fed(name):
                own.append(name)
        wanted = list(dict.fromkeys([*fetches, *self.signature.outputs]))
        return wanted, [*self.signature.control_outputs, *sorted(own)]

    def plan_ops(self, fetches: Sequence[str], *, update: bool = True) -> None:
        """Plan a run op by op of these arguments, which `run_ops` then need not do; nothing runs.

        A run as it was trained may go on meanwhile in another thread.
        """
        wanted, targets = self._to_run(fetches, update)
        self._interpreter.library.main_plan(self._fed, tuple(wanted), tuple(targets))

    @property
    def _fed(self) -> tuple[str, ...]:
        """Names of the tensors that `feeds` gives values for, in its order."""
        inputs, captures = self.signature.inputs, self.signature.captures
        names = [*(spec.tensor for spec in inputs), *(spec.tensor for spec in captures)]
        return tuple(dict.fromkeys(names))

    def _is_fed(self, op: str) -> bool:
        return bool(self._nodes[op].op.startswith("Placeholder"))

    def feeds(self, batch: Sequence[ArrayLike], variables: Sequence[Any]) -> Mapping[str, Any]:
        """Return tensor name -> value for every placeholder."""
        feeds: dict[str, Any] = {}
        for spec in self.signature.inputs:
            feeds[spec.tensor] = as_type(batch[spec.leaf], spec.dtype)
        for capture in self.signature.captures:
            if capture.tensor in self._idle:
                feeds[capture.tensor] = self._stand_in
            else:
                feeds[capture.tensor] = capture_feed(capture, variables, self.record.constants)
        return feeds

    def needed_variables(self, fetches: Sequence[str]) -> set[int]:
        """Return the indices of the variables that tensors of the main graph depend on."""
        inputs, captures = self.signature.inputs, self.signature.captures
        names = [*(spec.tensor for spec in inputs), *(spec.tensor for spec in captures)]
        plan = self._interpreter.library.main_plan(tuple(names), tuple(fetches), ())
        used = set(chain.from_iterable(step.inputs for step in plan.steps))
        needed = set()
        for slot, spec in enumerate(captures, len(inputs)):
            if slot in used and spec.variable is not None:
                needed.add(spec.variable)
        return needed

    def given(self, batch: Sequence[ArrayLike]) -> Mapping[str, Sequence[Any]]:
        """Return the recorded outputs of the ops that do not run again, by name of the op."""
        given: dict[str, list[Any]] = {}
        for spec in self.signature.fed:
            op = spec.tensor.rpartition(":")[0]
            dtype = self._dtype(spec.tensor).name
            given.setdefault(op, []).append(as_type(batch[spec.leaf], dtype))
        return given

    @cached_property
    def _interpreter(self) -> Interpreter:
        return Interpreter(self.graph, compile_random=self.signature.compilation == "xla")

    @cached_property
    def _idle(self) -> frozenset[str]:
        """Captured inputs that are resources only for ops that do not run again.

        Such are tables, iterators and writers of logs, which a capture does not hold.
        """
        parts = cut_recorded_ops(self.graph, self.signature)
        return parts.idle | parts.unused

    @cached_property
    def _stand_in(self) -> Any:
        """A handle that is fed in place of a resource that no op uses."""
        return tf.Variable(0.0, trainable=False)

    @cached_property
    def unrecorded(self) -> Sequence[str]:
        """Ops that another run would not repeat and whose outputs were not recorded."""
        return unrecorded_ops(self.graph, self.signature)


def _full_name(tensor: str) -> str:
    """A GraphDef names output 0 of an op by the op alone."""
    return tensor if ":" in tensor else f"{tensor}:0"
