"""Running a recorded program op by op with eager kernels: the engine of bisect and what-if.

`Interpreter` runs the plan of a graph (see `interpreter_plan`), recurses into loops, branches and
calls, keeps only values that are still needed, and tells an observer of each op: what went in,
where it came from, what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import tensorflow as tf

from nanreplay.errors import (
    MemoryLimitError,
    ReplayError,
    UnsupportedOpError,
    first_line,
    without_node_names,
)
from nanreplay.program.op_sizes import check_output, has_rule
from nanreplay.replay.interpreter_plan import LOOPS, ExecutionPlan, Library, Step
from nanreplay.replay.kernels import LeafRunner, asks_for_determinism
from nanreplay.replay.provenance import Access, Call, Ids, Key, OpEvent, ValueId, follow
from nanreplay.tensorflow_internals import tf_eager

Observer: TypeAlias = Callable[[OpEvent], Sequence[Any] | None]
ErrorHandler: TypeAlias = Callable[[OpEvent], Sequence[Any]]
Values: TypeAlias = tuple[list[Any], list[ValueId], list[Any]]
"""Tensors, their identities, and their shadows (see `provenance`), side by side."""


class InterpreterCancelled(ReplayError):
    """A run was stopped by its `cancelled` callback."""


class Interpreter:
    """Runs a GraphDef op by op.

    One interpreter may be used for many runs: what it learns of the graph is kept. It is not for
    use by several threads at once.

    Args:
        graph: A GraphDef, or its serialized bytes, with its function library.
        compile_random: Run random ops through XLA, one by one. XLA draws other numbers from the
            same seed than graph or eager execution do, so a program recorded with
            `jit_compile=True` needs it.
    """

    def __init__(self, graph: Any, *, compile_random: bool = False) -> None:
        """Parse `graph`; plans are made at the first run."""
        if isinstance(graph, bytes):
            graph = tf.compat.v1.GraphDef.FromString(graph)
        self.library = Library(graph)
        self._compile_random = compile_random
        self._leaves = LeafRunner(self.library)

    def run(
        self,
        feeds: Mapping[str, Any],
        fetches: Sequence[str],
        *,
        targets: Sequence[str] = (),
        given: Mapping[str, Sequence[Any]] | None = None,
        observer: Observer | None = None,
        on_error: ErrorHandler | None = None,
        cancelled: Callable[[], bool] | None = None,
        whole_functions: bool = False,
    ) -> list[Any]:
        """Run what `fetches` and `targets` need and return the fetched tensors.

        Args:
            feeds: Tensor name of the main graph (`x:0`) to a tensor, an array, or a variable (its
                handle is fed). The i-th feed has the identity `ValueId(-1 - i, 0)`.
            fetches: Tensor names.
            targets: Names of ops to run for their effect, such as variable assignments.
            given: Outputs of ops of the main graph that do not run, by name of the op. The
                observer is told of them like of any op.
            observer: Called after each leaf op; a sequence that it returns replaces the op's
                outputs.
            on_error: Called with the event when a kernel raises; returns the op's outputs.
            cancelled: Asked before each op; the run stops with `InterpreterCancelled` once it
                returns True.
            whole_functions: Run functions that the main graph calls by name as they are, not op by
                op.

        Raises:
            ReplayError: A kernel raised and there is no `on_error`; its error is the cause.
            UnsupportedOpError: The graph holds an op that cannot be interpreted.
        """
        plan = self.library.main_plan(tuple(feeds), tuple(fetches), tuple(targets))
        tensors = list(map(_as_tensor, feeds.values()))
        ids = [ValueId(-1 - i, 0) for i in range(len(tensors))]
        # `id` is unique here: `tensors` keeps every fed handle alive until the run ends
        shadows: list[Key | None] = []
        for tensor in tensors:
            shadows.append(Key("fed", id(tensor)) if tensor.dtype == tf.resource else None)
        run = _Execution(
            self.library, self._leaves, given or {}, observer, on_error, cancelled, whole_functions
        )
        return run.execute(plan, (tensors, ids, shadows), (), self._compile_random)[0]


def _as_tensor(value: Any) -> Any:
    if isinstance(value, tf.Variable):
        return value.handle
    return value if isinstance(value, tf.Tensor) else tf.convert_to_tensor(value)


@dataclass(slots=True)
class _Execution:
    """The state of one run.

    Plans are executed recursively: the main graph's plan calls that of a loop's body, and so on.
    Each execution has its own slots; serial numbers and what resources hold are the run's.
    """

    library: Library
    leaves: LeafRunner
    given: Mapping[str, Sequence[Any]]
    observer: Observer | None
    on_error: ErrorHandler | None
    cancelled: Callable[[], bool] | None
    whole_functions: bool = False
    serial: int = 0
    storage: dict[Key, Ids] = field(default_factory=dict)

    def execute(
        self, plan: ExecutionPlan, values: Values, calls: tuple[Call, ...], compiled: bool
    ) -> Values:
        """Run a plan on its arguments."""
        missing: list[Any] = [None] * (plan.n_slots - plan.arguments)
        tensors, ids, shadows = values[0] + missing, values[1] + missing, values[2] + missing
        for step in plan.steps:
            if self.cancelled is not None and self.cancelled():
                raise InterpreterCancelled("The replay was cancelled.")
            inputs = [tensors[i] for i in step.inputs]
            if step.kind == "leaf":
                made = self._leaf(plan, step, inputs, ids, shadows, calls, compiled)
            else:
                arguments = _picked((tensors, ids, shadows), step.inputs)
                made = self._call(plan, step, arguments, calls, compiled)
            end = step.first + step.n_outputs
            tensors[step.first : end], ids[step.first : end], shadows[step.first : end] = made
            # frees the tensors' memory; identities are small, and nobody reads them any more
            for slot in step.free:
                tensors[slot] = shadows[slot] = None
        return _picked((tensors, ids, shadows), plan.results)

    def _leaf(
        self,
        plan: ExecutionPlan,
        step: Step,
        inputs: list[Any],
        ids: list[ValueId],
        shadows: list[Any],
        calls: tuple[Call, ...],
        compiled: bool,
    ) -> Values:
        serial = self._next_serial()
        outputs, error = self._kernel_outputs(plan, step, inputs, compiled)
        via: Ids = ()
        made: dict[int, Any] = {}
        if step.stores:
            sources = [ids[i] for i in step.inputs]
            held = [shadows[i] for i in step.inputs]
            access = Access(step.type, serial, inputs, sources, held, step.node, self.storage)
            via, made = follow(access)
        if error is not None or self.observer is not None:
            sources = [ids[i] for i in step.inputs]
            event = OpEvent(
                serial, plan.function, step.name, step.type, calls, tuple(inputs), tuple(sources),
                tuple(outputs), step.node.attr, via, error,
            )  # fmt: skip
            outputs = self._observed(event, outputs)
        numbers = range(step.n_outputs)
        return list(outputs), [ValueId(serial, k) for k in numbers], [made.get(k) for k in numbers]

    def _next_serial(self) -> int:
        serial = self.serial
        self.serial += 1
        return serial

    def _kernel_outputs(
        self, plan: ExecutionPlan, step: Step, inputs: list[Any], compiled: bool
    ) -> tuple[Sequence[Any], Exception | None]:
        """Run the kernel of a leaf op, or take its given outputs.

        Returns:
            The outputs, and what the kernel raised.
        """
        op = _op_in_words(step.type, step.name, plan.function)
        if has_rule(step.type):
            check_output(op, step.type, inputs, step.output_kinds[0])
        try:
            given = None if plan.function else self.given.get(step.name)
            outputs = self.leaves.run(step, inputs, compiled) if given is None else given
        except tf.errors.ResourceExhaustedError as error:
            # says nothing of the program's values, so it is never an origin
            raise MemoryLimitError(f"{op} ran out of memory: {_kernel_message(error)}.") from error
        except (tf.errors.OpError, UnsupportedOpError, ValueError, TypeError) as error:
            if tf_eager.is_deterministic() and asks_for_determinism(error):
                raise  # a matter of how it is replayed, not of the program
            return (), error
        return outputs, None

    def _observed(self, event: OpEvent, outputs: Sequence[Any]) -> Sequence[Any]:
        """The outputs that count after the observer, or the handler of errors, was told."""
        if event.error is None:
            replacement = self.observer(event) if self.observer is not None else None
            return outputs if replacement is None else replacement
        if self.on_error is not None:
            return self.on_error(event)
        if isinstance(event.error, UnsupportedOpError):
            raise event.error
        op = _op_in_words(event.type, event.name, event.function)
        raise ReplayError(f"{op} raised: {_kernel_message(event.error)}") from event.error

    def _call(
        self,
        plan: ExecutionPlan,
        step: Step,
        arguments: Values,
        calls: tuple[Call, ...],
        compiled: bool,
    ) -> Values:
        if step.type in LOOPS:
            return self._loop(plan, step, arguments, calls, compiled)
        if self.whole_functions and not plan.function and step.type in self.library.functions:
            return self._whole_function(step, arguments[0])
        callee = step.callees[0]
        if step.kind == "branch":  # its first input selects the branch, which gets the others
            callee = _branch(step, arguments[0][0])
            arguments = (arguments[0][1:], arguments[1][1:], arguments[2][1:])
        inside = (*calls, Call(plan.function, step.name, step.type, callee, None))
        callee_plan = self.library.function_plan(callee)
        return self.execute(callee_plan, arguments, inside, compiled or step.leads_to_xla)

    def _whole_function(self, step: Step, inputs: list[Any]) -> Values:
        serial = self._next_serial()
        numbers = range(step.n_outputs)
        outputs = list(self.leaves.run_function(step, inputs))
        return outputs, [ValueId(serial, k) for k in numbers], [None for _ in numbers]

    def _loop(
        self,
        plan: ExecutionPlan,
        step: Step,
        variables: Values,
        calls: tuple[Call, ...],
        compiled: bool,
    ) -> Values:
        condition, body = step.callees
        condition_plan = self.library.function_plan(condition)
        body_plan = self.library.function_plan(body)
        iteration = 0
        while True:
            inside = (*calls, Call(plan.function, step.name, step.type, condition, iteration))
            if not _is_true(self.execute(condition_plan, variables, inside, compiled)[0][0]):
                return variables
            inside = (*calls, Call(plan.function, step.name, step.type, body, iteration))
            variables = self.execute(body_plan, variables, inside, compiled)
            iteration += 1


def _picked(values: Values, slots: Sequence[int]) -> Values:
    tensors, ids, shadows = values
    return [tensors[i] for i in slots], [ids[i] for i in slots], [shadows[i] for i in slots]


def _op_in_words(op_type: str, name: str, function: str) -> str:
    return f"{op_type} {name!r}" + (f" in function {function!r}" if function else "")


def _kernel_message(error: Exception) -> str:
    """What a kernel said, without TensorFlow's notes of where it ran.

    Those are `{{node x}}`, `{{function_node f}}` and `[Op:MatMul] name: y`.
    """
    return without_node_names(first_line(error)) or type(error).__name__


def _is_true(tensor: Any) -> bool:
    """What If and While take for true.

    That is a nonempty string, a number other than 0, or a nonempty tensor of higher rank.
    """
    if tensor.shape.rank:
        return bool(tensor.shape.num_elements())
    return bool(tensor.numpy())


def _branch(step: Step, selector: Any) -> str:
    if step.type in ("If", "StatelessIf"):
        return step.callees[1] if _is_true(selector) else step.callees[0]
    chosen = int(selector)  # Case takes its last branch for an index out of range
    return step.callees[chosen] if 0 <= chosen < len(step.callees) else step.callees[-1]
