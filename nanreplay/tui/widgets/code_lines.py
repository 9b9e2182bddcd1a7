"""Code as code: a highlighted excerpt with its line marked, and the change of a fix as a diff."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from textual.content import Content

from nanreplay.findings import Origin
from nanreplay.report.first_look import CodeExcerpt
from nanreplay.report.fix_patch import DiffLine
from nanreplay.report.line_values import line_values

_DIFF_STYLES = {"-": "$text-error", "+": "$text-success", "@": "$text-muted"}


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
    """What the op was given and what it gave, a line each: `↳ 0.0  of dense/Softmax:0`."""
    for kind, value, of in line_values(origin):
        if kind == "operand":
            yield Content.assemble(("↳ ", "$text-accent"), (value, "bold"), (f"  of {of}", "dim"))
        else:
            bad = (value, "bold $text-error")
            yield Content.assemble(("→ ", "$text-error"), bad, (f"  of {of}", "dim"))


def diff_content(lines: Iterable[DiffLine]) -> Content:
    """A change: where, what goes, what comes."""
    shown = []
    for line in lines:
        lead = "  " if line.sign == "@" else f"{line.sign} "
        shown.append(Content.styled(f"{lead}{line.text}", _DIFF_STYLES[line.sign]))
    return Content("\n").join(shown)
