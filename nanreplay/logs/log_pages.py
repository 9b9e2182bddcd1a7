"""The answers as one HTML page, and as Markdown that reads well where issues are written.

The page needs no network; text is escaped by jinja2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from nanreplay import __version__
from nanreplay.logs.log_answer import LogAnswer
from nanreplay.logs.log_sentence import log_sentence
from nanreplay.logs.log_tables import (
    CHECKPOINT_HEADINGS,
    SERIES_HEADINGS,
    VARIABLE_HEADINGS,
    checkpoint_rows,
    series_rows,
    variable_rows,
)
from nanreplay.logs.log_text import main_series, plot_lines
from nanreplay.logs.logged_run import ScalarSeries
from nanreplay.logs.next_step import next_step
from nanreplay.report.history import (
    CURVE,
    GROWTH,
    LOOK,
    MARK,
    figure_svg,
    scale_by_magnitude,
    thinned,
)
from nanreplay.report.markdown import code_lines, folded_lines, inline_text, table_lines
from nanreplay.report.pages import PageTable, page_environment, whole_page

_POINTS = 600
_MOST_CURVES = 4
_STEEP = 1e3


def logs_html(answers: Sequence[LogAnswer], problems: Sequence[str], script: str) -> str:
    """Write a whole HTML document about one or several runs."""
    body = (
        page_environment()
        .get_template("logs.html")
        .render(runs=[_run(each, script) for each in answers], problems=list(problems))
    )
    title = answers[0].run.name if len(answers) == 1 else "Logs and checkpoints"
    return whole_page(title, Markup(body), "the logs and checkpoints")


def _run(answer: LogAnswer, script: str) -> dict[str, Any]:
    step = next_step(answer, script)
    found = answer.found
    evidence = [] if found is None else [*found.evidence, *answer.weights.growth]
    return {
        "name": answer.run.name,
        "sentence": log_sentence(answer),
        "is_healthy": answer.status == "finite",
        "figure": Markup(logs_svg(answer)),
        "evidence": list(dict.fromkeys(evidence)),
        "advice": [] if step is None else [step.advice],
        "shell": None if step is None else step.shell,
        "python": None if step is None else step.python,
        "log_more": [] if step is None else list(step.log_more),
        "tables": page_tables(answer),
        "notes": list(answer.notes),
    }


def page_tables(answer: LogAnswer) -> list[PageTable]:
    """The tables of an answer; empty ones are left out."""
    tables = []
    if answer.run.series:
        tables.append(PageTable("Logged values", SERIES_HEADINGS, list(series_rows(answer))))
    if answer.run.checkpoints:
        rows = list(checkpoint_rows(answer.run.checkpoints))
        tables.append(PageTable("Checkpoints", CHECKPOINT_HEADINGS, rows))
    broken = answer.weights.first_broken
    if broken is not None:
        rows = list(variable_rows(broken, answer.weights.last_healthy))
        tables.append(PageTable(f"Variables of {broken.path}", VARIABLE_HEADINGS, rows))
    return tables


def logs_svg(answer: LogAnswer) -> str:
    """Draw losses, norms and rates of a run by step; "" when there is nothing to draw."""
    curves = _curves(answer)
    if not curves:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(LOOK):
        figure = Figure(figsize=(9.0, 1.5 * len(curves) + 0.4), layout="constrained")
        panels = np.atleast_1d(figure.subplots(len(curves), 1, sharex=True))
        for panel, series in zip(panels, curves, strict=True):
            _draw(panel, series, answer)
        panels[-1].set_xlabel(curves[0].axis)
        return figure_svg(figure)


def _curves(answer: LogAnswer) -> list[ScalarSeries]:
    """The series that failed first, then losses, norms, rates and scales of its axis."""
    roles = ("loss", "validation_loss", "gradient_norm", "learning_rate", "loss_scale")
    order = []
    for role in roles:
        for each in answer.run.series:
            if each.role == role:
                order.append(each)
    if answer.series is not None:
        same = []
        for each in order:
            if each.tag != answer.series.tag:
                same.append(each)
        order = [answer.series, *same]
    if not order:
        return []
    axis = order[0].axis
    return [each for each in order if each.axis == axis and len(each) > 1][:_MOST_CURVES]


def _draw(panel: Any, series: ScalarSeries, answer: LogAnswer) -> None:
    series = series.chain()
    panel.plot(*thinned(series.steps.astype(np.int64), series.values, _POINTS), color=CURVE)
    finite = series.values[series.is_finite]
    if len(finite) and finite.min() > 0 and finite.max() / finite.min() > _STEEP:
        scale_by_magnitude(panel)
    bad = series.steps[~series.is_finite]
    if len(bad):
        shown = bad[:: max(len(bad) // _POINTS, 1)]
        heights = np.full(len(shown), 0.06)
        across = panel.get_xaxis_transform()
        panel.plot(shown, heights, "x", transform=across, color=MARK, markersize=5)
    panel.set_ylabel(series.tag[-28:])
    panel.spines[["top", "right"]].set_visible(False)
    first, found = answer.first, answer.found
    if first is not None and first.axis == series.axis:
        panel.axvline(first.step, color=MARK, linewidth=1, linestyle="--")
    if found is not None and found.anomaly is not None:
        panel.axvline(found.anomaly.value.step, color=GROWTH, linewidth=1, linestyle=":")


# As Markdown: tables are folded.


def logs_markdown(answers: Sequence[LogAnswer], problems: Sequence[str], script: str) -> str:
    """Write a Markdown document about one or several runs; tables are folded."""
    return "\n".join(_markdown_lines(answers, problems, script)).rstrip() + "\n"


def _markdown_lines(
    answers: Sequence[LogAnswer], problems: Sequence[str], script: str
) -> Iterator[str]:
    for answer in answers:
        yield f"### {inline_text(answer.run.name)}"
        yield ""
        yield f"> {inline_text(log_sentence(answer))}"
        yield ""
        yield from _why_lines(answer)
        yield from _next_lines(answer, script)
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


def _why_lines(answer: LogAnswer) -> Iterator[str]:
    if answer.found is None:
        return
    for line in answer.found.evidence:
        yield f"- {inline_text(line)}"
    if answer.found.evidence:
        yield ""


def _next_lines(answer: LogAnswer, script: str) -> Iterator[str]:
    step = next_step(answer, script)
    if step is None:
        return
    yield inline_text(step.advice)
    yield ""
    if step.shell:
        yield from code_lines(step.shell, "console")
    yield from code_lines(step.python, "python")
