"""The lines above and below a screen: title bar, status line, and the line of keys.

The capture screen has all three, the chooser the lower two.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.content import Content
from textual.reactive import reactive
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from nanreplay.report.numbers import readable_trigger
from nanreplay.tui.capture_state import CaptureState
from nanreplay.tui.engine import Progress


class KeyOnLine(NamedTuple):
    """A key as the line of keys shows it."""

    key: str
    """As Textual names it, e.g. `question_mark`."""
    shown: str
    """As it is written, e.g. `?`."""
    label: str
    """What it does, in a word."""

    @property
    def width(self) -> int:
        """Columns that it takes, with the blanks after it."""
        return cell_len(f"{self.shown} {self.label}  ")


_PALETTE_KEY = KeyOnLine("ctrl+p", "^p", "Palette")


class KeyLine(Widget):
    """Keys of what has the focus, then those of the screen, as many as fit.

    A click on a key does what the key does. This is one widget: Textual's own footer makes one for
    each key, and takes longer to follow the focus.
    """

    DEFAULT_CSS = """
    KeyLine {
        height: 1; padding: 0 1; background: $panel; color: $foreground;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    """

    def on_mount(self) -> None:
        """Draw anew when other keys work."""
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen[object]) -> None:
        if self.is_attached:  # the signal may come while the screen is taken down
            self.refresh()

    def _keys(self) -> Iterator[KeyOnLine]:
        """Keys to show; of several keys of one action the first one."""
        actions = set()
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.show and active.enabled and binding.action not in actions:
                actions.add(binding.action)
                shown = self.app.get_key_display(binding)
                yield KeyOnLine(binding.key, shown, binding.description)

    def _placed(self) -> Iterator[tuple[int, KeyOnLine]]:
        """Column of each key that fits; help and palette are last and always fit."""
        keys = {key.key: key for key in self._keys()}
        last = [keys.pop(name) for name in ("question_mark", "f1") if name in keys][:1]
        last.append(_PALETTE_KEY)
        keys.pop(_PALETTE_KEY.key, None)
        room, column = self.size.width - sum(key.width for key in last), 0
        for key in keys.values():
            if column + key.width > room:
                break
            yield column, key
            column += key.width
        for key in last:
            yield column, key
            column += key.width

    def render(self) -> Content:
        """Draw the keys."""
        parts: list[str | tuple[str, str]] = []
        for _, key in self._placed():
            parts += [(key.shown, "bold $text-accent"), f" {key.label}  "]
        return Content.assemble(*parts)

    def on_click(self, event: events.Click) -> None:
        """Do what the key under the mouse does."""
        x = event.x - self.styles.padding.left
        for column, key in self._placed():
            if column <= x < column + cell_len(f"{key.shown} {key.label}"):
                self.app.simulate_key(key.key)
                return


_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAMES_PER_S = 8
_BAR = 16
"""Columns of the bar of progress."""


class StatusLine(Static):
    """What runs in the background, how far it is, which key stops it; gone while nothing runs."""

    DEFAULT_CSS = """
    StatusLine { height: 1; padding: 0 1; background: $panel; color: $foreground; display: none; }
    StatusLine.-busy { display: block; }
    """
    progress: reactive[Progress | None] = reactive(None)

    def on_mount(self) -> None:
        """Let the mark turn while something runs."""
        self.ticking = self.set_interval(1 / _FRAMES_PER_S, self._draw, pause=True)

    def watch_progress(self, progress: Progress | None) -> None:
        """Show other progress."""
        self.set_class(progress is not None, "-busy")
        if not self.is_mounted:  # Textual calls this once before, when there is no timer yet
            return
        if progress is None:
            self.ticking.pause()
        else:
            self.ticking.resume()
        self._draw()

    def _draw(self) -> None:
        if self.progress is not None:
            frame = int(time.monotonic() * _FRAMES_PER_S) % len(_FRAMES)
            # Of one line whatever it says: to lay out the whole screen anew, many times a second,
            # would take from the replay as much time as the rest of the interface does.
            self.update(status_text(self.progress, _FRAMES[frame]), layout=False)


def status_text(progress: Progress, frame: str) -> Text:
    """The line: `⠋ replaying ━━━━──── 12 of 25 · esc stops it`."""
    line = Text.assemble((f"{frame} ", "bold"), progress.line)
    if progress.done is not None and progress.total:
        filled = round(_BAR * progress.done / progress.total)
        line.append(" " + "━" * filled + "╌" * (_BAR - filled))
        line.append(f" {progress.done} of {progress.total}")
    if progress.waiting:
        line.append(f" · {progress.waiting} more waiting", "dim")
    return line.append(" · esc stops it", "dim")


_SHORTEST_TRIGGER = 12
"""Columns below which what triggered the capture is left out."""


class TitleBar(Static):
    """File, step, trigger; the verdict once it is known.

    Args:
        state: The capture.
    """

    DEFAULT_CSS = """
    TitleBar {
        height: 1; padding: 0 1; background: $panel; color: $foreground;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    """

    def __init__(self, state: CaptureState) -> None:
        super().__init__()
        self.state = state

    def on_mount(self) -> None:
        """Show the line."""
        self.show()

    def on_resize(self) -> None:
        """Fit the line into its room."""
        self.show()

    def show(self) -> None:
        """Show the line anew."""
        opened, report = self.state.opened, self.state.report
        verdict = report.verdict.kind.replace("_", " ") if report is not None else ""
        step = f"step {opened.incident.step}"
        ends = len("nanreplay  " + opened.name + "  ·  " + step + (verdict and "  ·  " + verdict))
        room = self.content_size.width - ends - 2
        trigger = _shortened(readable_trigger(opened.incident.trigger), room)
        line = Text.assemble(
            ("nanreplay", "bold"),
            ("  ", ""),
            opened.name,
            ("  ·  ", "dim"),
            f"{step}: {trigger}" if trigger else step,
        )
        if verdict:
            line.append("  ·  ", "dim").append(verdict, "bold")
        self.update(line)


def _shortened(trigger: str, room: int) -> str:
    """What triggered, without its middle where there is little room; "" where there is none.

    Its beginning says what it was, and its end names the variable and whether it is NaN.
    """
    if len(trigger) <= room:
        return trigger
    if room < _SHORTEST_TRIGGER:
        return ""
    end = (room - 1) * 2 // 3
    return f"{trigger[: room - 1 - end].rstrip()}…{trigger[-end:]}"
