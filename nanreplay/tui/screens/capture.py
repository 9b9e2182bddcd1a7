"""An open capture: its tabs, the report that arrives from the worker process, and what keys do everywhere."""

from __future__ import annotations

from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer, TabbedContent, TabPane
from textual.worker import Worker, WorkerState

from nanreplay.findings import Report
from nanreplay.tui.engine import Progress, StoppedError
from nanreplay.tui.panes import PANES, PaneEntry
from nanreplay.tui.panes.base import Failed, Go, Pane
from nanreplay.tui.state import CaptureState
from nanreplay.tui.tasks import Explain
from nanreplay.tui.widgets.status import StatusLine
from nanreplay.tui.widgets.titlebar import TitleBar


class CaptureScreen(Screen[None]):
    """One capture in tabs; a tab is built when it is shown for the first time.

    Args:
        state: The capture, and the worker process.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "copy", "Copy", id="capture.copy", tooltip="Copy the sentence, the JSON, a fix, or what the tab offers"),
        Binding("e", "export", "Export", id="capture.export", tooltip="Write what is shown as SVG or as text"),
        Binding("question_mark,f1", "help", "Help", key_display="?", id="capture.help", tooltip="What this tab is for, and its keys"),
        Binding("escape", "stop", "Stop", show=False, id="capture.stop", tooltip="Stop what runs in the background"),
        Binding("f5", "explain", "Replay again", show=False, id="capture.explain", tooltip="Replay and explain the capture again"),
        Binding("ctrl+o", "jump", "Jump", show=False, id="capture.jump", tooltip="Show a key on everything that can take the focus"),
        Binding("ctrl+l", "captures", "Captures", show=False, id="capture.list", tooltip="Back to the list of captures"),
        Binding("left_square_bracket", "turn(-1)", "Tab before", key_display="[", show=False, id="capture.before", tooltip="Tab before"),
        Binding("right_square_bracket", "turn(1)", "Next tab", key_display="]", show=False, id="capture.next", tooltip="The next tab"),
        *(
            Binding(str(number), f"show('{entry.id}')", entry.title, show=False, id=f"capture.{entry.id}", tooltip=entry.about)
            for number, entry in enumerate(PANES, 1)
        ),
    ]

    def __init__(self, state: CaptureState) -> None:
        super().__init__()
        self.state = state
        self.panes: dict[str, Pane] = {}
        """Those that were shown, by id."""

    def compose(self) -> ComposeResult:
        """Make the frame; tabs are empty until they are shown."""
        yield TitleBar(self.state)
        with TabbedContent(id="tabs"):
            for entry in PANES:
                yield TabPane(entry.title, id=entry.id)
        yield StatusLine()
        yield Footer()

    def on_mount(self) -> None:
        """Begin to replay once the first picture is on the screen."""
        self.call_after_refresh(self.action_explain)

    def show_progress(self, progress: Progress | None) -> None:
        """Show how far the worker process is."""
        for line in self.query(StatusLine):
            line.progress = progress

    # The report

    def action_explain(self) -> None:
        """Replay and explain the capture."""
        self.explain()

    @work(exclusive=True, group="explain", exit_on_error=False)
    async def explain(self) -> None:
        """Ask for the report; show it before fixes are tried, and again with them."""
        self.state.is_complete = False
        found = await self.state.engine.run(Explain(str(self.state.opened.path)), partial=self._take_report)
        self.state.is_complete = True
        self._take_report(found)

    def _take_report(self, report: Report) -> None:
        self.state.report = report
        for bar in self.query(TitleBar):
            bar.show()
        for pane in self.panes.values():
            pane.show_report(report)

    @on(Worker.StateChanged)
    def _worker_changed(self, event: Worker.StateChanged) -> None:
        if event.state == WorkerState.ERROR and event.worker.error is not None:
            self.post_message(Failed(event.worker.error))

    @on(Failed)
    def _failed(self, event: Failed) -> None:
        if isinstance(event.error, StoppedError):
            self.notify("Stopped. f5 replays the capture again.")
            if self.state.report is not None:
                self.state.is_complete = True
                self._take_report(self.state.report)
            return
        from nanreplay.tui.screens.error import ErrorScreen

        self.app.push_screen(ErrorScreen(event.error))

    # Tabs

    @on(TabbedContent.TabActivated)
    async def _tab_shown(self, event: TabbedContent.TabActivated) -> None:
        entry = next((entry for entry in PANES if entry.id == event.pane.id), None)
        if entry is not None:
            await self._build(entry)
            self.refresh_bindings()

    async def _build(self, entry: PaneEntry) -> Pane:
        if entry.id not in self.panes:
            self.panes[entry.id] = pane = entry.load()(self.state)
            await self.query_one(f"#{entry.id}", TabPane).mount(pane)
        return self.panes[entry.id]

    @property
    def shown(self) -> str:
        """Id of the tab that is shown."""
        return self.query_one(TabbedContent).active

    def action_show(self, pane: str) -> None:
        """Show a tab and give it the focus."""
        self.query_one(TabbedContent).active = pane
        self.call_after_refresh(self._focus_pane, pane)

    def _focus_pane(self, pane: str) -> None:
        found = self.panes.get(pane)
        target = next((each for each in found.query("*") if each.focusable), None) if found is not None else None
        if target is not None:
            target.focus()

    def action_turn(self, by: int) -> None:
        """Show the tab before, or the next one."""
        names = [entry.id for entry in PANES]
        self.action_show(names[(names.index(self.shown) + by) % len(names)])

    @on(Go)
    async def _go(self, event: Go) -> None:
        entry = next(entry for entry in PANES if entry.id == event.pane)
        pane = await self._build(entry)
        self.action_show(entry.id)
        if event.place is not None:
            self.state.place = event.place
            pane.show_place(event.place)

    # Keys

    def action_stop(self) -> None:
        """Stop what runs in the background."""
        self.state.engine.stop()
