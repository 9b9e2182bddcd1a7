"""Tables of an answer, for the terminal, pages and issues: series, checkpoints, variables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nanreplay.logs.log_answer import LogAnswer
from nanreplay.logs.log_places import step_text
from nanreplay.logs.log_sentence import checkpoint_place
from nanreplay.logs.logged_run import Checkpoint, ScalarSeries, VariableHealth
from nanreplay.report.numbers import readable_number

SERIES_HEADINGS = (
    "logged",
    "values",
    "from",
    "to",
    "first",
    "last",
    "largest",
    "not finite",
    "first such",
)
CHECKPOINT_HEADINGS = (
    "checkpoint",
    "written after",
    "variables",
    "NaN",
    "inf",
    "largest",
    "finite",
)
VARIABLE_HEADINGS = ("variable", "type", "shape", "NaN", "inf", "largest", "norm", "before")
_MOST_ROWS = 30


def series_order(answer: LogAnswer) -> list[ScalarSeries]:
    """Series with non-finite values first, then losses, then the others."""
    return sorted(
        answer.run.series, key=lambda each: (bool(each.is_finite.all()), each.role != "loss")
    )


def series_rows(answer: LogAnswer, most: int = _MOST_ROWS) -> Iterator[tuple[str, ...]]:
    """A row for each series, in `series_order`."""
    order = series_order(answer)
    for series in order[:most]:
        yield _series_row(series)
    if len(order) > most:
        yield (f"and {len(order) - most} more", *[""] * (len(SERIES_HEADINGS) - 1))


def _series_row(series: ScalarSeries) -> tuple[str, ...]:
    finite = series.values[series.is_finite]
    bad = np.flatnonzero(~series.is_finite)
    ends = (series.steps.min(), series.steps.max()) if len(series) else (0.0, 0.0)
    return (
        series.tag,
        str(len(series)),
        f"{series.axis} {step_text(float(ends[0]))}",
        step_text(float(ends[1])),
        _short(float(series.values[0])),
        _short(float(series.values[-1])),
        _short(float(np.abs(finite).max())) if len(finite) else "",
        str(len(bad)) if len(bad) else "",
        step_text(float(series.steps[bad[0]])) if len(bad) else "",
    )


def _short(value: float) -> str:
    return readable_number(float(f"{value:.4g}"))


def checkpoint_rows(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, ...]]:
    """A row for each checkpoint; a broken file has its error in place of numbers."""
    for each in checkpoints:
        if not each.variables:
            yield (each.path, "", each.error or "", "", "", "", "no")
            continue
        yield (
            each.path,
            checkpoint_place(each),
            str(len(each.variables)) + (f" ({each.error})" if each.error else ""),
            _count(sum(item.nan for item in each.variables)),
            _count(sum(item.inf for item in each.variables)),
            _largest(each),
            "yes" if each.is_finite else "no",
        )


def _largest(checkpoint: Checkpoint) -> str:
    """The largest magnitude of what is no counter; "" where there is nothing else."""
    sizes = [item.largest for item in checkpoint.variables if item.part != "counter"]
    return _short(max(sizes)) if sizes else ""


def _count(number: int) -> str:
    return str(number) if number else ""


def variable_rows(
    checkpoint: Checkpoint, before: Checkpoint | None, most: int = _MOST_ROWS
) -> Iterator[tuple[str, ...]]:
    """A row for each variable, broken ones first, with its largest magnitude one checkpoint before.

    Args:
        checkpoint: The checkpoint.
        before: The one before it, None for the first.
        most: How many rows.
    """
    earlier = {each.name: each for each in before.variables} if before is not None else {}
    order = sorted(checkpoint.variables, key=lambda each: (each.is_finite, each.part != "weight"))
    for each in order[:most]:
        yield _variable_row(each, earlier.get(each.name))
    if len(order) > most:
        yield (f"and {len(order) - most} more", *[""] * (len(VARIABLE_HEADINGS) - 1))


def _variable_row(each: VariableHealth, before: VariableHealth | None) -> tuple[str, ...]:
    if each.error is not None:
        return (each.name, each.dtype, str(list(each.shape)), "", "", each.error, "", "")
    return (
        each.name,
        each.dtype,
        str(list(each.shape)),
        _count(each.nan),
        _count(each.inf),
        _short(each.largest),
        _short(each.norm),
        _short(before.largest) if before is not None else "",
    )
