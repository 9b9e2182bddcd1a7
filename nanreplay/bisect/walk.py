"""Walking back from what failed, element by element, to everything that could have started it.

`blame` looks at one op; `walk_back` repeats that from the targets to the start of the step. Only
bad elements that influence bad elements are followed: NaN first, infinities where no NaN explains
a NaN. What the walk finds is judged in `judge`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.blame import assign_blame
from nanreplay.bisect.influence import Execute
from nanreplay.bisect.op_trace import Fact, StepTrace, is_update
from nanreplay.bisect.step_runner import PASSIVE
from nanreplay.bisect.tensor_stats import (
    Mask,
    both,
    either,
    is_float,
    is_opaque,
    is_some,
    known_nonfinite,
    nan_mask,
    none_of,
    without,
)
from nanreplay.capture.arrays import as_array
from nanreplay.replay.provenance import OpEvent, ValueId

Through = frozenset[int | None]
"""Serials of ops, at one of which every path must pass; None stands for a path without any."""
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
    """For each op on the path the nearest op on it that used its value; None for what failed."""
    failing: dict[int, dict[int, Mask]] = field(default_factory=dict)
    """Failing elements by serial, then by output."""
    crossed: dict[int, dict[int, Mask]] = field(default_factory=dict)
    """Backward ops that took a bad value of the forward pass: their failing elements by output."""
    hiders: set[int] = field(default_factory=set)
    """Ops on the path that hide a NaN: what they gave is finite."""


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
    for fact in trace.raised:
        walker.reveal_raised(fact)
    walker.run()
    return walker.walk


class _Walker:
    """Visits ops in the reverse of the order in which they ran.

    A value is used only after it was made. So when an op's turn comes, all paths through its
    outputs have arrived, and one visit is enough. `pending` is a heap of negated serials: its
    smallest entry is the op that ran last.
    """

    def __init__(self, walk: Walk, is_backward: Callable[[Fact], bool], execute: Execute) -> None:
        self.walk = walk
        self.trace = walk.trace
        self.is_backward = is_backward
        self.execute = execute
        self.pending: list[int] = []
        self.arrivals: dict[int, dict[int, Arrival]] = {}

    def arrive(self, value: ValueId, new: Arrival) -> None:
        """Put elements of a value on the path."""
        if not is_some(new.mask):
            return
        new.mask = self.trace.shared(new.mask)
        if value.serial < 0:
            _merge(self.walk.leaves, value, new)
            return
        # A serial goes on the heap once, however many paths lead to it.
        if value.serial not in self.arrivals:
            heapq.heappush(self.pending, -value.serial)
        _merge(self.arrivals.setdefault(value.serial, {}), value.output, new)

    def run(self) -> None:
        """Visit every op on the path once, the last one first."""
        while self.pending:
            serial = -heapq.heappop(self.pending)
            fact, arrivals = self.trace.facts.get(serial), self.arrivals.pop(serial)
            event = None if fact is None else fact.seen
            if fact is not None and event is not None:
                failing = {}
                for k, arrival in arrivals.items():
                    failing[k] = self.trace.shared(arrival.mask)
                self.walk.failing[serial] = failing
                self.walk.parents[serial] = _nearest(arrivals.values())
                self.visit(fact, event, failing, _joined(arrivals.values()))

    def visit(self, fact: Fact, event: OpEvent, failing: dict[int, Mask], path: Arrival) -> None:
        """Put what is to blame for an op's failing elements on the path."""
        takes_no_floats = all(is_opaque(value) or not is_float(value) for value in event.inputs)
        if event.error is not None and event.type not in PASSIVE:
            self.add_maker(fact, failing, "nan", path)
        elif is_update(fact.type):
            self.visit_update(fact, event, failing, path)
        elif fact.via or (event.inputs and takes_no_floats):
            self.visit_read(fact, event, failing, path)
        else:
            self.visit_op(fact, event, failing, path)

    def add_maker(self, fact: Fact, made: dict[int, Mask], kind: str, path: Arrival) -> None:
        """Note the elements that an op made; behind a hidden NaN, go on where that came from."""
        own: dict[int, Mask] = {}
        for k, mask in made.items():
            hidden = self.trace.hidden.known.get(ValueId(fact.serial, k))
            if hidden is None or hidden.mask.shape != mask.shape:
                own[k] = mask
                continue
            if (mask & hidden.mask).any():
                self.reveal(fact, hidden.hiders, path)
            if (mask & ~hidden.mask).any():
                own[k] = mask & ~hidden.mask
        if own or not made:
            self.walk.makers.append(Maker(fact, own, kind, path.turners, path.crossings))

    def reveal_raised(self, fact: Fact) -> None:
        """Follow the NaN that is behind what an op got and raised for."""
        hiders = self.trace.hidden.behind(fact.serial)
        if hiders:
            self.walk.parents.setdefault(fact.serial, None)
            self.reveal(fact, hiders, Arrival(np.ones((), bool), None))

    def reveal(self, fact: Fact, hiders: Iterable[int], path: Arrival) -> None:
        """Follow the NaN that ops have hidden, and that an op's bad elements depend on."""
        for serial in hiders:
            hider = self.trace.facts[serial]
            self.walk.hiders.add(serial)
            self.walk.parents[serial] = fact.serial  # of several, the first that ran comes last
            for i, mask in self.trace.hidden.hiders[serial].items():
                self.arrive(hider.input_ids[i], Arrival(mask, serial, path.turners))

    def visit_op(self, fact: Fact, event: OpEvent, failing: dict[int, Mask], path: Arrival) -> None:
        """A plain op: pass on, or note what it made."""
        blame = assign_blame(event, failing, self.execute)
        if blame.made:
            self.add_maker(fact, blame.made, _kind(event, blame.made), path)
        if blame.turned:
            turner = Maker(fact, blame.turned, "turned", path.turners, path.crossings)
            self.walk.turners[fact.serial] = turner
        for i, mask in blame.follow.items():
            self.send(fact, event.input_ids[i], mask, path)
        for i, mask in blame.turned_from.items():
            self.send(fact, event.input_ids[i], mask, path, turned=True)

    def visit_read(
        self, fact: Fact, event: OpEvent, failing: dict[int, Mask], path: Arrival
    ) -> None:
        """A read from storage: go on where the value was made."""
        sources = list(fact.via)
        if not sources:  # the step has not written it: the read gives what was fed
            for value in event.input_ids:
                if value.serial < 0 and self.trace.bad_mask(value) is not None:
                    sources.append(value)
        if not sources:
            self.add_maker(fact, failing, _kind(event, failing), path)
            return
        stored: dict[ValueId, Mask] = {}
        for value in sources:
            mask = self.stored(value, event, failing)
            if mask is not None:
                stored[value] = mask
        if _kind(event, failing) == "nan":
            # a read gives what is stored, so what it gives as NaN was stored as NaN
            nans = {}
            for value, mask in stored.items():
                nan_part = mask & nan_mask(self.trace.value(value))
                if nan_part.any():
                    nans[value] = nan_part
            stored = nans or stored
        for value, mask in stored.items():
            self.send(fact, value, mask, path)

    def stored(self, value: ValueId, event: OpEvent, failing: Mapping[int, Mask]) -> Mask | None:
        """Return the bad elements of a stored value that a read brought to failing elements."""
        bad = self.trace.bad_mask(value)
        if bad is None:
            return None
        brought = none_of(bad.shape)
        for mask in failing.values():
            brought = either(brought, _placed(mask, bad, event))
        return brought if is_some(brought) else None

    def visit_update(
        self, fact: Fact, event: OpEvent, failing: dict[int, Mask], path: Arrival
    ) -> None:
        """A variable computed its own new value: from what it held, and from the op's inputs."""
        explained = {k: none_of(mask.shape) for k, mask in failing.items()}
        for value in dict.fromkeys(fact.sources):
            if self.is_stale(value, fact):
                continue
            tensor = self.tensor(value, fact, event)
            if tensor is None or is_opaque(tensor) or not is_float(tensor):
                continue
            bad = known_nonfinite(tensor, self.trace.stat(value))
            for k, mask in failing.items():
                # Update rules of optimizers work element by element; what has another shape (a
                # learning rate, the rows of a sparse gradient) may reach every element.
                if bad.shape == mask.shape:
                    sent, reached = both(bad, mask), bad
                else:
                    sent, reached = bad, np.broadcast_to(np.bool_(is_some(bad)), mask.shape)
                self.send(fact, value, sent, path)
                explained[k] = either(explained[k], reached)
        made = {}
        for k, mask in failing.items():
            unexplained = without(mask, explained[k])
            if is_some(unexplained):
                made[k] = unexplained
        if made:
            self.add_maker(fact, made, _kind(event, made), path)

    def is_stale(self, value: ValueId, fact: Fact) -> bool:
        """Whether a variable's value from before the step was overwritten before the op ran."""
        return bool(fact.via) and value.serial < 0 and self.trace.feed(value)[0] == "variable"

    def tensor(self, value: ValueId, fact: Fact, event: OpEvent) -> Any:
        """Return the tensor behind an identity.

        That is an input of the op, a value that was kept, or a variable's value before the step.
        """
        if value in fact.input_ids:
            tensor = event.inputs[fact.input_ids.index(value)]
            if not is_opaque(tensor):
                return tensor
        return self.trace.value(value)

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
    """Return `nan` when a marked element of an output is NaN, else `inf`."""
    nans = []
    for k, mask in masks.items():
        nans.append(both(mask, nan_mask(event.outputs[k])))
    return "nan" if any(map(is_some, nans)) else "inf"


