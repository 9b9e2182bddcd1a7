"""Causes and fixes in the words of the sentence."""

from __future__ import annotations

from collections.abc import Sequence

from nanreplay.findings import Cause, FixResult
from nanreplay.report.numbers import readable_list
from nanreplay.whatif.code import short


def fix_label(fix: FixResult) -> str:
    """A fix as `--fix` takes it: `clipnorm=1.0`, `clean_data=drop_rows`, `float32`."""
    if not fix.params or "+" in fix.name:
        return fix.name
    if fix.name == "clip_data" and "low" in fix.params and fix.params["low"] != -fix.params["high"]:
        return fix.name
    value = fix.params.get("high", next(iter(fix.params.values())))
    return f"{fix.name}={short(value) if isinstance(value, float) else value}"


def cause_in_words(causes: Sequence[Cause]) -> str:
    """The likeliest cause: `Cause: the variance is 0.`; "" when none is known."""
    if not causes or causes[0].kind == "other":
        return ""
    return f"Cause: {causes[0].kind.replace('_', ' ')}. {causes[0].sentence}"


def fixes_in_words(fixes: Sequence[FixResult], limit: int = 3) -> str:
    """What prevents it and what does not: `Verified fix: epsilon=1e-7; clipnorm=1 and lr=0.1 do not help.`; "" when none was tried."""
    good = [f"`{fix_label(fix)}`" for fix in fixes if fix.prevents][:limit]
    bad = [f"`{fix_label(fix)}`" for fix in fixes if fix.prevents is False][:limit]
    help_ = f"{readable_list(bad)} {'does' if len(bad) == 1 else 'do'} not help" if bad else ""
    if good:
        return f"Verified fix{'es' if len(good) > 1 else ''}: {readable_list(good)}" + (f"; {help_}." if help_ else ".")
    return f"Tried: {help_}." if help_ else ""
