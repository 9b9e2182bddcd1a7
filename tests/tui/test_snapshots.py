"""Pictures of every screen at 80x24 and 160x50, from real captures and stored reports. `make
snapshots` draws them anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.sizes import SIZES, at_sizes
from tui.stored import ROOT, StoredEngine
from tui.waiting import workers_done

from nanreplay import Capture
from nanreplay.errors import UnsafeProgramError
from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.widgets.plots import SeriesPlot

Compare = Callable[..., bool]
Prepare = Callable[[Pilot[None]], Awaitable[None]]


DATA_BYTES = {"log_of_zero": 102_656, "exploding_rnn": 292_214, "float16_overflow": 241_954}
"""Sizes of the captures without the answers in them, whose words change more often than data."""


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures are named relative to the repository, so that pictures are the same everywhere."""
    monkeypatch.chdir(ROOT)
    size_bytes = property(lambda capture: DATA_BYTES[capture.path.stem])
    monkeypatch.setattr(Capture, "size_bytes", size_bytes)


def opened(name: str, engine: StoredEngine | None = None) -> NanreplayApp:
    return NanreplayApp([Path("sample_runs") / f"{name}.h5"], engine=engine or StoredEngine())


def keys(*pressed: str) -> Prepare:
    """Press keys once all is shown, and wait until all is shown again."""

    async def prepare(pilot: Pilot[None]) -> None:
        await settled(pilot)
        for key in pressed:
            await pilot.press(key)
            await settled(pilot)

    return prepare


async def settled(pilot: Pilot[None]) -> None:
    await pilot.pause()
    await workers_done(pilot.app)
    await pilot.pause()
    for _ in range(200):  # plots are drawn by a thread
        if all(
            plot.is_drawn
            for plot in pilot.app.screen.query(SeriesPlot)
            if plot.display and plot.size.area
        ):
            break
        await pilot.pause(0.02)


@pytest.mark.parametrize(("name", "size"), at_sizes({"log_of_zero": {80}, "exploding_rnn": {160}}))
@pytest.mark.parametrize("tab", ["overview", "timeline", "source", "whatif", "verdict"])
def test_tabs(snap_compare: Compare, tab: str, name: str, size: tuple[int, int]) -> None:
    async def show(pilot: Pilot[None]) -> None:
        await settled(pilot)
        screen: Any = pilot.app.screen
        screen.action_show(tab)
        await settled(pilot)

    assert snap_compare(opened(name), terminal_size=size, run_before=show)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)], ids=lambda size: f"{size[0]}")
@pytest.mark.parametrize("palette", ["all", "16", "none"])
def test_tabs_in_few_colours(
    snap_compare: Compare, monkeypatch: pytest.MonkeyPatch, palette: str, size: tuple[int, int]
) -> None:
    """The first screen last, after a visit to the others: its parts fit as if it were the first."""
    if palette == "none":
        monkeypatch.setenv("NO_COLOR", "1")
    app = opened("log_of_zero")
    if palette == "16":
        app.theme = "nanreplay-16-colours"
    assert snap_compare(app, terminal_size=size, run_before=keys("2", "8", "9", "1"))


@pytest.mark.parametrize(
    ("pressed", "size"),
    at_sizes({"y": {80}, "e": {160}, "question_mark": {80, 160}, "ctrl+o": {80}}),
)
def test_what_opens_above(snap_compare: Compare, pressed: str, size: tuple[int, int]) -> None:
    assert snap_compare(opened("log_of_zero"), terminal_size=size, run_before=keys(pressed))


@pytest.mark.parametrize("theme", ["nanreplay-light", "nanreplay-colour-blind"])
def test_themes(snap_compare: Compare, theme: str) -> None:
    app = opened("exploding_rnn")
    app.theme = theme
    assert snap_compare(app, terminal_size=(120, 36), run_before=keys("2"))


def test_no_color(snap_compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(opened("log_of_zero"), terminal_size=(100, 30), run_before=keys("8"))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_chooser(snap_compare: Compare, size: tuple[int, int]) -> None:
    runs = [
        Path("sample_runs") / f"{name}.h5"
        for name in ("log_of_zero", "exploding_rnn", "float16_overflow")
    ]
    assert snap_compare(
        NanreplayApp(runs, engine=StoredEngine()), terminal_size=size, run_before=keys()
    )


def test_error_screen(snap_compare: Compare) -> None:
    engine = StoredEngine(
        error=UnsafeProgramError(
            "sample_runs/log_of_zero.h5: the program holds ReadFile, which reads files."
        )
    )
    assert snap_compare(opened("log_of_zero", engine), terminal_size=(80, 24), run_before=keys())
