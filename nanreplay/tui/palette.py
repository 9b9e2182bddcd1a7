"""The command palette: what can be done in the state that is shown, and steps to go to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from nanreplay.capture import Capture
from nanreplay.capture.storage import Location
from nanreplay.report.numbers import readable_number
from nanreplay.tui.app import THEMES
from nanreplay.tui.capture_state import ViewPosition
from nanreplay.tui.panes import PANES
from nanreplay.tui.panes.base import Go
from nanreplay.tui.screens.capture_screen import CaptureScreen

_MOST = 30
Command = tuple[str, str, Callable[[], object]]


class CaptureCommands(Provider):
    """Commands of an open capture, as "group: action"."""

    def _commands(self) -> Iterator[Command]:
        screen, app = self.screen, self.app
        if isinstance(screen, CaptureScreen):
            for entry in PANES:
                yield (
                    f"Show: {entry.title.lower()}",
                    entry.about,
                    partial(screen.action_show, entry.id),
                )
            for label, text in ((each.label, each.text) for each in screen.copyables()):
                yield (
                    f"Copy: {label}",
                    text.splitlines()[0][:80] if text else "",
                    partial(screen.copy_text, label, text),
                )
            yield "Export: picture (SVG)", "What is on the screen", screen.export_svg
            yield "Export: text", "The whole tab in lines", screen.export_text
            yield "Replay: again", "Replay and explain the capture again", screen.action_explain
            if is_busy(screen):
                yield "Replay: stop", "Stop what runs in the background", screen.action_stop
            yield "Help: keys of this tab", "What the tab is for, and its keys", screen.action_help
        for theme in THEMES:
            yield (
                f"Theme: {theme.name.removeprefix('nanreplay-')}",
                "Colours",
                partial(setattr, app, "theme", theme.name),
            )
        yield "Leave: nanreplay", "Quit", app.exit

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
                yield Hit(
                    score, matcher.highlight(name), cast("Callable[[], None]", run), help=about
                )


class StepCommands(Provider):
    """Steps of the capture: `step 12`."""

    def _steps(self) -> Iterator[tuple[int, str]]:
        screen = self.screen
        if not isinstance(screen, CaptureScreen):
            return
        columns = screen.state.opened.timeline.columns
        for step, loss in zip(
            reversed(columns.get("step", ())), reversed(columns.get("loss", ())), strict=False
        ):
            marks = ", the failing step" if int(step) == screen.state.failing_step else ""
            yield int(step), f"loss {readable_number(float(loss))}{marks}"

    async def discover(self) -> Hits:
        """The last steps."""
        for place, (step, about) in enumerate(self._steps()):
            if place >= 3:
                break
            yield DiscoveryHit(f"Go to: step {step}", partial(self._go, step), help=about)

    async def search(self, query: str) -> Hits:
        """Steps that match.

        Args:
            query: What was typed.
        """
        matcher, found = self.matcher(query), 0
        digits = "".join(letter for letter in query if letter.isdigit())
        for step, about in self._steps():
            if found >= _MOST:
                break
            name = f"Go to: step {step}"
            if (digits and not str(step).startswith(digits)) or (score := matcher.match(name)) <= 0:
                continue
            found += 1
            yield Hit(score, matcher.highlight(name), partial(self._go, step), help=about)

    def _go(self, step: int) -> None:
        self.screen.post_message(Go("timeline", ViewPosition(step)))


class OpCommands(Provider):
    """Ops of the failing step's program: `op Rsqrt functional/norm/Rsqrt`."""

    async def startup(self) -> None:
        """Read the table of ops, away from the event loop."""
        screen = self.screen
        is_there = isinstance(screen, CaptureScreen) and "bisect" in {entry.id for entry in PANES}
        self.ops = (
            await asyncio.to_thread(_ops_of, screen.state.opened.path)
            if is_there and isinstance(screen, CaptureScreen)
            else ()
        )

    async def search(self, query: str) -> Hits:
        """Ops whose type, layer and name hold every word.

        Args:
            query: What was typed.
        """
        matcher, words, found = self.matcher(query), query.lower().split(), 0
        for name, label in self.ops:
            low = label.lower()
            if not all(
                word in low for word in words
            ):  # the fuzzy matcher is too slow for thousands of names
                continue
            found += 1
            yield Hit(
                max(matcher.match(label), 0.1), matcher.highlight(label), partial(self._go, name)
            )
            if found >= _MOST:
                break

    def _go(self, name: str) -> None:
        if isinstance(self.screen, CaptureScreen):
            self.screen.post_message(
                Go("bisect", ViewPosition(self.screen.state.failing_step, op_name=name))
            )


def _ops_of(path: Location) -> Sequence[tuple[str, str]]:
    """Name of each op of the recorded programs, and how it is listed; without what the recorder added."""
    with Capture(path) as capture:
        ops = [
            op
            for program in capture.programs
            for op in capture.program(program).ops
            if op.phase != "watch"
        ]
    return [
        (op.name, f"Op: {op.type}  {op.name}" + (f"  ({op.layer_path})" if op.layer_path else ""))
        for op in ops
    ]


def is_busy(screen: CaptureScreen) -> bool:
    """Whether something runs in the background."""
    return screen.state.engine.progress is not None
