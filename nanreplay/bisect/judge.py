"""Judging what a walk found: which ops (or which array of the batch) are the origin of a non-finite value.

An infinity is blamed before the NaN that it became, unless the program means it: one that comes of constants alone, or
a mask that softmax consumes. Then the op that turned it into NaN is the origin. A value of the forward pass that
a `where` dropped is harmless there; the backward op that used it all the same is the origin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from nanreplay.bisect.influence import COPIES, MOVEMENTS
from nanreplay.bisect.op_trace import Fact, StepTrace
from nanreplay.bisect.step_runner import PASSIVE, OpKey
from nanreplay.bisect.tensor_stats import FLOATS, Mask, is_float, words
from nanreplay.bisect.walk import Arrival, Maker, Walk
from nanreplay.capture.arrays import as_array
from nanreplay.findings import LoopIteration
from nanreplay.records import PHASES, OpInfo, Phase, Where
from nanreplay.replay.provenance import ValueId

# Phase, place, layer and loop of an op instance, from the program's table of ops and the calls
# around it.

_PLACES: Mapping[str, Where] = {"input": "input", "loss": "loss", "update": "optimizer"}


@dataclass(frozen=True, slots=True)
class OpPlace:
    """Where in the training step an op instance ran."""

    phase: Phase
    where: Where
    layer_path: str
    """Chain of Keras layers, "" outside."""
    stack: int
    """Index of a Python stack, -1 when unknown."""
    replica: int | None = None
    """Which of several replicas ran it; None where it serves all."""

    @property
    def layer(self) -> str | None:
        """Innermost layer, None where the op belongs to none."""
        return (
            self.layer_path.rsplit("/", 1)[-1]
            if self.where == "layer" and self.layer_path
            else None
        )

    @property
    def rank(self) -> int:
        """Phases in the order in which they run."""
        return PHASES.index(self.phase)


def _first(numbers: Iterable[int]) -> int | None:
    return next((number for number in numbers if number >= 0), None)


class Attribution:
    """Answers for one step's program."""

    def __init__(self, ops: Mapping[OpKey, OpInfo]) -> None:
        """Take the table of ops."""
        self._ops = ops
        self._known: dict[tuple[OpKey, ...], OpPlace] = {}

    def place(self, fact: Fact) -> OpPlace:
        """Return where an op instance ran."""
        keys = (*((call.function, call.op) for call in fact.calls), fact.key)
        if keys not in self._known:
            self._known[keys] = self._find(keys)
        return self._known[keys]

    def info(self, fact: Fact) -> OpInfo | None:
        """Return what the table says of an op itself."""
        return self._ops.get(fact.key)

    def _find(self, keys: tuple[OpKey, ...]) -> OpPlace:
        infos = [info for key in keys if (info := self._ops.get(key)) is not None]
        inward = list(reversed(infos))
        phase = next((info.phase for info in inward if info.phase in PHASES), "forward")
        where = next((info.where for info in inward if info.where), "")
        path = "/".join(part for info in infos if (part := info.layer_path))
        stack = next((stack for info in inward if (stack := self._stack(info)) >= 0), -1)
        if not where:
            where = _PLACES.get(phase) or ("layer" if path else "loss")
        place = OpPlace(cast("Phase", phase), cast("Where", where), path, stack)
        return (
            place
            if phase == "update"
            else replace(place, replica=_first(op.replica for op in infos))
        )

    def _stack(self, info: OpInfo) -> int:
        """The line that the user wrote: for a backward op that of its forward op."""
        if info.forward:
            forward = self._ops.get((info.forward_function, info.forward))
            if forward is not None and forward.stack >= 0:
                return forward.stack
        return info.stack

    def loops(self, fact: Fact, trace: StepTrace) -> tuple[LoopIteration, ...]:
        """Return the enclosing loops, outermost first; for a backward loop the forward loop's iteration."""
        return tuple(
            LoopIteration(
                call.op, self._forward_iteration(call.callee, call.iteration, fact, trace)
            )
            for call in fact.calls
            if call.iteration is not None
        )

    def _forward_iteration(self, body: str, iteration: int, fact: Fact, trace: StepTrace) -> int:
        forward = self._forward_function(body, fact)
        trips = trace.trips.get(("", forward), 0) if forward is not None else 0
        return trips - 1 - iteration if trips > iteration else iteration

    def _forward_function(self, body: str, fact: Fact) -> str | None:
        """The loop body whose gradient `body` computes, by the forward ops of the ops in it."""
        own = self._ops.get(fact.key)
        if own is not None and own.function == body and own.forward:
            return own.forward_function or None
        for (function, _), info in self._ops.items():
            if function == body and info.forward and info.forward_function not in ("", body):
                return info.forward_function
        return None


