"""Executions with their tensors of the ops before those that may be the origin.

Where a fatal operand came from is asked once the origin is known, and then the step has run. So
the tensors of the last ops are kept as it runs, and those before an op that made something bad
stay. Pure Python.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from nanreplay.replay.provenance import OpEvent

_LEVELS = 24
_OPS = 160
_BYTES = 256 << 20
"""How far back, of how many ops and how much at most the tensors are kept, the nearest first."""
RECENT_BYTES = 64 << 20
"""How much the tensors of the last ops may take, and those of the ops that stay."""


def makers_of(
    facts: Mapping[int, Any], fact: Any, sizes: dict[int, int] | None = None
) -> Iterator[Any]:
    """Yield the ops before an op, the nearest first, within the limits of what is kept.

    Args:
        facts: What is remembered of each execution, by serial.
        fact: The op's own.
        sizes: Sizes of what ops made in bytes, by serial; those that are asked for are added. One
            op may pass on the gradients of thousands of variables, whose ops all come back to it.
    """
    sizes = {} if sizes is None else sizes
    level, seen, count, kept_bytes = [fact], {fact.serial}, 0, 0
    for _ in range(_LEVELS):
        makers: dict[int, Any] = {}
        for reached in level:
            for value in reached.sources:
                if count + len(makers) > _OPS:
                    break  # no more of them will be asked for
                serial = value.serial
                if serial >= 0 and serial in facts and serial not in seen:
                    makers[serial] = facts[serial]
        level = list(makers.values())
        seen.update(makers)
        for maker in level:
            count += 1
            if maker.serial not in sizes:
                sizes[maker.serial] = sum(8 * stat.size for stat in maker.outputs)
            kept_bytes += sizes[maker.serial]
            if count > _OPS or kept_bytes > _BYTES:
                return
            yield maker


class RecentEvents:
    """The executions of the last ops, and those before ops that may be the origin, by serial."""

    def __init__(self) -> None:
        """Know of none yet."""
        self._recent: OrderedDict[int, tuple[OpEvent, int]] = OrderedDict()
        self._recent_bytes = 0
        self._pinned: dict[int, OpEvent] = {}
        self._pinned_bytes = 0
        self._sizes: dict[int, int] = {}

    def add(self, event: OpEvent, size_bytes: int) -> None:
        """Keep an execution until the tensors after it are too large.

        Args:
            event: The execution.
            size_bytes: What its tensors take.
        """
        self._recent[event.serial] = event, size_bytes
        self._recent_bytes += size_bytes
        while self._recent_bytes > RECENT_BYTES:
            _, (_, old_bytes) = self._recent.popitem(last=False)
            self._recent_bytes -= old_bytes

    def pin(self, facts: Mapping[int, Any], fact: Any) -> None:
        """Keep the executions before an op to the end of the step, as far as there is room."""
        for maker in makers_of(facts, fact, self._sizes):
            kept = self._recent.get(maker.serial)
            if kept is None or maker.serial in self._pinned:
                continue
            if self._pinned_bytes + kept[1] > RECENT_BYTES:
                return
            self._pinned[maker.serial] = kept[0]
            self._pinned_bytes += kept[1]

    def get(self, serial: int) -> OpEvent | None:
        """Return an execution as it ran, an update without the variable that it left."""
        kept = self._recent.get(serial)
        return kept[0] if kept is not None else self._pinned.get(serial)
