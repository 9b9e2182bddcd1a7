"""What one capture came to, as the reports for machines tell it: JUnit, SARIF, annotations, JSON lines. Imports no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nanreplay.findings import Origin, Report
from nanreplay.records import Frame
from nanreplay.report.numbers import jsonable

Status: TypeAlias = Literal["finite", "nonfinite", "undecided", "unreadable"]
"""The exit codes 0, 1, 3 and 2 of the command line, in words."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One capture, replayed or refused."""

    path: str
    status: Status
    sentence: str
    """What happened, or why it cannot be said."""
    report: Report | None = None
    """Where a non-finite value was born, when it was looked for."""
    details: tuple[str, ...] = ()
    """Further lines to read: the steps, notes."""
    elapsed_s: float = 0.0

    @property
    def origin(self) -> Origin | None:
        """Where the non-finite value was born, when it is known."""
        return None if self.report is None else self.report.findings.origin

    @property
    def source(self) -> Frame | None:
        """The line of the user's code that made it, when it is known."""
        return None if self.origin is None else self.origin.source

    @property
    def rule(self) -> str:
        """What kind of outcome it is: the kind of the likeliest cause, else the verdict or the status."""
        if self.report is not None and self.report.causes:
            return self.report.causes[0].kind
        if self.status == "undecided" and self.report is not None:
            return self.report.verdict.kind
        return "non_finite" if self.status == "nonfinite" else self.status


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """One flat object, a line of `--jsonl`; see `docs/report-format.md`."""
    report, origin, source = outcome.report, outcome.origin, outcome.source
    value = {
        "format": "nanreplay-outcome",
        "version": 1,
        "path": outcome.path,
        "status": outcome.status,
        "sentence": outcome.sentence,
        "verdict": None if report is None else report.verdict.kind,
        "bit_exact": None if report is None else report.verdict.bit_exact,
        "cause": report.causes[0].kind if report is not None and report.causes else None,
        "step": None if origin is None else origin.step,
        "phase": None if origin is None else origin.phase,
        "layer_path": None if origin is None else origin.layer_path,
        "op_type": None if origin is None else origin.op_type,
        "rows": None if origin is None else origin.rows,
        "file": None if source is None else source.file,
        "line": None if source is None else source.line,
        "elapsed_s": round(outcome.elapsed_s, 3),
    }
    plain: dict[str, Any] = jsonable(value)
    return plain
