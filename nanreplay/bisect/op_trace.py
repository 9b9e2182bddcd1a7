"""One step, run op by op and remembered: small facts of every op, values only where something is not finite."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanreplay.bisect.step_runner import FeedKind, OpKey, StepRunner, repaired
from nanreplay.bisect.tensor_stats import Mask, TensorStat, dtype_name, is_float, measure, nonfinite
from nanreplay.capture.arrays import as_array
from nanreplay.records import ArrayLike
from nanreplay.replay.provenance import Call, OpEvent, ValueId

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
    recorder = _OpRecorder(
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
class _OpRecorder:
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
