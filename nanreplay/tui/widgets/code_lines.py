"""Code as code: a highlighted excerpt with its line marked, and the change of a fix as a diff."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from textual.content import Content

from nanreplay.findings import OperandFacts, Origin
from nanreplay.report.first_look import CodeExcerpt
from nanreplay.report.fix_patch import DiffLine
from nanreplay.report.numbers import index_words, readable_number
from nanreplay.report.sentence import bad_output
from nanreplay.tui.widgets.op_words import short_number

_DIFF_STYLES = {"-": "$text-error", "+": "$text-success", "@": "$text-muted"}
_MOST_OPERANDS = 4


def highlighted(excerpt: CodeExcerpt) -> list[Content]:
    """The lines of an excerpt in colours, without the indentation that they share.

    The first call imports Pygments: away from the event loop.
    """
    from textwrap import dedent

    from textual.highlight import highlight

    code = dedent("\n".join(line.text or " " for line in excerpt.lines))
    lines = highlight(code, language="python").split("\n", allow_blank=True)
    return [*lines, *[Content("")] * (len(excerpt.lines) - len(lines))]


def code_content(
    excerpt: CodeExcerpt, lines: Sequence[Content], around: int, origin: Origin | None
) -> Content:
    """The marked line with those around it, and below it the values of the operands.

    Args:
        excerpt: The lines.
        lines: The same in colours.
        around: Lines before and after the marked one, at most.
        origin: What failed, once it is known.
    """
    marked = next((i for i, line in enumerate(excerpt.lines) if line.is_marked), 0)
    width = len(str(excerpt.lines[-1].number))
    shown: list[Content] = []
    near = range(max(marked - around, 0), min(marked + around + 1, len(lines)))
    written = [i for i in near if lines[i].plain.strip()]
    for i in range(min(written, default=0), max(written, default=-1) + 1):
        line, code = excerpt.lines[i], lines[i]
        mark = ("✗ " if origin is not None else "▸ ") if line.is_marked else "  "
        colour = "bold $text-error" if origin is not None else "bold $text-accent"
        number = f"{line.number:>{width}} "
        shown.append(
            Content.assemble((mark, colour), (number, "bold" if line.is_marked else "dim"), code)
        )
        if line.is_marked and origin is not None:
            indent = " " * (width + 3)
            shown += [Content.assemble(indent, each) for each in value_lines(origin)]
    return Content("\n").join(shown)


def value_lines(origin: Origin) -> Iterator[Content]:
    """What the op was given and what it gave, a line each: `↳ Softmax:0 [32, 3] is 0.0`."""
    for operand in origin.operands[:_MOST_OPERANDS]:
        yield Content.assemble(
            ("↳ ", "$text-accent"), (_operand_value(operand), "bold"), (_of(operand), "dim")
        )
    output = bad_output(origin)
    if output is None or origin.op_type is None:
        return
    value = readable_number(output.value) if output.value is not None else "non-finite"
    at = f" at {index_words(output.indices[0])}" if output.indices and output.indices[0] else ""
    count = f", {output.nonfinite} of {output.size} non-finite" if output.size > 1 else ""
    yield Content.assemble(
        ("→ ", "$text-error"),
        (f"{value}{at}", "bold $text-error"),
        (f"  of {origin.op_type}{count}", "dim"),
    )


def _operand_value(operand: OperandFacts) -> str:
    if operand.value is not None:
        return readable_number(operand.value)
    if operand.min is None or operand.max is None:
        return f"{operand.dtype}{index_words(operand.shape)}"
    return f"{short_number(operand.min)} to {short_number(operand.max)}"


def _of(operand: OperandFacts) -> str:
    """The name of an operand: its last two parts, which people know."""
    return f"  of {'/'.join(operand.name.split('/')[-2:])}"


def diff_content(lines: Iterable[DiffLine]) -> Content:
    """A change: where, what goes, what comes."""
    shown = []
    for line in lines:
        lead = "  " if line.sign == "@" else f"{line.sign} "
        shown.append(Content.styled(f"{lead}{line.text}", _DIFF_STYLES[line.sign]))
    return Content("\n").join(shown)
