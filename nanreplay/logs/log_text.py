"""The answers as lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from nanreplay.logs.log_answer import LogAnswer
from nanreplay.logs.log_places import step_text
from nanreplay.logs.log_sentence import log_sentence
from nanreplay.logs.log_tables import (
    CHECKPOINT_HEADINGS,
    SERIES_HEADINGS,
    VARIABLE_HEADINGS,
    checkpoint_rows,
    series_rows,
    variable_rows,
)
from nanreplay.logs.logged_run import ScalarSeries
from nanreplay.logs.next_step import next_step
from nanreplay.report.history import bar_lines
from nanreplay.report.numbers import readable_number

_BARS = 72
_MOST_SERIES, _MOST_VARIABLES = 12, 12


def log_lines(answer: LogAnswer, script: str, *, has_name: bool) -> Iterator[str]:
    """The sentence, the evidence, what to do next, then plots and tables.

    Args:
        answer: The answer of one run.
        script: The program, as the advice is to name it.
        has_name: Whether the run is named first, as where there are several.
    """
    prefix = f"{answer.run.name}: " if has_name else ""
    yield prefix + log_sentence(answer)
    yield from _evidence(answer)
    yield from _next(answer, script)
    main = main_series(answer)
    if main is not None:
        yield ""
        yield from plot_lines(main)
    if answer.run.series:
        yield ""
        yield from _table(SERIES_HEADINGS, list(series_rows(answer, _MOST_SERIES)))
    if answer.run.checkpoints:
        yield ""
        yield from _table(CHECKPOINT_HEADINGS, list(checkpoint_rows(answer.run.checkpoints)))
    broken = answer.weights.first_broken
    if broken is not None:
        yield ""
        rows = variable_rows(broken, answer.weights.last_healthy, _MOST_VARIABLES)
        yield from _table(VARIABLE_HEADINGS, list(rows))
    for note in answer.notes:
        yield f"note: {note}"


def _evidence(answer: LogAnswer) -> Iterator[str]:
    if answer.found is None:
        return
    for line in answer.found.evidence[1:]:
        yield f"  {line}"
    for value in answer.others[:5]:
        text = readable_number(value.value)
        yield f"  `{value.tag}` is {text} at {value.place}"
    if len(answer.others) > 5:
        yield f"  and {len(answer.others) - 5} more"
    for line in answer.weights.growth:
        if line not in answer.found.evidence:
            yield f"  {line}"


def _next(answer: LogAnswer, script: str) -> Iterator[str]:
    step = next_step(answer, script)
    if step is None:
        return
    yield ""
    yield step.advice
    if step.shell:
        yield f"  {step.shell}"
        yield "or, in the program:"
    for line in step.python.splitlines():
        yield f"  {line}"
    if step.log_more:
        yield f"Log next time: {'; '.join(step.log_more)}."


def main_series(answer: LogAnswer) -> ScalarSeries | None:
    """The series to plot: the one that failed, else the longest loss."""
    if answer.series is not None:
        return answer.series
    losses = answer.run.of_role("loss")
    return max(losses, key=len, default=None)


def plot_lines(series: ScalarSeries) -> Iterator[str]:
    """A series as bars of characters, with what and where above them."""
    first, last = float(series.steps.min()), float(series.steps.max())
    yield f"{series.tag}, {series.axis} {step_text(first)} to {step_text(last)}"
    yield from bar_lines(series.values, _BARS, 3)


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = []
    for column in zip(headings, *rows, strict=True):
        widths.append(max(map(len, column)))
    for row in (headings, *rows):
        cells = []
        for cell, width in zip(row, widths, strict=True):
            cells.append(cell.ljust(width))
        yield "  ".join(cells).rstrip()
