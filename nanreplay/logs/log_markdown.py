"""The answers as Markdown that reads well where issues are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nanreplay import __version__
from nanreplay.logs.log_answer import LogAnswer
from nanreplay.logs.log_pages import page_tables
from nanreplay.logs.log_sentence import log_sentence
from nanreplay.logs.log_text import main_series, plot_lines
from nanreplay.logs.next_step import next_step
from nanreplay.report.markdown import code_lines, folded_lines, inline_text, table_lines


def logs_markdown(answers: Sequence[LogAnswer], problems: Sequence[str], script: str) -> str:
    """Write a Markdown document about one or several runs; tables are folded."""
    return "\n".join(_lines(answers, problems, script)).rstrip() + "\n"


def _lines(answers: Sequence[LogAnswer], problems: Sequence[str], script: str) -> Iterator[str]:
    for answer in answers:
        yield f"### {inline_text(answer.run.name)}"
        yield ""
        yield f"> {inline_text(log_sentence(answer))}"
        yield ""
        yield from _why(answer)
        yield from _next(answer, script)
        main = main_series(answer)
        if main is not None:
            yield from code_lines("\n".join(plot_lines(main)), "text")
        for table in page_tables(answer):
            yield from folded_lines(table.title, table_lines(table.headings, table.rows))
        if answer.notes:
            yield from folded_lines("Notes", [f"- {inline_text(note)}" for note in answer.notes])
    if problems:
        yield from folded_lines("Not read", [f"- {inline_text(line)}" for line in problems])
    yield f"<sub>nanreplay {__version__}</sub>"


def _why(answer: LogAnswer) -> Iterator[str]:
    if answer.found is None:
        return
    for line in answer.found.evidence:
        yield f"- {inline_text(line)}"
    if answer.found.evidence:
        yield ""


def _next(answer: LogAnswer, script: str) -> Iterator[str]:
    step = next_step(answer, script)
    if step is None:
        return
    yield inline_text(step.advice)
    yield ""
    if step.shell:
        yield from code_lines(step.shell, "console")
    yield from code_lines(step.python, "python")
