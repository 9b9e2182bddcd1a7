"""Pictures of the panes that look into a step, at the smallest and at a large terminal.

`pytest tests/tui --snapshot-update` takes them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.sizes import at_sizes
from tui.stored import ROOT
from tui.stored_steps import StoredSteps
from tui.waiting import workers_done

from nanreplay.tui.app import NanreplayApp

Compare = Callable[..., bool]
KEYS = {"bisect": "3", "dataflow": "4", "tensor": "5", "batch": "6"}


def app_of(name: str) -> NanreplayApp:
    app = NanreplayApp([ROOT / "sample_runs" / f"{name}.h5"])
    app.engine = StoredSteps()
    return app


def pressing(*keys: str) -> Callable[[Pilot[Any]], Any]:
    async def press(pilot: Pilot[Any]) -> None:
        for key in ("", *keys):
            if key:
                await pilot.press(key)
            for _ in range(3):
                await workers_done(pilot.app)
                await pilot.pause()

    return press


@pytest.mark.parametrize(
    ("pane", "size"),
    at_sizes({"bisect": {80, 160}, "dataflow": {80}, "tensor": {160}, "batch": {80}}),
)
def test_a_pane(snap_compare: Compare, pane: str, size: tuple[int, int]) -> None:
    app = app_of("log_of_zero")
    assert snap_compare(app, terminal_size=size, run_before=pressing(KEYS[pane]))


def test_layers_and_the_precision_of_an_origin(snap_compare: Compare) -> None:
    assert snap_compare(
        app_of("float16_overflow"), terminal_size=(110, 30), run_before=pressing("3")
    )


def test_images_of_a_batch(snap_compare: Compare) -> None:
    assert snap_compare(
        app_of("float16_overflow"), terminal_size=(110, 30), run_before=pressing("6")
    )


def test_the_filter(snap_compare: Compare) -> None:
    keys = ("3", "slash", "i", "s", "colon", "n", "a", "n", "enter")
    assert snap_compare(app_of("log_of_zero"), terminal_size=(80, 24), run_before=pressing(*keys))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)], ids=lambda size: f"{size[0]}")
@pytest.mark.parametrize("palette", ["all", "16", "none"])
def test_sizes_and_colours(
    snap_compare: Compare, monkeypatch: pytest.MonkeyPatch, palette: str, size: tuple[int, int]
) -> None:
    if palette == "none":
        monkeypatch.setenv("NO_COLOR", "1")
    app = app_of("float16_overflow")
    if palette == "16":
        app.theme = "nanreplay-16-colours"
    assert snap_compare(app, terminal_size=size, run_before=pressing("3", "5", "z", "3"))
