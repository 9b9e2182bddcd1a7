"""What replaying a capture with today's code gave. Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanreplay.findings import Report

if TYPE_CHECKING:
    from nanreplay.replay import StepResult


@dataclass(frozen=True, slots=True)
class TodayResult:
    """Recorded state and batches through today's code."""

    path: str
    """The capture."""
    model: str
    """Name of the factory that made today's model."""
    finite: bool
    """Whether every step of the window was finite with today's code, by the recorder's own rule."""
    fixed: bool | None
    """Whether that shows the recorded failure to be gone; None when nothing non-finite was recorded, or it does not
    reproduce in the recorded program either."""
    sentence: str
    """All of it in one sentence."""
    steps: Sequence[StepResult]
    """Today's steps, the failing one last, each held against its recording where the two can be compared."""
    report: Report | None = None
    """Where the value was born in today's code, with file and line; None when all steps were finite."""
    notes: Sequence[str] = ()
    """Readable lines: what did not match, what could not be repeated."""

    is_healthy: bool = False
    """Whether nothing non-finite was recorded in the first place."""

    @property
    def exit_code(self) -> int:
        """0 fixed (or nothing was wrong), 1 still non-finite, 3 could not be decided."""
        if not self.finite:
            return 1
        return 0 if self.fixed or self.is_healthy else 3

    @property
    def line(self) -> str:
        """The sentence after the path."""
        return f"{self.path}: {self.sentence}"
