"""What all panes of one open capture share: its tables, its report, and how health looks.

Screens and panes hold one `CaptureState`. Nothing here needs TensorFlow or pandas, so the first
picture does not wait for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanreplay.capture import Capture
from nanreplay.capture.storage import Location
from nanreplay.records import Frame, Incident, Timeline, VariableInfo
from nanreplay.report.batch_reader import BatchReader
from nanreplay.report.contents import Report
from nanreplay.report.inventory import inventory
from nanreplay.report.stored_answers import StoredAnswer
from nanreplay.tui.engine import Engine

if TYPE_CHECKING:
    from nanreplay.explore import TensorView
    from nanreplay.explore.step_view import Health
    from nanreplay.replay.provenance import ValueId
    from nanreplay.tui.view_tasks import ElementRef, StepLook, ViewedStep
    from nanreplay.tui.widgets.code_view import ColouredFile


@dataclass(frozen=True)
class OpenedCapture:
    """The tables of one capture: what is shown before anything is replayed. Holds no tensors."""

    path: Location
    facts: Mapping[str, Any]
    """What `nanreplay info --json` prints."""
    incident: Incident
    steps: tuple[int, ...]
    """Steps whose batches the capture holds, ascending."""
    timeline: Timeline
    variables: Sequence[VariableInfo]
    stamp: tuple[int, ...] = ()
    """What tells the file from one that is written in its place; empty for one of elsewhere."""

    @property
    def is_replaced(self) -> bool:
        """Whether another file has the name now, or the file was changed."""
        return self.stamp != _stamp(self.path)

    @property
    def name(self) -> str:
        """File name, for titles."""
        return self.path.name


def open_capture(path: Location) -> OpenedCapture:
    """Read the tables of a capture, and close the file.

    Raises:
        CaptureError: The file cannot be read.
    """
    stamp = _stamp(path)
    with Capture(path) as capture:
        return OpenedCapture(
            path,
            inventory(capture),
            capture.incident,
            capture.steps,
            capture.timeline_record(),
            capture.variables_info,
            stamp,
        )


def _stamp(path: Location) -> tuple[int, ...]:
    """Which file has a name, and when it was written; empty where that cannot be told."""
    if not isinstance(path, Path):
        return ()
    try:
        facts = path.stat()
    except OSError:  # it is gone; what reads it next says so
        return ()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


@dataclass(frozen=True)
class ViewPosition:
    """A step, or an op or tensor of a step, that a pane can show."""

    step: int
    """Step of the recording."""
    serial: int | None = None
    """Number of the op's execution within the step; None when it is not known or no op is meant."""
    op_name: str | None = None
    """Name of the op, when its number is not known."""
    output: int = 0
    """Which of the op's outputs."""
    frame: Frame | None = None
    """A line of code: the source tab goes to it, the bisect tab shows the ops that it made."""


@dataclass
class CaptureState:
    """One open capture as all its panes see it."""

    opened: OpenedCapture
    engine: Engine
    report: Report | None = None
    """None until the replay is done."""
    stored: StoredAnswer | None = None
    """Where `report` comes from when the capture held it; None when it was replayed."""
    is_complete: bool = False
    """Whether the report is final; before that, fixes are still being tried."""
    finished: Report | None = None
    """The last report that was final; it comes back when a later replay is stopped."""
    failure: str | None = None
    """Why there is no report, or none with fixes, and will be none unless the user asks again."""
    place: ViewPosition | None = None
    """Where the user last went; None before that."""
    batches: BatchReader = field(init=False)
    """Reads the batches of the file."""
    viewed_steps: dict[int, ViewedStep] = field(default_factory=dict)
    """Steps that were run op by op, by number; the one run last comes last."""
    tensors: dict[tuple[int, ValueId], TensorView] = field(default_factory=dict)
    """Tensors that came with the run of a step, by step and value."""
    elements: dict[tuple[int, ValueId], ElementRef] = field(default_factory=dict)
    """Of those tensors the first failing element, with what it was computed from."""

    code: dict[str, ColouredFile] = field(default_factory=dict)
    """Files of code that were read, by name."""

    look_follows: asyncio.Event | None = None
    """Set once the look into the step is there that follows a report; None where none follows."""

    def take_look(self, look: StepLook | None) -> None:
        """Remember what came with the run of a step; None where it cannot be looked at."""
        if self.look_follows is not None:
            self.look_follows.set()
            self.look_follows = None
        if look is None:
            return
        step = look.viewed.view.step
        self.viewed_steps[step] = look.viewed
        self.tensors = {(step, value): tensor for value, tensor in look.tensors.items()}
        self.elements = {(step, value): element for value, element in look.elements.items()}

    def __post_init__(self) -> None:
        """Make the reader of the batches; nothing is read yet."""
        created = self.opened.facts["metadata"].get("created")
        self.batches = BatchReader(self.opened.path, created)

    @property
    def failing_step(self) -> int:
        """Step of the origin; that of the incident until the origin is known."""
        origin = self.report.findings.origin if self.report is not None else None
        return self.opened.incident.step if origin is None else origin.step

    @property
    def has_failed(self) -> bool:
        """Whether a step failed: a capture may be written of a training that is healthy."""
        if self.report is not None:
            return self.report.verdict.kind != "healthy"
        return self.opened.incident.trigger.what != "manual"


# How health and outcomes look: a mark, a word and a colour. The mark comes first, so that no
# meaning hangs on colour alone.

MARKS: Final[dict[Health, tuple[str, str, str]]] = {
    "unknown": ("…", "not run yet", "$text-muted"),
    "finite": ("·", "finite", "$text-success"),
    "inf": ("∞", "infinite", "$text-warning"),
    "nan": ("✗", "NaN", "$text-error"),
    "contained": ("◌", "contained", "$text-secondary"),
}
"""Mark, word and theme colour by health; `contained` values are non-finite but reached nothing."""
YES = ("✓", "yes", "$text-success")
NO = ("✗", "no", "$text-error")
UNKNOWN = ("-", "not tried", "$text-muted")


def outcome_mark(outcome: bool | None) -> tuple[str, str, str]:
    """Mark, word and theme colour of a yes, a no, or an outcome that is not known (None)."""
    if outcome is None:
        return UNKNOWN
    return YES if outcome else NO


def cell_style(colour: str, colours: Mapping[str, str]) -> str:
    """The Rich style for one of the theme's colours, for a cell of a `DataTable`.

    Textual resolves `$text-success` in its own `Content`, but a `DataTable` cell is Rich text,
    which knows hexadecimal colours only.

    Args:
        colour: Such as `$text-success`.
        colours: The theme's variables, `app.theme_variables`; empty for plain text.
    """
    value = colours.get(colour.removeprefix("$"), "")
    return f"bold {value}" if value.startswith("#") else "bold"
