"""Writes docs/usual-list.md: what people do by hand against NaN, and what nanreplay says of a
sample run in its place.

Usage: python docs/usual_list.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanreplay.findings import FixResult
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain
from nanreplay.report.fix_words import OUTCOME_CLAUSES, fix_label, outcome_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "usual-list.md"


@dataclass(frozen=True)
class Advice:
    """One line of the usual list."""

    today: str
    """What one does by hand."""
    run: str
    """The sample run that shows it."""
    fixes: tuple[str, ...]
    """What is tried on it, the advice first."""


LIST = (
    Advice(
        "print the loss in the `GradientTape` loop, `if tf.math.is_nan(loss): break`",
        "custom_eager_loop",
        ("epsilon",),
    ),
    Advice("`tf.debugging.check_numerics` on each gradient", "tutorial_loop", ("clip_data",)),
    Advice("print `tf.reduce_mean(layer.output)` of every layer", "float16_overflow", ("float32",)),
    Advice("lower the learning rate, `ReduceLROnPlateau`", "learning_rate_too_high", ("lr=0.1",)),
    Advice("Glorot or He initialisation", "weights_drawn_too_large", ("init=glorot", "init=he")),
    Advice("LeakyReLU in place of ReLU", "dead_relu", ("leaky_relu",)),
    Advice(
        "clean the data: `np.nan_to_num`",
        "nan_in_one_sample",
        ("clean_data=nan_to_num", "clipnorm=1.0"),
    ),
    Advice("clip the data: `np.clip`", "tutorial_loop", ("clip_data",)),
    Advice("clip gradients: `clipvalue=1.0`", "exploding_rnn", ("clipvalue=1.0",)),
    Advice("clip gradients: `clipnorm=1.0`", "exploding_rnn", ("clipnorm=1.0",)),
    Advice("add `1e-8` in softmax and log", "log_of_zero", ("epsilon=1e-8", "clipnorm=1.0")),
    Advice("add `1e-8` in a division", "division_by_zero", ("epsilon=1e-8", "epsilon=1e-2")),
)


def rows() -> Iterator[tuple[Advice, Report]]:
    """Each line of the list with the report of its run, fixes tried."""
    for advice in LIST:
        yield advice, explain(ROOT / "sample_runs" / f"{advice.run}.h5", fixes=list(advice.fixes))


def page() -> str:
    """The page as text."""
    lines = [
        "# The usual list, on the recording",
        "",
        "The first column has the usual advice against NaN in TensorFlow training. The others have",
        "the answer of `nanreplay bisect` and `nanreplay whatif` for a",
        "[sample run](../sample_runs). `make usual-list` writes this page from the captures.",
        "",
        "| today, by hand | sample run | where and why | tried on the recording | in code |",
        "|---|---|---|---|---|",
    ]
    lines += [_line(advice, report) for advice, report in rows()]
    return "\n".join(lines) + "\n"


def _line(advice: Advice, report: Report) -> str:
    origin = report.findings.origin
    where = (
        "?"
        if origin is None
        else f"step {origin.step}, {origin.phase}, `{origin.op_type or 'batch'}`"
    )
    why = f"{where}; {report.causes[0].kind}: {report.causes[0].sentence}"
    tried = [fix for fix in report.fixes if "+" not in fix.name]
    outcome = "; ".join(_outcome(fix) for fix in tried)
    code = next((fix.code for fix in tried if fix.prevents and fix.code), "")
    cells = (
        advice.today,
        f"[{advice.run}](../sample_runs/{advice.run}.py)",
        why,
        outcome,
        _as_code(code),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _as_code(text: str) -> str:
    """Code in a cell, which is one line of Markdown."""
    return "<br>".join(
        f"`` {line} ``" if "`" in line else f"`{line}`" for line in text.splitlines()
    )


def _outcome(fix: FixResult) -> str:
    said = OUTCOME_CLAUSES[outcome_of(fix)]
    steps = (
        ""
        if fix.steps_checked is None
        else f" (steps {fix.steps_checked[0]} to {fix.steps_checked[1]})"
    )
    return f"`{fix_label(fix)}` {said}{steps}"


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(PAGE.read_text(encoding="utf-8"))
