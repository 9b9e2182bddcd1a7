"""Judging what a walk found: which ops (or which array of the batch) are the origin.

An infinity is blamed before the NaN that it became, unless the program means it: one that comes
of constants alone, or a mask that softmax consumes. Then the op that turned it into NaN is the
origin. A value of the forward pass that a `where` dropped is harmless there; the backward op that
used it all the same is the origin. `Attribution` tells where in the training step an op ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from nanreplay.bisect.constant_values import SHAPES, constant_ops, holds_nan
from nanreplay.bisect.influence import COPIES, MOVEMENTS
from nanreplay.bisect.op_trace import Fact, StepTrace
from nanreplay.bisect.step_runner import PASSIVE, OpKey
from nanreplay.bisect.tensor_stats import FLOATS, Mask, is_float, words
from nanreplay.bisect.walk import Arrival, Maker, Walk
from nanreplay.capture.arrays import as_array
from nanreplay.findings import LoopIteration
from nanreplay.records import PHASES, OpInfo, Phase, Where
from nanreplay.replay.provenance import ValueId

BACKWARD = PHASES.index("backward")
"""Rank of the backward phase."""
_MASKED = words("Softmax LogSoftmax Sub")
"""Ops that take -inf for `leave this out` (Sub: the maximum taken off before Exp)."""
_ALIKE = COPIES | words("ExpandDims Squeeze Cast")
_CHOOSERS = words("Select SelectV2")
_SATURATING = words("Sigmoid Softmax Tanh Erf Erfc Exp Ndtr")
"""Ops that give exactly 0 or 1 of what is large enough."""
_MASKS = words("Log Cast Mul")
"""Ops that make a mask of 0 and -inf from one of 0 and 1, or of 0 and a large number."""

_QUOTIENTS = words("Div Inv Pow RealDiv Reciprocal Rsqrt")
"""Ops whose infinity of a 0 is hardly ever meant, unlike the -inf that log makes of a mask."""


@dataclass(slots=True)
class Suspect:
    """One origin: an execution of an op that made elements bad, or a bad array of the batch."""

    masks: dict[int, Mask]
    """By output: the elements that it made bad (of the array itself, under 0)."""
    kind: str
    """How it made them.

    `made`, `turned` (NaN from infinities), `used` (a forward value that was dropped), `raised`,
    `input`, `set` (a variable that no step of the recording made so), or `constant` (a tensor
    that the step closes over).
    """
    fact: Fact | None = None
    leaf: ValueId | None = None


@dataclass(slots=True)
class Judgement:
    """What is to blame for a failing step."""

    suspects: list[Suspect] = field(default_factory=list)
    """Origins, the first one first."""
    inherited: dict[int, Arrival] = field(default_factory=dict)
    """Variables that were non-finite before the step, by index."""
    carried: dict[int, Arrival] = field(default_factory=dict)
    """Arrays of the batch that an earlier step returned, non-finite already, by place."""


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
        # Leaves and makers first: they fill `explained`, `inherited` and `meant`.
        suspects = [*self.from_leaves(result), *self.from_makers()]
        for serial, turner in self.walk.turners.items():
            if serial not in self.explained:
                suspects.append(Suspect(turner.masks, "turned", turner.fact))
        if not suspects and not result.inherited:
            suspects = list(self.last_resort())
        result.suspects = list(_distinct(sorted(suspects, key=self.order)))
        return result

    def order(self, suspect: Suspect) -> tuple[int, int]:
        """Input before forward before loss before backward before update, then as they ran."""
        if suspect.fact is None:
            return -1, 0 if suspect.leaf is None else -suspect.leaf.serial
        return self.attribution.place(suspect.fact).rank, suspect.fact.serial

    def from_leaves(self, result: Judgement) -> Iterator[Suspect]:
        """Fed values that were bad already.

        Arrays of the batch are suspects; variables are the doing of an earlier step. Of constants,
        infinities are meant, and NaN is not.
        """
        for value, arrival in self.walk.leaves.items():
            kind, index = self.trace.feed(value)
            if kind == "constant" and not holds_nan(self.trace, value, arrival.mask):
                continue
            if self.is_masking(value, arrival):
                continue
            self.explain(arrival.turners)
            if kind == "variable":
                result.inherited[index] = arrival
            elif kind == "constant":
                yield Suspect({0: arrival.mask}, "constant", None, value)
            else:
                yield Suspect({0: arrival.mask}, "input", None, value)

    def is_masking(self, value: ValueId, arrival: Arrival) -> bool:
        """Whether a fed value holds infinities that the program means.

        An array may hold -inf for softmax to leave out; a variable that no step writes may hold
        any, but not a learning rate, nor one that was set just before.
        """
        bad = as_array(self.trace.value(value))[arrival.mask]
        if np.isnan(bad).any():
            return False
        kind, index = self.trace.feed(value)
        if kind == "variable" and index not in self.trace.writes:
            runner, step = self.trace.runner, self.trace.step
            is_rate = index == runner.signature(step).learning_rate
            return not is_rate and index not in runner.batch(step).overrides
        return bool((bad < 0).all()) and self.is_taken_for_mask(arrival.turners)

    def is_taken_for_mask(self, turners: Iterable[int | None]) -> bool:
        """Whether every path goes through an op that takes -inf for a mask."""
        facts = [None if serial is None else self.trace.facts[serial] for serial in turners]
        return bool(facts) and all(fact is not None and self.takes_mask(fact) for fact in facts)

    def takes_mask(self, fact: Fact) -> bool:
        """Whether an op takes -inf for `leave this out`.

        A Sub does only as the first step of a softmax by hand, which takes the maximum of a row off
        that row: log(p) - log(q) of two probabilities of 0 is no mask, but two logarithms of 0.
        """
        if fact.type != "Sub":
            return fact.type in _MASKED
        row, shift = fact.input_ids[:2]
        maximum = self.trace.facts.get(self.uncopied(shift).serial)
        if maximum is None or maximum.type != "Max":
            return False
        is_of_row = self.uncopied(maximum.input_ids[0]) == self.uncopied(row)
        users = (self.trace.facts[serial].type for serial in self.trace.consumers(fact.serial))
        return is_of_row and "Exp" in users

    def uncopied(self, value: ValueId) -> ValueId:
        """What a value is a copy of; `where(is_finite(m), m, 0)` counts as one of m."""
        fact = self.trace.facts.get(value.serial)
        while fact is not None and (fact.type in _ALIKE or fact.type in _CHOOSERS):
            value = fact.input_ids[1 if fact.type in _CHOOSERS else 0]
            fact = self.trace.facts.get(value.serial)
        return value

    def from_makers(self) -> Iterator[Suspect]:
        """Ops that made bad elements from finite ones."""
        for maker in self.walk.makers:
            if maker.fact.event is not None and maker.fact.event.error is not None:
                self.explain(maker.turners)
                yield Suspect(maker.masks, "raised", maker.fact)
            elif self.is_meant(maker):
                self.meant.append(maker)
            elif self.is_dropped(maker):
                yield from self.used_backward(maker)
            else:
                self.explain(maker.turners)
                yield Suspect(maker.masks, "made", maker.fact)

    def explain(self, turners: Iterable[int | None]) -> None:
        """Clear turners of blame: the infinities that they turned into NaN are another's."""
        self.explained |= {serial for serial in turners if serial is not None}

    def is_meant(self, maker: Maker) -> bool:
        """Whether the program means these infinities."""
        if maker.kind == "nan" or maker.fact.event is None:
            return False
        is_constant = maker.fact.serial in self.constants
        if is_constant and maker.fact.type in _QUOTIENTS:
            return self.is_taken_for_mask(maker.turners)
        if is_constant:
            # Of a mask, none comes out as an infinity. A plain Python step takes numbers that numpy
            # drew in it for constants; what they make infinite is the fault.
            return None not in maker.turners
        if maker.fact.type not in _MASKS or not self.is_taken_for_mask(maker.turners):
            return False
        infinities = as_array(maker.fact.event.outputs[0])[maker.masks[0]]
        return bool((infinities < 0).all()) and self.is_indicator(maker)

    def is_indicator(self, maker: Maker) -> bool:
        """Whether a maker's operand holds but two values, one of them 0 or 1, and is no result.

        Probabilities that saturated are 0 and 1 as well, and no mask.
        """
        assert maker.fact.event is not None
        if self.is_result(maker.fact):
            return False
        arrays = [as_array(value) for value in maker.fact.event.inputs if is_float(value)]
        if not arrays:
            return False
        values = np.unique(max(arrays, key=lambda array: array.size))
        return len(values) <= 2 and bool(np.isin(values, (0, 1)).any())

    def is_result(self, fact: Fact) -> bool:
        """Whether an op's value was computed with a variable that the step trains, or saturated.

        By floats alone: a comparison makes a mask of either.
        """
        pending, seen = [fact.serial], {fact.serial}
        while pending:
            current = self.trace.facts[pending.pop()]
            if current.type in _SATURATING:
                return True
            for value in current.sources:
                if value.serial < 0:
                    kind, index = self.trace.feed(value)
                    if kind == "variable" and index in self.trace.writes:
                        return True
                elif value.serial in self.trace.facts and value.serial not in seen:
                    seen.add(value.serial)
                    if _computes_floats(self.trace.facts[value.serial]):
                        pending.append(value.serial)
        return False

    def is_dropped(self, maker: Maker) -> bool:
        """Whether the forward pass left a maker's bad values out and the backward pass took them.

        They are followed forward while they are non-finite. Each branch must end at an op that
        moves data (a `where`, a gather) and no longer has them, or in no float at all. In
        `where(x > 0, log(x), 0)` the infinities of Log end at SelectV2.
        """
        if None in maker.crossings or self.attribution.place(maker.fact).rank >= BACKWARD:
            return False
        pending, seen, is_left_out = [maker.fact.serial], {maker.fact.serial}, False
        while pending:
            for serial in self.trace.consumers(pending.pop()):
                fact = self.trace.facts[serial]
                if serial in seen or self.attribution.place(fact).rank >= BACKWARD:
                    continue
                seen.add(serial)
                if any(stat.nonfinite for stat in fact.outputs):
                    pending.append(serial)
                elif fact.type in MOVEMENTS - COPIES:
                    is_left_out = True
                elif _computes_floats(fact):
                    return False
        return is_left_out

    def used_backward(self, maker: Maker) -> Iterator[Suspect]:
        """Backward ops that used a dropped value.

        Those that turned it into NaN, else those that took it over.
        """
        turners = [turner for s, turner in self.walk.turners.items() if s in maker.turners]
        self.explain(turner.fact.serial for turner in turners)
        if turners and None not in maker.turners:
            for turner in turners:
                yield Suspect(turner.masks, "turned", turner.fact)
            return
        for serial in maker.crossings:
            if serial is not None:
                yield Suspect(self.walk.crossed[serial], "used", self.trace.facts[serial])

    def last_resort(self) -> Iterator[Suspect]:
        """The first op that computed with infinities that the program means.

        For a step where there are only such, and nothing turned them into NaN.
        """
        for maker in self.meant:
            serial = self.walk.parents.get(maker.fact.serial)
            while serial is not None and self.trace.facts[serial].type in MOVEMENTS:
                serial = self.walk.parents.get(serial)
            fact = maker.fact if serial is None else self.trace.facts[serial]
            yield Suspect(self.walk.failing[fact.serial], "made", fact)