def _merge(into: dict[Any, Arrival], key: Any, new: Arrival) -> None:
    old = into.get(key)
    into[key] = new if old is None else _joined((old, new), mask=either(old.mask, new.mask))


def _joined(arrivals: Iterable[Arrival], mask: Mask | None = None) -> Arrival:
    joined = list(arrivals)
    turners: Through = frozenset().union(*(arrival.turners for arrival in joined))
    crossings: Through = frozenset().union(*(arrival.crossings for arrival in joined))
    return Arrival(joined[0].mask if mask is None else mask, _nearest(joined), turners, crossings)


def _nearest(arrivals: Iterable[Arrival]) -> int | None:
    """Return the first of the ops that used a value; None where the value itself failed."""
    consumers: list[int] = []
    for arrival in arrivals:
        if arrival.consumer is None:
            return None
        consumers.append(arrival.consumer)
    return min(consumers, default=None)


# From the elements of a read back to those of the stored value.


def _placed(mask: Mask, bad: Mask, event: OpEvent) -> Mask:
    """Carry failing elements of a read back to a stored value.

    The read gave the value itself, one of its rows, or many values of which it is one row.
    """
    if event.type == "ResourceGather":
        return _gathered(mask, bad, as_array(event.inputs[1])[..., np.newaxis])
    if event.type == "ResourceGatherNd":
        return _gathered(mask, bad, as_array(event.inputs[1]))
    if mask.shape == bad.shape:
        return both(mask, bad)
    if bad.shape[1:] == mask.shape:
        return _rows_like(mask, bad, event)
    if mask.shape[1:] == bad.shape and mask.ndim:
        return as_array(mask.any(axis=0)) & bad
    return bad


def _gathered(mask: Mask, bad: Mask, indices: NDArray[Any]) -> Mask:
    """Parts of a table were read: carry the marked elements to where they came from.

    The last axis of the indices goes over the first axes of the table.
    """
    parts = np.zeros(bad.shape, bool)
    depth = indices.shape[-1]
    if not depth:
        return bad
    marked = mask.reshape(-1, *bad.shape[depth:])
    # `at` because a part may be gathered more than once.
    np.logical_or.at(parts, tuple(indices.reshape(-1, depth).T), marked)
    return parts & bad


def _rows_like(mask: Mask, bad: Mask, event: OpEvent) -> Mask:
    """One row of a stored tensor was read: the index tells which, else where it is bad."""
    if event.type == "TensorListGetItem":
        row = int(as_array(event.inputs[1]))
        rows = np.zeros(bad.shape, bool)
        if 0 <= row < bad.shape[0]:
            rows[row] = mask & bad[row]
        return rows
    return bad & mask[None]
