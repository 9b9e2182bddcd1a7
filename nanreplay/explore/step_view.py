"""One step as people look at it: its ops in the order in which they ran, with health and place.

Pure data, which crosses from the worker process to the terminal interface. `step_tree` makes it of
a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal, NamedTuple, TypeAlias

from nanreplay.bisect.tensor_stats import TensorStat, words
from nanreplay.findings import LoopIteration
from nanreplay.records import Frame, Phase, Where
from nanreplay.replay.provenance import FeedKind, ValueId

Health: TypeAlias = Literal["unknown", "finite", "contained", "inf", "nan"]
"""How well a value is.

`contained` is non-finite, but nothing that failed was computed from it: a mask, a dropped branch, a
metric. `unknown` is what has not run yet.
"""
HEALTHS: tuple[Health, ...] = ("unknown", "finite", "contained", "inf", "nan")
"""The worst last."""


def worst(healths: Iterable[Health]) -> Health:
    """Return the worst; `finite` of none."""
    return max(healths, key=HEALTHS.index, default="finite")


def health_of(stats: Iterable[TensorStat], *, on_path: bool) -> Health:
    """Return the health of an op or a value, from the facts of its tensors.

    Args:
        stats: Facts of its tensors.
        on_path: Whether what failed was computed from its non-finite elements.
    """
    known = list(stats)
    if not any(stat.nonfinite for stat in known):
        return "finite"
    if not on_path:
        return "contained"
    return "nan" if any(stat.nan for stat in known) else "inf"


SegmentKind: TypeAlias = Literal["layer", "loop", "iteration"]
PLUMBING = words(
    "Const HostConst Identity IdentityN NoOp ReadVariableOp StopGradient PreventGradient Snapshot "
    "EnsureShape Shape ShapeN Size Rank VariableShape BroadcastGradientArgs VarIsInitializedOp "
    "Assert EmptyTensorList StackV2 StackPushV2 StackPopV2"
)
"""Ops that move, hold or measure values and compute none."""
_STORAGE_PREFIXES = ("TensorList", "TensorArray", "Optional", "Placeholder")


class Segment(NamedTuple):
    """One level of the place of an op below its phase."""

    kind: SegmentKind
    name: str
    """Name of the layer or loop; the number of an iteration."""


@dataclass(frozen=True, slots=True)
class Op:
    """One execution of one op."""

    serial: int
    """Order of execution; unique within the step."""
    function: str
    """Library function that holds the op; "" for the main graph."""
    name: str
    type: str
    phase: Phase
    where: Where
    layer_path: str
    """Chain of Keras layers, "" outside."""
    place: tuple[Segment, ...]
    """Layers and loops around it, outermost first."""
    loop: tuple[LoopIteration, ...]
    inputs: tuple[ValueId, ...]
    stored: tuple[ValueId, ...]
    """For an op that reads storage: the values that had been put there."""
    outputs: tuple[TensorStat, ...]
    """Facts of its outputs; of the variables after an update."""
    health: Health
    is_origin: bool = False
    """Whether it made a value of those that failed non-finite, from better ones."""
    source: Frame | None = None
    """Innermost line of the user's code."""
    error: str | None = None
    """What the kernel raised op by op."""
    failing_at: tuple[int, ...] | None = None
    """Index of its first element that made the step fail; None where it has none."""
    failing_value: float | None = field(default=None, compare=False)  # NaN is not equal to NaN
    """The element's value; None where it was not kept, or is no real number."""

    @property
    def stat(self) -> TensorStat | None:
        """Facts of its worst output, None without outputs."""
        return max(self.outputs, key=lambda stat: (stat.nan > 0, stat.nonfinite), default=None)

    @property
    def is_plumbing(self) -> bool:
        """Whether it only moves, holds or measures values."""
        if self.is_origin or self.error is not None:
            return False
        return self.type in PLUMBING or self.type.startswith(_STORAGE_PREFIXES)


