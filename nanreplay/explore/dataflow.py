"""Where the values of an op came from and where they went, copies skipped but told. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from nanreplay.bisect.influence import COPIES
from nanreplay.bisect.tensor_stats import words
from nanreplay.explore.step_view import HEALTHS, Op, StepView
from nanreplay.replay.provenance import ValueId

# Finding ops in a step: by text, by health, in the order of execution. Pure functions.

Direction: TypeAlias = Literal[1, -1]
Test: TypeAlias = Callable[[Op], bool]
_SIZE = re.compile(r"([<>])\s*([-+\d.e]+)", re.IGNORECASE)


def matcher(text: str) -> Test:
    """Return what tells whether an op fits a query.

    All words of the query must fit: a part of the op's type, name, layer, phase or source line, in any case; `nan`, `inf`,
    `contained`, `finite`, `bad` (all but finite) or `origin` after `is:`; `>1e4` or `<1e-6` for its largest finite absolute
    value; `step:` is not among them, since a view is of one step.
    """
    tests = [_test(word) for word in text.split()]
    return lambda op: all(test(op) for test in tests)


def search(ops: Iterable[Op], text: str) -> tuple[Op, ...]:
    """Return the ops that fit a query, in order; see `matcher`."""
    fits = matcher(text)
    return tuple(op for op in ops if fits(op))


def neighbour(
    ops: Sequence[Op], serial: int, direction: Direction, fits: Test = lambda op: True
) -> Op | None:
    """Return the next or the previous op, in the order of execution, that fits; None at the end."""
    before = [op for op in ops if op.serial < serial] if direction < 0 else []
    after = (op for op in ops if op.serial > serial)
    return next((op for op in (reversed(before) if direction < 0 else after) if fits(op)), None)


def is_bad(op: Op) -> bool:
    """Whether an op gave something non-finite that matters."""
    return op.health in ("inf", "nan")


def next_origin(view: StepView, serial: int | None) -> Op | None:
    """Return the origin after the given one, starting over at the end; None when no op is one."""
    serials = [value.serial for value in view.origins if value.serial >= 0]
    if not serials:
        return None
    following = serials.index(serial) + 1 if serial in serials else 0
    return view.op(serials[following % len(serials)])


def _test(word: str) -> Test:
    key, _, value = word.lower().partition(":")
    if key == "is" and value in HEALTHS:
        return lambda op: op.health == value
    if key == "is" and value == "bad":
        return lambda op: op.health != "finite"
    if key == "is" and value == "origin":
        return lambda op: op.is_origin
    size = _SIZE.fullmatch(word)
    if size is not None:
        return _size_test(size[1], size[2])
    wanted = word.lower()
    return lambda op: wanted in _text(op)


def _size_test(sign: str, text: str) -> Test:
    try:
        limit = float(text)
    except ValueError:
        return lambda op: False

    def fits(op: Op) -> bool:
        sizes = [stat.absmax for stat in op.outputs if stat.absmax is not None]
        return bool(sizes) and (max(sizes) > limit if sign == ">" else max(sizes) < limit)

    return fits


def _text(op: Op) -> str:
    code = "" if op.source is None else f"{op.source.file}:{op.source.line} {op.source.code or ''}"
    return f"{op.type} {op.name} {op.layer_path} {op.phase} {code}".lower()


# --- explore.dataflow

SKIPPED = COPIES | words(
    "Cast ExpandDims Squeeze ReadVariableOp OptionalGetValue StackPopV2 TensorListGetItem"
)
"""Ops that hand on what they got, in another shape, type or place at most."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One value between the op that made it and an op that uses it."""

    value: ValueId
    """The value: what an op computed, or what entered the step."""
    op: Op | None
    """The op at the other end; None for a value that entered the step."""
    slot: int
    """Which input of the using op it is, from 0; for a value out of storage the number of inputs and more."""
    skipped: tuple[Op, ...] = ()
    """Copies, casts and reshapes in between, in the order in which they ran."""


@dataclass(frozen=True, slots=True)
class Stop:
    """One hop of many, on the ways that lead to a value or away from it."""

    hop: Hop
    level: int
    """How many hops lie between it and the value."""
    before: int | None
    """Position of the stop that it follows on; None for one right beside the value."""


def upstream(view: StepView, value: ValueId, most: int = 24) -> tuple[Stop, ...]:
    """Return where a value came from, and where that came from, as deep as `most` stops allow; constants only at the first level."""

    def beyond(hop: Hop) -> tuple[Hop, ...]:
        return (
            ()
            if hop.op is None
            else tuple(
                each
                for each in producers(view, hop.op)
                if each.op is None or not each.op.is_plumbing
            )
        )

    op = view.op(value.serial)
    return _reach(producers(view, op) if op is not None else (), beyond, most)


