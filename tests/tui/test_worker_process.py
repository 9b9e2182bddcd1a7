"""The interface with its real worker process, TensorFlow and a real replay."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.stored import ROOT, stored_report

from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.screens.capture_screen import CaptureScreen

MEASURED: dict[str, Any] = {"outputs": (), "operands": ()}
"""What holds numbers of the replay, whose last bits are the processor's own."""
LOG_OF_ZERO = ROOT / "sample_runs" / "log_of_zero.h5"


async def until_complete(pilot: Pilot[None]) -> CaptureScreen:
    screen = pilot.app.screen
    assert isinstance(screen, CaptureScreen)

    async def wait() -> None:
        while not screen.state.is_complete:
            await pilot.pause(0.05)

    await asyncio.wait_for(wait(), 240)
    await pilot.pause()
    return screen


@pytest.mark.slow
async def test_the_answer_arrives_and_is_the_one_the_library_gives() -> None:
    app = NanreplayApp([LOG_OF_ZERO])
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await until_complete(pilot)
        report, stored = screen.state.report, stored_report("log_of_zero")
        assert report is not None
        origin, expected = report.findings.origin, stored.findings.origin
        assert origin is not None
        assert expected is not None
        assert replace(origin, **MEASURED) == replace(expected, **MEASURED)
        assert [cause.kind for cause in report.causes] == [cause.kind for cause in stored.causes]


@pytest.mark.slow
async def test_escape_stops_the_replay_and_f5_begins_it_again() -> None:
    app = NanreplayApp([LOG_OF_ZERO])
    async with app.run_test(size=(120, 40)) as pilot:
        for _ in range(600):
            if app.engine.progress is not None and app.engine.progress.line == "loading TensorFlow":
                break
            await pilot.pause(0.05)
        await pilot.press("escape")
        for _ in range(600):
            if app.engine.progress is None:
                break
            await pilot.pause(0.05)
        screen = app.screen
        assert isinstance(screen, CaptureScreen)
        assert screen.state.report is None
        await pilot.press("f5")
        assert (await until_complete(pilot)).state.report is not None
