"""Several captures: a table to choose from, with what replaying says of each.

The application shows it when it is given more than one path. The table fills in the background,
one capture after another.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import DataTable, Input, Static

from nanreplay.capture.storage import Location
from nanreplay.errors import NanreplayError
from nanreplay.report.numbers import readable_trigger
from nanreplay.report.sentence import kind_in_words
from nanreplay.report.stored_answers import answer_without_tensorflow, has_tensorflow
from nanreplay.triage.answer_cache import AnswerCache
from nanreplay.triage.capture_answer import CaptureAnswer, answer_with
from nanreplay.triage.failure_key import failure_key
from nanreplay.tui.capture_order import CaptureOrder, ListedCapture
from nanreplay.tui.capture_state import CaptureState, OpenedCapture, open_capture
from nanreplay.tui.engine import AnswerCapture, Engine, Progress, StoppedError
from nanreplay.tui.screens.capture_screen import CaptureScreen
from nanreplay.tui.screens.dialogs import ErrorScreen, HelpScreen, working_keys
from nanreplay.tui.widgets.bars import KeyLine, StatusLine

COLUMNS = {
    "capture": 24,
    "cause": 18,
    "layer": 24,
    "op": 12,
    "step": 6,
    "trigger": 26,
    "verdict": 14,
}
"""Width by column; the name is the key of the column as well."""
_UNKNOWN = Text("…", style="dim")
_HELP = (
    "All captures that were named, with what replaying says of each. The table fills while you "
    "look; enter opens the capture at the cursor, and ctrl+l comes back here. s sorts by the next "
    "column, g puts the same failures together, / shows only captures with the words that you type."
)


class CaptureTable(DataTable[Text]):
    """One capture in each row."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter",
            "select_cursor",
            "Open",
            id="captures.open",
            tooltip="Open the capture at the cursor",
        ),
        Binding(
            "s", "sort", "Sort", show=False, id="captures.sort", tooltip="Sort by the next column"
        ),
        Binding(
            "g",
            "group",
            "Group",
            show=False,
            id="captures.group",
            tooltip="Put the same failures together, the most frequent first",
        ),
        Binding(
            "slash",
            "filter",
            "Filter",
            show=False,
            id="captures.filter",
            tooltip="Show only captures with some words",
        ),
        Binding("j", "cursor_down", "Down", show=False, id="captures.down", tooltip="Down"),
        Binding("k", "cursor_up", "Up", show=False, id="captures.up", tooltip="Up"),
    ]

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._list.sort()

    def action_group(self) -> None:
        """Put the same failures together, or not."""
        self._list.group()

    def action_filter(self) -> None:
        """Ask for words."""
        self._list.ask_for_words()

    @property
    def _list(self) -> ChooserScreen:
        screen = self.screen
        assert isinstance(screen, ChooserScreen)
        return screen


