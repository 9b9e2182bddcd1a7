"""How a failure reads: the sentence, the place, the capture; no traceback through nanreplay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from nanreplay.errors import NanreplayError
from nanreplay.pytest_plugin import SHOWN
from nanreplay.report.annotations import annotation
from nanreplay.report.outcome import Outcome
from nanreplay.report.places import checkout_root, place_of


def fail_with(outcome: Outcome, item: pytest.Item, *, kept: bool = False) -> NoReturn:
    """Fail the test with the sentence of the outcome.

    Args:
        outcome: What the capture came to.
        item: The test.
        kept: Whether the capture was written by this test.
    """
    root, here = checkout_root(), item.config.invocation_params.dir
    shown = os.path.relpath(outcome.path, here) if Path(os.path.abspath(outcome.path)).is_relative_to(here) else outcome.path
    item.stash[SHOWN] = {"annotation": annotation(outcome, root) or "", **({"kept": shown} if kept else {})}
    lines = [
        outcome.sentence,
        f"capture: {shown} (`nanreplay open` shows it, `nanreplay whatif` tries fixes)",
        *(f"note: {line}" for line in outcome.details),
    ]
    place = place_of(outcome, root)
    if place.line is not None:
        lines.append(f"{os.path.relpath(root / place.file, here)}:{place.line}: {outcome.rule.replace('_', ' ')}")
    pytest.fail("\n".join(lines), pytrace=False)


def one_line(error: NanreplayError) -> str:
    """An error, and what to do about it."""
    return f"nanreplay: {' '.join(str(error).split())}" + (f" ({error.hint})" if error.hint else "")
