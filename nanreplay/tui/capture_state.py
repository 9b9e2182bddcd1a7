"""What all panes of one open capture share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from nanreplay.capture import Capture
from nanreplay.capture.storage import Location
from nanreplay.records import Incident, Timeline, VariableInfo
from nanreplay.report.contents import Report
from nanreplay.report.inventory import inventory
from nanreplay.tui.engine import Engine

if TYPE_CHECKING:
    from nanreplay.explore.step_view import Health
    from nanreplay.tui.view_tasks import Seen

# How health looks: a mark, a word and a colour, so that no meaning hangs on colour alone.

MARKS: Final[dict[Health, tuple[str, str, str]]] = {
    "finite": ("·", "finite", "$text-success"),
    "inf": ("∞", "infinite", "$text-warning"),
    "nan": ("✗", "NaN", "$text-error"),
    "contained": ("◌", "contained", "$text-secondary"),
}
"""Mark, word, and the theme's colour, by health. `contained`: non-finite values that reached nothing."""
YES, NO, UNKNOWN = (
    ("✓", "yes", "$text-success"),
    ("✗", "no", "$text-error"),
    ("-", "not tried", "$text-muted"),
)


def outcome_mark(value: bool | None) -> tuple[str, str, str]:
    """Mark, word and colour of a yes, a no, or what is not known."""
    return {True: YES, False: NO, None: UNKNOWN}[value]


def health_text(health: Health, colours: Mapping[str, str], *, word: bool = False) -> Text:
    """A health mark, with its word when asked.

    Args:
        health: The health.
        colours: The theme's variables, `app.theme_variables`; text that is not rich's takes the names in MARKS themselves.
        word: Whether the word follows the mark.
    """
    mark, name, colour = MARKS[health]
    return Text(f"{mark} {name}" if word else mark, style=cell_style(colour, colours))


def cell_style(colour: str, colours: Mapping[str, str]) -> str:
    """The style of rich for one of the theme's colours; cells of a `DataTable` are rich's.

    Args:
        colour: Such as `$text-success`.
        colours: The theme's variables, `app.theme_variables`; none for plain text.
    """
    value = colours.get(colour.removeprefix("$"), "")
    return f"bold {value}" if value.startswith("#") else "bold"


# What of a capture is shown before anything is replayed: its tables, read at once, without
# TensorFlow and pandas.


@dataclass(frozen=True)
class OpenedCapture:
    """Tables of one capture; no tensors."""

    path: Location
    facts: Mapping[str, Any]
    """What `nanreplay info --json` prints."""
    incident: Incident
    steps: tuple[int, ...]
    """Steps whose batches are held, ascending."""
    timeline: Timeline
    variables: Sequence[VariableInfo]

    @property
    def name(self) -> str:
        """File name, for titles."""
        return self.path.name


def open_capture(path: Location) -> OpenedCapture:
    """Read the tables of a capture.

    Raises:
        CaptureError: The file cannot be read.
    """
    with Capture(path) as capture:
        return OpenedCapture(
            path,
            inventory(capture),
            capture.incident,
            capture.steps,
            capture.timeline_record(),
            capture.variables_info,
        )


# --- tui.state


@dataclass(frozen=True)
class ViewPosition:
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
    place: ViewPosition | None = None
    """Where the user last went; None before that."""
    seen: dict[int, Seen] = field(default_factory=dict)
    """Steps that were run op by op, by step."""

    @property
    def failing_step(self) -> int:
        """Step of the origin, that of the incident until it is known."""
        origin = self.report.findings.origin if self.report is not None else None
        return self.opened.incident.step if origin is None else origin.step
