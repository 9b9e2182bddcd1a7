"""Walking back from what failed, element by element, to everything that could have started it.

Only bad elements that influence bad elements are followed: NaN first, infinities where no NaN explains a NaN. What the
walk finds is judged in `judge`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.influence import ROWWISE, Everything, Execute, Influence, influence_of
from nanreplay.bisect.op_trace import Fact, StepTrace, is_update
from nanreplay.bisect.step_runner import PASSIVE
from nanreplay.bisect.tensor_stats import Mask, inf_mask, is_float, is_opaque, nan_mask, nonfinite
from nanreplay.capture.arrays import as_array
from nanreplay.replay.provenance import OpEvent, ValueId

# Which input elements are to blame for an op's failing elements, and which elements the op made
# bad itself.


@dataclass(slots=True)
class Blame:
    """How the failing elements of one execution came about."""

    influence: Influence
    follow: dict[int, Mask] = field(default_factory=dict)
    """By input: bad elements that were passed on."""
    turned_from: dict[int, Mask] = field(default_factory=dict)
    """By input: infinities that this op turned into NaN."""
    made: dict[int, Mask] = field(default_factory=dict)
    """By output: bad elements from finite ones."""
    turned: dict[int, Mask] = field(default_factory=dict)
    """By output: NaN from infinities."""

    def add(self, where: dict[int, Mask], i: int, mask: Mask) -> None:
        """Mark more elements."""
        if mask.any():
            where[i] = where[i] | mask if i in where else mask


def assign_blame(event: OpEvent, failing: Mapping[int, Mask], execute: Execute) -> Blame:
    """Return who is to blame for failing elements.

    Args:
        event: The execution, with its tensors.
        failing: By output: the failing elements.
        execute: Runs the event's kernel on other inputs.
    """
    influence = influence_of(event, execute)
    floats = [i for i, value in enumerate(event.inputs) if not is_opaque(value) and is_float(value)]
    blame = Blame(influence)
    if isinstance(influence, Everything):
        failing, floats = _by_intervention(event, failing, floats, execute, blame)
    nans = {i: nan_mask(event.inputs[i]) for i in floats}
    infs = {i: inf_mask(event.inputs[i]) for i in floats}
    for k, mask in failing.items():
        out = as_array(event.outputs[k])
        is_nan, is_inf = mask & np.isnan(out), mask & ~np.isnan(out) & np.isinf(out)
        rest = _pass_on(blame, k, is_nan, nans, blame.follow)
        if event.type in ROWWISE and rest.any():
            infs = _fatal_of_row(event, infs)
        made = _pass_on(blame, k, rest, infs, blame.turned_from)
        blame.add(blame.turned, k, rest & ~made)
        blame.add(blame.made, k, made)
        rest = _pass_on(blame, k, is_inf, infs, blame.follow)
        blame.add(blame.made, k, _pass_on(blame, k, rest, nans, blame.follow))
    return blame


def _pass_on(
    blame: Blame, k: int, wanted: Mask, bad: Mapping[int, Mask], into: dict[int, Mask]
) -> Mask:
    """Mark the bad input elements that influence the wanted ones; return the wanted ones that none influences."""
    if not wanted.any():
        return wanted
    reached = np.zeros(wanted.shape, bool)
    for i, mask in bad.items():
        if mask.any():
            reached |= blame.influence.forth(i, k, mask)
    explained = wanted & reached
    if explained.any():
        for i, mask in bad.items():
            if mask.any():
                blame.add(into, i, blame.influence.back(i, k, explained) & mask)
    return wanted & ~reached


def _fatal_of_row(event: OpEvent, infs: Mapping[int, Mask]) -> dict[int, Mask]:
    """+inf spoils a softmax whatever else the row holds; -inf only when it fills the row."""
    values = as_array(event.inputs[0])
    high = infs[0] & (values > 0)
    return {**infs, 0: infs[0] & (high | ~high.any(axis=-1, keepdims=True))}


def _by_intervention(
    event: OpEvent, failing: Mapping[int, Mask], floats: list[int], execute: Execute, blame: Blame
) -> tuple[Mapping[int, Mask], list[int]]:
    """For an op without a rule: run it again with bad input elements replaced by 1, to see which inputs matter.

    Returns the failing elements that inputs explain, and the inputs to blame for them.
    """
    bad = [i for i in floats if nonfinite(event.inputs[i]).any()]
    if (
        event.error is not None
        or not bad
        or any(is_opaque(value) for value in (*event.inputs, *event.outputs))
    ):
        return failing, floats
    clean = {i: _cleaned(event.inputs[i]) for i in bad}
    try:
        healthy = execute(event, [clean.get(i, value) for i, value in enumerate(event.inputs)])
        explained: dict[int, Mask] = {}
        for k, mask in failing.items():
            own = mask & nonfinite(healthy[k])
            blame.add(blame.made, k, own)
            if (mask & ~own).any():
                explained[k] = mask & ~own
        return explained, [
            i for i in bad if len(bad) == 1 or _suffices(event, i, clean, explained, execute)
        ] or bad
    except (
        Exception
    ):  # the kernel does not take the replacement: every bad input stays under suspicion
        return failing, floats


def _suffices(
    event: OpEvent, i: int, clean: Mapping[int, Any], failing: Mapping[int, Mask], execute: Execute
) -> bool:
    """Return whether input i alone, all others cleaned, makes the elements fail."""
    inputs = [value if j == i else clean.get(j, value) for j, value in enumerate(event.inputs)]
    outputs = execute(event, inputs)
    return any(bool((nonfinite(outputs[k]) & mask).any()) for k, mask in failing.items())


def _cleaned(value: Any) -> Any:
    array = np.array(value)
    array[~np.isfinite(array)] = 1
    return array


# --- bisect.walk

Through = frozenset[int | None]
"""Serials of ops that every path must pass at one of; None stands for a path without any."""
DIRECT: Through = frozenset({None})


@dataclass(slots=True)
class Arrival:
    """Elements of one value that lie on the causal path, and how the path came there."""

    mask: Mask
    consumer: int | None
    """The nearest op on the path that used the value; None for a target itself."""
    turners: Through = DIRECT
    """Ops that turned infinities into NaN on the way from the target to here."""
    crossings: Through = DIRECT
    """Backward ops that used a value of the forward pass on the way from the target to here."""


@dataclass(slots=True)
class Maker:
    """An op instance that made bad elements."""

    fact: Fact
    masks: dict[int, Mask]
    """By output: the elements it made."""
    kind: str
    """`nan`, `inf` or `turned` (NaN from infinities)."""
    turners: Through = DIRECT
    crossings: Through = DIRECT


@dataclass(slots=True)
class Walk:
    """Everything that one walk found."""

    trace: StepTrace
    makers: list[Maker] = field(default_factory=list)
    """Ops that made bad elements from finite ones."""
    turners: dict[int, Maker] = field(default_factory=dict)
    """Ops that made NaN from infinities, by serial."""
    leaves: dict[ValueId, Arrival] = field(default_factory=dict)
    """Fed values (batch, state, constants) that were bad already."""
    parents: dict[int, int | None] = field(default_factory=dict)
    """For each op on the path the nearest op on the path that used its value; None for what failed."""
    failing: dict[int, dict[int, Mask]] = field(default_factory=dict)
    """Failing elements by serial, then by output."""
    blames: dict[int, Blame] = field(default_factory=dict)
    """How ops that made something did it, by serial."""
    crossed: dict[int, dict[int, Mask]] = field(default_factory=dict)
    """Backward ops that took a bad value of the forward pass: their failing elements by output."""


def walk_back(
    trace: StepTrace,
    targets: Mapping[ValueId, Mask],
    is_backward: Callable[[Fact], bool],
    execute: Execute,
) -> Walk:
    """Walk back from failing elements.

    Args:
        trace: The step.
        targets: Failing elements of the values that failed.
        is_backward: Whether an op instance belongs to the backward pass or later.
        execute: Runs the kernel of an event on other inputs.
    """
    walker = _Walker(Walk(trace), is_backward, execute)
    for value, mask in targets.items():
        walker.arrive(value, Arrival(mask, None))
    walker.run()
    return walker.walk


class _Walker:
    def __init__(self, walk: Walk, is_backward: Callable[[Fact], bool], execute: Execute) -> None:
        self.walk = walk
        self.trace = walk.trace
        self.is_backward = is_backward
        self.execute = execute
        self.pending: list[int] = []
        self.arrivals: dict[int, dict[int, Arrival]] = {}

    def arrive(self, value: ValueId, new: Arrival) -> None:
        """Put elements of a value on the path."""
        if not new.mask.any():
            return
        if value.serial < 0:
            _merge(self.walk.leaves, value, new)
            return
        if value.serial not in self.arrivals:
            heapq.heappush(self.pending, -value.serial)
        _merge(self.arrivals.setdefault(value.serial, {}), value.output, new)

    def run(self) -> None:
        """Visit every op on the path once, the last one first."""
        while self.pending:
            serial = -heapq.heappop(self.pending)
            fact, arrivals = self.trace.facts.get(serial), self.arrivals[serial]
            if fact is not None and fact.event is not None:
                failing = {k: arrival.mask for k, arrival in arrivals.items()}
                self.walk.failing[serial] = failing
                self.walk.parents[serial] = _nearest(arrivals.values())
                self.visit(fact, fact.event, failing, _joined(arrivals.values()))

    def visit(self, fact: Fact, event: OpEvent, failing: dict[int, Mask], path: Arrival) -> None:
        """Put what is to blame for an op's failing elements on the path."""
        if event.error is not None and event.type not in PASSIVE:
            self.walk.makers.append(Maker(fact, failing, "nan", path.turners, path.crossings))
        elif is_update(fact.type):
            self.visit_update(fact, event, failing, path)
        elif fact.via or (
            event.inputs and all(is_opaque(value) or not is_float(value) for value in event.inputs)
        ):
            self.visit_read(fact, event, failing, path)
        else:
            self.visit_op(fact, event, failing, path)

    def visit_op(self, fact: Fact, event: OpEvent, failing: dict[int, Mask], path: Arrival) -> None:
        """A plain op: pass on, or note what it made."""
        blame = assign_blame(event, failing, self.execute)
        if blame.made:
            self.walk.makers.append(
                Maker(fact, blame.made, _kind(event, blame.made), path.turners, path.crossings)
            )
        if blame.turned:
            self.walk.turners[fact.serial] = Maker(
                fact, blame.turned, "turned", path.turners, path.crossings
            )
        self.walk.blames[fact.serial] = blame
        for i, mask in blame.follow.items():
            self.send(fact, event.input_ids[i], mask, path)
        for i, mask in blame.turned_from.items():
            self.send(fact, event.input_ids[i], mask, path, turned=True)

    def visit_read(
        self, fact: Fact, event: OpEvent, failing: dict[int, Mask], path: Arrival
    ) -> None:
        """A read from storage: go on where the value was made."""
        sources = list(fact.via) or [
            value
            for value in event.input_ids
            if value.serial < 0 and self.trace.bad_mask(value) is not None
        ]
        found = {
            value: mask
            for value in sources
            if (mask := self.stored(value, event, failing)) is not None
        }
        with_nan = {
            value: mask & nan_mask(self.trace.value(value)) for value, mask in found.items()
        }
        if _kind(event, failing) == "nan":
            found = {value: mask for value, mask in with_nan.items() if mask.any()} or found
        for value, mask in found.items():
            self.send(fact, value, mask, path)
        if not sources and not fact.via:
            self.walk.makers.append(
                Maker(fact, failing, _kind(event, failing), path.turners, path.crossings)
            )

    def stored(self, value: ValueId, event: OpEvent, failing: Mapping[int, Mask]) -> Mask | None:
        """Return the bad elements of a stored value that a read brought to failing elements."""
        bad = self.trace.bad_mask(value)
        if bad is None:
            return None
        found = np.zeros(bad.shape, bool)
        for mask in failing.values():
            found |= _placed(mask, bad, event)
        return found if found.any() else None

    def visit_update(
        self, fact: Fact, event: OpEvent, failing: dict[int, Mask], path: Arrival
    ) -> None:
        """A variable computed its own new value: from what it held, and from the op's inputs."""
        explained = {k: np.zeros(mask.shape, bool) for k, mask in failing.items()}
        sources = [
            value for value in (*fact.input_ids, *fact.via) if not self.is_stale(value, fact)
        ]
        for value, tensor in ((v, self.tensor(v, fact, event)) for v in dict.fromkeys(sources)):
            if tensor is None or is_opaque(tensor) or not is_float(tensor):
                continue
            bad = nonfinite(tensor)
            for k, mask in failing.items():
                same = bad.shape == mask.shape
                self.send(fact, value, bad & mask if same else bad, path)
                explained[k] |= bad if same else bool(bad.any())
        made = {
            k: mask & ~explained[k] for k, mask in failing.items() if (mask & ~explained[k]).any()
        }
        if made:
            self.walk.makers.append(
                Maker(fact, made, _kind(event, made), path.turners, path.crossings)
            )

    def is_stale(self, value: ValueId, fact: Fact) -> bool:
        """Whether a variable's value from before the step was overwritten before the op ran."""
        return bool(fact.via) and value.serial < 0 and self.trace.feed(value)[0] == "variable"

    def tensor(self, value: ValueId, fact: Fact, event: OpEvent) -> object | None:
        """Return the tensor behind an identity: an input of the op, a kept value, or a variable's old value."""
        if value in fact.input_ids:
            tensor = event.inputs[fact.input_ids.index(value)]
            if not is_opaque(tensor):
                return tensor  # type: ignore[no-any-return]
        return self.trace.value(value)  # type: ignore[no-any-return]

    def send(
        self, fact: Fact, value: ValueId, mask: Mask, path: Arrival, *, turned: bool = False
    ) -> None:
        """Follow a value back from an op."""
        turners = frozenset({fact.serial}) if turned else path.turners
        crossings = path.crossings
        if self.is_backward(fact) and value.serial >= 0:
            source = self.trace.facts.get(value.serial)
            if source is not None and not self.is_backward(source):
                crossings = frozenset({fact.serial})
                self.walk.crossed[fact.serial] = self.walk.failing[fact.serial]
        self.arrive(value, Arrival(mask, fact.serial, turners, crossings))