# --- bisect.judge

_SHAPES = words("Shape ShapeN Size Rank ZerosLike OnesLike VariableShape")
"""Ops whose outputs do not depend on the values of their inputs."""
_MASKED = words("Softmax LogSoftmax Sub")
"""Ops that take -inf for `leave this out` (Sub: the maximum taken off before Exp)."""
_MASKS = words("Log Cast Mul")
"""Ops that make a mask of 0 and -inf from one of 0 and 1, or of 0 and a large number."""


@dataclass(slots=True)
class Suspect:
    """One origin: an execution of an op that made elements bad, or an array of the batch that was bad."""

    masks: dict[int, Mask]
    """By output: the elements that it made bad (of the array itself, under 0)."""
    kind: str
    """`made`, `turned` (NaN from infinities), `used` (a forward value that was dropped), `raised` or `input`."""
    fact: Fact | None = None
    leaf: ValueId | None = None


@dataclass(slots=True)
class Judgement:
    """What is to blame for a failing step."""

    suspects: list[Suspect] = field(default_factory=list)
    """Origins, the first one first."""
    inherited: dict[int, Arrival] = field(default_factory=dict)
    """Variables that were non-finite before the step, by index."""


def judge(walk: Walk, attribution: Attribution) -> Judgement:
    """Judge what a walk found."""
    return _Judge(walk, attribution).judgement()