def downstream(view: StepView, value: ValueId, most: int = 24) -> tuple[Stop, ...]:
    """Return where a value went, and where that went, as deep as `most` stops allow; ops that only measure are left out."""

    def beyond(hop: Hop) -> tuple[Hop, ...]:
        outputs = range(len(hop.op.outputs)) if hop.op is not None else ()
        found = (
            each
            for k in outputs
            for each in consumers(view, ValueId(hop.op.serial if hop.op is not None else 0, k))
        )
        return tuple(each for each in found if each.op is not None and not each.op.is_plumbing)

    return _reach(
        tuple(
            hop for hop in consumers(view, value) if hop.op is not None and not hop.op.is_plumbing
        ),
        beyond,
        most,
    )


def _reach(
    first: tuple[Hop, ...], beyond: Callable[[Hop], tuple[Hop, ...]], most: int
) -> tuple[Stop, ...]:
    """Walk level by level while there is room, then put what follows on a stop below it; what was met before ends a way."""
    below: dict[int, list[Hop]] = {}
    met = {_end(hop) for hop in first}
    level, room = list(first), most - len(first)
    while level:
        following: list[Hop] = []
        for hop in level:
            new = [each for each in beyond(hop) if _end(each) not in met]
            if len(new) > room:
                return tuple(_in_order(first, below))
            room -= len(new)
            met |= {_end(each) for each in new}
            below[id(hop)] = new
            following += new
        level = following
    return tuple(_in_order(first, below))


def _in_order(first: Sequence[Hop], below: Mapping[int, Sequence[Hop]]) -> list[Stop]:
    stops: list[Stop] = []

    def add(hops: Sequence[Hop], level: int, before: int | None) -> None:
        for hop in hops:
            stops.append(Stop(hop, level, before))
            add(below.get(id(hop), ()), level + 1, len(stops) - 1)

    add(first, 0, None)
    return stops


def _end(hop: Hop) -> tuple[int, ValueId]:
    return (hop.op.serial if hop.op is not None else -1), hop.value


def producers(view: StepView, op: Op) -> tuple[Hop, ...]:
    """Return where each input of an op came from, in the order of its inputs; then what it took out of storage."""
    return tuple(_back(view, value, slot) for slot, value in enumerate((*op.inputs, *op.stored)))


def source_of(view: StepView, value: ValueId) -> Hop:
    """Return where a value was computed, with the copies between there and here; the value itself when it is no copy."""
    return _back(view, value, 0)


def consumers(view: StepView, value: ValueId) -> tuple[Hop, ...]:
    """Return the ops that use a value or a copy of it, in the order in which they ran."""
    found: dict[int, Hop] = {}
    for hop in _forth(view, value, ()):
        if hop.op is not None:
            found.setdefault(hop.op.serial, hop)
    return tuple(found[serial] for serial in sorted(found))


def worst_producer(view: StepView, op: Op) -> Hop | None:
    """Return the producer to look at first: the least healthy, then the one with the largest values; None without inputs."""

    def rank(hop: Hop) -> tuple[int, float, int]:
        stat = view.stat(hop.value)
        return (
            HEALTHS.index(view.health(hop.value)),
            (stat.absmax or 0.0) if stat is not None else 0.0,
            -hop.slot,
        )

    computed = [
        hop
        for hop in producers(view, op)
        if hop.op is None or hop.op.type not in ("Const", "HostConst")
    ]
    return max(computed or producers(view, op), key=rank, default=None)


def _back(view: StepView, value: ValueId, slot: int) -> Hop:
    skipped: list[Op] = []
    while (op := view.op(value.serial)) is not None:
        source = _copied(view, op, value.output)
        if source is None:
            break
        skipped.append(op)
        value = source
    return Hop(value, op, slot, tuple(reversed(skipped)))


def _forth(view: StepView, value: ValueId, skipped: tuple[Op, ...]) -> Iterator[Hop]:
    for serial in view.uses.get(value, ()):
        op = view.op(serial)
        if op is None:
            continue
        handed_on = [
            ValueId(serial, k) for k in range(len(op.outputs)) if _copied(view, op, k) == value
        ]
        if not handed_on:
            yield Hop(value, op, (*op.inputs, *op.stored).index(value), skipped)
        for copy in handed_on:
            yield from _forth(view, copy, (*skipped, op))


def _copied(view: StepView, op: Op, output: int) -> ValueId | None:
    """What an output is a copy of; None for one that was computed, or that came out worse than it went in."""
    if op.type not in SKIPPED or op.is_origin or op.error is not None:
        return None
    sources = op.stored or op.inputs[output : output + 1]
    if len(sources) != 1 or HEALTHS.index(view.health(sources[0])) < HEALTHS.index(op.health):
        return None
    return sources[0]
