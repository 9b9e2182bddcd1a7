"""An open capture: its tabs, the report that arrives from the worker process, and the shared keys.

The application shows it for a single capture; the chooser opens it above its table.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Tab, TabbedContent, TabPane, Tabs
from textual.widgets.tabbed_content import ContentTab
from textual.worker import Worker, WorkerState

from nanreplay.errors import CaptureError, NanreplayError
from nanreplay.findings import FixResult
from nanreplay.report.contents import Report
from nanreplay.report.stored_answers import (
    answer_without_tensorflow,
    has_tensorflow,
    stored_answer,
)
from nanreplay.tui.capture_state import CaptureState, ViewPosition, open_capture
from nanreplay.tui.editor import edit_line
from nanreplay.tui.engine import Explain, Progress, StoppedError
from nanreplay.tui.panes import DIGITS, PANES, PaneEntry
from nanreplay.tui.panes.base import Failed, Go, Pane
from nanreplay.tui.screens.copy_keys import CopyKeys
from nanreplay.tui.view_link import ViewLink
from nanreplay.tui.view_tasks import StepLook
from nanreplay.tui.widgets.bars import KeyLine, StatusLine, TitleBar

_LOAD_AFTER_S = 0.5
"""Seconds after the first picture until the other tabs are imported, one after another."""


def tab_bindings(entries: Sequence[PaneEntry]) -> list[Binding]:
    """Return the keys that show tabs: a digit each, 0 for the tenth."""
    return [
        Binding(
            digit,
            f"show('{entry.id}')",
            entry.title,
            show=False,
            id=f"capture.{entry.id}",
            tooltip=entry.about,
        )
        for digit, entry in zip(DIGITS, entries, strict=False)
    ]


class CaptureTabs(TabbedContent):
    """Tabs that stay where they were sent."""

    @on(TabPane.Focused)
    def _focused_late(self, event: TabPane.Focused) -> None:
        """Let Textual show the tab of what has the focus, unless it has lost it meanwhile.

        The message is on its way for a while; a key may have shown another tab by then.
        """
        focused = self.screen.focused
        if focused is None or event.tab_pane not in focused.ancestors:
            event.prevent_default()
            event.stop()


class CaptureScreen(CopyKeys):
    """One capture in tabs; a tab is built when it is shown for the first time.

    Args:
        state: The capture, and the worker process.
        at: What is shown first; the answer unless given.
    """

    AUTO_FOCUS = ""  # the first tab takes it once it is built
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "y",
            "copy",
            "Copy",
            id="capture.copy",
            tooltip="Copy the sentence, the JSON, a fix, or what the tab offers",
        ),
        Binding(
            "e",
            "export",
            "Export",
            id="capture.export",
            tooltip="Write what is shown as SVG or as text",
        ),
        Binding(
            "question_mark,f1",
            "help",
            "Help",
            key_display="?",
            id="capture.help",
            tooltip="What this tab is for, and its keys",
        ),
        Binding(
            "o",
            "edit",
            "Editor",
            show=False,
            id="capture.edit",
            tooltip="Open your editor ($VISUAL or $EDITOR) at the line of code",
        ),
        Binding("escape", "stop", "Stop", show=False, id="capture.stop", tooltip="Stop what runs"),
        Binding(
            "f5",
            "explain",
            "Replay again",
            show=False,
            id="capture.explain",
            tooltip="Replay and explain the capture again",
        ),
        Binding(
            "ctrl+o",
            "jump",
            "Jump",
            show=False,
            id="capture.jump",
            tooltip="Show a key on everything that can take the focus",
        ),
        Binding(
            "ctrl+l",
            "captures",
            "Captures",
            show=False,
            id="capture.list",
            tooltip="Back to the list of captures",
        ),
        Binding(
            "left_square_bracket",
            "turn(-1)",
            "Tab before",
            key_display="[",
            show=False,
            id="capture.before",
            tooltip="Tab before",
        ),
        Binding(
            "right_square_bracket",
            "turn(1)",
            "Next tab",
            key_display="]",
            show=False,
            id="capture.next",
            tooltip="The next tab",
        ),
        *tab_bindings(PANES),
    ]

    def __init__(self, state: CaptureState, at: ViewLink | None = None) -> None:
        super().__init__(state)
        self._at = at
        """Where the user asked to begin; None once that is shown."""

    def compose(self) -> ComposeResult:
        """Make the frame; tabs are empty until they are shown."""
        yield TitleBar(self.state)
        with CaptureTabs(id="tabs"):
            for entry in PANES:
                yield TabPane(entry.title, id=entry.id)
        yield StatusLine()
        yield KeyLine()

    def on_mount(self) -> None:
        """Begin to replay once the first picture is on the screen, unless that was done before."""
        if not self.state.is_complete:
            self.call_after_refresh(self.action_explain)
        self.set_timer(_LOAD_AFTER_S, self.load_panes)
        if self._at is not None:
            self.call_after_refresh(self.action_show, self._at.pane)
            if self._at.step is not None:
                self._go_where_asked(self._at.step)

    @work(exclusive=True, group="load", exit_on_error=False)
    async def load_panes(self) -> None:
        """Import the other tabs' modules before they are shown."""
        for entry in PANES:
            await asyncio.to_thread(entry.load)

    def show_progress(self, progress: Progress | None) -> None:
        """Show how far the worker process is."""
        for line in self.query(StatusLine):
            line.progress = progress

    # The report

    def action_explain(self) -> None:
        """Replay and explain the capture; open it anew where its file is another one now."""
        if not self.state.opened.is_replaced:
            self.explain()
            return
        try:
            opened = open_capture(self.state.opened.path)
        except CaptureError as error:
            self.post_message(Failed(error))
            return
        self.notify(f"{opened.name} was written anew: this is what it holds now.", timeout=6)
        self.app.switch_screen(CaptureScreen(CaptureState(opened, self.state.engine)))

    @work(exclusive=True, group="explain", exit_on_error=False)
    async def explain(self) -> None:
        """Show the stored report, if any; then replay, and show it without and with fixes."""
        self.state.is_complete, self.state.failure = False, None
        path = str(self.state.opened.path)
        try:
            if not has_tensorflow():
                self.state.stored = await asyncio.to_thread(answer_without_tensorflow, path)
                report = self.state.stored.report
                line = f"TensorFlow is not installed: this is {self.state.stored.line}."
                self.notify(line, timeout=10)
            else:
                # The replay does not wait for what the file holds.
                replay = asyncio.ensure_future(
                    self.state.engine.run(Explain(path), partial=self._take_part)
                )
                try:
                    await self._show_stored(path)
                    report = await replay
                finally:
                    replay.cancel()  # where this was cancelled meanwhile
                    self.state.take_look(None)  # none follows any more
                self.state.stored = None
        except NanreplayError as error:
            self._take_failure(str(error))
            raise
        self.state.is_complete, self.state.finished = True, report
        self._take_report(report)

    def _take_part(self, part: StepLook | Report | FixResult | None) -> None:
        """Remember the step as it ran; show the report without fixes, then each fix as it comes.

        A stored report, which has its fixes, stays until those of the replay are tried.
        """
        if part is None or isinstance(part, StepLook):
            self.state.take_look(part)
            return
        if isinstance(part, Report):
            self.state.look_follows = asyncio.Event()
        if self.state.stored is not None:
            return
        if isinstance(part, FixResult):
            if self.state.report is None:
                return
            part = replace(self.state.report, fixes=(*self.state.report.fixes, part))
        self._take_report(part)

    async def _show_stored(self, path: str) -> None:
        """Show what this nanreplay stored of this very capture, until the replay is done."""
        if self.state.report is not None:
            return
        # A report that cannot be read is none: the replay answers.
        with contextlib.suppress(CaptureError):
            stored = await asyncio.to_thread(stored_answer, path)
            is_first = self.state.report is None  # the replay may have been faster
            if is_first and stored is not None and stored.is_current:
                self.state.stored, self.state.finished = stored, stored.report
                self._take_report(stored.report)

    def _take_report(self, report: Report) -> None:
        self.state.report = report
        for bar in self.query(TitleBar):
            bar.show()
        for pane in self.panes.values():
            pane.show_report(report)
        if self._at is not None:
            self._go_where_asked(self.state.failing_step)

    def _go_where_asked(self, step: int) -> None:
        """Go to the place that the command line named; an op's step is known with the report."""
        link, self._at = self._at, None
        if link is not None and (link.op_name is not None or link.step is not None):
            place = ViewPosition(step, op_name=link.op_name, output=link.output)
            self.post_message(Go(link.pane, place))

    def _take_failure(self, reason: str) -> None:
        """Show the last final report, else the one that came before fixes were tried.

        Args:
            reason: Why there is no newer one; shown where there is none at all.
        """
        known = self.state.finished or self.state.report
        self.state.failure = None if self.state.finished is not None else reason
        if known is not None:
            self.state.is_complete = True
            self._take_report(known)
            return
        for pane in self.panes.values():
            pane.show_failure(reason)

    @on(Worker.StateChanged)
    def _worker_changed(self, event: Worker.StateChanged) -> None:
        # Workers have exit_on_error=False: Textual would end the application at the first error.
        if event.state == WorkerState.ERROR and event.worker.error is not None:
            self.post_message(Failed(event.worker.error))

    @on(Failed)
    def _failed(self, event: Failed) -> None:
        if isinstance(event.error, StoppedError):
            way_out = "" if self.state.report is not None else " f5 replays the capture again."
            self.notify(f"Stopped.{way_out}")
            return
        from nanreplay.tui.screens.dialogs import ErrorScreen

        self.app.push_screen(ErrorScreen(event.error))

    # Tabs

    @on(events.DescendantFocus)
    def _tab_bar_focused(self, event: events.DescendantFocus) -> None:
        """Give the focus to the tab: a click on the bar takes it, and the tab's keys with it."""
        if isinstance(event.widget, Tabs):
            self.action_show(ContentTab.sans_prefix(event.widget.active))

    @on(TabbedContent.TabActivated)
    async def _tab_shown(self, event: TabbedContent.TabActivated) -> None:
        entry = next((entry for entry in PANES if entry.id == event.pane.id), None)
        if entry is not None:
            await self._build(entry)
            self.call_after_refresh(self._focus_pane, entry.id)
            self.refresh_bindings()

    async def _build(self, entry: PaneEntry) -> Pane:
        """Return a tab's pane, mounted; make it when the tab is shown for the first time."""
        if entry.id not in self.panes:
            # Importing a module can take longer than a key may wait.
            pane_class = await asyncio.to_thread(entry.load)
            if entry.id in self.panes:  # built by another event meanwhile
                return self.panes[entry.id]
            pane = pane_class(self.state)
            self.panes[entry.id] = pane
            await self.query_one(f"#{entry.id}", TabPane).mount(pane)
        return self.panes[entry.id]

    def action_show(self, pane: str) -> None:
        """Show a tab and give it the focus."""
        # Textual moves the focus of a tab that is left to another widget of that tab, and shows
        # the tab again because it has the focus. Without a focus it stays where it is sent.
        self.set_focus(None)
        self.query_one(TabbedContent).active = pane
        self.call_after_refresh(self._focus_pane, pane)

    def _focus_pane(self, pane_id: str) -> None:
        """Give the focus to the first widget of the tab that can take it."""
        pane = self.panes.get(pane_id)
        # The screen may have been closed since this was put off.
        if pane is None or not pane.is_attached or pane_id != self.shown:
            return
        if self.focused is not None and pane in self.focused.ancestors:
            return
        for widget in pane.query("*"):
            if widget.focusable and widget.display:
                # At once: `widget.focus()` does it later, when another tab may be shown, and
                # Textual goes back to the tab that has the focus.
                self.set_focus(widget)
                return

    def action_turn(self, by: int) -> None:
        """Show the tab before, or the next one."""
        ids = [entry.id for entry in PANES]
        self.action_show(ids[(ids.index(self.shown) + by) % len(ids)])

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

    def action_edit(self) -> None:
        """Open the user's editor at the line that is shown."""
        pane = self.panes.get(self.shown)
        message = edit_line(self.app, str(self.state.opened.path), pane.frame() if pane else None)
        if message:
            self.notify(message, severity="warning", timeout=6)

    def action_captures(self) -> None:
        """Go back to the list of captures."""
        self.dismiss()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer the list of captures only where there is one below this screen."""
        if action == "captures":
            # Textual's own blank screen is the first of the stack, the list would be the second.
            return len(self.app.screen_stack) > 2
        return True

    def action_help(self) -> None:
        """Say what the tab is for, and which keys work."""
        from nanreplay.tui.screens.dialogs import HelpScreen, working_keys

        entry = next(entry for entry in PANES if entry.id == self.shown)
        text = self.panes[entry.id].HELP if entry.id in self.panes else entry.about
        self.app.push_screen(HelpScreen(entry.title, text, working_keys(self)))

    def action_jump(self) -> None:
        """Show a key on everything that can take the focus, and on every tab."""
        from nanreplay.tui.screens.dialogs import JUMP_KEYS, JumpScreen

        # Each tab is a target by itself, and so the bar of all tabs is none.
        focusable = [widget for widget in self.focus_chain if not isinstance(widget, Tabs)]
        targets = dict(zip(JUMP_KEYS, [*self.query(Tab), *focusable], strict=False))
        self.app.push_screen(JumpScreen(targets), self._jumped)

    def _jumped(self, target: Widget | None) -> None:
        if isinstance(target, Tab) and target.id is not None:
            # TabbedContent gives its tabs the ids of their panes with a prefix of its own.
            self.action_show(ContentTab.sans_prefix(target.id))
        elif target is not None:
            target.focus()
