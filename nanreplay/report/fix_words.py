"""Fixes in words: what they are called, what they did, what to know of them.

The sentence, tables, pages and the terminal interface say the same of a fix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nanreplay.findings import FixOutcome, FixResult
from nanreplay.report.numbers import readable_list, readable_trigger
from nanreplay.whatif.fix_code import short_number

OUTCOME_WORDS: Mapping[FixOutcome | None, str] = {
    "prevents": "yes",
    "fails": "no",
    "moves": "no, moves it",
    "unhealthy": "no, unhealthy",
    "skips": "no, skips it",
    None: "not tried",
}
"""Whether a fix prevents the failure, as a table says it."""
OUTCOME_CLAUSES: Mapping[FixOutcome | None, str] = {
    "prevents": "prevents it",
    "fails": "does not help",
    "moves": "only moves it",
    "unhealthy": "leaves the training unhealthy",
    "skips": "leaves the update out",
    None: "could not be tried",
}
"""The same as a clause."""


def outcome_of(fix: FixResult) -> FixOutcome | None:
    """Return what a fix did; by `prevents` alone where nothing more is known."""
    if fix.outcome is not None or fix.prevents is None:
        return fix.outcome
    return "prevents" if fix.prevents else "fails"


def fix_option(fix: FixResult) -> str:
    """A fix as `--fix` takes it: `clipnorm=1`, `clean_data=drop_rows`, `float32`."""
    if not fix.params or "+" in fix.name:
        return fix.name
    # `--fix clip_data=3` means from -3 to 3; other bounds cannot be written there
    if fix.name == "clip_data" and "arrays" in fix.params:
        return fix.name
    value = fix.params.get("high", next(iter(fix.params.values())))
    return f"{fix.name}={short_number(value) if isinstance(value, float) else value}"


def fix_label(fix: FixResult) -> str:
    """A fix as people read it: `clipnorm=1`, `lr x 0.1 (1e-4)` with the rate that comes of it."""
    if fix.name != "lr" or "factor" not in fix.params:
        return fix_option(fix)
    rate = fix.params.get("learning_rate")
    resulting = "" if rate is None else f" ({_rate(rate)})"
    return f"lr x {_rate(fix.params['factor'])}{resulting}"


def _rate(rate: float) -> str:
    """A learning rate as people write it: 0.01, 1e-4, 2.5e-5."""
    if not 0 < rate < 1e-3:
        return short_number(rate)
    digits, _, exponent = f"{rate:.5e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def fix_remark(fix: FixResult) -> str:
    """What was still non-finite, where it is born now, in how many places the line was changed."""
    remarks = []
    if fix.nonfinite is not None:
        remarks.append(f"step {fix.nonfinite_step}: {readable_trigger(fix.nonfinite)}")
    if fix.moved_to is not None:
        remarks.append(f"now born at {fix.moved_to.place_of_step}")
    if fix.places is not None and fix.places > 1:
        remarks.append(f"changed in {fix.places} places, which are all that the line runs in")
    if fix.note:
        remarks.append(fix.note)
    return "; ".join(remarks)


def fixes_in_words(fixes: Sequence[FixResult], limit: int = 3) -> str:
    """What prevents it and what does not; "" when nothing was tried.

    For example: "Verified fix: `epsilon=1e-7`; `clipnorm=1` and `lr x 0.1 (0.01)` do not help."

    Args:
        fixes: What was tried.
        limit: How many are named of each kind.
    """
    # a fix that leaves the loss far above the usual ones comes after those that do not
    prevent = sorted(_of(fixes, "prevents"), key=lambda fix: fix.loss_rise is not None)
    good = [f"`{fix_label(fix)}`" for fix in prevent][:limit]
    clauses = []
    if good:
        clauses.append(f"Verified fix{'es' if len(good) > 1 else ''}: {readable_list(good)}")
    for fix in _of(fixes, "moves")[:1]:
        if fix.moved_to:
            clauses.append(f"`{fix_label(fix)}` only moves it to {fix.moved_to.place_of_step}")
    for outcome, one, several in (
        ("unhealthy", "leaves the training unhealthy", "leave the training unhealthy"),
        ("fails", "does not help", "do not help"),
    ):
        named = [f"`{fix_label(fix)}`" for fix in _of(fixes, outcome)][:limit]
        if named:
            clauses.append(f"{readable_list(named)} {one if len(named) == 1 else several}")
    text = "; ".join(clauses)
    if not text:
        return ""
    return f"{text}." if good else f"Tried: {text}."


def _of(fixes: Iterable[FixResult], outcome: str) -> list[FixResult]:
    """Fixes of an outcome; of several values of one fix that are of no use, the last one."""
    alike = []
    for fix in fixes:
        if outcome_of(fix) == outcome:
            alike.append(fix)
    if outcome == "prevents":
        return alike
    return list({fix.name: fix for fix in alike}.values())
