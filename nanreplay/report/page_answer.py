"""The top of a page: what failed, its line of code, the fix as a diff, the failing sample.

The terminal interface's first screen says the same. Nothing is replayed for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nanreplay.errors import NanreplayError
from nanreplay.findings import FixResult
from nanreplay.report.batch_reader import BatchReader
from nanreplay.report.contents import Report
from nanreplay.report.first_look import CodeExcerpt, first_look
from nanreplay.report.fix_patch import DiffLine, diff_of
from nanreplay.report.fix_words import OUTCOME_CLAUSES, fix_label, fix_remark, outcome_of
from nanreplay.report.headline import cause_sentence, headline
from nanreplay.report.line_values import LineValue, line_values
from nanreplay.report.numbers import readable_list, readable_steps, readable_trigger
from nanreplay.report.sample_choice import blamed_words
from nanreplay.report.sample_page import SamplePart, sample_parts
from nanreplay.report.sentence import VERDICT_MEANINGS, certainty

if TYPE_CHECKING:
    from nanreplay.capture import Capture

_AROUND = 4
"""Lines before and after the marked one."""


@dataclass(frozen=True)
class FixAnswer:
    """The fix that is shown, and what became of the others."""

    title: str
    diff: Sequence[DiffLine]
    remark: str
    others: Sequence[str]
    """Clauses such as `does not help: clipnorm=1`."""


@dataclass(frozen=True)
class SampleAnswer:
    """The failing sample."""

    title: str
    parts: Sequence[SamplePart]


@dataclass(frozen=True)
class PageAnswer:
    """What the top of a page says; a part is None where nothing is known of it."""

    headline: str
    is_harmless: bool
    why: str | None
    certainty: str | None
    """What the replays gave, in a sentence."""
    code: CodeExcerpt | None
    values: Sequence[LineValue]
    """What stands below the marked line."""
    fix: FixAnswer | None
    sample: SampleAnswer | None


def answer_of(report: Report, capture: Capture) -> PageAnswer:
    """Return the top of the page of a report.

    Args:
        report: What was found.
        capture: The capture that it is of, open.
    """
    origin = report.findings.origin
    cause = report.causes[0] if report.causes else None
    step = report.incident_step if origin is None else origin.step
    look = first_look(capture.path, BatchReader(capture.path), origin, step)
    sample = None
    if look.batch is not None and look.batch.size:
        title = f"Batch of step {step}: {blamed_words(look.batch)}"
        sample = SampleAnswer(title, tuple(sample_parts(look.batch)))
    return PageAnswer(
        headline=headline(report),
        is_harmless=report.verdict.kind == "healthy",
        why=report.findings.reason if cause is None else cause_sentence(cause),
        certainty=_certainty(report),
        code=None if look.code is None else near_lines(look.code),
        values=() if origin is None else tuple(line_values(origin)),
        fix=_fix_answer(report.fixes),
        sample=sample,
    )


def recorded_answer(capture: Capture) -> PageAnswer:
    """Return the top of a page before anything is replayed.

    Args:
        capture: The capture, open.
    """
    incident = capture.incident
    try:
        look = first_look(capture.path, BatchReader(capture.path), None, incident.step)
    except NanreplayError:
        look = None
    return PageAnswer(
        headline=f"{readable_trigger(incident.trigger).rstrip('.')}, step {incident.step}",
        is_harmless=False,
        why=None,
        certainty=None,
        code=None if look is None or look.code is None else near_lines(look.code),
        values=(),
        fix=None,
        sample=None,
    )


def near_lines(code: CodeExcerpt) -> CodeExcerpt:
    """The lines nearest to the marked one, without the indentation that they share."""
    marked = next((i for i, line in enumerate(code.lines) if line.is_marked), 0)
    lines = code.lines[max(marked - _AROUND, 0) : marked + _AROUND + 1]
    written, indents = [], []
    for i, line in enumerate(lines):
        if line.text.strip():
            written.append(i)
            indents.append(len(line.text) - len(line.text.lstrip()))
    lines = lines[min(written, default=0) : max(written, default=-1) + 1]
    indent = min(indents, default=0)
    return replace(code, lines=tuple(replace(line, text=line.text[indent:]) for line in lines))


def _certainty(report: Report) -> str | None:
    """What the replays gave, with why where that is not decided."""
    verdict = report.verdict
    reason = verdict.reason if verdict.reason != report.findings.reason else None
    # the meaning says the rest of what a verdict of another kind is certain of
    exact = certainty(replace(verdict, kind="reproduced"))
    return " ".join(filter(None, (VERDICT_MEANINGS[verdict.kind], exact, reason))) or None


def _fix_answer(fixes: Sequence[FixResult]) -> FixAnswer | None:
    if not fixes:
        return None
    best = next((fix for fix in fixes if fix.prevents), None)
    others = tuple(_other_fixes([fix for fix in fixes if fix is not best]))
    if best is None:
        return FixAnswer("Fix: none of those that were tried prevents it", (), "", others)
    steps = ""
    if best.steps_checked is not None:
        first, last = best.steps_checked
        steps = f" in {readable_steps(range(first, last + 1))}"
    title = f"Fix: {fix_label(best)} prevents it{steps}"
    return FixAnswer(title, tuple(diff_of(best)), fix_remark(best), others)


def _other_fixes(fixes: Sequence[FixResult]) -> Iterator[str]:
    labels_of: dict[str, list[str]] = {}
    for fix in fixes:
        also = "also " if fix.prevents else ""
        clause = f"{also}{OUTCOME_CLAUSES[outcome_of(fix)]}"
        labels_of.setdefault(clause, []).append(f"`{fix_label(fix)}`")
    for clause, labels in labels_of.items():
        yield f"{clause[0].upper()}{clause[1:]}: {readable_list(list(dict.fromkeys(labels)))}."
