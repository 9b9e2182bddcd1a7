"""Where the fatal operand of an origin came from, followed element by element.

The run of a step keeps the tensors of the ops before an origin, as far as there is room for them;
where some are missing, `kept_upstream` runs it once more as far as the origin. `upstream_of` goes
back through them: a `ConcatV2` leads to the input that the element is from, however large the
others are. A product that is 0 leads to the factor that is 0, a sum to its largest term. Pure
NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanreplay.bisect.constant_values import constant_ops
from nanreplay.bisect.failing_step import Scene
from nanreplay.bisect.influence import MOVEMENTS, REDUCTIONS, influence_of
from nanreplay.bisect.judge import Suspect
from nanreplay.bisect.op_trace import Fact, StepTrace, is_update
from nanreplay.bisect.recent_events import makers_of
from nanreplay.bisect.tensor_stats import (
    FLOATS,
    Mask,
    TensorStat,
    first_index,
    is_float,
    is_opaque,
    words,
)
from nanreplay.bisect.ways import is_plumbing, link_of
from nanreplay.capture.arrays import as_array
from nanreplay.errors import NanreplayError
from nanreplay.findings import ChainLink
from nanreplay.replay.provenance import OpEvent, ValueId

_LONGEST = 8
"""How many ops are told."""
_DENOMINATOR = words("RealDiv Div FloorDiv TruncateDiv FloorMod Mod DivNoNan")
_PRODUCTS = words("Mul MulNoNan MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum Prod")
_EXTREMES = words("Max Min Maximum Minimum SegmentMax SegmentMin MaxPool ClipByValue")
_POLE_AT_ZERO = words("Reciprocal Inv Rsqrt RsqrtGrad SqrtGrad Log Pow Xlogy Xdivy ReciprocalGrad")

Kept = Mapping[int, OpEvent]
"""Executions with their tensors, by serial of the first run."""


class _OriginReachedError(Exception):
    """The origin has run; nothing after it is wanted."""


def kept_upstream(scene: Scene, fact: Fact) -> Kept:
    """Return the executions before an origin with their tensors.

    The step runs once more, as far as the origin, where its run has not kept all of them. Serials
    may be others in this run; name, function and calls of an execution are not.
    """
    makers = list(makers_of(scene.trace.facts, fact))
    events, serials = {}, {}
    for maker in makers:
        event = scene.trace.recent.get(maker.serial) or maker.event
        if event is not None:
            events[maker.serial] = event
        serials[maker.key, maker.calls] = maker.serial
    if len(events) == len(makers):
        return events

    def keep(event: OpEvent) -> None:
        execution = ((event.function, event.name), event.calls)
        if execution in serials:
            events[serials[execution]] = event
        if execution == (fact.key, fact.calls):
            raise _OriginReachedError

    try:
        # Kept by name and calls: a run for other fetches may number its ops otherwise.
        scene.trace.runner.run(scene.step, keep)
    except (_OriginReachedError, NanreplayError):  # or a kernel raised: what ran before is kept
        return events
    return events


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a value; a value as a whole where `mask` is None."""

    value: ValueId
    mask: Mask | None

    @property
    def index(self) -> tuple[int, ...] | None:
        """Where in the value it is; None where it is not a single one."""
        if self.mask is None or np.count_nonzero(self.mask) != 1:
            return None
        return first_index(self.mask)


def upstream_of(scene: Scene, suspect: Suspect, kept: Kept) -> tuple[ChainLink, ...]:
    """Return where the fatal operand came from, nearest first; copies and casts left out.

    Args:
        scene: The origin's step.
        suspect: The origin.
        kept: See `kept_upstream`.
    """
    fact = suspect.fact
    if fact is None or fact.event is None:
        return ()
    follower = _Follower(scene.trace, kept)
    links: list[ChainLink] = []
    at = follower.before(fact, fact.event, *_first_made(suspect), is_origin=True)
    seen: set[ValueId] = set()
    # A loop's state leads back to itself, iteration by iteration.
    while at is not None and at.value not in seen and len(links) < _LONGEST:
        seen.add(at.value)
        fact = scene.trace.facts.get(at.value.serial)
        if fact is None:  # it was fed
            break
        if not (fact.type in MOVEMENTS or is_plumbing(fact)):
            links.append(link_of(scene, fact, scene.trace.stat(at.value)))
        event = kept.get(fact.serial) or fact.event
        at = follower.before(fact, event, at.value.output, at.mask)
    return tuple(links)


