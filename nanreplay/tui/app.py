"""The application: its themes, the worker process, and which screen comes first.

`nanreplay.tui.show` runs it. The screens and panes carry the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.theme import Theme

from nanreplay.capture.storage import Location
from nanreplay.triage.answer_cache import AnswerCache
from nanreplay.tui.capture_state import CaptureState, open_capture
from nanreplay.tui.engine import Engine
from nanreplay.tui.terminal_app import TerminalApp
from nanreplay.tui.view_link import ViewLink

# Themes: dark, light, one for eyes that do not tell red from green, and one for terminals with 16
# colours. No meaning hangs on a colour alone: see `capture_state.MARKS`.

DEFAULT_THEME = "nanreplay-dark"
DARK = Theme(
    name=DEFAULT_THEME,
    primary="#7aa2f7",
    secondary="#9d8cf0",
    accent="#e0af68",
    warning="#e0af68",
    error="#f7768e",
    success="#9ece6a",
    foreground="#c8d0e8",
    background="#16181f",
    surface="#1c1f29",
    panel="#262a38",
    dark=True,
)
LIGHT = Theme(
    name="nanreplay-light",
    primary="#2f5fb3",
    secondary="#6b4fbb",
    accent="#9a6400",
    warning="#9a6400",
    error="#b3213f",
    success="#33711f",
    foreground="#23272f",
    background="#f7f7f4",
    surface="#efefea",
    panel="#e2e2dc",
    dark=False,
)
COLOUR_BLIND = Theme(  # the palette of Okabe and Ito, "Color universal design", 2008
    name="nanreplay-colour-blind",
    primary="#56b4e9",
    secondary="#cc79a7",
    accent="#f0e442",
    warning="#e69f00",
    error="#e69f00",
    success="#56b4e9",
    foreground="#e6e6e6",
    background="#141414",
    surface="#1c1c1c",
    panel="#2a2a2a",
    dark=True,
)
# A terminal with 16 colours shows the nearest of them for any other, and so two shades may become
# one. This theme uses none but those 16.
SIXTEEN = Theme(
    name="nanreplay-16-colours",
    primary="#00ffff",
    secondary="#ff00ff",
    accent="#ffff00",
    warning="#ffff00",
    error="#ff0000",
    success="#00ff00",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#000080",
    dark=True,
)
THEMES = (DARK, LIGHT, COLOUR_BLIND, SIXTEEN)


def fitting_theme(color_system: str | None) -> str:
    """The name of the theme to start with.

    Args:
        color_system: What Rich has found out about the terminal: `standard` and `windows` are 16
            colours, None is no colour.
    """
    return SIXTEEN.name if color_system in ("standard", "windows") else DEFAULT_THEME


# Providers of the command palette. Textual calls these functions when the palette opens; its
# modules are imported then, not before the first picture.


def _capture_commands() -> type[Provider]:
    from nanreplay.tui.palette import CaptureCommands

    return CaptureCommands


def _step_commands() -> type[Provider]:
    from nanreplay.tui.palette import StepCommands

    return StepCommands


def _op_commands() -> type[Provider]:
    from nanreplay.tui.palette import OpCommands

    return OpCommands


class NanreplayApp(TerminalApp):
    """Shows captures in the terminal.

    Args:
        paths: Capture files, at least one of them readable.
        trust: Whether a program may run ops that touch files, the network or processes.
        engine: Runs what takes long; one with a worker process unless given.
        cache: Answers of earlier runs for a list of captures; none unless given.
        at: What a single capture shows first; the answer unless given.

    Raises:
        CaptureError: The one capture cannot be read.
    """

    CSS_PATH = "styles.tcss"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {
        _capture_commands,
        _step_commands,
        _op_commands,
    }
    TITLE = "nanreplay"
    # Columns and lines from which a class is set on every screen. Textual declares both without
    # ClassVar, and mypy refuses a ClassVar in a subclass.
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit", id="app.quit", tooltip="Leave nanreplay"),
        Binding(
            "f2",
            "next_theme",
            "Theme",
            show=False,
            id="app.theme",
            tooltip="Dark, light, colour-blind safe",
        ),
        Binding(
            "ctrl+z",
            "suspend_process",
            "Suspend",
            show=False,
            id="app.suspend",
            tooltip="Back to the shell; fg returns",
        ),
    ]

    def __init__(
        self,
        paths: Sequence[Location],
        *,
        trust: bool = False,
        engine: Engine | None = None,
        cache: AnswerCache | None = None,
        at: ViewLink | None = None,
    ) -> None:
        super().__init__()
        self._at = at
        self.paths = tuple(paths)
        # A single capture is read before Textual takes the terminal: an error is then one line.
        self._only = open_capture(self.paths[0]) if len(self.paths) == 1 else None
        self.engine = engine or Engine(trust=trust)
        self.cache = cache or AnswerCache(None)
        self.engine.changed = self._engine_changed
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = fitting_theme(self.console.color_system)
        self.animation_level = "none"  # keys are answered at once, over ssh as well

    def on_mount(self) -> None:
        """Show the capture, or the list of captures."""
        if self._only is not None:
            from nanreplay.tui.screens.capture_screen import CaptureScreen

            self.push_screen(CaptureScreen(CaptureState(self._only, self.engine), self._at))
        else:
            from nanreplay.tui.screens.chooser import ChooserScreen

            self.push_screen(ChooserScreen(self.paths, self.engine, self.cache))

    def on_unmount(self) -> None:
        """End the worker process."""
        self.engine.close()

    def action_next_theme(self) -> None:
        """Take the next of nanreplay's own themes."""
        names = [theme.name for theme in THEMES]
        # The user may have taken a theme of Textual's own in the palette: then begin anew.
        position = names.index(self.theme) + 1 if self.theme in names else 0
        self.theme = names[position % len(names)]
        self.notify(f"Theme {self.theme}", timeout=2)

    def action_help_quit(self) -> None:
        """Say which key quits; Textual calls this for ctrl+c, and would name ctrl+q."""
        self.notify("q quits nanreplay; escape stops what runs.", timeout=4)

    def _engine_changed(self) -> None:
        """Show the progress on every screen that has a status line; dialogs have none."""
        for screen in self.screen_stack:
            show_progress = getattr(screen, "show_progress", None)
            if show_progress is not None:
                show_progress(self.engine.progress)
