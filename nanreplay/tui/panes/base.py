"""`Pane`, the base of all tabs. The contract is told in the package's docstring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.worker import Worker, WorkerState

from nanreplay.findings import Report
from nanreplay.tui.panes import PANES
from nanreplay.tui.state import CaptureState, Place
from nanreplay.tui.worker import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Copyable:
    """Something that can be copied to the clipboard."""

    label: str
    """What it is, e.g. `the tensor's name`."""
    text: str


class Go(Message):
    """Ask for another tab.

    Args:
        pane: Id of the tab, as in `PANES`.
        place: What to show there; as it was last unless given.
    """

    def __init__(self, pane: str, place: Place | None = None) -> None:
        super().__init__()
        self.pane = pane
        self.place = place


class Failed(Message):
    """Work of a pane has failed; the screen shows why."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Pane(Vertical):
    """One tab of an open capture.

    Args:
        state: The capture, its report, and the worker process.
    """

    HELP: ClassVar[str] = ""
    """What the pane is for, in a few sentences."""

    DEFAULT_CSS = "Pane { height: 1fr; }"

    def __init__(self, state: CaptureState) -> None:
        super().__init__()
        self.state = state

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield from ()

    def on_mount(self) -> None:
        """Show what is known already."""
        if self.state.report is not None:
            self.show_report(self.state.report)
        elif self.state.failure is not None:
            self.show_failure(self.state.failure)

    @property
    def tabs(self) -> Sequence[str]:
        """Ids of all tabs, as `Go` takes them."""
        return [entry.id for entry in PANES]

    @property
    def path(self) -> str:
        """The capture file, as tasks take it."""
        return str(self.state.opened.path)

    def show_report(self, report: Report) -> None:
        """Show a report that has arrived."""

    def show_failure(self, reason: str) -> None:
        """Show that there will be no report, and why."""

    def show_place(self, place: Place) -> None:
        """Show a place that the user wants to see here."""

    def copies(self) -> Sequence[Copyable]:
        """Return what can be copied here, besides the sentence and the JSON of the report."""
        return ()

    def as_text(self) -> str:
        """Return the whole of what is shown, in lines; "" where only a picture can be exported."""
        return ""

    async def ask(self, task: Task[T], *, partial: Callable[[Any], None] | None = None) -> T:
        """Run a task in the worker process.

        Args:
            task: What to do.
            partial: Called with early parts of the result.
        """
        return await self.state.engine.run(task, partial=partial)

    @on(Worker.StateChanged)
    def _worker_changed(self, event: Worker.StateChanged) -> None:
        if event.state == WorkerState.ERROR and event.worker.error is not None:
            event.stop()
            self.post_message(Failed(event.worker.error))
