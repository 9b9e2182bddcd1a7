"""What a user may expect of any interface: clicks leave keys alive, wrong input is told, a way back
keeps the place, a stopped replay takes nothing away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static, Tab
from tui.in_process import close_all, opened
from tui.stored import ROOT, StoredEngine, stored_report
from tui.stored_steps import StoredSteps
from tui.waiting import workers_done

from nanreplay.records import Timeline
from nanreplay.report.explain import explain
from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.engine import Explain, StoppedError
from nanreplay.tui.panes.timeline_pane import TimelinePane
from nanreplay.tui.screens.capture_screen import CaptureScreen
from nanreplay.tui.widgets.op_tree import OpTree
from nanreplay.tui.widgets.tensor_table import TensorTable

SAMPLE = ROOT / "sample_runs" / "log_of_zero.h5"
pytestmark = pytest.mark.xdist_group("opened captures")  # one worker explains them


@pytest.fixture(scope="module", autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    close_all()


async def settled(pilot: Pilot[None]) -> CaptureScreen:
    for _ in range(3):
        await pilot.pause()
        await workers_done(pilot.app)
    return next(each for each in pilot.app.screen_stack if isinstance(each, CaptureScreen))


def notes(app: NanreplayApp) -> list[str]:
    return [note.message for note in app._notifications]


@pytest.mark.parametrize("clicks", [1, 2], ids=["another tab", "the tab that is shown"])
async def test_the_keys_of_a_tab_work_after_a_click_on_it(clicks: int) -> None:
    app = NanreplayApp([ROOT / "sample_runs" / "exploding_rnn.h5"], engine=StoredEngine())
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        tab = next(tab for tab in screen.query(Tab) if "Timeline" in str(tab.label))
        for _ in range(clicks):
            await pilot.click(tab)
            await settled(pilot)
        pane = screen.panes["timeline"]
        assert isinstance(pane, TimelinePane)
        assert (screen.shown, pane.step) == ("timeline", 13)
        await pilot.press("left")
        assert pane.step == 12


@pytest.mark.parametrize("index", ["99, 0", "18, -1"])
async def test_an_index_beyond_the_tensor_is_told_and_the_cursor_stays(index: str) -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("5", "i")
        await screen.type(index)
        await screen.press("enter")
        assert screen.screen.query_one(TensorTable).index == (18, 0)
        assert f"The shape is [32, 3]: there is no [{index}]." in notes(screen.app)


async def test_escape_from_the_filter_stays_at_the_op() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "n")
        tree = screen.screen.query_one(OpTree)
        before = tree.op
        assert before is not None
        await screen.press("slash")
        await screen.type("no such op")
        assert tree.op is None
        await screen.press("escape")
        assert tree.op is before
        await screen.press("slash")
        await screen.type("relu")
        await screen.press("enter", "f")
        found = tree.op
        assert found is not None
        assert found is not before
        await screen.press("escape")
        assert tree.op is found


class SlowSteps(StoredSteps):
    """Gives the report at once; what is asked of a step is answered only once it may be."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def run(self, task: Any, *, partial: Any = None) -> Any:
        if not isinstance(task, Explain):
            await self.may_answer.wait()
        return await super().run(task, partial=partial)


async def test_the_failing_element_is_visible_after_a_visit_while_busy() -> None:
    engine = SlowSteps()
    app = NanreplayApp([SAMPLE], engine=engine)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        await pilot.press("5")
        await pilot.pause(0.2)
        await pilot.press("1")
        await pilot.pause(0.2)
        engine.may_answer.set()
        await settled(pilot)
        await pilot.press("5")
        screen = await settled(pilot)
        table = screen.query_one(TensorTable)
        assert table.index == (18, 0)
        row = table.cursor[0] + 1 - table.scroll_offset.y
        assert 1 <= row < table.size.height
        assert "-inf" in table.render_line(row).text


class Stopping(StoredEngine):
    """Gives a report without fixes first; the second replay is stopped by the user."""

    def __init__(self, stops_at: int) -> None:
        super().__init__()
        self.stops_at = stops_at

    async def run(self, task: Any, *, partial: Callable[[Any], None] | None = None) -> Any:
        self.asked.append(task)
        report = stored_report(Path(task.path).stem)
        if partial is not None:
            partial(replace(report, fixes=()))
        if len(self.asked) >= self.stops_at:
            raise StoppedError("Stopped.")
        return report


async def test_a_finished_answer_stays_when_the_next_replay_is_stopped() -> None:
    async with NanreplayApp([SAMPLE], engine=Stopping(2)).run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        before = screen.panes["overview"].as_text()
        assert screen.state.report is not None
        assert screen.state.report.fixes
        await pilot.press("f5")
        await settled(pilot)
        assert screen.panes["overview"].as_text() == before
        assert screen.state.report.fixes


async def test_fixes_that_were_stopped_are_not_called_tried() -> None:
    async with NanreplayApp([SAMPLE], engine=Stopping(1)).run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        shown = " ".join(str(each.render()) for each in screen.panes["overview"].query("*"))
        assert "None was tried" not in shown
        assert "Stopped before any was tried" in shown


async def test_ctrl_c_names_the_key_that_help_names_and_ctrl_z_suspends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = NanreplayApp([SAMPLE], engine=StoredEngine())
    suspended = []
    monkeypatch.setattr(app, "action_suspend_process", lambda: suspended.append(True))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert any(note.startswith("q quits") for note in notes(app))
        await pilot.press("ctrl+z")
        assert suspended == [True]


async def test_a_run_whose_first_step_failed_says_so_in_place_of_plots() -> None:
    app = NanreplayApp([SAMPLE], engine=StoredEngine())
    assert app._only is not None
    timeline = app._only.timeline
    last = Timeline(
        {name: column[-1:] for name, column in timeline.columns.items()},
        {name: matrix[-1:] for name, matrix in timeline.matrices.items()},
        timeline.variables,
    )
    app._only = replace(app._only, timeline=last)
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await pilot.press("2")
        screen = await settled(pilot)
        words = screen.query_one("#no-curve", Static)
        assert words.display
        assert "step 12 is all that was recorded" in str(words.content)
        assert "loss NaN" in str(words.content)
        assert not screen.query_one("#plots").display


def test_the_last_step_of_a_stage_is_followed_by_the_name_of_the_next_one() -> None:
    said: list[object] = []
    explain(
        SAMPLE,
        fixes="none",
        progress=lambda done, total: said.append((done, total)),
        say=said.append,
    )
    window = [at for at, each in enumerate(said) if isinstance(each, tuple) and each[0] == each[1]]
    assert [said[at + 1] for at in window] == ["comparing the ways of replaying the failing step"]
