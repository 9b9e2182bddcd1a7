"""The command palette of an open capture: its commands, its steps and its ops.

Textual's palette asks each provider for what matches the text that was typed. A provider of steps
or ops leads to the pane that shows it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from nanreplay.capture import Capture
from nanreplay.capture.storage import Location
from nanreplay.records import OpInfo
from nanreplay.report.numbers import readable_number
from nanreplay.tui.app import THEMES
from nanreplay.tui.capture_state import ViewPosition
from nanreplay.tui.panes import PANES
from nanreplay.tui.panes.base import Go
from nanreplay.tui.screens.capture_screen import CaptureScreen

_MOST_HITS = 30
"""Hits of one provider, at most; nobody reads more."""
_STEPS_OFFERED = 3
"""Steps that are offered before anything is typed."""
_LONGEST_HELP = 80
Command = tuple[str, str, Callable[[], object]]
"""Name as "group: action", help, and what runs."""


class CaptureCommands(Provider):
    """Commands of an open capture, as "group: action"."""

    async def discover(self) -> Hits:
        """All commands."""
        for name, about, run in self._commands():
            yield DiscoveryHit(name, cast("Callable[[], None]", run), help=about)

    async def search(self, query: str) -> Hits:
        """Commands that match.

        Args:
            query: What was typed.
        """
        matcher = self.matcher(query)
        for name, about, run in self._commands():
            score = matcher.match(name)
            if score > 0:
                command = cast("Callable[[], None]", run)
                yield Hit(score, matcher.highlight(name), command, help=about)

    def _commands(self) -> Iterator[Command]:
        screen, app = self.screen, self.app
        if isinstance(screen, CaptureScreen):
            yield from _screen_commands(screen)
        for theme in THEMES:
            name = theme.name.removeprefix("nanreplay-")
            yield f"Theme: {name}", "Colours", partial(setattr, app, "theme", theme.name)
        yield "Leave: nanreplay", "Quit", app.exit


def _screen_commands(screen: CaptureScreen) -> Iterator[Command]:
    for entry in PANES:
        yield f"Show: {entry.title.lower()}", entry.about, partial(screen.action_show, entry.id)
    for offered in screen.copyables():
        first_line = offered.text.splitlines()[0][:_LONGEST_HELP] if offered.text else ""
        copy = partial(screen.copy_text, offered.label, offered.text)
        yield f"Copy: {offered.label}", first_line, copy
    yield "Export: picture (SVG)", "What is on the screen", screen.export_svg
    yield "Export: text", "The whole tab in lines", screen.export_text
    yield "Replay: again", "Replay and explain the capture again", screen.action_explain
    if screen.state.engine.progress is not None:
        yield "Replay: stop", "Stop what runs in the background", screen.action_stop
    yield "Help: keys of this tab", "What the tab is for, and its keys", screen.action_help


class StepCommands(Provider):
    """Steps of the capture: `step 12`."""

    async def discover(self) -> Hits:
        """The last steps."""
        for step, about in itertools.islice(self._steps(), _STEPS_OFFERED):
            yield DiscoveryHit(f"Go to: step {step}", partial(self._go, step), help=about)

    async def search(self, query: str) -> Hits:
        """Steps that match, the last ones first.

        Args:
            query: What was typed.
        """
        matcher, hits = self.matcher(query), 0
        digits = "".join(letter for letter in query if letter.isdigit())
        for step, about in self._steps():
            if hits >= _MOST_HITS:
                break
            # The fuzzy matcher would find "12" in 102 as well: digits must begin the number.
            if digits and not str(step).startswith(digits):
                continue
            name = f"Go to: step {step}"
            score = matcher.match(name)
            if score > 0:
                hits += 1
                yield Hit(score, matcher.highlight(name), partial(self._go, step), help=about)

    def _steps(self) -> Iterator[tuple[int, str]]:
        """Every recorded step and its loss, the last step first."""
        screen = self.screen
        if not isinstance(screen, CaptureScreen):
            return
        columns = screen.state.opened.timeline.columns
        steps, losses = reversed(columns.get("step", ())), reversed(columns.get("loss", ()))
        for step, loss in zip(steps, losses, strict=False):
            mark = ", the failing step" if int(step) == screen.state.failing_step else ""
            yield int(step), f"loss {readable_number(float(loss))}{mark}"

    def _go(self, step: int) -> None:
        self.screen.post_message(Go("timeline", ViewPosition(step)))


class OpCommands(Provider):
    """Ops of the failing step's program: `op Rsqrt functional/norm/Rsqrt`."""

    async def startup(self) -> None:
        """Read the table of ops, away from the event loop."""
        screen = self.screen
        self.ops: Sequence[tuple[str, str]] = ()
        if isinstance(screen, CaptureScreen):
            self.ops = await asyncio.to_thread(_listed_ops, screen.state.opened.path)

    async def search(self, query: str) -> Hits:
        """Ops whose type, layer and name hold every word.

        Args:
            query: What was typed.
        """
        matcher, words, hits = self.matcher(query), query.lower().split(), 0
        for name, label in self.ops:
            # Plain words, since Textual's fuzzy matcher is too slow for thousands of names.
            lower = label.lower()
            if not all(word in lower for word in words):
                continue
            hits += 1
            # The matcher gives 0 to words in another order than the label's: such a hit comes last.
            score = max(matcher.match(label), 0.1)
            yield Hit(score, matcher.highlight(label), partial(self._go, name))
            if hits >= _MOST_HITS:
                break

    def _go(self, name: str) -> None:
        if isinstance(self.screen, CaptureScreen):
            place = ViewPosition(self.screen.state.failing_step, op_name=name)
            self.screen.post_message(Go("bisect", place))


def _listed_ops(path: Location) -> Sequence[tuple[str, str]]:
    """Name and label of each op of the recorded programs, without what the recorder added."""
    ops: list[tuple[str, str]] = []
    with Capture(path) as capture:
        for program in capture.programs:
            for op in capture.program(program).ops:
                if op.phase != "watch":
                    ops.append((op.name, _op_label(op)))
    return ops


def _op_label(op: OpInfo) -> str:
    layer = f"  ({op.layer_path})" if op.layer_path else ""
    return f"Op: {op.type}  {op.name}{layer}"
