"""Outcomes as GitHub annotations: lines of a job's log that GitHub shows at the line of code. Imports no TensorFlow."""

from __future__ import annotations

from pathlib import Path

from nanreplay.report.outcome import Outcome
from nanreplay.report.places import place_of, relative


def annotation(outcome: Outcome, root: Path) -> str | None:
    """The workflow command for one capture; None when it is finite.

    Args:
        outcome: What the capture came to.
        root: The folder of the checkout, which paths are relative to.
    """
    if outcome.status == "finite":
        return None
    place = place_of(outcome, root)
    title = f"{outcome.rule.replace('_', ' ')} ({relative(Path(outcome.path), root)})"
    facts = {"file": place.file, **({} if place.line is None else {"line": str(place.line)}), "title": title}
    return f"::error {','.join(f'{key}={_property(value)}' for key, value in facts.items())}::{_data(outcome.sentence)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