def _kind(event: OpEvent, masks: Mapping[int, Mask]) -> str:
    """`nan` when a marked element of an output is NaN, else `inf`."""
    return (
        "nan"
        if any(np.isnan(as_array(event.outputs[k])[mask]).any() for k, mask in masks.items())
        else "inf"
    )


def _merge(into: dict[Any, Arrival], key: Any, new: Arrival) -> None:
    old = into.get(key)
    into[key] = new if old is None else _joined((old, new), mask=old.mask | new.mask)


def _joined(arrivals: Iterable[Arrival], mask: Mask | None = None) -> Arrival:
    every = list(arrivals)
    turners: Through = frozenset().union(*(a.turners for a in every))
    crossings: Through = frozenset().union(*(a.crossings for a in every))
    return Arrival(every[0].mask if mask is None else mask, _nearest(every), turners, crossings)


def _nearest(arrivals: Iterable[Arrival]) -> int | None:
    consumers = [arrival.consumer for arrival in arrivals]
    return None if None in consumers else min((c for c in consumers if c is not None), default=None)


def _placed(mask: Mask, bad: Mask, event: OpEvent) -> Mask:
    """Carry failing elements of a read back to a stored value: the value itself, one of its rows, or one row of many."""
    if mask.shape == bad.shape and event.type != "ResourceGather":
        return mask & bad
    if event.type == "ResourceGather":
        return _gathered(mask, bad, as_array(event.inputs[1]))
    if bad.shape[1:] == mask.shape:
        return _rows_like(mask, bad, event)
    if mask.shape[1:] == bad.shape and mask.ndim:
        return as_array(mask.any(axis=0)) & bad
    return bad


def _gathered(mask: Mask, bad: Mask, indices: NDArray[Any]) -> Mask:
    """Rows of a table were read: carry the marked elements to the rows they came from."""
    found = np.zeros(bad.shape, bool)
    np.logical_or.at(found, indices.reshape(-1), mask.reshape(-1, *bad.shape[1:]))
    return found & bad


def _rows_like(mask: Mask, bad: Mask, event: OpEvent) -> Mask:
    """One row of a stored tensor was read: which one is told by the index, else by where it is bad."""
    if event.type == "TensorListGetItem":
        row = int(as_array(event.inputs[1]))
        found = np.zeros(bad.shape, bool)
        if 0 <= row < bad.shape[0]:
            found[row] = mask & bad[row]
        return found
    return bad & mask[None]
