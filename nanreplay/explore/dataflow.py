"""Finding ops in a step, and following values from op to op.

The panes of the terminal interface search ops by text, step to the next one of a kind, and show
where the values of an op came from and where they went. Copies are skipped on the way, but named.
Pure functions of a `StepView`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from nanreplay.bisect.influence import COPIES
from nanreplay.bisect.tensor_stats import words
from nanreplay.explore.step_view import HEALTHS, Op, StepView
from nanreplay.records import Frame
from nanreplay.replay.provenance import ValueId

Direction: TypeAlias = Literal[1, -1]
OpTest: TypeAlias = Callable[[Op], bool]
_SIZE = re.compile(r"([<>])\s*([-+\d.e]+)", re.IGNORECASE)


def search(ops: Iterable[Op], text: str) -> tuple[Op, ...]:
    """Return the ops that fit a query, in order.

    All words of the query must fit. A word is one of these:

    - a part of the op's type, name, layer, phase or source line, in any case;
    - `is:` with `nan`, `inf`, `contained`, `finite`, `bad` (all but finite) or `origin`;
    - `at:` with a line of code, such as `at:train.py:88`;
    - `>1e4` or `<1e-6` for its largest finite absolute value.
    """
    tests = list(map(_word_test, text.split()))
    return tuple(op for op in ops if all(test(op) for test in tests))


def neighbour(
    ops: Sequence[Op], serial: int, direction: Direction, fits: OpTest = lambda op: True
) -> Op | None:
    """Return the next or the previous op that fits, in the order of execution.

    Args:
        ops: In that order.
        serial: The op to start from.
        direction: 1 for the next op, -1 for the previous one.
        fits: Which ops count; all unless given.

    Returns:
        The op; None at the end.
    """
    if direction < 0:
        candidates = []
        for op in reversed(ops):
            if op.serial < serial:
                candidates.append(op)
    else:
        candidates = [op for op in ops if op.serial > serial]
    return next(filter(fits, candidates), None)


def is_bad(op: Op) -> bool:
    """Whether an op gave something non-finite that matters."""
    return op.health in ("inf", "nan")


def next_origin(view: StepView, serial: int | None) -> Op | None:
    """Return the origin after the given one, starting over at the end; None when no op is one."""
    serials = []
    for value in view.origins:
        if value.serial >= 0:
            serials.append(value.serial)
    if not serials:
        return None
    # From an op that is no origin, the walk begins at the first one.
    following = serials.index(serial) + 1 if serial in serials else 0
    return view.op(serials[following % len(serials)])


def _word_test(word: str) -> OpTest:
    key, _, value = word.lower().partition(":")
    if key == "is" and value in HEALTHS:
        return lambda op: op.health == value
    if key == "is" and value == "bad":
        return lambda op: op.health not in ("unknown", "finite")
    if key == "is" and value == "origin":
        return lambda op: op.is_origin
    if key == "at":
        return lambda op: op.source is not None and line_name(op.source).lower() == value
    size = _SIZE.fullmatch(word)
    if size is not None:
        return _size_test(size[1], size[2])
    part = word.lower()
    return lambda op: part in _searched_text(op)


def line_name(frame: Frame) -> str:
    """Name a line of code in short, as the search takes it: `train.py:88`."""
    # The capture may come from Windows: its paths are taken apart without pathlib.
    file = frame.file.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{file}:{frame.line}"


def _size_test(sign: str, text: str) -> OpTest:
    try:
        limit = float(text)
    except ValueError:
        return lambda op: False

    def fits(op: Op) -> bool:
        sizes = []
        for stat in op.outputs:
            if stat.absmax is not None:
                sizes.append(stat.absmax)
        if not sizes:
            return False
        return max(sizes) > limit if sign == ">" else max(sizes) < limit

    return fits


def _searched_text(op: Op) -> str:
    code = "" if op.source is None else f"{op.source.file}:{op.source.line} {op.source.code or ''}"
    return f"{op.type} {op.name} {op.layer_path} {op.phase} {code}".lower()


# Following values. A hop leads from a value to the op that made it, or to an op that uses it.

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
    """Which input of the using op it is, from 0.

    For a value out of storage the number of inputs and more.
    """
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


def producers(view: StepView, op: Op) -> tuple[Hop, ...]:
    """Return where each input of an op came from, in the order of its inputs.

    What it took out of storage comes after the inputs.
    """
    values = (*op.inputs, *op.stored)
    return tuple(_hop_back(view, value, slot) for slot, value in enumerate(values))


def source_of(view: StepView, value: ValueId) -> Hop:
    """Return where a value was computed, with the copies in between.

    This is the value itself when it is no copy.
    """
    return _hop_back(view, value, 0)


def consumers(view: StepView, value: ValueId) -> tuple[Hop, ...]:
    """Return the ops that use a value or a copy of it, in the order in which they ran."""
    hops: dict[int, Hop] = {}
    for hop in _hops_forward(view, value, ()):
        if hop.op is not None:
            # An op that takes the value twice, as in x * x, is one consumer; the first way to it is
            # shown.
            hops.setdefault(hop.op.serial, hop)
    return tuple(hops[serial] for serial in sorted(hops))


def worst_producer(view: StepView, op: Op) -> Hop | None:
    """Return the producer to look at first; None for an op without inputs.

    It is the least healthy one, and of these the one with the largest values.
    """

    def badness(hop: Hop) -> tuple[int, float, int]:
        stat = view.stat(hop.value)
        absmax = stat.absmax if stat is not None else None
        return HEALTHS.index(view.health(hop.value)), absmax or 0.0, -hop.slot

    hops = producers(view, op)
    computed = []
    for hop in hops:
        # A constant such as the -inf of a mask is bad by intention: it is looked at last.
        if hop.op is None or hop.op.type not in ("Const", "HostConst"):
            computed.append(hop)
    return max(computed or hops, key=badness, default=None)


def upstream(view: StepView, value: ValueId, most: int = 24) -> tuple[Stop, ...]:
    """Return where a value came from, and where that came from, level by level.

    Constants are only at the first level.

    Args:
        view: The step.
        value: The value to start from.
        most: How many stops there may be; the walk ends where the next ones do not fit.
    """

    def hops_beyond(hop: Hop) -> list[Hop]:
        if hop.op is None:
            return []
        hops = producers(view, hop.op)
        return [other for other in hops if other.op is None or not other.op.is_plumbing]

    op = view.op(value.serial)
    return _stops(producers(view, op) if op is not None else (), hops_beyond, most)


def downstream(view: StepView, value: ValueId, most: int = 24) -> tuple[Stop, ...]:
    """Return where a value went, and where that went, level by level.

    Ops that only measure are left out.

    Args:
        view: The step.
        value: The value to start from.
        most: How many stops there may be; the walk ends where the next ones do not fit.
    """

    def computing_consumers(value: ValueId) -> list[Hop]:
        hops = consumers(view, value)
        return [hop for hop in hops if hop.op is not None and not hop.op.is_plumbing]

    def hops_beyond(hop: Hop) -> list[Hop]:
        hops: list[Hop] = []
        if hop.op is not None:
            for output in range(len(hop.op.outputs)):
                hops += computing_consumers(ValueId(hop.op.serial, output))
        return hops

    return _stops(computing_consumers(value), hops_beyond, most)


def _stops(
    first: Sequence[Hop], hops_beyond: Callable[[Hop], Sequence[Hop]], most: int
) -> tuple[Stop, ...]:
    """Walk level by level while there is room, then put what follows on a stop below it.

    What was met before ends a way, so that each way is shown once and loops end. Breadth first
    fills the room with what is near; the result is in the order of a tree, as it is shown: of a
    with b and c before it, and d before b, the stops are b, d, c.
    """
    following: dict[int, Sequence[Hop]] = {}
    """By identity of the hop; two equal hops may lie on two ways."""
    met = {_end(hop) for hop in first}
    level, room = list(first), most - len(first)
    while level:
        next_level: list[Hop] = []
        for hop in level:
            new_hops = []
            for other in hops_beyond(hop):
                if _end(other) not in met:
                    new_hops.append(other)
            # All ways on from a stop or none of them: a part would look as if there were no more.
            if len(new_hops) > room:
                return tuple(_in_tree_order(first, following))
            room -= len(new_hops)
            met |= set(map(_end, new_hops))
            following[id(hop)] = new_hops
            next_level += new_hops
        level = next_level
    return tuple(_in_tree_order(first, following))


def _end(hop: Hop) -> tuple[int, ValueId]:
    return (hop.op.serial if hop.op is not None else -1), hop.value


def _in_tree_order(first: Sequence[Hop], following: Mapping[int, Sequence[Hop]]) -> list[Stop]:
    stops: list[Stop] = []

    def add(hops: Sequence[Hop], level: int, before: int | None) -> None:
        for hop in hops:
            stops.append(Stop(hop, level, before))
            add(following.get(id(hop), ()), level + 1, len(stops) - 1)

    add(first, 0, None)
    return stops


def _hop_back(view: StepView, value: ValueId, slot: int) -> Hop:
    """The hop to the op that computed a value, through the copies of it."""
    skipped: list[Op] = []
    op = view.op(value.serial)
    while op is not None:
        source = _copied_value(view, op, value.output)
        if source is None:
            break
        skipped.append(op)
        value, op = source, view.op(source.serial)
    return Hop(value, op, slot, tuple(reversed(skipped)))


def _hops_forward(view: StepView, value: ValueId, skipped: tuple[Op, ...]) -> Iterator[Hop]:
    """The hops to the ops that use a value, through the copies of it."""
    for serial in view.uses.get(value, ()):
        op = view.op(serial)
        if op is None:
            continue
        outputs = range(len(op.outputs))
        copies = []
        for output in outputs:
            if _copied_value(view, op, output) == value:
                copies.append(output)
        if not copies:
            yield Hop(value, op, (*op.inputs, *op.stored).index(value), skipped)
        for output in copies:
            yield from _hops_forward(view, ValueId(serial, output), (*skipped, op))


def _copied_value(view: StepView, op: Op, output: int) -> ValueId | None:
    """What an output is a copy of.

    None for one that was computed, or that came out worse than it went in: a cast to float16 that
    overflows is where the infinity was made.
    """
    if op.type not in SKIPPED or op.is_origin or op.error is not None:
        return None
    # What a read or a stack takes out of storage is no input of it. Of several outputs, as of
    # IdentityN, each copies the input of its number.
    sources = op.stored or op.inputs[output : output + 1]
    if len(sources) != 1:
        return None
    is_worse = HEALTHS.index(op.health) > HEALTHS.index(view.health(sources[0]))
    return None if is_worse else sources[0]
