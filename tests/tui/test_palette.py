"""The command palette: commands by state, steps and ops to go to."""

from __future__ import annotations

import pytest
from textual.command import CommandList, CommandPalette, Hit
from textual.pilot import Pilot
from tui.stored import ROOT, StoredEngine
from tui.waiting import workers_done

from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.palette import CaptureCommands, OpCommands, StepCommands
from nanreplay.tui.panes.timeline_pane import TimelinePane
from nanreplay.tui.screens.capture_screen import CaptureScreen


@pytest.fixture
def app() -> NanreplayApp:
    return NanreplayApp([ROOT / "sample_runs" / "exploding_rnn.h5"], engine=StoredEngine())


async def settled(pilot: Pilot[None]) -> CaptureScreen:
    await pilot.pause()
    await workers_done(pilot.app)
    await pilot.pause()
    assert isinstance(pilot.app.screen, CaptureScreen)
    return pilot.app.screen


async def test_commands_are_discovered_by_group_and_state(app: NanreplayApp) -> None:
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        names = [str(hit.display) async for hit in CaptureCommands(screen).discover()]
        assert {
            "Show: timeline",
            "Copy: the sentence",
            "Export: text",
            "Theme: light",
            "Leave: nanreplay",
        } <= set(names)
        assert "Replay: stop" not in names


async def test_search_is_fuzzy(app: NanreplayApp) -> None:
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        found = [hit async for hit in CaptureCommands(screen).search("cpsent")]
        assert "Copy: the sentence" in [str(hit.text) for hit in found if isinstance(hit, Hit)]


async def test_a_step_is_a_command(app: NanreplayApp) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        hits = [hit async for hit in StepCommands(screen).search("step 7")]
        assert [str(hit.text) for hit in hits if isinstance(hit, Hit)] == ["Go to: step 7"]
        hits[0].command()
        await settled(pilot)
        pane = screen.panes["timeline"]
        assert isinstance(pane, TimelinePane)
        assert pane.step == 7


async def test_ops_are_found_by_type_and_layer(app: NanreplayApp) -> None:
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        provider = OpCommands(screen)
        await provider.startup()
        found = [
            str(hit.text)
            async for hit in provider.search("matmul forecast")
            if isinstance(hit, Hit)
        ]
        assert found
        assert all("MatMul" in text and "forecast" in text for text in found)


async def test_the_palette_opens_and_runs_what_was_typed(app: NanreplayApp) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("ctrl+p")
        await pilot.pause()
        assert isinstance(app.screen, CommandPalette)
        await pilot.press(*"show verdict")
        for _ in range(100):
            if app.screen.query_one(CommandList).option_count:
                break
            await pilot.pause(0.02)
        await pilot.press("enter")
        await settled(pilot)
        assert screen.shown == "verdict"
