"""The same terminal for every test of the interface."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from textual.app import App
from textual.css.stylesheet import Stylesheet

_PARSED: dict[tuple[Any, ...], list[Any]] = {}
"""Rules by their text, where it stands, and the colours of the theme."""


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal with all colours, whatever the tests run in."""
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look four times as often whether a key has been dealt with.

    Textual looks every 20 ms, several times a key, which was half of the time of these tests. What
    a loop has to do it does before it looks again, however loaded the machine is.
    """
    monkeypatch.setattr("textual._wait.SLEEP_GRANULARITY", 1 / 200)
    monkeypatch.setattr("textual._wait.SLEEP_IDLE", 1 / 2000)


@pytest.fixture(autouse=True)
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw 15 times a second at most, as a slow terminal does, not 60 times.

    Drawing was two fifths of the time of these tests. What a key led to is drawn before the next
    one, and a test that pauses has everything drawn: only pictures that nobody looks at are left
    out.
    """
    press_keys = App._press_keys

    async def press_and_draw(self: App[Any], keys: Iterable[str]) -> None:
        for key in keys:
            await press_keys(self, [key])
            self.screen._on_timer_update()

    monkeypatch.setattr("textual.screen.UPDATE_PERIOD", 1 / 15)
    monkeypatch.setattr(App, "_press_keys", press_and_draw)


@pytest.fixture(scope="session", autouse=True)
def styles_are_parsed_once() -> None:
    """Share parsed styles among all apps of the process.

    Each app parses those of all widgets anew, a tenth of the time of these tests. Textual gives
    the rules of one app to all of its screens, so they bear sharing.
    """
    parse = Stylesheet._parse_rules

    def parse_once(self: Stylesheet, *arguments: Any, **named: Any) -> list[Any]:
        variables = frozenset(self._variables.items())
        key = (arguments, tuple(sorted(named.items())), variables)
        if key not in _PARSED:
            _PARSED[key] = parse(self, *arguments, **named)
        return _PARSED[key]

    Stylesheet._parse_rules = parse_once  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def no_stored_answers(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Captures as a recorder writes them: the sample runs hold answers, and most tests replay.

    A test marked `stored_answers` sees what the captures hold.
    """
    if request.node.get_closest_marker("stored_answers") is None:
        monkeypatch.setattr("nanreplay.tui.screens.capture_screen.stored_answer", lambda path: None)
