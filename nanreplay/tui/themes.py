"""Colours: dark, light, and one for eyes that do not tell red from green. Health is told by a mark and a word first, see `marks`."""

from __future__ import annotations

from textual.theme import Theme

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
