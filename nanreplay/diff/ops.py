"""The first op that gives other values on two sides: both run one step op by op, and their ops are lined up."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from nanreplay.bisect.attribution import Attribution
from nanreplay.bisect.trace import Fact
from nanreplay.diff.arrays import compare, largest_ulp
from nanreplay.diff.findings import PartingOp
from nanreplay.program.hashes import hash_array
from nanreplay.records import OpInfo
from nanreplay.replay import Replay
from nanreplay.replay.events import OpEvent
from nanreplay.today.match import uncounted

_NO_NUMBERS = ("resource", "variant")


class _Run:
    """One side's step, run op by op.

    Args:
        replay: The capture's replay.
        step: The step.
        by_name: Line ops up by their names; else by type, layer and phase, in the order in which they run.
    """

    def __init__(self, replay: Replay, step: int, *, by_name: bool) -> None:
        self.replay, self.step, self._by_name = replay, step, by_name
        self._infos: Mapping[tuple[str, str], OpInfo] = replay.ops(step)
        self.hashes: dict[Hashable, tuple[Any, ...]] = {}
        self.totals: Counter[Hashable] = Counter()
        self._each(lambda key, event: self.hashes.__setitem__(key, tuple(map(_hash, _arrays(event)))))

    def _each(self, see: Any) -> None:
        counts: Counter[Hashable] = Counter()

        def observe(event: OpEvent) -> None:
            info = self._infos.get((event.function, event.name))
            if (info is not None and info.phase == "watch") or not _arrays(event):
                return
            kind = self._kind(event, info)
            see((kind, counts[kind]), event)
            counts[kind] += 1

        self.replay.run(self.step, observe)
        self.totals = counts

    def _kind(self, event: OpEvent, info: OpInfo | None) -> Hashable:
        if self._by_name:
            return event.function, event.name, tuple((call.op, call.iteration) for call in event.calls)
        return event.type, *(("", "") if info is None else (uncounted(info.layer_path), info.phase))

    def event(self, key: Hashable) -> OpEvent:
        """The event of one op; the step runs once more."""
        found: list[OpEvent] = []
        self._each(lambda each, event: found.append(event) if each == key else None)
        return found[0]


def parting_op(left: Replay, right: Replay, step: int) -> PartingOp | None:
    """Return the first op of a step, in the left side's order, whose values are not the right side's; None when all are.

    Ops of one program are lined up by name. Those of two programs are lined up by type, layer and phase, in the order in
    which they run, where both have as many of them.

    Args:
        left: Replay of the left capture.
        right: Replay of the right capture.
        step: A step that both can replay.

    Raises:
        ReplayError: The step cannot be run op by op.
        UnsupportedOpError: Nor can it.
    """
    by_name = _names(left, step) == _names(right, step)
    one, other = _Run(left, step, by_name=by_name), _Run(right, step, by_name=by_name)
    comparable = {kind for kind, count in one.totals.items() if other.totals[kind] == count}
    for key, hashes in one.hashes.items():
        if key[0] in comparable and other.hashes.get(key) != hashes:  # type: ignore[index]
            return _described(one.event(key), other.event(key), right, step)
    return None


def _names(replay: Replay, step: int) -> set[tuple[str, str, str]]:
    return {(op.function, op.name, op.type) for op in replay.ops(step).values()}


def _arrays(event: OpEvent) -> list[Any]:
    return [output.numpy() for output in event.outputs if output.dtype.name not in _NO_NUMBERS]


def _hash(value: Any) -> Hashable:
    array = np.asarray(value)
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        return array.shape, hash_array(array)
    return array.shape, zlib.crc32(repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes())


def _described(left: OpEvent, right: OpEvent, replay: Replay, step: int) -> PartingOp:
    fact = Fact(right.serial, right.function, right.name, right.type, right.calls, right.input_ids, right.via, ())
    place = Attribution(replay.ops(step)).place(fact)
    pairs = list(zip(_arrays(left), _arrays(right), strict=False))
    one, other = next((pair for pair in pairs if _hash(pair[0]) != _hash(pair[1])), pairs[0])
    shapes = tuple(map(int, np.shape(one))), tuple(map(int, np.shape(other)))
    alike = shapes[0] == shapes[1]
    return PartingOp(
        right.type, right.name, place.phase, place.layer_path or None, replay.source(place.stack), shapes,
        compare(right.name, one, other) if alike else None, largest_ulp(one, other) if alike else None,
    )  # fmt: skip