@dataclass(frozen=True, slots=True)
class Feed:
    """One value that enters the step."""

    value: ValueId
    kind: FeedKind
    name: str
    """`batch[0/ids]`, the path of a variable, `constant 3`."""
    stat: TensorStat | None
    """None when its value is not known."""
    health: Health
    is_origin: bool = False


@dataclass(frozen=True)
class StepView:
    """Everything that one run of a step, op by op, showed."""

    step: int
    ops: tuple[Op, ...]
    """In the order in which they ran."""
    feeds: tuple[Feed, ...]
    """By `-1 - serial` of their values."""
    origins: tuple[ValueId, ...]
    """Where non-finite values were born, the likeliest first; empty for a healthy step."""
    failed: tuple[str, ...]
    """What failed, in words: `the loss`, `dense/kernel`."""
    stopped: bool = False
    """Whether the run ended early, at an op that raised."""
    has_run: bool = True
    """Whether the step ran; False for its ops as they were recorded."""

    @cached_property
    def positions(self) -> Mapping[int, int]:
        """Where in `ops` each serial is."""
        return {op.serial: i for i, op in enumerate(self.ops)}

    @cached_property
    def uses(self) -> Mapping[ValueId, Sequence[int]]:
        """Serials of the ops that use each value, directly or out of storage, ascending."""
        uses: dict[ValueId, list[int]] = {}
        for op in self.ops:
            for value in dict.fromkeys((*op.inputs, *op.stored)):
                uses.setdefault(value, []).append(op.serial)
        return uses

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross a process boundary as plain tuples: thousands of dataclasses would take seconds."""
        ops = tuple(map(_packed, self.ops))
        rest = self.feeds, self.origins, self.failed, self.stopped, self.has_run
        return _unpacked, (self.step, ops, *rest)

    def op(self, serial: int) -> Op | None:
        """Return an op by its serial, None when it is not shown."""
        position = self.positions.get(serial)
        return None if position is None else self.ops[position]

    def feed(self, value: ValueId) -> Feed | None:
        """Return the fed value behind an identity, None for one that an op made."""
        position = -1 - value.serial
        return self.feeds[position] if 0 <= position < len(self.feeds) else None

    def stat(self, value: ValueId) -> TensorStat | None:
        """Return the facts of a value, None when nothing is known of it."""
        if value.serial < 0:
            feed = self.feed(value)
            return None if feed is None else feed.stat
        op = self.op(value.serial)
        if op is None or not 0 <= value.output < len(op.outputs):
            return None
        return op.outputs[value.output]

    def health(self, value: ValueId) -> Health:
        """Return the health of the op, or of the fed value, behind an identity."""
        known = self.feed(value) if value.serial < 0 else self.op(value.serial)
        return "finite" if known is None else known.health

    def name(self, value: ValueId) -> str:
        """Return what a value is called: a part of the batch, a variable, an op's output."""
        feed = self.feed(value)
        if feed is not None:
            return feed.name
        op = self.op(value.serial)
        return "?" if op is None else f"{op.name}:{value.output}"


# An op crosses a process boundary as the tuple of its fields, its outputs as tuples of theirs.
# There are thousands of them, and pickle takes far longer for a dataclass than for a tuple.

_OP_FIELDS = tuple(each.name for each in fields(Op))
_op_values = attrgetter(*_OP_FIELDS)
_stat_values = attrgetter(*(each.name for each in fields(TensorStat)))
_OUTPUTS = _OP_FIELDS.index("outputs")


def _packed(op: Op) -> tuple[Any, ...]:
    values = list(_op_values(op))
    values[_OUTPUTS] = tuple(map(_stat_values, op.outputs))
    return tuple(values)


def _unpacked(step: int, ops: Sequence[tuple[Any, ...]], *rest: Any) -> StepView:
    return StepView(step, tuple(map(_unpacked_op, ops)), *rest)


def _unpacked_op(packed: tuple[Any, ...]) -> Op:
    values = [*packed]
    values[_OUTPUTS] = tuple(TensorStat(*stat) for stat in packed[_OUTPUTS])
    return Op(*values)