class ChooserScreen(Screen[None]):
    """The captures that were named, or those of a folder.

    Args:
        paths: Capture files; some may be unreadable.
        engine: The worker process.
        cache: Answers of earlier runs, those of `nanreplay triage` too.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f5",
            "triage",
            "Replay again",
            show=False,
            id="chooser.triage",
            tooltip="Replay those that have no answer yet",
        ),
        Binding(
            "escape",
            "stop",
            "Stop",
            show=False,
            id="chooser.stop",
            tooltip="Stop the replays in the background",
        ),
        Binding(
            "question_mark,f1",
            "help",
            "Help",
            key_display="?",
            id="chooser.help",
            tooltip="What this is, and its keys",
        ),
    ]

    def __init__(self, paths: Sequence[Location], engine: Engine, cache: AnswerCache) -> None:
        super().__init__()
        self.paths = tuple(paths)
        self.engine = engine
        self.cache = cache
        self.opened: dict[Location, OpenedCapture | NanreplayError] = {}
        """Tables of each capture that was read; why it cannot be read, where it cannot."""
        self.states: dict[Location, CaptureState] = {}
        """Captures that the user has opened, with their reports."""
        self.reports: dict[Location, dict[str, Any] | NanreplayError] = {}
        """Report of each capture that was replayed, as JSON; why there is none, where it failed."""
        self.fingerprints: dict[Location, str] = {}
        """What failed in each capture: the same text for the same failure."""
        self.names = _names(self.paths)
        self.order = CaptureOrder()
        self.shown = list(self.paths)
        """The captures that the table shows, by row."""

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static(f"nanreplay  {len(self.paths)} captures", id="chooser-title", markup=False)
        yield Input(placeholder="words, e.g. log layer/dense", id="chooser-words", compact=True)
        yield CaptureTable(id="captures", cursor_type="row", zebra_stripes=True)
        yield Static("", id="chooser-sentence", markup=False)
        yield StatusLine()
        yield KeyLine()

    def on_mount(self) -> None:
        """List the files, then read and replay one after another."""
        table = self.query_one(CaptureTable)
        for name, width in COLUMNS.items():
            table.add_column(name, key=name, width=width)
        self.query_one("#chooser-words").display = False
        self._fill()
        table.focus()
        self.read()

    def on_screen_resume(self) -> None:
        """Go on where the list was left."""
        if self.opened:  # else the screen is shown for the first time, and `read` goes on
            self.triage()

    def show_progress(self, progress: Progress | None) -> None:
        """Show how far the worker process is."""
        for line in self.query(StatusLine):
            line.progress = progress

    @work(exclusive=True, group="read", exit_on_error=False)
    async def read(self) -> None:
        """Read the tables of each capture."""
        for path in self.paths:
            self.opened[path] = await asyncio.to_thread(_opened_or_error, path)
            self._show(path)
        self.triage()

    @work(exclusive=True, group="triage", exit_on_error=False)
    async def triage(self) -> None:
        """Replay captures that have no report yet; nothing is tried on them."""
        for path in self.paths:
            try:
                await self._triage_one(path)
            except StoppedError:
                self.notify("Stopped. f5 goes on.")
                return
            self._show(path)

    async def _triage_one(self, path: Location) -> None:
        """Take the report of a capture that the user has opened, or replay it.

        Where TensorFlow is not installed, its stored report is taken.

        Raises:
            StoppedError: The user has stopped the replay.
        """
        state = self.states.get(path)
        if state is not None and state.report is not None:
            answer = await asyncio.to_thread(answer_with, str(path), state.report)
            self.reports[path] = self._taken(path, answer)
        elif path not in self.reports and isinstance(self.opened.get(path), OpenedCapture):
            try:
                self.reports[path] = await self._answer(path)
            except StoppedError:
                raise
            except NanreplayError as error:
                self.reports[path] = error

    async def _answer(self, path: Location) -> dict[str, Any]:
        """The report as JSON: of an earlier run, else of a replay, else the stored one."""
        if not has_tensorflow():
            stored = await asyncio.to_thread(answer_without_tensorflow, path)
            stored_answer = await asyncio.to_thread(answer_with, str(path), stored.report)
            return self._taken(path, stored_answer)
        key = await asyncio.to_thread(self.cache.key_of, path)
        known = self.cache.known(key, str(path))
        if known is not None:
            return self._taken(path, known)
        answer = await self.engine.run(AnswerCapture(str(path)))
        self.cache.keep(key, answer)
        return self._taken(path, answer)

    def _taken(self, path: Location, answer: CaptureAnswer) -> dict[str, Any]:
        """Note what failed; returns the report."""
        key = failure_key(answer)
        self.fingerprints[path] = "" if key is None else key.fingerprint
        assert answer.report is not None  # it always has one: what went wrong was raised
        return answer.report

    # What is listed

    def _show(self, path: Location) -> None:
        """Show what is known of a capture, at its new place where that hangs on it."""
        if self.order == CaptureOrder():
            for column, cell in self._row(path).items():
                self.query_one(CaptureTable).update_cell(str(path), column, cell)
        else:
            self._fill()
        self._show_sentence()

    def _fill(self) -> None:
        """Fill the table anew; the cursor stays on its capture where that is still shown."""
        table = self.query_one(CaptureTable)
        row = max(0, table.cursor_row)
        at_cursor = self.shown[row] if row < len(self.shown) else None
        listed = {str(path): self._listed(path) for path in self.paths}
        path_of = {str(path): path for path in self.paths}
        arranged = self.order.arranged(list(listed.values()))
        self.shown = [path_of[each.name] for each in arranged]
        table.clear()
        for path in self.shown:
            unknown = dict.fromkeys(list(COLUMNS)[1:], _UNKNOWN)
            cells = {"capture": Text(self.names[path], style="bold"), **unknown, **self._row(path)}
            table.add_row(*(cells[column] for column in COLUMNS), key=str(path))
        if at_cursor in self.shown:
            table.move_cursor(row=self.shown.index(at_cursor))
        said = self.order.described(len(self.shown), list(listed.values()))
        self.query_one("#chooser-title", Static).update(f"nanreplay  {said}")

    def _listed(self, path: Location) -> ListedCapture:
        cells = {}
        for column, cell in self._row(path).items():
            cells[column] = cell.plain
        fingerprint = self.fingerprints.get(path, "")
        cells["capture"] = self.names[path]
        return ListedCapture(str(path), cells, self._sentence(path), fingerprint)

    def sort(self) -> None:
        """Sort by the next column."""
        self.order = self.order.sorted_by_next(list(COLUMNS))
        self._fill()

    def group(self) -> None:
        """Put the same failures together, or not."""
        self.order = replace(self.order, together=not self.order.together)
        self._fill()

    def ask_for_words(self) -> None:
        """Ask which words a capture must have to be shown."""
        words = self.query_one("#chooser-words", Input)
        words.display = True
        words.focus()

    @on(Input.Changed, "#chooser-words")
    def _filter(self, event: Input.Changed) -> None:
        self.order = replace(self.order, words=event.value)
        self._fill()
        self._show_sentence()

    @on(Input.Submitted, "#chooser-words")
    def _end_of_words(self) -> None:
        """Go back to the list; without words the line goes away."""
        words = self.query_one("#chooser-words", Input)
        words.display = bool(words.value)
        self.query_one(CaptureTable).focus()

    @on(DataTable.RowHighlighted)
    def _show_sentence(self) -> None:
        """Show what is known of the capture at the cursor."""
        row = max(0, self.query_one(CaptureTable).cursor_row)
        text = self._sentence(self.shown[row]) if row < len(self.shown) else ""
        self.query_one("#chooser-sentence", Static).update(text)

    def _sentence(self, path: Location) -> str:
        """What replaying says of a capture, or why it cannot be read or replayed; else ""."""
        report, opened = self.reports.get(path), self.opened.get(path)
        known = report if report is not None else opened
        if isinstance(known, dict):
            return str(known["sentence"])
        return str(known) if isinstance(known, NanreplayError) else ""

    def _row(self, path: Location) -> dict[str, Text]:
        """Cells of what is known of a capture, by column; the others keep what they show."""
        opened, report = self.opened.get(path), self.reports.get(path)
        if isinstance(opened, NanreplayError):
            return _unreadable_cells(path, opened)
        cells = _table_cells(opened) if opened is not None else {}
        if isinstance(report, NanreplayError):
            cells |= _failure_cells(report)
        elif report is not None:
            cells |= _report_cells(report)
        return cells

    # Keys

    @on(DataTable.RowSelected)
    def open_capture(self) -> None:
        """Open the capture at the cursor."""
        path = self.shown[self.query_one(CaptureTable).cursor_row]
        opened = self.opened.get(path)
        if isinstance(opened, NanreplayError):
            self.app.push_screen(ErrorScreen(opened))
        elif opened is not None:
            self.workers.cancel_group(self, "triage")
            state = self.states.setdefault(path, CaptureState(opened, self.engine))
            self.app.push_screen(CaptureScreen(state))

    def action_triage(self) -> None:
        """Replay those that have no answer yet."""
        self.triage()

    def action_stop(self) -> None:
        """Stop the replays in the background."""
        self.engine.stop()

    def action_help(self) -> None:
        """Say what this is, and which keys work."""
        self.app.push_screen(HelpScreen("Captures", _HELP, working_keys(self)))


def _names(paths: Sequence[Location]) -> dict[Location, str]:
    """What the list calls each capture: its name, below its folders where others have the same."""
    count = Counter(path.name for path in paths)
    alike = [str(path).split("/") for path in paths if count[path.name] > 1]
    depth = 0
    while alike and len({tuple(parts[: depth + 1]) for parts in alike}) == 1:
        depth += 1
    return {
        path: path.name if count[path.name] == 1 else "/".join(str(path).split("/")[depth:])
        for path in paths
    }


def _unreadable_cells(path: Location, error: NanreplayError) -> dict[str, Text]:
    """Cells of a capture that cannot be read; the reason stands where there is most room."""
    blank = dict.fromkeys(list(COLUMNS)[1:], Text(""))
    reason = Text(str(error).replace(f"{path}: ", ""))  # the first column names the file already
    return {**blank, "cause": Text("✗ unreadable"), "trigger": reason}


def _table_cells(opened: OpenedCapture) -> dict[str, Text]:
    return {
        "step": Text(str(opened.incident.step)),
        "trigger": Text(readable_trigger(opened.incident.trigger)),
    }


def _failure_cells(error: NanreplayError) -> dict[str, Text]:
    return {
        "cause": Text("✗ not replayable"),
        "layer": Text(""),
        "op": Text(""),
        "verdict": Text(str(error)),
    }


def _report_cells(report: dict[str, Any]) -> dict[str, Text]:
    origin, cause = report["origin"], (report["cause"] or {}).get("kind") or ""
    layer = (origin["layer_path"] or origin["where"]) if origin is not None else ""
    op = (origin["op_type"] or "the batch") if origin is not None else ""
    return {
        "cause": Text(kind_in_words(cause), style="bold"),
        "layer": Text(layer),
        "op": Text(op),
        "verdict": Text(report["verdict"]["kind"].replace("_", " ")),
    }


def _opened_or_error(path: Location) -> OpenedCapture | NanreplayError:
    try:
        return open_capture(path)
    except NanreplayError as error:
        return error
