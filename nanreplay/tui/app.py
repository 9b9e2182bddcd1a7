"""The application: themes, the worker process, and which screen comes first. Screens and panes carry the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.theme import Theme

from nanreplay.capture.storage import Location
from nanreplay.tui.capture_state import CaptureState, open_capture
from nanreplay.tui.engine import Engine

# Colours: dark, light, and one for eyes that do not tell red from green. Health is told by a mark
# and a word first, see `marks`.

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
SIXTEEN = Theme(  # nothing between the colours that such a terminal has
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
    """The theme to start with.

    Args:
        color_system: What rich has found out of the terminal: `standard` for 16 colours.
    """
    return SIXTEEN.name if color_system in ("standard", "windows") else DEFAULT_THEME


# --- tui.app


def _commands() -> type[Provider]:
    from nanreplay.tui.palette import CaptureCommands

    return CaptureCommands


def _steps() -> type[Provider]:
    from nanreplay.tui.palette import StepCommands

    return StepCommands


def _ops() -> type[Provider]:
    from nanreplay.tui.palette import OpCommands

    return OpCommands


class NanreplayApp(App[None]):
    """Shows captures in the terminal.

    Args:
        paths: Capture files, at least one of them readable.
        trust: Whether programs that reach beyond tensors may run.
        engine: Runs what takes long; a worker process unless given.

    Raises:
        CaptureError: The one capture cannot be read.
    """

    CSS_PATH = "styles.tcss"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {
        _commands,
        _steps,
        _ops,
    }
    TITLE = "nanreplay"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012 - Textual declares it as an instance's
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
    ]

    def __init__(
        self, paths: Sequence[Location], *, trust: bool = False, engine: Engine | None = None
    ) -> None:
        super().__init__()
        self.paths = tuple(paths)
        self._only = open_capture(self.paths[0]) if len(self.paths) == 1 else None
        self.engine = engine or Engine(trust=trust)
        self.engine.changed = self._engine_changed
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = fitting_theme(self.console.color_system)
        self.animation_level = "none"  # keys are answered at once, over ssh as well
        self.set_class(self.no_color, "-no-color")

    def on_mount(self) -> None:
        """Show the capture, or the list of captures."""
        if self._only is not None:
            from nanreplay.tui.screens.capture_screen import CaptureScreen

            self.push_screen(CaptureScreen(CaptureState(self._only, self.engine)))
        else:
            from nanreplay.tui.screens.chooser import ChooserScreen

            self.push_screen(ChooserScreen(self.paths, self.engine))

    def on_unmount(self) -> None:
        """End the worker process."""
        self.engine.close()

    def action_next_theme(self) -> None:
        """Take the next of nanreplay's own themes."""
        names = [theme.name for theme in THEMES]
        self.theme = names[(names.index(self.theme) + 1) % len(names) if self.theme in names else 0]
        self.notify(f"Theme {self.theme}", timeout=2)

    def _engine_changed(self) -> None:
        for screen in self.screen_stack:
            changed = getattr(screen, "show_progress", None)
            if changed is not None:
                changed(self.engine.progress)
