"""The one sentence that replaying with today's code says."""

from __future__ import annotations

from collections.abc import Sequence

from nanreplay.findings import Report
from nanreplay.records import Incident, Trigger
from nanreplay.report.numbers import readable_list, readable_trigger
from nanreplay.today.recording import RecordedWindow


def sentence_of(
    model: str,
    incident: Incident,
    window: RecordedWindow,
    trigger: Trigger | None,
    failed: int | None,
    report: Report | None,
    *,
    fixed: bool | None,
    is_healthy: bool,
    draws: Sequence[str] = (),
) -> str:
    """Say whether today's code is finite on the recording, and where it is not.

    Args:
        model: Name of the factory.
        incident: What was recorded.
        window: The steps that were run.
        trigger: What failed today, or None.
        failed: The step at which that was.
        report: Where it was born, when that is known.
        fixed: Whether the failure is gone; None when that is not known.
        is_healthy: Whether nothing non-finite was recorded.
        draws: Types of ops in today's step that give something else in every run.
    """
    with_today = f"with today's {model}"
    if trigger is not None:
        where = report.sentence if report is not None else f"step {failed} · {readable_trigger(trigger)}."
        return f"{'non-finite' if is_healthy else 'still non-finite'} {with_today}: {where}"
    count = len(window.steps)
    finite = f"{count} step{'' if count == 1 else 's'} finite {with_today}"
    if is_healthy:
        return f"{finite}; nothing non-finite was recorded"
    was = f"step {incident.step} of the recording: {readable_trigger(incident.trigger)}"
    if fixed:
        return f"fixed: {finite} ({was})"
    if draws:
        why = f"today's step draws other numbers in every run ({readable_list(draws)}), and so may miss the failure ({was})"
    elif window.reproduces is None:
        why = f"the recorded program cannot be run here to show that it still fails ({was})"
    else:
        why = f"the recorded program is finite on this window as well ({was}): that says nothing of today's code"
    return f"cannot decide: {finite}, but {why}"
