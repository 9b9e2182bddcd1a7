"""What telling two sides apart found, its one sentence, and the lines that people read.

The dataclasses are pure data: `nanreplay diff --json` is these classes, field by field, as
`docs/report-format.md` describes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from nanreplay.findings import Number
from nanreplay.records import Frame
from nanreplay.report.numbers import (
    jsonable,
    readable_list,
    readable_number,
    readable_steps,
    readable_ulp,
)
from nanreplay.report.sentence import source_text


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
    """Largest difference in units in the last place; 2^62 where one alone is finite.

    None for other types.
    """


@dataclass(frozen=True, slots=True)
class Value:
    """One element of the fingerprints that is not the same: a loss, a gradient, a variable."""

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


# As JSON.


def diff_to_json(diff: Diff) -> dict[str, Any]:
    """Return all fields of a comparison as plain JSON values."""
    plain: dict[str, Any] = jsonable({"format": "nanreplay-diff", "version": 1, **asdict(diff)})
    return plain


# For people.


def sentence_of(diff: Diff) -> str:
    """Return the one sentence on where two sides part."""
    if diff.same is None:
        sentence = (
            "cannot decide: nothing that both sides hold differs, but not all of it could be "
            "compared."
        )
        return " ".join((sentence, *diff.notes[:1]))
    if diff.same:
        return _same_sentence(diff.steps)
    if diff.step is None:
        return _static_sentence(diff)
    parts = [f"they part at step {diff.step}{_before_step(diff)}"]
    if diff.op is not None:
        parts.append(_op_line(diff.op))
    elif diff.values:
        first = diff.values[0]
        parts.append(f"{first.name} is {_against(first.left, first.right)}")
    return ": ".join(parts)


def _same_sentence(steps: tuple[int, int] | None) -> str:
    if steps is None:
        return "same: both are equal bit for bit"
    first, last = steps
    verb = "is" if first == last else "are"
    return f"same: {readable_steps(range(first, last + 1))} {verb} equal bit for bit"


def _static_sentence(diff: Diff) -> str:
    """What differs of two sides that part at no step."""
    kinds = {"settings": diff.settings, "variables": diff.variables, "ops": diff.ops}
    differing_kinds = []
    for kind, differences in kinds.items():
        if differences:
            differing_kinds.append(kind)
    values = "no step is on both sides"
    if diff.steps:
        values = "the values that both sides watched are the same"
    return f"they differ in {readable_list(differing_kinds)}; {values}"


def _before_step(diff: Diff) -> str:
    """What differed before the step ran: the state, else its batch."""
    if diff.state:
        count = len(diff.state)
        return f", before which {count} variable{' differs' if count == 1 else 's differ'} already"
    if diff.batch:
        arrays = [f"`{array.name}`" for array in diff.batch]
        return f", where {readable_list(arrays)} differ{'s' if len(arrays) == 1 else ''} already"
    if any(setting.name.startswith("batch") for setting in diff.settings):
        return ", where the batches have other shapes or types"
    return ""


def _op_line(op: PartingOp) -> str:
    """The op that parts, where it is, what it gave on both sides, and its source line.

    `forward · layer hidden · MatMul gave 1.0 against 1.1 at [0, 3]. train.py:8 ...`
    """
    line = f"{op.phase} · "
    if op.layer_path:
        line += f"layer `{op.layer_path}` · "
    line += f"`{op.op_type}`"
    difference = op.difference
    if difference is not None:
        at = f" at {_index(difference.index)}" if difference.index else ""
        line += f" gave {_against(difference.left, difference.right)}{at}"
    elif op.shapes is not None:
        left, right = op.shapes
        line += f" gave shape {list(left)} against {list(right)}"
    elif op.max_ulp is not None:
        line += f" is {readable_ulp(op.max_ulp)}"
    if op.source:
        line += f". {source_text(op.source.file, op.source.line, op.source.code)}"
    return line


def diff_lines(diff: Diff) -> Iterator[str]:
    """Yield the sentence, then what differs, a line each."""
    yield f"{diff.left} and {diff.right}: {diff.sentence}"
    yield from _titled("Settings", map(_changed_line, diff.settings))
    yield from _titled("Variables", _limited(map(_changed_line, diff.variables)))
    yield from _titled("Number of ops (left, right)", _limited(map(_count_line, diff.ops)))
    yield from _titled("State before the first common step", _limited(map(_array_line, diff.state)))
    yield from _titled(f"Batch of step {diff.step}", _limited(map(_array_line, diff.batch)))
    yield from _titled(f"After step {diff.step}", _limited(map(_value_line, diff.values)))
    yield from _titled("Environment", map(_changed_line, diff.environment))
    for note in diff.notes:
        yield f"note: {note}"


def _titled(title: str, lines: Iterable[str]) -> Iterator[str]:
    """A title and its lines; nothing without lines."""
    shown = list(lines)
    if shown:
        yield title
        for line in shown:
            yield f"  {line}"


def _limited(lines: Iterable[str], limit: int = 8) -> Iterator[str]:
    all_lines = list(lines)
    yield from all_lines[:limit]
    if len(all_lines) > limit:
        yield f"and {len(all_lines) - limit} more (--json has all)"


def _against(left: Number, right: Number) -> str:
    """Two numbers in as few digits as tell them apart."""
    left_text, right_text = readable_number(left), readable_number(right)
    if left_text == right_text and isinstance(left, float) and isinstance(right, float):
        for digits in (9, 12, 17):  # with 17 every two floats of 64 bits differ
            left_text, right_text = f"{left:.{digits}g}", f"{right:.{digits}g}"
            if left_text != right_text:
                break
    return f"{left_text} against {right_text}"


def _changed_line(change: Changed) -> str:
    left = "none" if change.left is None else change.left
    right = "none" if change.right is None else change.right
    return f"{change.name}: {left} against {right}"


def _value_line(value: Value) -> str:
    return f"{value.name}: {_against(value.left, value.right)} ({readable_ulp(value.ulp)})"


def _count_line(count: OpCount) -> str:
    layer = f", layer {count.layer_path}" if count.layer_path else ""
    return f"{count.op_type} ({count.phase}{layer}): {count.left}, {count.right}"


def _array_line(array: ArrayDifference) -> str:
    """`batch[0]: 3 of 128 elements, the first at [4, 1]: 1.0 against 2.0`."""
    at = f", the first at {_index(array.index)}" if array.index else ""
    count = f"{array.elements} of {array.size} element{'' if array.size == 1 else 's'}"
    return f"{array.name}: {count}{at}: {_against(array.left, array.right)}"


def _index(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]"
