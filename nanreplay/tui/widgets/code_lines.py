"""Code as code: a highlighted excerpt with its line marked, and the change of a fix as a diff."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from textual.content import Content

from nanreplay.findings import Origin
from nanreplay.report.first_look import CodeExcerpt
from nanreplay.report.fix_patch import DiffLine
from nanreplay.report.line_values import line_values

_NARROWEST = 20
"""Columns of a wrapped line, at least."""
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
        if shown and line.number > excerpt.lines[i - 1].number + 1:
            shown.append(Content.styled(f"  {'⋮'.rjust(width)}", "dim"))
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


def diff_content(lines: Iterable[DiffLine], width: int = 0) -> Content:
    """A change: where, what goes, what comes; what differs within a line is bold.

    Args:
        lines: The change.
        width: Columns that there are; a longer line goes on below, further in. 0 for no limit.
    """
    changed, shown = list(lines), []
    for i, line in enumerate(changed):
        text = Content(line.text)
        beside = i + 1 if line.sign == "-" else i - 1
        if 0 <= beside < len(changed) and {line.sign, changed[beside].sign} == {"-", "+"}:
            start, end = _differing(line.text, changed[beside].text)
            text = text.stylize("bold underline", start, end)
        style = _DIFF_STYLES[line.sign]
        lead = "" if line.sign == "@" else f"{line.sign} "
        shown.append(hanging(Content.styled(lead, style), text.stylize_before(style), width))
    return Content("\n").join(shown)


def _differing(text: str, other: str) -> tuple[int, int]:
    """Where a line differs from another: the part between what both begin and end with."""
    start = _alike(text, other)
    return start, len(text) - _alike(text[start:][::-1], other[start:][::-1])


def _alike(text: str, other: str) -> int:
    """With how many letters both begin."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (one, two) in pairs if one != two), min(len(text), len(other)))


def hanging(lead: Content, text: Content, width: int) -> Content:
    """A text after its mark; lines that go on below are indented as far, and two columns more.

    Args:
        lead: The mark.
        text: The text.
        width: Columns that there are; 0 for no limit.
    """
    if not width or len(lead) + len(text) <= width:
        return Content.assemble(lead, text)
    indent = " " * (len(lead) + 2)
    first, *others = text.wrap(max(width - len(indent), _NARROWEST))
    return Content("\n").join(
        [Content.assemble(lead, first), *(Content.assemble(indent, line) for line in others)]
    )


def with_code(text: str) -> Content:
    """A text whose parts in backticks stand out."""
    parts: list[str | tuple[str, str]] = []
    for position, part in enumerate(text.split("`")):
        if part:
            # Every second part stands between two backticks.
            parts.append((part, "bold $text-accent") if position % 2 else part)
    return Content.assemble(*parts)