def source_of_operand(scene: Scene, suspect: Suspect, i: int, kept: Kept) -> Element | None:
    """Return what an operand's first failing element was made as, behind copies and moves.

    Of a concatenation that is an element of the input that it is from. None where nothing ran.

    Args:
        scene: The origin's step.
        suspect: The origin.
        i: Which operand.
        kept: See `kept_upstream`.
    """
    fact = suspect.fact
    if fact is None or fact.event is None or i >= len(fact.input_ids):
        return None
    follower = _Follower(scene.trace, kept)
    k, made = _first_made(suspect)
    at = Element(fact.input_ids[i], None)
    if made is not None:
        at = Element(fact.input_ids[i], follower.influencing(fact.event, k, made).get(i))
    seen = {at.value}
    while True:
        maker = scene.trace.facts.get(at.value.serial)
        if maker is None or not (maker.type in MOVEMENTS or is_plumbing(maker)):
            return at
        event = kept.get(maker.serial) or maker.event
        before = follower.before(maker, event, at.value.output, at.mask)
        if before is None or before.value in seen:
            return at
        at = before
        seen.add(at.value)


@dataclass(frozen=True, slots=True)
class LostInfinity:
    """An infinity that an op made a number of again, as 1 / inf is 0."""

    loser: Fact
    """The op that got it."""
    maker: Fact
    """The op that overflowed."""
    operand: float
    """What it overflowed on."""


def lost_infinity(scene: Scene, suspect: Suspect, i: int, kept: Kept) -> LostInfinity | None:
    """Return the infinity that an operand's first failing element, a number, was made of.

    None where it was made of numbers alone, or of an infinity that is not computed in the step.

    Args:
        scene: The origin's step.
        suspect: The origin.
        i: Which operand.
        kept: See `kept_upstream`.
    """
    at, follower = source_of_operand(scene, suspect, i, kept), _Follower(scene.trace, kept)
    loser: Fact | None = None
    for _ in range(_LONGEST):
        fact = None if at is None else scene.trace.facts.get(at.value.serial)
        event = None if fact is None else kept.get(fact.serial) or fact.event
        if at is None or at.mask is None or fact is None or event is None:
            return None
        before = follower.before(fact, event, at.value.output, at.mask)
        if before is None or before.mask is None or before.value not in event.input_ids:
            return None
        operand = as_array(event.inputs[event.input_ids.index(before.value)])[before.mask]
        output = as_array(event.outputs[at.value.output])[at.mask]
        is_from_infinity = bool(np.isinf(operand).all())
        if loser is None and is_from_infinity and np.isfinite(output).all():
            loser = fact
        elif loser is not None and not is_from_infinity:
            value = operand.reshape(-1)
            is_number = operand.dtype.kind != "c" and len(value) == 1 and np.isfinite(value[0])
            return LostInfinity(loser, fact, float(value[0])) if is_number else None
        at = before
    return None


def _first_made(suspect: Suspect) -> tuple[int, Mask | None]:
    """Return the first output that an origin made bad, and its first bad element."""
    k = min(suspect.masks, default=0)
    mask = suspect.masks.get(k)
    return k, None if mask is None or not mask.any() else _only(mask, first_index(mask))


def _only(mask: Mask, index: tuple[int, ...]) -> Mask:
    one = np.zeros(mask.shape, bool)
    one[index] = True
    return one


