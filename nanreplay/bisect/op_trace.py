"""One step, run op by op and remembered: small facts of every op, tensors only near an origin.

`trace_step` makes the run. The walk back (`walk`), the judgement (`judge`) and the rules of
`diagnose` ask the `StepTrace` that it returns, and need no run of their own.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanreplay.bisect.event_outputs import handles_of, measured_outputs, reads_fed, with_updated
from nanreplay.bisect.hiding import HiddenValues
from nanreplay.bisect.outlines import LEAST_BYTES, outlined, size_in_bytes
from nanreplay.bisect.recent_events import RecentEvents
from nanreplay.bisect.step_runner import OpKey, StepRunner, repaired
from nanreplay.bisect.tensor_stats import (
    OPAQUE,
    Mask,
    Outline,
    TensorStat,
    compact,
    dtype_name,
    is_float,
    is_opaque,
    is_repeated,
    is_some,
    known_nonfinite,
    measure,
    nonfinite,
)
from nanreplay.capture.arrays import as_array
from nanreplay.records import ArrayLike
from nanreplay.replay.provenance import Call, FeedKind, OpEvent, ValueId

_UPDATES = (
    "AssignAddVariableOp",
    "AssignSubVariableOp",
    "ResourceApply",
    "ResourceScatter",
    "ResourceSparseApply",
    "ResourceStridedSliceAssign",
)


def is_update(op_type: str) -> bool:
    """Return whether an op computes a variable's new value by itself.

    Its event then counts as that value's maker. A plain AssignVariableOp only stores one.
    """
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
    """The execution with its tensors.

    Kept where an output is not finite, the kernel raised, or the op hides a NaN.
    """
    outline: OpEvent | None = None
    """The execution with outlines of its tensors, where those were too large to be kept.

    The op only handed on what it got.
    """

    @property
    def seen(self) -> OpEvent | None:
        """The execution: which elements were bad is right, the finite ones may be left out."""
        return self.event or self.outline

    @property
    def key(self) -> OpKey:
        """Function and name: the op, whichever iteration."""
        return self.function, self.name

    @property
    def sources(self) -> tuple[ValueId, ...]:
        """Everything that the op got: its inputs, and what it read from storage."""
        return (*self.input_ids, *self.via)


KEPT_BYTES = 64 << 20
"""How much the tensors of non-finite ops may take; of those after them outlines are kept."""


class StepStoppedError(Exception):
    """A kernel raised and nothing is known that could stand for its outputs."""


@dataclass(slots=True)
class StepTrace:
    """What one op-by-op run of a step showed."""

    runner: StepRunner
    step: int
    facts: dict[int, Fact] = field(default_factory=dict)
    """By serial, in the order in which the ops ran."""
    writes: dict[int, ValueId] = field(default_factory=dict)
    """By variable index: the value that the step left in the variable, where it wrote one."""
    trips: dict[tuple[str, str], int] = field(default_factory=dict)
    """How often each loop body ran in its (last) loop.

    By (function, op) of the loop and by ("", body).
    """
    raised: list[Fact] = field(default_factory=list)
    """Ops whose kernel raised, in order."""
    stopped: bool = False
    """Whether the run ended at an op that raised."""
    fetched: Mapping[str, Any] = field(default_factory=dict)
    """Fetched tensors by name."""
    feeds: Sequence[tuple[FeedKind, int]] = ()
    hidden: HiddenValues = field(init=False)
    """Finite values that depend on a NaN."""
    recent: RecentEvents = field(default_factory=RecentEvents)
    """Executions with their tensors before ops that may be the origin."""
    # Made when they are first asked for; the run must be over by then.
    _state: Mapping[int, ArrayLike] | None = None
    _consumers: dict[int, list[int]] | None = None
    _variable_feeds: dict[tuple[FeedKind, int], int] | None = None
    _main_graph: dict[str, Fact] | None = None
    _kept_tensors: dict[int, tuple[Any, ValueId]] | None = None
    _fed_stats: dict[ValueId, TensorStat | None] = field(default_factory=dict)
    _last_masks: dict[tuple[int, ...], Mask] = field(default_factory=dict)
    """The last mask of each shape."""

    def __post_init__(self) -> None:
        """Know of no hidden value yet."""
        self.hidden = HiddenValues(self.runner.execute)

    def stat(self, value: ValueId) -> TensorStat | None:
        """Return the facts of a value, None when nothing is known of it."""
        if value.serial < 0:
            if value not in self._fed_stats:
                tensor = self.value(value)
                self._fed_stats[value] = None if tensor is None else measure(tensor)
            return self._fed_stats[value]
        fact = self.facts.get(value.serial)
        if fact is None or value.output >= len(fact.outputs):
            return None
        return fact.outputs[value.output]

    def known_stat(self, value: ValueId) -> TensorStat | None:
        """Return the facts of a value that somebody has looked at already."""
        return self._fed_stats.get(value) if value.serial < 0 else self.stat(value)

    def note_fed(self, value: ValueId, stat: TensorStat) -> None:
        """Remember the facts of what a variable held before the step."""
        self._fed_stats[value] = stat

    def value(self, value: ValueId) -> Any:
        """Return a value that is fed, or that was kept because it is not finite; else None.

        Of a large one that was handed on, its outline.
        """
        if value.serial >= 0:
            fact = self.facts.get(value.serial)
            event = None if fact is None else fact.seen
            if event is None or value.output >= len(event.outputs):
                return None
            return event.outputs[value.output]
        kind, index = self.feed(value)
        if kind == "batch":
            return as_array(self.runner.batch(self.step).leaves[index])
        if kind == "variable":
            return self.state.get(index)
        return dict(enumerate(self.runner.constants(self.step))).get(index)

    def feed(self, value: ValueId) -> tuple[FeedKind, int]:
        """Return what a value with a negative serial stands for: (kind of the feed, its index)."""
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
            self._consumers = defaultdict(list)
            for fact in self.facts.values():
                for source in {value.serial for value in fact.sources if value.serial >= 0}:
                    self._consumers[source].append(fact.serial)
        return self._consumers.get(serial, [])

    def find(self, tensor: str) -> ValueId | None:
        """Return the identity of a fetched tensor of the main graph.

        A tensor of a call-like op (a loop, a function) has no event of its own. Its identity is
        that of the kept tensor that the call returned.

        Args:
            tensor: Name such as `loss/mul:0`.

        Returns:
            The identity, None when it cannot be told (or when the tensor is finite).
        """
        name, _, output = tensor.partition(":")
        main_graph = self._main_graph_facts()
        if name in main_graph:
            return ValueId(main_graph[name].serial, int(output or 0))
        wanted = self.fetched.get(tensor)
        if wanted is None or not is_float(wanted) or not nonfinite(wanted).any():
            return None
        kept, value = self._kept_ids().get(id(wanted), (None, None))
        return value if kept is wanted else self._kept_with_values(as_array(wanted))

    def _main_graph_facts(self) -> dict[str, Fact]:
        if self._main_graph is None:
            facts = self.facts.values()
            own = []
            for fact in facts:
                if not fact.function and not fact.calls:
                    own.append(fact)
            self._main_graph = {fact.name: fact for fact in own}
        return self._main_graph

    def _kept_ids(self) -> dict[int, tuple[Any, ValueId]]:
        """Return kept tensors by Python's `id`: the interpreter hands the very objects on."""
        if self._kept_tensors is None:
            self._kept_tensors = {}
            for fact in self.facts.values():
                for k, output in enumerate(fact.seen.outputs if fact.seen is not None else ()):
                    tensor = output.original() if isinstance(output, Outline) else output
                    self._kept_tensors[id(tensor)] = tensor, ValueId(fact.serial, k)
        return self._kept_tensors

    def _kept_with_values(self, wanted: Any) -> ValueId | None:
        """Return the last kept tensor with the same bits: for a runner that returns copies."""
        for fact in reversed(self.facts.values()):
            for k, output in enumerate(fact.event.outputs if fact.event is not None else ()):
                is_alike = (
                    is_float(output)
                    and tuple(output.shape) == wanted.shape
                    and dtype_name(output) == wanted.dtype.name
                )
                if is_alike and np.array_equal(as_array(output), wanted, equal_nan=True):
                    return ValueId(fact.serial, k)
        return None

    def settle(self) -> None:
        """Let go of large fetched tensors that `find` does not need, as their own ops are known."""
        own = self._main_graph_facts()
        fetched = {}
        for name, tensor in self.fetched.items():
            if name.partition(":")[0] not in own or size_in_bytes(tensor) < LEAST_BYTES:
                fetched[name] = tensor
        self.fetched = fetched

    def bad_mask(self, value: ValueId) -> Mask | None:
        """Return where a kept or fed value is not finite; None when nowhere."""
        tensor = self.value(value)
        if tensor is None or not is_float(tensor):
            return None
        mask = known_nonfinite(tensor, self.stat(value))
        return self.shared(mask) if is_some(mask) else None

    def shared(self, mask: Mask) -> Mask:
        """Return a mask; one for several values with the same, since masks are as large as they."""
        mask = compact(mask)
        last = self._last_masks.get(mask.shape)
        if is_repeated(mask) or last is mask:
            return mask
        if last is not None and np.array_equal(last, mask):
            return last
        self._last_masks[mask.shape] = mask
        return mask

    def was_nonfinite(self, variable: int) -> bool:
        """Return whether a variable was non-finite already before the step."""
        if self._variable_feeds is None:
            self._variable_feeds = {feed: i for i, feed in enumerate(self.feeds)}
        if ("variable", variable) in self._variable_feeds:
            stat = self.stat(ValueId(-1 - self._variable_feeds["variable", variable], 0))
            return stat is not None and stat.nonfinite > 0
        before = self.state.get(variable)
        return before is not None and bool(nonfinite(before).any())


