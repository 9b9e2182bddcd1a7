"""The first line of an open capture: which file, which step, and what the replay says of it."""

from __future__ import annotations

import time
from collections.abc import Iterator

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

# The last line: the few keys that matter here. One widget, where Textual's footer makes one a key
# and is slower to change.


class KeyLine(Widget):
    """Keys of what has the focus, then those of the screen, as many as fit; a click does what the key does."""

    DEFAULT_CSS = """
    KeyLine { height: 1; padding: 0 1; background: $panel; color: $foreground; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def on_mount(self) -> None:
        """Draw anew when other keys work."""
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen[object]) -> None:
        if self.is_attached:
            self.refresh()

    def _keys(self) -> Iterator[tuple[str, str, str]]:
        """Key, how it is written, and what it does; several keys of one action once."""
        seen = set()
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.show and active.enabled and binding.action not in seen:
                seen.add(binding.action)
                yield binding.key, self.app.get_key_display(binding), binding.description

    def _placed(self) -> Iterator[tuple[int, str, str, str]]:
        """Column and words of the keys that fit; those of the help and the palette come last and always fit."""
        keys = {key: (key, shown, said) for key, shown, said in self._keys()}
        last = [
            *[keys.pop(key) for key in ("question_mark", "f1") if key in keys][:1],
            ("ctrl+p", "^p", "Palette"),
        ]
        keys.pop("ctrl+p", None)
        room, column = self.size.width - sum(_width(*each) for each in last), 0
        for each in keys.values():
            if column + _width(*each) > room:
                break
            yield column, *each
            column += _width(*each)
        for each in last:
            yield column, *each
            column += _width(*each)

    def render(self) -> Content:
        """Draw the keys."""
        return Content.assemble(
            *(
                part
                for _, _, shown, said in self._placed()
                for part in ((shown, "bold $text-accent"), f" {said}  ")
            )
        )

    def on_click(self, event: events.Click) -> None:
        """Do what the key under the mouse does."""
        x = event.x - self.styles.padding.left
        for column, key, shown, said in self._placed():
            if column <= x < column + cell_len(f"{shown} {said}"):
                self.app.simulate_key(key)
                return


def _width(_: str, shown: str, said: str) -> int:
    return cell_len(f"{shown} {said}  ")


# The status line: what runs in the background, how far it is, and which key stops it.

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_BAR = 16


class StatusLine(Static):
    """One line above the footer; gone while nothing runs."""

    DEFAULT_CSS = """
    StatusLine { height: 1; padding: 0 1; background: $panel; color: $foreground; display: none; }
    StatusLine.-busy { display: block; }
    """
    progress: reactive[Progress | None] = reactive(None)

    def on_mount(self) -> None:
        """Let the mark turn while something runs."""
        self.ticking = self.set_interval(1 / 8, self._draw, pause=True)

    def watch_progress(self, progress: Progress | None) -> None:
        """Show other progress."""
        self.set_class(progress is not None, "-busy")
        if not self.is_mounted:
            return
        if progress is None:
            self.ticking.pause()
        else:
            self.ticking.resume()
        self._draw()

    def _draw(self) -> None:
        if self.progress is not None:
            self.update(
                status_text(self.progress, _FRAMES[int(time.monotonic() * 8) % len(_FRAMES)])
            )


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


# --- tui.widgets.titlebar

_LONGEST = 36
"""Columns of what triggered."""


class TitleBar(Static):
    """File, step, trigger; the verdict once it is known.

    Args:
        state: The capture.
    """

    DEFAULT_CSS = "TitleBar { height: 1; padding: 0 1; background: $panel; color: $foreground; text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(self, state: CaptureState) -> None:
        super().__init__()
        self.state = state

    def on_mount(self) -> None:
        """Show the line."""
        self.show()

    def show(self) -> None:
        """Show the line anew."""
        opened, report = self.state.opened, self.state.report
        line = Text.assemble(
            ("nanreplay", "bold"),
            ("  ", ""),
            opened.name,
            ("  ·  ", "dim"),
            f"step {opened.incident.step}: {_shortened(readable_trigger(opened.incident.trigger))}",
        )
        if report is not None:
            line.append("  ·  ", "dim").append(report.verdict.kind.replace("_", " "), "bold")
        self.update(line)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
