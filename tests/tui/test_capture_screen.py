"""An open capture, driven by keys and mouse; answers are stored ones, captures real ones."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static
from tui.stored import ROOT, StoredEngine, stored_report
from tui.waiting import workers_done

from nanreplay.errors import NanreplayError, UnsafeProgramError, UnsupportedOpError
from nanreplay.report.fix_patch import what_it_does
from nanreplay.report.headline import headline
from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.engine import Explain
from nanreplay.tui.panes import DIGITS, PANES
from nanreplay.tui.panes.timeline_pane import TimelinePane
from nanreplay.tui.panes.whatif_pane import WhatIfPane
from nanreplay.tui.screens.capture_screen import CaptureScreen
from nanreplay.tui.screens.dialogs import ErrorScreen, HelpScreen
from nanreplay.tui.widgets.bars import StatusLine
from nanreplay.tui.widgets.heat import HeatTable
from nanreplay.tui.widgets.plots import SeriesPlot
from nanreplay.tui.widgets.ticks import TickList

Made = Callable[..., NanreplayApp]


@pytest.fixture
def made() -> Made:
    def make(name: str = "log_of_zero", engine: StoredEngine | None = None) -> NanreplayApp:
        return NanreplayApp([ROOT / "sample_runs" / f"{name}.h5"], engine=engine or StoredEngine())

    return make


async def settled(pilot: Pilot[None]) -> CaptureScreen:
    """Wait until everything that runs in the background is done."""
    await pilot.pause()
    await workers_done(pilot.app)
    await pilot.pause()
    screen = next(screen for screen in pilot.app.screen_stack if isinstance(screen, CaptureScreen))
    return screen


def text_of(screen: CaptureScreen, selector: str) -> str:
    return str(screen.query_one(selector, Static).content)


async def test_tables_are_shown_before_anything_is_replayed(made: Made) -> None:
    async with made(engine=StoredEngine(waits=True)).run_test() as pilot:
        await pilot.pause()
        screen = pilot.app.screen
        assert isinstance(screen, CaptureScreen)
        assert text_of(screen, "#headline") == "loss is NaN, step 12"
        line = screen.query_one(StatusLine)
        for _ in range(300):  # it is drawn a few times a second
            if str(line.content):
                break
            await pilot.pause(0.01)
        assert "replaying" in str(line.content)
        assert "12 of 25" in str(line.content)


async def test_the_answer_is_the_library_s_headline_and_cause(made: Made) -> None:
    report = stored_report("log_of_zero")
    async with made().run_test() as pilot:
        screen = await settled(pilot)
        assert text_of(screen, "#headline") == headline(report)
        sentence = report.causes[0].sentence.replace("`", "")  # what stood in them stands out
        assert sentence[4:] in text_of(screen, "#why")


@pytest.mark.parametrize(
    "size", [(80, 24), pytest.param((120, 36), marks=pytest.mark.slow), (200, 60)]
)
async def test_every_tab_opens_by_digit_at_every_size(made: Made, size: tuple[int, int]) -> None:
    own = {"overview", "timeline", "source", "whatif", "verdict"}
    async with made().run_test(size=size) as pilot:
        await settled(pilot)
        for digit, entry in zip(DIGITS, PANES, strict=False):
            if entry.id in own:
                await pilot.press(digit)
                screen = await settled(pilot)
                assert (screen.shown, screen.panes[entry.id].is_attached) == (entry.id, True)
                assert screen.panes[entry.id].as_text()


async def test_a_terminal_can_be_resized_while_it_is_used(made: Made) -> None:
    async with made().run_test(size=(160, 50)) as pilot:
        await settled(pilot)
        await pilot.press("2")
        for size in ((80, 24), (200, 60), (40, 12)):
            await pilot.resize_terminal(*size)
            await settled(pilot)
        assert isinstance(pilot.app.screen, CaptureScreen)


async def test_copy_offers_the_sentence_the_json_and_the_fix(made: Made) -> None:
    report = stored_report("log_of_zero")
    async with made().run_test() as pilot:
        await settled(pilot)
        await pilot.press("y", "1")
        assert pilot.app.clipboard == report.sentence
        await pilot.press("y", "2")
        assert json.loads(pilot.app.clipboard)["sentence"] == report.sentence
        await pilot.press("y", "3")
        assert pilot.app.clipboard == report.fixes[0].code


async def test_export_writes_a_picture_and_the_whole_text(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = made()
    monkeypatch.chdir(tmp_path)
    async with app.run_test() as pilot:
        await settled(pilot)
        await pilot.press("e", "1")
        await settled(pilot)
        await pilot.press("e", "2")
        await pilot.press("e", "2")
        await settled(pilot)
    assert (tmp_path / "log_of_zero-overview.svg").read_text().startswith("<svg")
    assert (
        stored_report("log_of_zero").sentence in (tmp_path / "log_of_zero-overview.txt").read_text()
    )
    assert (tmp_path / "log_of_zero-overview-2.txt").exists()


async def test_a_folder_that_cannot_be_written_to_is_an_error_screen(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = made()
    gone = tmp_path / "gone"
    monkeypatch.setattr("nanreplay.tui.screens.copy_keys.Path.cwd", lambda: gone)
    async with app.run_test() as pilot:
        await settled(pilot)
        await pilot.press("e", "2")
        await settled(pilot)
        assert isinstance(pilot.app.screen, ErrorScreen)


async def test_help_lists_the_keys_of_the_tab_and_of_the_screen(made: Made) -> None:
    async with made().run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await pilot.press("2")
        await settled(pilot)
        await pilot.press("question_mark")
        assert isinstance(pilot.app.screen, HelpScreen)
        said = {key.about: key.shown for key in pilot.app.screen.keys}
        assert said["Go to the first step that was out of the ordinary"] == "a"
        assert said["One step back"] == "← h"
        assert said["Copy the sentence, the JSON, a fix, or what the tab offers"] == "y"
        own = [key.about for key in pilot.app.screen.keys if key.is_own]
        assert "One step back" in own
        assert "Leave nanreplay" not in own
        assert not any("croll" in key.about for key in pilot.app.screen.keys)
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, CaptureScreen)


async def test_the_cursor_of_the_timeline_moves_over_steps_and_jumps_to_the_anomaly(
    made: Made,
) -> None:
    async with made("exploding_rnn").run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("2")
        await settled(pilot)
        pane = screen.panes["timeline"]
        assert isinstance(pane, TimelinePane)
        assert pane.step == 13
        await pilot.press("left", "left", "h")
        assert pane.step == 10
        await pilot.press("a")
        assert pane.step == 12
        await pilot.press("home")
        assert pane.step == 0
        await pilot.press("f")
        assert pane.step == 13
        assert "the failing step" in pane.reading().plain
        # What never changes has no plot of its own.
        assert "learning rate 0.05 in every step" in pane.reading().plain
        assert [plot.id for plot in pane.query(SeriesPlot) if plot.display] == ["plot-0", "plot-1"]
        await pilot.press("m")
        assert pane.heading().plain.startswith("weight norm")


async def test_a_click_puts_the_cursor_of_the_timeline(made: Made) -> None:
    async with made("exploding_rnn").run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("2")
        await settled(pilot)
        heat = screen.query_one(HeatTable)
        await pilot.click(HeatTable, offset=(heat.label_width + 3 * heat.cell_width, 0))
        assert heat.cursor == 3


async def test_ticked_fixes_are_run_and_their_code_is_copied(made: Made) -> None:
    engine = StoredEngine()
    async with made(engine=engine).run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        screen.action_show("whatif")
        await settled(pilot)
        ticks = screen.query_one(TickList)
        assert ticks.names[0] == "epsilon"
        await pilot.press("r")
        assert not any(
            isinstance(task, Explain) and task.fixes == ("epsilon",) for task in engine.asked
        )
        await pilot.press("space", "down", "space", "r")
        await settled(pilot)
        path = screen.panes["whatif"].path
        assert engine.asked[-1] == Explain(path, ("epsilon", "stable_op"), is_anew=False)
        table = screen.query_one("#table", DataTable)
        assert table.row_count == len(stored_report("log_of_zero").fixes)
        await pilot.press("up", "y")  # the list and the table stay together
        assert pilot.app.clipboard.startswith("--- a/log_of_zero.py")
        assert "+ 1e-7" in pilot.app.clipboard


async def test_the_patch_of_a_fix_is_written_to_a_file_that_git_takes(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = made()
    monkeypatch.chdir(tmp_path)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        screen.action_show("whatif")
        await settled(pilot)
        await pilot.press("a")
        table = screen.query_one("#table", DataTable)
        table.move_cursor(row=table.row_count - 1)  # a lower learning rate: no line of a file
        await settled(pilot)
        await pilot.press("a")
    assert [path.name for path in tmp_path.iterdir()] == ["log_of_zero-epsilon.patch"]
    script = tmp_path / "log_of_zero.py"
    script.write_bytes((ROOT / "sample_runs" / "log_of_zero.py").read_bytes())
    command = ["git", "apply", "log_of_zero-epsilon.patch"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    assert "tf.math.log(probabilities + 1e-7)" in script.read_text()


async def test_fixes_stand_in_groups_and_say_what_they_do_and_gave(made: Made) -> None:
    async with made().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        screen.action_show("whatif")
        await settled(pilot)
        ticks = screen.query_one(TickList)
        prompts = [str(ticks.get_option_at_index(i).prompt) for i in range(ticks.option_count)]
        at = [prompts.index(heading) for heading in ("Code", "Data", "Optimizer")]
        assert at == sorted(at)
        assert at[0] < prompts.index("[ ] epsilon ✓") < at[1]
        assert at[2] < prompts.index("[ ] clipnorm=1.0 ✗")
        await pilot.press("down", "down", "down")  # past what was tried of the code
        name = ticks.at_cursor
        assert name is not None
        assert name in text_of(screen, "#how")
        while "Not tried yet" not in text_of(screen, "#how"):
            await pilot.press("down")
            await settled(pilot)
        assert what_it_does(str(ticks.at_cursor)) in text_of(screen, "#how")


async def test_each_fix_is_shown_as_soon_as_it_was_tried(made: Made) -> None:
    report = stored_report("log_of_zero")

    class OneByOne(StoredEngine):
        async def run(self, task: Any, *, partial: Any = None) -> Any:
            if not isinstance(task, Explain):
                return await super().run(task, partial=partial)
            partial(replace(report, fixes=()))
            partial(report.fixes[0])
            await asyncio.Event().wait()

    async with made(engine=OneByOne()).run_test(size=(120, 40)) as pilot:
        await pilot.pause(0.3)
        screen = pilot.app.screen
        assert isinstance(screen, CaptureScreen)
        assert "epsilon=1e-7 prevents it" in text_of(screen, "#fix-title")
        screen.action_show("whatif")
        for _ in range(300):  # the replay goes on: the pane is there when its module is imported
            if "whatif" in screen.panes and screen.panes["whatif"].as_text():
                break
            await pilot.pause(0.02)
        assert screen.query_one("#table", DataTable).row_count == 1


async def test_a_fix_of_one_s_own_is_checked_before_it_runs(made: Made) -> None:
    async with made().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        screen.action_show("whatif")
        await settled(pilot)
        await pilot.press("n", *"warp=9", "enter")
        pane = screen.panes["whatif"]
        assert isinstance(pane, WhatIfPane)
        assert pane.own == []
        screen.query_one("#own", Input).clear()
        await pilot.press("escape", "x")  # escape leaves the line, so that x is a key again
        assert screen.query_one("#own", Input).value == ""
        await pilot.press("n", *"lr=0.3", "enter")
        assert pane.own == ["lr=0.3"]
        assert screen.query_one(TickList).chosen == ["lr=0.3"]


async def test_the_modes_are_side_by_side_and_every_step_on_demand(made: Made) -> None:
    async with made("float16_overflow").run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        screen.action_show("verdict")
        await settled(pilot)
        modes = screen.query_one("#modes", DataTable)
        assert [str(modes.get_row_at(row)[0]) for row in range(modes.row_count)] == [
            "recorded",
            "ops",
            "float64",
        ]
        assert str(modes.get_row_at(2)[2]) == "✓ finite"
        await pilot.press("r")
        await settled(pilot)
        steps = screen.query_one("#steps", DataTable)
        assert [str(column.label) for column in steps.ordered_columns] == [
            "step",
            "recorded",
            "ops",
            "float64",
        ]
        assert str(steps.get_row_at(1)[1]).startswith("✗ NaN")


async def test_the_failing_line_is_marked_in_the_source(made: Made) -> None:
    async with made().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        screen.action_show("source")
        await settled(pilot)
        lines = screen.panes["source"].as_text().splitlines()
        assert "✗ log_of_zero.py:14  in cross_entropy" in lines
        assert any(
            line.startswith(
                "✗ 14 return -tf.reduce_sum(labels * tf.math.log(probabilities), axis=-1)"
            )
            for line in lines
        )


@pytest.mark.parametrize(
    ("error", "title", "way_out"),
    [
        (
            UnsafeProgramError("The program holds ReadFile."),
            "This capture's program is refused",
            "--trust",
        ),
        (
            UnsupportedOpError("PyFunc", "step/py_func", "it calls Python"),
            "This step cannot be run op by op",
            "timeline",
        ),
        (RuntimeError("boom"), "Something unexpected happened", "f5"),
    ],
)
async def test_what_fails_in_the_background_is_an_error_screen_and_the_tables_stay(
    made: Made, error: Exception, title: str, way_out: str
) -> None:
    async with made(engine=StoredEngine(error=error)).run_test() as pilot:
        await settled(pilot)
        assert isinstance(pilot.app.screen, ErrorScreen)
        said = "\n".join(str(each.content) for each in pilot.app.screen.query(Static))
        assert title in said
        assert way_out in said
        assert "Traceback" not in said
        await pilot.press("escape", "9")
        screen = await settled(pilot)
        assert screen.shown == "verdict"
        if isinstance(error, NanreplayError):
            assert "It could not be replayed" in text_of(screen, "#why")
            assert "There is no verdict" in text_of(screen, "#kind")


async def test_jump_mode_goes_to_a_tab_by_its_letter(made: Made) -> None:
    async with made().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("ctrl+o", "s")
        await settled(pilot)
        assert screen.shown == "timeline"


async def test_themes_follow_one_another(made: Made) -> None:
    async with made().run_test() as pilot:
        await settled(pilot)
        seen = [pilot.app.theme]
        for _ in range(4):
            await pilot.press("f2")
            seen.append(pilot.app.theme)
        assert seen == [
            "nanreplay-dark",
            "nanreplay-light",
            "nanreplay-colour-blind",
            "nanreplay-16-colours",
            "nanreplay-dark",
        ]


async def test_a_key_of_the_last_line_can_be_clicked(made: Made) -> None:
    async with made().run_test() as pilot:
        await settled(pilot)
        await pilot.click("KeyLine", offset=(1, 0))
        await pilot.pause()
        assert pilot.app.screen.query_one(".dialog-title", Static).content == "Copy"