def trace_step(runner: StepRunner, step: int, fetches: Sequence[str]) -> StepTrace:
    """Run a step op by op, once, and remember it.

    Args:
        runner: What replays.
        step: The step.
        fetches: Tensors of the main graph that `StepTrace.find` will be asked for.
    """
    trace = StepTrace(runner, step, feeds=runner.feed_names(step))
    fingerprint_ops = set()
    for key, info in runner.ops(step).items():
        if info.phase == "watch":
            fingerprint_ops.add(key)
    recorder = _OpRecorder(trace, fingerprint_ops)
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
    """Ops that the recorder added to read the step's fingerprint."""
    kept_bytes: int = 0
    """How much the tensors that are kept take; a tensor of several ops counts as often."""

    def see(self, event: OpEvent) -> None:
        """Remember an op that ran."""
        if (event.function, event.name) in self.ignored:
            return
        ran = event
        if is_update(event.type):
            event = with_updated(self.trace.runner, event)
        stats = measured_outputs(event, self.trace.known_stat)
        if reads_fed(event):
            self.trace.note_fed(event.input_ids[0], stats[0])
        known = self._input_stats(event)
        nonfinite_inputs = {}
        for i, stat in known.items():
            if stat.nonfinite:
                nonfinite_inputs[i] = stat.nan > 0
        hides = self.trace.hidden.see(event, nonfinite_inputs)
        is_bad = any(stat.nonfinite for stat in stats)
        made_bytes = 8 * sum(stat.size for stat in stats)
        taken_bytes = 8 * sum(stat.size for stat in known.values())
        outline = None
        if is_bad and not hides and not self._is_room(made_bytes + taken_bytes):
            outline = self._outline(event, stats, known)
        self._add(event, stats, keep=(hides or is_bad) and outline is None)
        fact = self.trace.facts[event.serial]
        fact.outline = outline
        makes_nan = any(stat.nan for stat in stats) and not any(nonfinite_inputs.values())
        if is_bad and (makes_nan or not nonfinite_inputs):
            self.trace.recent.pin(self.trace.facts, fact)
        if outline is None:
            # what was read shares the variable's memory
            self.trace.recent.add(ran, 0 if event.type == "ReadVariableOp" else made_bytes)
        if event.type == "AssignVariableOp":
            self._note_writes([event.input_ids[0]], [event.input_ids[1]])
        elif is_update(event.type):
            handles = [event.input_ids[i] for i in handles_of(event)]
            self._note_writes(handles, [ValueId(event.serial, k) for k in range(len(handles))])

    def _input_stats(self, event: OpEvent) -> dict[int, TensorStat]:
        """Return the facts of inputs that are tensors, by position."""
        stats: dict[int, TensorStat] = {}
        for i, value in enumerate(event.input_ids):
            if value.serial >= 0 or not is_opaque(event.inputs[i]):
                stat = self.trace.stat(value)
                if stat is None or not stat.size or stat.dtype in OPAQUE:
                    continue
                # an update's own number stands for the variable, where it gives a handle
                if not (stat.nonfinite and is_opaque(event.inputs[i])):
                    stats[i] = stat
        return stats

    def _is_room(self, size_bytes: int) -> bool:
        """Whether the tensors of a non-finite op are kept; they count from then on."""
        if self.kept_bytes + size_bytes > KEPT_BYTES:
            return False
        self.kept_bytes += size_bytes
        return True

    def _outline(
        self, event: OpEvent, stats: Sequence[TensorStat], inputs: Mapping[int, TensorStat]
    ) -> OpEvent | None:
        """Return the outline of a non-finite op, None where its tensors are needed."""
        known = {}
        for value, stat in zip(event.outputs, stats, strict=True):
            known[id(value)] = stat
        for i, stat in inputs.items():
            known[id(event.inputs[i])] = stat
        execute = self.trace.runner.execute
        return outlined(event, known, execute, is_update=is_update(event.type))

    def repair(self, event: OpEvent) -> Sequence[Any]:
        """Remember an op that raised, and return outputs with which the run goes on."""
        # Kept whatever its outputs hold: that it raised makes it a suspect.
        outputs = repaired(event, self.trace.runner.execute)
        kept = dataclasses.replace(event, outputs=tuple(outputs or ()))
        self._add(kept, tuple(map(measure, kept.outputs)), keep=True)
        self.trace.hidden.see_raised(kept)
        self.trace.raised.append(self.trace.facts[event.serial])
        if outputs is None:
            raise StepStoppedError(event.name) from event.error
        return outputs

    def _add(self, event: OpEvent, stats: tuple[TensorStat, ...], *, keep: bool) -> None:
        fact = fact_of(event, stats)
        if keep:
            fact.event = event
        self.trace.facts[event.serial] = fact
        # The last iteration that an op was seen in is the loop's last one; a backward loop counts
        # its iterations from there (see `Attribution.loops`).
        for call in event.calls:
            if call.iteration is not None:
                trips = call.iteration + 1
                self.trace.trips[call.function, call.op] = trips
                self.trace.trips["", call.callee] = trips

    def _note_writes(self, handles: Iterable[ValueId], values: Iterable[ValueId]) -> None:
        # A handle that an op made is of no variable that the capture knows.
        for handle, value in zip(handles, values, strict=True):
            if handle.serial < 0:
                kind, index = self.trace.feed(handle)
                if kind == "variable":
                    self.trace.writes[index] = value


def fact_of(event: OpEvent, stats: tuple[TensorStat, ...] = ()) -> Fact:
    """Return an execution without its tensors.

    Args:
        event: The execution.
        stats: Facts of its outputs.
    """
    return Fact(
        serial=event.serial,
        function=event.function,
        name=event.name,
        type=event.type,
        calls=event.calls,
        input_ids=event.input_ids,
        via=event.via,
        outputs=stats,
    )
