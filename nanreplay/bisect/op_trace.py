"""One step, run op by op and remembered: small facts of every op, values only where something is not finite."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from nanreplay.bisect.influence import Execute
from nanreplay.bisect.tensor_stats import (
    Mask,
    TensorStat,
    dtype_name,
    is_float,
    measure,
    nonfinite,
    words,
)
from nanreplay.capture.arrays import as_array
from nanreplay.records import (
    ArrayLike,
    BatchRecord,
    Frame,
    Incident,
    OpInfo,
    Signature,
    VariableInfo,
)
from nanreplay.replay.provenance import Call, OpEvent, ValueId

# What bisecting needs of a replay: one step, run op by op, as often as asked. Pure: imports no
# TensorFlow.

Observer: TypeAlias = Callable[[OpEvent], Sequence[Any] | None]
ErrorHandler: TypeAlias = Callable[[OpEvent], Sequence[Any]]
FeedKind: TypeAlias = Literal["batch", "variable", "constant"]
OpKey: TypeAlias = tuple[str, str]
"""(function, op name); function is "" for the main graph."""


class StepRunner(Protocol):
    """Replays steps of a recorded window op by op. State is restored to just before the step at each run."""

    @property
    def steps(self) -> Sequence[int]:
        """Steps that can be run op by op, ascending."""
        ...

    @property
    def incident(self) -> Incident:
        """Why and when the capture was written."""
        ...

    @property
    def variables(self) -> Sequence[VariableInfo]:
        """The capture's table of variables."""
        ...

    def signature(self, step: int) -> Signature:
        """Return how the step's program is called and what its tensors mean."""
        ...

    def ops(self, step: int) -> Mapping[OpKey, OpInfo]:
        """Return what is known of each op of the step's program."""
        ...

    def run(
        self,
        step: int,
        observer: Observer | None,
        *,
        batch: Sequence[ArrayLike] | None = None,
        on_error: ErrorHandler | None = None,
        fetches: Sequence[str] | None = None,
        update: bool = True,
    ) -> Mapping[str, Any]:
        """Run a step and return the fetched tensors by name; what the observer raises passes through.

        Args:
            step: One of `steps`.
            observer: Called after each op.
            batch: Leaves to feed in place of the recorded ones.
            on_error: Called when a kernel raises; returns the op's outputs.
            fetches: Tensor names of the main graph; None for the program's outputs, losses and gradients.
            update: Whether everything runs for its effect; False runs only what `fetches` need.
        """
        ...

    def execute(self, event: OpEvent, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run the kernel of an event again (its type and attributes) on other inputs; arrays are taken as tensors."""
        ...

    def batch(self, step: int) -> BatchRecord:
        """Return the input of a step."""
        ...

    def feed_names(self, step: int) -> Sequence[tuple[FeedKind, int]]:
        """Return what `ValueId(-1 - i, 0)` stands for: a batch leaf, a variable or a constant, and its index."""
        ...

    def state(self, step: int) -> Mapping[int, ArrayLike]:
        """Return the variables just before a step, by index."""
        ...

    def source(self, stack: int) -> Frame | None:
        """Return the innermost frame of user code of a stack."""
        ...

    def probe(self, step: int) -> Mapping[str, tuple[bool, bool]]:
        """Run a step compiled as it was trained; (holds NaN, holds infinity) of each float tensor of the main graph."""
        ...

    def inputs_of(self, step: int) -> Mapping[str, Sequence[str]]:
        """Return the names of the tensors that each op of the step's main graph takes."""
        ...

    def compiled_event(self, step: int, op: str) -> OpEvent | None:
        """Return one op's execution in the step compiled as it was trained; None for one with handles among its tensors."""
        ...


# What stands for the outputs of a kernel that raised: NaN where compiled programs would give it.
# Pure numpy.

PASSIVE = words("Assert CheckNumerics CheckNumericsV2")
"""Ops that raise because of what they got: they are never the origin."""


def repaired(event: OpEvent, execute: Execute) -> Sequence[Any] | None:
    """Return outputs with which a run can go on after a kernel raised, None when nothing fitting is known."""
    repair = _REPAIRS.get(event.type)
    try:
        made = repair(event, execute) if repair is not None else None
    except Exception:  # the kernel raised for another reason than the repair expects
        return None
    return made


def _as_tensor(event: OpEvent, execute: Execute, array: Any) -> Any:
    identity = dataclasses.replace(
        event, type="Identity", attrs={"T": event.attrs["T"]}, error=None
    )
    return execute(identity, [array])[0]


def _pass_on(event: OpEvent, execute: Execute) -> Sequence[Any]:
    return event.inputs[:1]


def _nothing(event: OpEvent, execute: Execute) -> Sequence[Any]:
    return ()


def _cross_entropy(event: OpEvent, execute: Execute) -> Sequence[Any]:
    """XLA gives NaN for rows whose label is out of range; the others are as they would be."""
    logits, labels = as_array(event.inputs[0]), as_array(event.inputs[1])
    valid = np.clip(labels, 0, logits.shape[-1] - 1)
    wrong = valid != labels
    outputs = [
        np.array(out) for out in execute(event, [event.inputs[0], valid.astype(labels.dtype)])
    ]
    for out in outputs:
        out[wrong] = np.nan
    return [_as_tensor(event, execute, out) for out in outputs]


def _clipped_gather(event: OpEvent, execute: Execute) -> Sequence[Any]:
    """XLA clips indices."""
    axis = int(as_array(event.inputs[2])) if len(event.inputs) > 2 else 0
    indices = as_array(event.inputs[1])
    valid = np.clip(indices, 0, int(event.inputs[0].shape[axis]) - 1).astype(indices.dtype)
    return execute(event, [event.inputs[0], valid, *event.inputs[2:]])


def _matrices(result: int) -> Callable[[OpEvent, Execute], Sequence[Any]]:
    """Matrices one by one: NaN for those that raise."""

    def repair(event: OpEvent, execute: Execute) -> Sequence[Any]:
        arrays = [as_array(value) for value in event.inputs]
        out = np.full(arrays[result].shape, np.nan, arrays[result].dtype)
        for place in np.ndindex(*arrays[0].shape[:-2]):
            try:
                out[place] = as_array(execute(event, [array[place] for array in arrays])[0])
            except Exception:  # this matrix is one of those that made the kernel raise
                continue
        return [_as_tensor(event, execute, out)]

    return repair


def is_singular(event: OpEvent) -> bool:
    """Return whether an op works on whole matrices."""
    return event.type in _MATRIX_OPS and dtype_name(event.inputs[0]) != "variant"


_MATRIX_OPS = {
    "MatrixInverse": 0,
    "Cholesky": 0,
    "MatrixSquareRoot": 0,
    "MatrixSolve": 1,
    "MatrixTriangularSolve": 1,
}
_REPAIRS: dict[str, Callable[[OpEvent, Execute], Sequence[Any] | None]] = {
    **{name: _matrices(result) for name, result in _MATRIX_OPS.items()},
    **dict.fromkeys(("CheckNumerics", "CheckNumericsV2"), _pass_on),
    **dict.fromkeys(("Gather", "GatherV2"), _clipped_gather),
    "Assert": _nothing,
    "SparseSoftmaxCrossEntropyWithLogits": _cross_entropy,
}


# --- bisect.trace

_UPDATES = ("AssignAddVariableOp", "AssignSubVariableOp", "ResourceApply", "ResourceScatter", "ResourceSparseApply",
            "ResourceStridedSliceAssign")  # fmt: skip


def is_update(op_type: str) -> bool:
    """Return whether an op computes a variable's new value by itself; its event then counts as that value's maker."""
    return op_type.startswith(_UPDATES)


@dataclass(slots=True)
class Fact:
    """What is remembered of one execution of one op."""

    serial: int
    function: str
    name: str
    type: str
    calls: tuple[Call, ...]
    input_ids: tuple[ValueId, ...]
    via: tuple[ValueId, ...]
    outputs: tuple[TensorStat, ...]
    """Facts of the outputs; of the variables after an update op."""
    event: OpEvent | None = None
    """The execution with its tensors, where an output is not finite or the kernel raised."""

    @property
    def key(self) -> OpKey:
        """Function and name: the op, whichever iteration."""
        return self.function, self.name


class StepStoppedError(Exception):
    """A kernel raised and nothing is known that could stand for its outputs."""


@dataclass(slots=True)
class StepTrace:
    """What one op-by-op run of a step showed."""

    runner: StepRunner
    step: int
    facts: dict[int, Fact] = field(default_factory=dict)
    """By serial."""
    writes: dict[int, ValueId] = field(default_factory=dict)
    """The value that each variable holds after the step, by variable index, where the step wrote it."""
    trips: dict[tuple[str, str], int] = field(default_factory=dict)
    """How often each loop body ran in its (last) loop, by (function, op) of the loop and by ("", body)."""
    raised: list[Fact] = field(default_factory=list)
    """Ops whose kernel raised, in order."""
    stopped: bool = False
    """Whether the run ended at an op that raised."""
    fetched: Mapping[str, Any] = field(default_factory=dict)
    """Fetched tensors by name."""
    feeds: Sequence[tuple[FeedKind, int]] = ()
    _state: Mapping[int, ArrayLike] | None = None
    _consumers: dict[int, list[int]] | None = None
    _main: dict[str, Fact] | None = None
    _kept: dict[int, ValueId] | None = None

    def stat(self, value: ValueId) -> TensorStat | None:
        """Return the facts of a value, None when nothing is known of it."""
        if value.serial >= 0:
            fact = self.facts.get(value.serial)
            return (
                fact.outputs[value.output]
                if fact is not None and value.output < len(fact.outputs)
                else None
            )
        found = self.value(value)
        return None if found is None else measure(found)

    def value(self, value: ValueId) -> Any:
        """Return a value that is fed, or that was kept because it is not finite; else None."""
        if value.serial >= 0:
            fact = self.facts.get(value.serial)
            kept = fact.event if fact is not None else None
            return (
                kept.outputs[value.output]
                if kept is not None and value.output < len(kept.outputs)
                else None
            )
        kind, index = self.feed(value)
        if kind == "batch":
            return as_array(self.runner.batch(self.step).leaves[index])
        return self.state.get(index) if kind == "variable" else None

    def feed(self, value: ValueId) -> tuple[FeedKind, int]:
        """Return what a value with a negative serial stands for."""
        position = -1 - value.serial
        return self.feeds[position] if position < len(self.feeds) else ("constant", position)

    @property
    def state(self) -> Mapping[int, ArrayLike]:
        """Variables just before the step."""
        if self._state is None:
            self._state = self.runner.state(self.step)
        return self._state

    def consumers(self, serial: int) -> list[int]:
        """Return the serials of the ops that used an output of an op, ascending."""
        if self._consumers is None:
            found: dict[int, list[int]] = defaultdict(list)
            for fact in self.facts.values():
                for source in {
                    value.serial for value in (*fact.input_ids, *fact.via) if value.serial >= 0
                }:
                    found[source].append(fact.serial)
            self._consumers = found
        return self._consumers.get(serial, [])

    def find(self, tensor: str) -> ValueId | None:
        """Return the identity of a fetched tensor of the main graph, None when it cannot be told (or is finite)."""
        name, _, output = tensor.partition(":")
        if self._main is None or self._kept is None:
            self._main = {
                fact.name: fact
                for fact in self.facts.values()
                if not fact.function and not fact.calls
            }
            kept = (
                (fact, fact.event.outputs) for fact in self.facts.values() if fact.event is not None
            )
            self._kept = {
                id(made): ValueId(fact.serial, k)
                for fact, outputs in kept
                for k, made in enumerate(outputs)
            }
        if name in self._main:
            return ValueId(self._main[name].serial, int(output or 0))
        wanted = self.fetched.get(tensor)
        if wanted is None or not is_float(wanted) or not nonfinite(wanted).any():
            return None
        return self._kept.get(id(wanted)) or self._same_values(as_array(wanted))

    def _same_values(self, wanted: Any) -> ValueId | None:
        """A runner that copies what it returns: the last kept value with the same bits."""
        for fact in reversed(self.facts.values()):
            for k, made in enumerate(fact.event.outputs if fact.event is not None else ()):
                alike = (
                    is_float(made)
                    and tuple(made.shape) == wanted.shape
                    and dtype_name(made) == wanted.dtype.name
                )
                if alike and np.array_equal(as_array(made), wanted, equal_nan=True):
                    return ValueId(fact.serial, k)
        return None

    def bad_mask(self, value: ValueId) -> Mask | None:
        """Return where a kept or fed value is not finite; None when nowhere."""
        found = self.value(value)
        if found is None or not is_float(found):
            return None
        mask = nonfinite(found)
        return mask if mask.any() else None


def trace_step(runner: StepRunner, step: int, fetches: Sequence[str]) -> StepTrace:
    """Run a step op by op, once, and remember it.

    Args:
        runner: What replays.
        step: The step.
        fetches: Tensors of the main graph that `StepTrace.find` will be asked for.
    """
    trace = StepTrace(runner, step, feeds=runner.feed_names(step))
    recorder = _Recorder(
        trace, {key for key, info in runner.ops(step).items() if info.phase == "watch"}
    )
    try:
        trace.fetched = runner.run(
            step, recorder.see, on_error=recorder.repair, fetches=fetches, update=True
        )
    except StepStoppedError:
        trace.stopped = True
    return trace


@dataclass(slots=True)
class _Recorder:
    trace: StepTrace
    ignored: set[OpKey]
    """Ops of the recorder's own watch."""

    def see(self, event: OpEvent) -> None:
        if (event.function, event.name) in self.ignored:
            return
        if is_update(event.type):
            event = with_updated(self.trace.runner, event)
        stats = tuple(measure(value) for value in event.outputs)
        bad = any(stat.nonfinite for stat in stats)
        self._add(event, stats, keep=bad)
        if event.type == "AssignVariableOp":
            self._note_writes([event.input_ids[0]], [event.input_ids[1]])
        elif is_update(event.type):
            handles = _handles(event)
            self._note_writes(
                [event.input_ids[i] for i in handles],
                [ValueId(event.serial, k) for k in range(len(handles))],
            )

    def repair(self, event: OpEvent) -> Sequence[Any]:
        outputs = repaired(event, self.trace.runner.execute)
        kept = dataclasses.replace(event, outputs=tuple(outputs or ()))
        self._add(kept, tuple(measure(value) for value in kept.outputs), keep=True)
        self.trace.raised.append(self.trace.facts[event.serial])
        if outputs is None:
            raise StepStoppedError(event.name) from event.error
        return outputs

    def _add(self, event: OpEvent, stats: tuple[TensorStat, ...], *, keep: bool) -> None:
        self.trace.facts[event.serial] = Fact(
            event.serial, event.function, event.name, event.type, event.calls, event.input_ids, event.via, stats,
            event if keep else None,
        )  # fmt: skip
        for call in event.calls:
            if call.iteration is not None:
                self.trace.trips["", call.callee] = self.trace.trips[call.function, call.op] = (
                    call.iteration + 1
                )

    def _note_writes(self, handles: Iterable[ValueId], values: Iterable[ValueId]) -> None:
        for handle, value in zip(handles, values, strict=True):
            if handle.serial < 0:
                kind, index = self.trace.feed(handle)
                if kind == "variable":
                    self.trace.writes[index] = value


def with_updated(runner: StepRunner, event: OpEvent) -> OpEvent:
    """Return an update whose outputs are the variables that it has just changed."""
    kind = event.attrs["dtype"] if "dtype" in event.attrs else event.attrs["T"]
    read = dataclasses.replace(event, type="ReadVariableOp", attrs={"dtype": kind}, error=None)
    return dataclasses.replace(
        event, outputs=tuple(runner.execute(read, [event.inputs[i]])[0] for i in _handles(event))
    )


def _handles(event: OpEvent) -> list[int]:
    return [i for i, value in enumerate(event.inputs) if dtype_name(value) == "resource"]