def _computes_floats(fact: Fact) -> bool:
    """Whether an op's outputs are floats computed from the values of its inputs."""
    has_floats = any(stat.dtype in FLOATS and stat.size for stat in fact.outputs)
    return fact.type not in SHAPES and has_floats


def _distinct(suspects: Sequence[Suspect]) -> Iterator[Suspect]:
    """Yield each op once: its first iteration."""
    seen: set[OpKey | ValueId | None] = set()
    for suspect in suspects:
        if suspect.fact is not None and suspect.fact.type in PASSIVE:
            continue
        key = suspect.leaf if suspect.fact is None else suspect.fact.key
        if key not in seen:
            seen.add(key)
            yield suspect


# Phase, place, layer and loop of an op instance. The table of ops knows an op of a library
# function only within that function; the calls around the instance tell the rest.

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
        if self.where != "layer" or not self.layer_path:
            return None
        return self.layer_path.rsplit("/", 1)[-1]

    @property
    def path_in_layer(self) -> str | None:
        """Chain of Keras layers, None where the op belongs to none."""
        return self.layer_path if self.where == "layer" and self.layer_path else None

    @property
    def rank(self) -> int:
        """Phases in the order in which they run."""
        return PHASES.index(self.phase)


class Attribution:
    """Answers for one step's program."""

    def __init__(self, ops: Mapping[OpKey, OpInfo]) -> None:
        """Take the table of ops."""
        self._ops = ops
        self._known: dict[tuple[OpKey, ...], OpPlace] = {}
        self._forward_functions: dict[str, str | None] = {}
        """What a loop body is the gradient of, by its name."""

    def place(self, fact: Fact) -> OpPlace:
        """Return where an op instance ran."""
        keys = (*((call.function, call.op) for call in fact.calls), fact.key)
        if keys not in self._known:
            self._known[keys] = self._place_of(keys)
        return self._known[keys]

    def info(self, fact: Fact) -> OpInfo | None:
        """Return what the table says of an op itself."""
        return self._ops.get(fact.key)

    def loops(self, fact: Fact, trace: StepTrace) -> tuple[LoopIteration, ...]:
        """Return the enclosing loops, outermost first.

        A backward loop is told by the iteration of the forward loop.
        """
        loops: list[LoopIteration] = []
        for call in fact.calls:
            if call.iteration is not None:
                iteration = self._forward_iteration(call.callee, call.iteration, fact, trace)
                loops.append(LoopIteration(call.op, iteration))
        return tuple(loops)

    def _place_of(self, keys: tuple[OpKey, ...]) -> OpPlace:
        """Take each fact from the innermost call that knows it; layers are joined from outside."""
        infos = [self._ops[key] for key in keys if key in self._ops]
        inward = list(reversed(infos))
        phase = next((info.phase for info in inward if info.phase in PHASES), "forward")
        where = next((info.where for info in inward if info.where), "")
        layer_path = "/".join(info.layer_path for info in infos if info.layer_path)
        stack = _first_known(map(self._user_stack, inward))
        if not where:
            where = _PLACES.get(phase) or ("layer" if layer_path else "loss")
        replica = None if phase == "update" else _first_known(info.replica for info in infos)
        return OpPlace(
            cast("Phase", phase),
            cast("Where", where),
            layer_path,
            -1 if stack is None else stack,
            replica,
        )

    def _user_stack(self, info: OpInfo) -> int:
        """The line that the user wrote; the table has that of the forward op for a backward one."""
        if info.stack < 0 and info.forward:
            forward = self._ops.get((info.forward_function, info.forward))
            return -1 if forward is None else forward.stack
        return info.stack

    def _forward_iteration(self, body: str, iteration: int, fact: Fact, trace: StepTrace) -> int:
        """TensorFlow's gradient of a loop runs backward through the iterations.

        Of a forward loop with 5 trips, the backward loop's iteration 0 is the gradient of the
        forward loop's iteration 4.
        """
        forward = self._forward_function(body, fact)
        trips = trace.trips.get(("", forward), 0) if forward is not None else 0
        return trips - 1 - iteration if trips > iteration else iteration

    def _forward_function(self, body: str, fact: Fact) -> str | None:
        """The loop body whose gradient `body` computes, by the forward ops of the ops in it."""
        own = self._ops.get(fact.key)
        if own is not None and own.function == body and own.forward:
            return own.forward_function or None
        if body not in self._forward_functions:
            self._forward_functions[body] = None
            for (function, _), info in self._ops.items():
                is_of_body = function == body and bool(info.forward)
                if is_of_body and info.forward_function not in ("", body):
                    self._forward_functions[body] = info.forward_function
                    break
        return self._forward_functions[body]


def _first_known(numbers: Iterable[int]) -> int | None:
    """Return the first number that is not negative."""
    for number in numbers:
        if number >= 0:
            return number
    return None
