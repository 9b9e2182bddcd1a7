"""How health looks: a mark, a word and a colour, so that no meaning hangs on colour alone."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from rich.text import Text

Health: TypeAlias = Literal["finite", "inf", "nan", "contained"]

MARKS: Final[dict[Health, tuple[str, str, str]]] = {
    "finite": ("·", "finite", "success"),
    "inf": ("∞", "infinite", "warning"),
    "nan": ("✗", "NaN", "error"),
    "contained": ("◌", "contained", "secondary"),
}
"""Mark, word, and the theme's colour, by health. `contained`: non-finite values that reached nothing."""
YES, NO, UNKNOWN = ("✓", "yes", "success"), ("✗", "no", "error"), ("-", "not tried", "text-muted")


def outcome_mark(value: bool | None) -> tuple[str, str, str]:
    """Mark, word and colour of a yes, a no, or what is not known."""
    return {True: YES, False: NO, None: UNKNOWN}[value]


def health_text(health: Health, colours: dict[str, str], *, word: bool = False) -> Text:
    """A health mark, with its word when asked.

    Args:
        health: The health.
        colours: The theme's variables, `app.theme_variables`.
        word: Whether the word follows the mark.
    """
    mark, name, colour = MARKS[health]
    return Text(f"{mark} {name}" if word else mark, style=colours.get(colour, ""))