class _Follower:
    """Goes from an element of an op's output to the element that made it what it is."""

    def __init__(self, trace: StepTrace, kept: Kept) -> None:
        self.trace = trace
        self.kept = kept
        self.constants = constant_ops(trace)

    def before(
        self,
        fact: Fact,
        event: OpEvent | None,
        k: int,
        mask: Mask | None,
        *,
        is_origin: bool = False,
    ) -> Element | None:
        """Return the element that an element of output k came from; None where that ends.

        Args:
            fact: The op.
            event: Its execution with its tensors, None where they were not kept.
            k: Which output.
            mask: The element; None for the whole output.
            is_origin: Whether the op made a finite operand non-finite.
        """
        if fact.type == "ReadVariableOp" or is_update(fact.type) or fact.via:
            return self._stored(fact, event, mask)
        if event is None or mask is None or k >= len(event.outputs):
            return self._largest(fact)
        if mask.shape != tuple(event.outputs[k].shape):
            return self._largest(fact)
        masks = self.influencing(event, k, mask)
        if not masks:
            return self._largest(fact)
        i = self._guilty(fact, event, as_array(event.outputs[k])[mask], masks, is_origin)
        array = as_array(event.inputs[i])
        output = as_array(event.outputs[k])[mask]
        return Element(event.input_ids[i], _narrowed(event, array, masks[i], output))

    def influencing(self, event: OpEvent, k: int, mask: Mask) -> dict[int, Mask]:
        """Return, by input, the elements of float inputs that influence an output element."""
        influence = influence_of(event, self.trace.runner.execute)
        masks: dict[int, Mask] = {}
        for i, value in enumerate(event.inputs):
            if is_opaque(value) or not is_float(value):
                continue
            if not influence.exact:
                return {}
            back = influence.back(i, k, mask)
            if back.any():
                masks[i] = back
        return masks

    def _guilty(
        self, fact: Fact, event: OpEvent, output: Any, masks: Mapping[int, Mask], is_origin: bool
    ) -> int:
        """Return the input that made an element what it is; what is still in the step comes last.

        Args:
            fact: The op.
            event: Its execution.
            output: The element.
            masks: By input: the elements that it was computed from.
            is_origin: Whether the op made finite operands non-finite.
        """
        parts = {}
        for i, mask in masks.items():
            parts[i] = as_array(event.inputs[i])[mask]
        for i, part in parts.items():
            if not np.isfinite(part).all():
                return i
        # A division fails for what it divides by, whatever the size of the numerator.
        if is_origin and fact.type in _DENOMINATOR and 1 in parts:
            return 1
        # A constant or a weight cannot have come to be bad within the step.
        computed = [i for i in parts if not self._is_still(event.input_ids[i])]
        choices = computed or list(parts)
        with np.errstate(all="ignore"):
            sizes = {}
            for i in choices:
                sizes[i] = float(np.abs(parts[i]).astype(np.float64).max())
        zeros = [i for i in choices if sizes[i] == 0]
        if is_origin and fact.type in _POLE_AT_ZERO and zeros:
            return zeros[0]
        if fact.type in _PRODUCTS and _is_negative(output):
            # A product is negative for its negative factor: what a Log or a Sqrt fails on is that
            # sign.
            negative = [i for i in choices if _is_negative(parts[i])]
            choices = negative or choices
        return _by_arithmetic(fact.type, output, choices, sizes)

    def _is_still(self, value: ValueId) -> bool:
        """Whether a value is the same in the whole step: a constant, a variable's old value."""
        fact = self.trace.facts.get(value.serial)
        if fact is None:
            return value.serial < 0 and self.trace.feed(value)[0] != "batch"
        if fact.serial in self.constants:
            return True
        return fact.type == "ReadVariableOp" and not fact.via

    def _stored(self, fact: Fact, event: OpEvent | None, mask: Mask | None) -> Element | None:
        """Return what of a storage a read gave."""
        if not fact.via:
            return None
        shape = None if mask is None else mask.shape
        is_stack = fact.type in ("TensorListStack", "TensorListConcatV2", "TensorArrayGatherV3")
        if is_stack and mask is not None and shape and shape[0] == len(fact.via) and mask.any():
            row = first_index(mask)[0]
            return Element(fact.via[row], mask[row])
        stat = self.trace.stat(fact.via[-1])
        fits = stat is not None and stat.shape == shape
        return Element(fact.via[-1], mask if fits else None)

    def _largest(self, fact: Fact) -> Element | None:
        """Return the float input that holds most: the worst, then the largest value.

        For an op whose tensors were not kept, or whose elements cannot be told apart.
        """
        stats: dict[ValueId, TensorStat] = {}
        for value in fact.sources:
            stat = self.trace.stat(value) if value.serial >= 0 else None
            if stat is not None and stat.dtype in FLOATS:
                stats[value] = stat
        computed = []
        for value in stats:
            if not self._is_still(value):
                computed.append(value)
        largest = max(
            computed or stats,
            key=lambda value: (stats[value].nonfinite > 0, stats[value].absmax or 0.0),
            default=None,
        )
        return None if largest is None else Element(largest, None)


def _by_arithmetic(
    op_type: str, output: Any, choices: list[int], sizes: Mapping[int, float]
) -> int:
    """Choose the operand that decides a result: the small one of a small product, else the large.

    Args:
        op_type: Type of the op.
        output: The result.
        choices: Inputs to choose from.
        sizes: Absolute value of each.
    """
    if op_type in _DENOMINATOR and len(choices) > 1:
        return max(choices, key=lambda i: _strangeness(sizes[i]))
    with np.errstate(all="ignore"):
        is_small = bool((np.abs(output.astype(np.complex128)) < 1).all())
    if op_type in _PRODUCTS and is_small:
        return min(choices, key=lambda i: sizes[i])
    if op_type in _EXTREMES:
        result = float(np.abs(output.astype(np.complex128)).max(initial=0.0))
        return min(choices, key=lambda i: abs(sizes[i] - result))
    return max(choices, key=lambda i: sizes[i])


def _is_negative(elements: Any) -> bool:
    return elements.dtype.kind != "c" and bool((elements < 0).all())


def _strangeness(size: float) -> float:
    """How far from 1 a number is, on a scale of powers."""
    return np.inf if size == 0 else abs(float(np.log(size)))


def _narrowed(event: OpEvent, array: Any, mask: Mask, output: Any) -> Mask:
    """Return one of the elements that went in: of a sum its largest term."""
    indices = np.flatnonzero(mask.reshape(-1))
    if len(indices) < 2:
        return mask
    with np.errstate(all="ignore"):
        values = np.abs(array.reshape(-1)[indices].astype(np.complex128))
        if event.type in _EXTREMES and event.type in REDUCTIONS | {"MaxPool"}:
            values = -np.abs(values - np.abs(output.astype(np.complex128)).max(initial=0.0))
    position = int(np.argmax(np.where(np.isnan(values), np.inf, values)))
    chosen = np.zeros(mask.shape, bool)
    chosen.reshape(-1)[indices[position]] = True
    return chosen
