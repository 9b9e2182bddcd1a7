"""What all panes of one open capture share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanreplay.findings import Report
from nanreplay.tui.engine import Engine
from nanreplay.tui.opened import OpenedCapture

if TYPE_CHECKING:
    from nanreplay.tui.exploring import Seen


@dataclass(frozen=True)
class Place:
    """Something in a capture that a pane can show."""

    step: int
    """Step of the recording."""
    serial: int | None = None
    """Number of the op's execution within the step; None where only its name, or no op, is known."""
    op_name: str | None = None
    """Name of the op, when its number is not known."""
    output: int = 0
    """Which of the op's outputs."""


@dataclass
class CaptureState:
    """One open capture as all its panes see it."""

    opened: OpenedCapture
    engine: Engine
    report: Report | None = None
    """None until the replay is done."""
    is_complete: bool = False
    """Whether the report is final; before that, fixes are still being tried."""
    failure: str | None = None
    """Why there is no report and will be none, unless the user asks again."""
    place: Place | None = None
    """Where the user last went; None before that."""
    seen: dict[int, Seen] = field(default_factory=dict)
    """Steps that were run op by op, by step."""

    @property
    def failing_step(self) -> int:
        """Step of the origin, that of the incident until it is known."""
        origin = self.report.findings.origin if self.report is not None else None
        return self.opened.incident.step if origin is None else origin.step
