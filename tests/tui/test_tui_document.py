"""What docs/tui.md says of keys is what the keys say of themselves; tabs and pictures are there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from textual.binding import Binding, BindingType

from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.logs_app import LogsApp
from nanreplay.tui.panes import DIGITS, PANES
from nanreplay.tui.panes.base import OP_BINDINGS, STEP_BINDINGS
from nanreplay.tui.screens.capture_screen import CaptureScreen

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "tui.md").read_text(encoding="utf-8")
MOVES = {"up", "down", "left", "right", "h", "j", "k", "l", "escape"}
"""Keys that are told of once for all tabs."""
WRITTEN = {
    "slash": "/", "plus": "+", "minus": "-", "question_mark": "?", "less_than_sign": "<",
    "greater_than_sign": ">", "comma": ",", "full_stop": ".", "left_square_bracket": "[",
    "right_square_bracket": "]",
}  # fmt: skip
SHARED = {binding.id for binding in (*STEP_BINDINGS, *OP_BINDINGS)}


def own(bindings: Iterable[BindingType]) -> list[Binding]:
    """Bindings that a section tells of: not those that move, nor those that tabs share."""
    found = [binding for binding in bindings if isinstance(binding, Binding)]
    return [each for each in found if each.id not in SHARED and not set(keys(each)) & MOVES]


def keys(binding: Binding) -> list[str]:
    return [key.strip() for key in binding.key.split(",")]


def table_of(bindings: Iterable[Binding]) -> str:
    """The table of a section: every key as it is written, and the tooltip of the help screen."""
    lines = ["| key | what it does |", "|---|---|"]
    for binding in bindings:
        written = ", ".join(f"`{WRITTEN.get(key, key)}`" for key in keys(binding))
        lines.append(f"| {written} | {binding.tooltip} |")
    return "\n".join(lines)


SECTIONS = {
    **{entry.title: own(entry.load().BINDINGS) for entry in PANES if own(entry.load().BINDINGS)},
    "Tabs that show a step": [*STEP_BINDINGS, *OP_BINDINGS],
    "Logs and checkpoints": own(LogsApp.BINDINGS),
}


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^##+ {re.escape(title)}$(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/tui.md has no section {title!r}"
    return found[1]


@pytest.mark.parametrize("title", SECTIONS)
def test_the_keys_of_a_section_are_those_of_the_tab(title: str) -> None:
    assert table_of(SECTIONS[title]) in section(title)


def test_keys_that_work_everywhere_are_told() -> None:
    told = set(re.findall(r"`([^`]+)`", section("Keys everywhere")))
    bindings = [*CaptureScreen.BINDINGS, *NanreplayApp.BINDINGS]
    for binding in bindings:
        assert isinstance(binding, Binding)
        for key in keys(binding):
            is_tab = key.isdigit()
            assert is_tab or key == "escape" or WRITTEN.get(key, key) in told, key
    assert DIGITS[len(PANES) - 1] in told


def test_every_tab_has_its_section_in_their_order() -> None:
    places = [TEXT.index(f"### {entry.title}\n") for entry in PANES]
    assert places == sorted(places)


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT)
    assert len(pictures) >= len(PANES)
    assert [name for name in pictures if not (DOCS / name).exists()] == []
