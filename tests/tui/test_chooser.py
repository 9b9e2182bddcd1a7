"""Several captures: the table, how it fills, how one is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static
from tui.stored import ROOT, StoredEngine, stored_report
from tui.waiting import workers_done

from nanreplay.triage.answer_cache import AnswerCache
from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.engine import Explain
from nanreplay.tui.screens.capture_screen import CaptureScreen
from nanreplay.tui.screens.chooser import ChooserScreen
from nanreplay.tui.screens.dialogs import ErrorScreen

RUNS = [ROOT / "sample_runs" / f"{name}.h5" for name in ("log_of_zero", "exploding_rnn")]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.h5"
    path.write_bytes(RUNS[0].read_bytes()[:4000])
    return path


async def settled(pilot: Pilot[None]) -> None:
    await pilot.pause()
    await workers_done(pilot.app)
    await pilot.pause()


def rows(app: NanreplayApp) -> list[list[str]]:
    table = app.screen.query_one(DataTable)
    return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


async def test_the_table_says_cause_layer_op_and_step_of_each(broken: Path) -> None:
    app = NanreplayApp([*RUNS, broken], engine=StoredEngine())
    async with app.run_test(size=(140, 30)) as pilot:
        await settled(pilot)
        first, second, third = rows(app)
        assert first == [
            "log_of_zero.h5",
            "log of zero",
            "loss",
            "Log",
            "12",
            "loss is NaN",
            "reproduced",
        ]
        assert second[1:4] == ["exploding gradient", "memory/simple_rnn_cell", "MatMul"]
        assert third[0] == "broken.h5"
        assert third[1] == "✗ unreadable"


async def test_the_sentence_of_the_capture_at_the_cursor_is_shown(broken: Path) -> None:
    app = NanreplayApp([*RUNS, broken], engine=StoredEngine())
    async with app.run_test(size=(140, 30)) as pilot:
        await settled(pilot)
        said = []
        for _ in range(3):
            said.append(str(app.screen.query_one("#chooser-sentence", Static).content))
            await pilot.press("j")
            await pilot.pause()
        assert said[0] == stored_report("log_of_zero").sentence
        assert said[1] == stored_report("exploding_rnn").sentence
        assert said[2].startswith(f"{broken}: ")


async def test_what_an_earlier_run_found_is_not_replayed_again(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    table = []
    for asked in (2, 0):
        engine = StoredEngine()
        app = NanreplayApp(RUNS, engine=engine, cache=cache)
        async with app.run_test(size=(140, 30)) as pilot:
            await settled(pilot)
            table.append(rows(app))
        assert len(engine.asked) == asked
    assert table[0] == table[1]
    assert table[0][0][1] == "log of zero"


async def test_enter_opens_a_capture_and_ctrl_l_comes_back(broken: Path) -> None:
    engine = StoredEngine()
    app = NanreplayApp([*RUNS, broken], engine=engine)
    async with app.run_test(size=(140, 30)) as pilot:
        await settled(pilot)
        await pilot.press("j", "enter")
        await settled(pilot)
        assert isinstance(app.screen, CaptureScreen)
        assert app.screen.state.opened.name == "exploding_rnn.h5"
        assert engine.asked[-1] == Explain(str(RUNS[1]))
        await pilot.press("ctrl+l")
        await settled(pilot)
        assert isinstance(app.screen, ChooserScreen)
        asked = len(engine.asked)
        await pilot.press("enter")
        await settled(pilot)
        assert len(engine.asked) == asked  # its report is kept


async def test_an_unreadable_capture_says_why(broken: Path) -> None:
    app = NanreplayApp([RUNS[0], broken], engine=StoredEngine())
    async with app.run_test(size=(140, 30)) as pilot:
        await settled(pilot)
        await pilot.press("down", "enter")
        await settled(pilot)
        assert isinstance(app.screen, ErrorScreen)
        await pilot.press("escape")
        assert isinstance(app.screen, ChooserScreen)


async def test_kinds_of_causes_are_words() -> None:
    runs = [RUNS[0], ROOT / "sample_runs" / "float16_overflow.h5"]
    app = NanreplayApp(runs, engine=StoredEngine())
    async with app.run_test(size=(140, 30)) as pilot:
        await settled(pilot)
        assert [row[1] for row in rows(app)] == ["log of zero", "float16 overflow"]


async def test_the_list_is_sorted_grouped_and_filtered(tmp_path: Path) -> None:
    again = tmp_path / "again.h5"
    again.write_bytes(RUNS[0].read_bytes())
    runs = [RUNS[1], RUNS[0], again]
    app = NanreplayApp(runs, engine=StoredEngine(), cache=AnswerCache(tmp_path / "answers"))
    async with app.run_test(size=(140, 30)) as pilot:
        await settled(pilot)

        def shown() -> list[str]:
            return [row[0] for row in rows(app)]

        await pilot.press("g")
        assert shown() == ["log_of_zero.h5", "again.h5", "exploding_rnn.h5"]
        title = str(app.screen.query_one("#chooser-title", Static).content)
        assert title.endswith("3 captures · 2 different failures")
        await pilot.press("g", "s")
        assert shown() == ["again.h5", "exploding_rnn.h5", "log_of_zero.h5"]
        await pilot.press("slash", *"gradient", "enter")
        await pilot.pause()
        assert shown() == ["exploding_rnn.h5"]
        await pilot.press("enter")
        await settled(pilot)
        assert app.screen.state.opened.name == "exploding_rnn.h5"  # type: ignore[attr-defined]
