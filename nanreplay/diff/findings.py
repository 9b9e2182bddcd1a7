"""What telling two recordings apart found. Pure data: `nanreplay diff --json` is these classes, field by field."""

from __future__ import annotations

from dataclasses import dataclass

from nanreplay.findings import Number
from nanreplay.records import Frame


@dataclass(frozen=True, slots=True)
class Changed:
    """One fact that is not the same on both sides."""

    name: str
    left: str | None
    """None where that side has no such thing."""
    right: str | None


@dataclass(frozen=True, slots=True)
class ArrayDifference:
    """Two arrays of one shape that hold other elements."""

    name: str
    """Path in the batch, or of the variable."""
    elements: int
    """How many differ."""
    size: int
    """Number of elements."""
    index: tuple[int, ...]
    """The first that differs."""
    left: Number
    right: Number


@dataclass(frozen=True, slots=True)
class OpCount:
    """Ops of one type in one layer and phase, of which the sides have a different number."""

    op_type: str
    layer_path: str
    phase: str
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class PartingOp:
    """The first op that gives other values on the two sides, in the order in which it ran."""

    op_type: str
    op_name: str
    phase: str
    layer_path: str | None
    source: Frame | None
    """The line of the user's code, as the right side has it."""
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None
    """Shape of the output on either side; None between two modes."""
    difference: ArrayDifference | None
    """Of its first output that differs; None when the shapes differ, and between two modes."""
    max_ulp: int | None
    """Largest difference in units in the last place; 2^62 where one is finite and the other is not; None for other types."""


@dataclass(frozen=True, slots=True)
class Value:
    """One number that the sides watched: a loss, a gradient, a variable."""

    name: str
    left: float
    right: float
    ulp: int
    """Units in the last place between them; 2^62 where one is finite and the other is not."""


@dataclass(frozen=True, slots=True)
class Diff:
    """Where two sides part."""

    left: str
    right: str
    same: bool | None
    """Whether everything but the environment is the same; None when that could not be decided."""
    sentence: str
    environment: tuple[Changed, ...] = ()
    """Versions and machines; they alone do not make sides differ."""
    settings: tuple[Changed, ...] = ()
    """Incident, learning rate, how the step was compiled, ..."""
    variables: tuple[Changed, ...] = ()
    """Shape and type by path."""
    ops: tuple[OpCount, ...] = ()
    steps: tuple[int, int] | None = None
    """First and last step that both sides have."""
    step: int | None = None
    """The first step at which they part, None when they do not."""
    values: tuple[Value, ...] = ()
    """What is not the same after this step."""
    state: tuple[ArrayDifference, ...] = ()
    """Variables that differed just before the first step that both have."""
    batch: tuple[ArrayDifference, ...] = ()
    """Arrays of the batch of `step` that differ."""
    op: PartingOp | None = None
    notes: tuple[str, ...] = ()