class _Judge:
    def __init__(self, walk: Walk, attribution: Attribution) -> None:
        self.walk = walk
        self.trace = walk.trace
        self.attribution = attribution
        self.constants = constant_ops(walk.trace)
        self.explained: set[int] = set()
        """Turners whose infinities are blamed on something else."""
        self.meant: list[Maker] = []
        """Makers of infinities that the program means."""

    def judgement(self) -> Judgement:
        """Put the suspects in order."""
        result = Judgement()
        suspects = [*self.from_leaves(result), *self.from_makers()]
        suspects += [
            Suspect(turner.masks, "turned", turner.fact)
            for serial, turner in self.walk.turners.items()
            if serial not in self.explained
        ]
        suspects = suspects or [] if result.inherited else suspects or list(self.last_resort())
        result.suspects = list(_distinct(sorted(suspects, key=self.order)))
        return result

    def order(self, suspect: Suspect) -> tuple[int, int]:
        """Input before forward before loss before backward before update, then as they ran."""
        if suspect.fact is None:
            return -1, 0 if suspect.leaf is None else -suspect.leaf.serial
        return self.attribution.place(suspect.fact).rank, suspect.fact.serial

    def from_leaves(self, result: Judgement) -> Iterator[Suspect]:
        """Fed values that were bad already: arrays of the batch are suspects, variables are the doing of an earlier step."""
        for value, arrival in self.walk.leaves.items():
            kind, index = self.trace.feed(value)
            if kind == "constant" or self.is_masking(value, arrival):
                continue
            self.explained |= {serial for serial in arrival.turners if serial is not None}
            if kind == "variable":
                result.inherited[index] = arrival
            else:
                yield Suspect({0: arrival.mask}, "input", None, value)

    def is_masking(self, value: ValueId, arrival: Arrival) -> bool:
        """Whether a fed array holds -inf for softmax to leave out, or a variable that no step writes holds infinities."""
        bad = as_array(self.trace.value(value))[arrival.mask]
        if np.isnan(bad).any():
            return False
        kind, index = self.trace.feed(value)
        if kind == "variable" and index not in self.trace.writes:
            return True
        return bool((bad < 0).all()) and self.is_taken_for_mask(arrival.turners)

    def is_taken_for_mask(self, turners: Iterable[int | None]) -> bool:
        """Whether every path goes through an op that takes -inf for a mask."""
        facts = [None if serial is None else self.trace.facts[serial] for serial in turners]
        return bool(facts) and all(fact is not None and fact.type in _MASKED for fact in facts)

    def from_makers(self) -> Iterator[Suspect]:
        """Ops that made bad elements from finite ones."""
        for maker in self.walk.makers:
            if maker.fact.event is not None and maker.fact.event.error is not None:
                self.explain(maker)
                yield Suspect(maker.masks, "raised", maker.fact)
            elif self.is_meant(maker):
                self.meant.append(maker)
            elif self.is_dropped(maker):
                yield from self.used_backward(maker)
            else:
                self.explain(maker)
                yield Suspect(maker.masks, "made", maker.fact)

    def explain(self, maker: Maker) -> None:
        """The NaN that a maker's infinities became is not to blame."""
        self.explained |= {serial for serial in maker.turners if serial is not None}

    def is_meant(self, maker: Maker) -> bool:
        """Whether the program means these infinities."""
        if maker.kind == "nan" or maker.fact.event is None:
            return False
        if maker.fact.serial in self.constants:
            return True
        if maker.fact.type not in _MASKS or not self.is_taken_for_mask(maker.turners):
            return False
        outputs = as_array(maker.fact.event.outputs[0])[maker.masks[0]]
        return bool((outputs < 0).all()) and self.is_indicator(maker)

    def is_indicator(self, maker: Maker) -> bool:
        """Whether a maker's operand holds but two values, one of them 0 or 1."""
        assert maker.fact.event is not None
        arrays = [as_array(value) for value in maker.fact.event.inputs if is_float(value)]
        values = np.unique(max(arrays, key=lambda array: array.size)) if arrays else np.zeros(0)
        return len(values) <= 2 and bool(np.isin(values, (0, 1)).any())

    def is_dropped(self, maker: Maker) -> bool:
        """Whether bad values of the forward pass were left out there, by a `where`, and came back in the backward pass."""
        if None in maker.crossings or self.attribution.place(maker.fact).rank >= BACKWARD:
            return False
        pending, seen, dropped = [maker.fact.serial], {maker.fact.serial}, False
        while pending:
            for serial in self.trace.consumers(pending.pop()):
                fact = self.trace.facts[serial]
                if serial in seen or self.attribution.place(fact).rank >= BACKWARD:
                    continue
                seen.add(serial)
                if any(stat.nonfinite for stat in fact.outputs):
                    pending.append(serial)
                elif fact.type in MOVEMENTS - COPIES:
                    dropped = True
                elif fact.type not in _SHAPES and any(
                    stat.dtype in FLOATS and stat.size for stat in fact.outputs
                ):
                    return False
        return dropped

    def used_backward(self, maker: Maker) -> Iterator[Suspect]:
        """Backward ops that used a dropped value: those that turned it into NaN, else those that took it over."""
        turners = [
            serial for serial in maker.turners if serial is not None and serial in self.walk.turners
        ]
        self.explained |= set(turners)
        if turners and None not in maker.turners:
            yield from (
                Suspect(self.walk.turners[serial].masks, "turned", self.trace.facts[serial])
                for serial in turners
            )
            return
        for serial in maker.crossings:
            if serial is not None:
                yield Suspect(self.walk.crossed[serial], "used", self.trace.facts[serial])

    def last_resort(self) -> Iterator[Suspect]:
        """Only infinities that the program means, and nobody turned them into NaN: the first op that computed with them."""
        for maker in self.meant:
            serial = self.walk.parents.get(maker.fact.serial)
            while serial is not None and self.trace.facts[serial].type in MOVEMENTS:
                serial = self.walk.parents.get(serial)
            fact = maker.fact if serial is None else self.trace.facts[serial]
            yield Suspect(self.walk.failing[fact.serial], "made", fact)


BACKWARD = 3
"""Rank of the backward phase."""


def _distinct(suspects: Sequence[Suspect]) -> Iterator[Suspect]:
    """Each op once: its first iteration."""
    seen = set()
    for suspect in suspects:
        key = suspect.leaf if suspect.fact is None else suspect.fact.key
        if key not in seen and not (suspect.fact is not None and suspect.fact.type in PASSIVE):
            seen.add(key)
            yield suspect


def constant_ops(trace: StepTrace) -> set[int]:
    """Return the serials of the ops that neither the batch nor a variable nor a draw has an influence on."""
    found: set[int] = set()
    for fact in trace.facts.values():
        sources = (*fact.input_ids, *fact.via)
        computed = bool(sources) and "Random" not in fact.type and all(
            value.serial in found if value.serial >= 0 else trace.feed(value)[0] == "constant" for value in sources
        )  # fmt: skip
        if computed or fact.type in _SHAPES or fact.type in ("Const", "HostConst"):
            found.add(fact.serial)
    return found
