"""What tells two sides apart, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

# What telling two recordings apart found. Pure data: `nanreplay diff --json` is these classes,
# field by field.


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


# A comparison as JSON: `nanreplay diff --json` in `docs/report-format.md`.


def diff_to_json(diff: Diff) -> dict[str, Any]:
    """All fields of the classes in `findings`."""
    plain: dict[str, Any] = jsonable({"format": "nanreplay-diff", "version": 1, **asdict(diff)})
    return plain


# --- diff.words


def sentence_of(diff: Diff) -> str:
    """The one sentence."""
    if diff.same is None:
        return " ".join(
            (
                "cannot decide: nothing that both sides hold differs, but not all of it could be compared.",
                *diff.notes[:1],
            )
        )
    if diff.same:
        shown = readable_steps(range(diff.steps[0], diff.steps[1] + 1)) if diff.steps else "both"
        return f"same: {shown} {'is' if diff.steps and diff.steps[0] == diff.steps[1] else 'are'} equal bit for bit"
    if diff.step is None:
        kinds = [
            word
            for word, there in (
                ("settings", diff.settings),
                ("variables", diff.variables),
                ("ops", diff.ops),
            )
            if there
        ]
        values = (
            "the values that both sides watched are the same"
            if diff.steps
            else "no step is on both sides"
        )
        return f"they differ in {readable_list(kinds)}; {values}"
    parts = [f"they part at step {diff.step}"]
    if diff.state:
        count = len(diff.state)
        parts[0] += (
            f", before which {count} variable{' differs' if count == 1 else 's differ'} already"
        )
    elif diff.batch:
        parts[0] += (
            f", whose batch differs in {readable_list([each.name.removeprefix('batch ') for each in diff.batch])}"
        )
    if diff.op is not None:
        parts.append(op_line(diff.op))
    elif diff.values:
        first = diff.values[0]
        parts.append(f"{first.name} is {_against(first.left, first.right)}")
    return ": ".join(parts)


def op_line(op: PartingOp) -> str:
    """The op that parts: `forward · layer hidden · MatMul gave 1.0 against 1.1 at [0, 3]. train.py:8 ...`."""
    place = [op.phase, *([f"layer `{op.layer_path}`"] if op.layer_path else [])]
    found, gave = op.difference, f"`{op.op_type}`"
    if found is not None:
        at = f" at [{', '.join(map(str, found.index))}]" if found.index else ""
        gave += f" gave {_against(found.left, found.right)}{at}"
    elif op.shapes is not None:
        gave += f" gave shape {' against '.join(str(list(shape)) for shape in op.shapes)}"
    elif op.max_ulp is not None:
        gave += f" is {readable_ulp(op.max_ulp)}"
    source = f". {source_text(op.source.file, op.source.line, op.source.code)}" if op.source else ""
    return " · ".join([*place, gave]) + source


def diff_lines(diff: Diff) -> Iterator[str]:
    """The sentence, then what differs, a line each."""
    yield f"{diff.left} and {diff.right}: {diff.sentence}"
    yield from _titled("Settings", map(_changed_line, diff.settings))
    yield from _titled("Variables", _limited([_changed_line(each) for each in diff.variables]))
    yield from _titled(
        "Number of ops (left, right)", _limited([_count_line(each) for each in diff.ops])
    )
    yield from _titled(
        "State before the first common step", _limited([array_line(each) for each in diff.state])
    )
    yield from _titled(
        f"Batch of step {diff.step}", _limited([array_line(each) for each in diff.batch])
    )
    values = [
        f"{each.name}: {_against(each.left, each.right)} ({readable_ulp(each.ulp)})"
        for each in diff.values
    ]
    yield from _titled(f"After step {diff.step}", _limited(values))
    yield from _titled("Environment", map(_changed_line, diff.environment))
    yield from (f"note: {note}" for note in diff.notes)


def _titled(title: str, lines: Iterator[str]) -> Iterator[str]:
    shown = list(lines)
    if shown:
        yield title
        yield from (f"  {line}" for line in shown)


def _limited(lines: Sequence[str], limit: int = 8) -> Iterator[str]:
    yield from lines[:limit]
    if len(lines) > limit:
        yield f"and {len(lines) - limit} more (--json has all)"


def _against(left: Number, right: Number) -> str:
    """Two numbers in as few digits as tell them apart."""
    words = readable_number(left), readable_number(right)
    if words[0] == words[1] and isinstance(left, float) and isinstance(right, float):
        words = next(
            (
                pair
                for digits in (9, 12)
                if (pair := (f"{left:.{digits}g}", f"{right:.{digits}g}")) and pair[0] != pair[1]
            ),
            (f"{left:.17g}", f"{right:.17g}"),
        )
    return " against ".join(words)


def _changed_line(each: Changed) -> str:
    return f"{each.name}: {'none' if each.left is None else each.left} against {'none' if each.right is None else each.right}"


def _value_line(each: Value) -> str:
    return f"{each.name}: {_against(each.left, each.right)} ({readable_ulp(each.ulp)})"


def _count_line(each: OpCount) -> str:
    place = each.phase + (f", layer {each.layer_path}" if each.layer_path else "")
    return f"{each.op_type} ({place}): {each.left}, {each.right}"


def array_line(each: ArrayDifference) -> str:
    """An array that differs: `batch 0: 3 of 128 elements, the first at [4, 1]: 1.0 against 2.0`."""
    at = f", the first at [{', '.join(map(str, each.index))}]" if each.index else ""
    count = f"{each.elements} of {each.size} element{'' if each.size == 1 else 's'}"
    return f"{each.name}: {count}{at}: {_against(each.left, each.right)}"
