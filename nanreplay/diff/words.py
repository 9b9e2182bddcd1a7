"""What tells two sides apart, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nanreplay.diff.findings import ArrayDifference, Changed, Diff, OpCount, PartingOp, Value
from nanreplay.findings import Number
from nanreplay.report.numbers import readable_list, readable_number, readable_steps, readable_ulp
from nanreplay.report.sentence import source_text


def sentence_of(diff: Diff) -> str:
    """The one sentence."""
    if diff.same is None:
        return " ".join(("cannot decide: nothing that both sides hold differs, but not all of it could be compared.", *diff.notes[:1]))
    if diff.same:
        shown = readable_steps(range(diff.steps[0], diff.steps[1] + 1)) if diff.steps else "both"
        return f"same: {shown} {'is' if diff.steps and diff.steps[0] == diff.steps[1] else 'are'} equal bit for bit"
    if diff.step is None:
        kinds = [word for word, there in (("settings", diff.settings), ("variables", diff.variables), ("ops", diff.ops)) if there]
        values = "the values that both sides watched are the same" if diff.steps else "no step is on both sides"
        return f"they differ in {readable_list(kinds)}; {values}"
    parts = [f"they part at step {diff.step}"]
    if diff.state:
        count = len(diff.state)
        parts[0] += f", before which {count} variable{' differs' if count == 1 else 's differ'} already"
    elif diff.batch:
        parts[0] += f", whose batch differs in {readable_list([each.name.removeprefix('batch ') for each in diff.batch])}"
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
    yield from _titled("Number of ops (left, right)", _limited([_count_line(each) for each in diff.ops]))
    yield from _titled("State before the first common step", _limited([array_line(each) for each in diff.state]))
    yield from _titled(f"Batch of step {diff.step}", _limited([array_line(each) for each in diff.batch]))
    values = [f"{each.name}: {_against(each.left, each.right)} ({readable_ulp(each.ulp)})" for each in diff.values]
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
            (pair for digits in (9, 12) if (pair := (f"{left:.{digits}g}", f"{right:.{digits}g}")) and pair[0] != pair[1]),
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
