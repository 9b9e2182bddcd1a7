"""How health looks: a mark, a word and a colour, so that no meaning hangs on colour alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from rich.text import Text

if TYPE_CHECKING:
    from nanreplay.explore.health import Health

MARKS: Final[dict[Health, tuple[str, str, str]]] = {
    "finite": ("·", "finite", "$text-success"),
    "inf": ("∞", "infinite", "$text-warning"),
    "nan": ("✗", "NaN", "$text-error"),
    "contained": ("◌", "contained", "$text-secondary"),
}
"""Mark, word, and the theme's colour, by health. `contained`: non-finite values that reached nothing."""
YES, NO, UNKNOWN = ("✓", "yes", "$text-success"), ("✗", "no", "$text-error"), ("-", "not tried", "$text-muted")


def outcome_mark(value: bool | None) -> tuple[str, str, str]:
    """Mark, word and colour of a yes, a no, or what is not known."""
    return {True: YES, False: NO, None: UNKNOWN}[value]


def health_text(health: Health, colours: Mapping[str, str], *, word: bool = False) -> Text:
    """A health mark, with its word when asked.

    Args:
        health: The health.
        colours: The theme's variables, `app.theme_variables`; text that is not rich's takes the names in MARKS themselves.
        word: Whether the word follows the mark.
    """
    mark, name, colour = MARKS[health]
    return Text(f"{mark} {name}" if word else mark, style=cell_style(colour, colours))


def cell_style(colour: str, colours: Mapping[str, str]) -> str:
    """The style of rich for one of the theme's colours; cells of a `DataTable` are rich's.

    Args:
        colour: Such as `$text-success`.
        colours: The theme's variables, `app.theme_variables`; none for plain text.
    """
    value = colours.get(colour.removeprefix("$"), "")
    return f"bold {value}" if value.startswith("#") else "bold"
