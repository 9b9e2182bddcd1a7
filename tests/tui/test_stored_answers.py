"""A capture that holds its answer: shown at once, and all that there is without TensorFlow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from textual.pilot import Pilot
from tui.stored import ROOT, StoredEngine, stored_report
from tui.waiting import workers_done

from nanreplay import Capture, __version__
from nanreplay.capture.writer import lazy_contents, write_capture
from nanreplay.errors import ReplayError
from nanreplay.report.stored_answers import content_of, store_answer
from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.screens.capture_screen import CaptureScreen

pytestmark = pytest.mark.stored_answers
SIZE = (200, 50)
WITHOUT_TENSORFLOW = Path(__file__).parents[1] / "without_tensorflow"


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A capture with the answer of a sample run."""
    path = tmp_path / "log_of_zero.h5"
    shutil.copy(ROOT / "sample_runs" / "log_of_zero.h5", path)
    store_answer(path, stored_report("log_of_zero"), content=content_of(path))
    return path


def shown(pilot: Pilot[None]) -> tuple[CaptureScreen, str]:
    """The screen, and what the first tab says of where the answer comes from."""
    screen = next(each for each in pilot.app.screen_stack if isinstance(each, CaptureScreen))
    lines = [line.text for line in screen._compositor.render_strips()]
    said = [line.split("stored in the file by")[1].strip() for line in lines if "stored in" in line]
    return screen, " ".join(said)


async def test_it_is_shown_while_the_step_is_replayed(capture: Path) -> None:
    app = NanreplayApp([capture], engine=StoredEngine(waits=True))
    async with app.run_test(size=SIZE) as pilot:
        for _ in range(200):
            await pilot.pause(0.02)
            screen, said = shown(pilot)
            if said:
                break
        assert screen.state.report is not None
        assert screen.state.report.sentence == stored_report("log_of_zero").sentence
        assert said.startswith(f"nanreplay {__version__} with TensorFlow")
        assert "the step is being replayed" in said


async def test_the_replay_takes_its_place(capture: Path) -> None:
    async with NanreplayApp([capture], engine=StoredEngine()).run_test(size=SIZE) as pilot:
        await pilot.pause()
        await workers_done(pilot.app)
        await pilot.pause()
        screen, said = shown(pilot)
        assert (screen.state.stored, said) == (None, "")


async def test_a_replay_that_fails_leaves_the_stored_answer(capture: Path) -> None:
    engine = StoredEngine(error=ReplayError("It fails."))
    async with NanreplayApp([capture], engine=engine).run_test(size=SIZE) as pilot:
        await pilot.pause()
        await workers_done(pilot.app)
        await pilot.press("escape")
        await pilot.pause()
        screen, said = shown(pilot)
        assert screen.state.report is not None
        assert screen.state.report.sentence == stored_report("log_of_zero").sentence
        assert said.startswith("nanreplay")
        assert "being replayed" not in said


def test_every_tab_of_the_interface_without_tensorflow(capture: Path) -> None:
    bare = capture.with_name("bare.h5")
    with Capture(capture) as opened:
        write_capture(bare, lazy_contents(opened))  # all but the stored report
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(WITHOUT_TENSORFLOW), str(ROOT)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOOK, capture, bare],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *tabs, chosen, missing = done.stdout.splitlines()
    assert tabs[0].startswith("overview: step 12")
    texts = dict(line.split(": ", 1) for line in tabs)
    assert set(texts) == {
        "overview", "bisect", "dataflow", "tensor", "batch", "timeline", "source", "whatif",
        "verdict",
    }  # fmt: skip
    assert "log_of_zero.py:14" in texts["source"]
    assert "epsilon=1e-7" in texts["whatif"]
    assert "tensorflow, which is not installed" in texts["bisect"]
    assert "log of zero" in chosen
    assert "holds no stored answer" in missing


LOOK = """
import asyncio
import importlib.util
import sys
from pathlib import Path

from textual.widgets import DataTable, Static

from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.panes import DIGITS, PANES

assert importlib.util.find_spec("tensorflow") is None


async def rest(app, pilot):
    for _ in range(3):
        await pilot.pause(0.01)
        while any(not worker.is_finished for worker in app.workers):
            await pilot.pause(0.01)


async def tabs(path):
    app = NanreplayApp([path])
    async with app.run_test(size=(160, 50)) as pilot:
        await rest(app, pilot)
        main = app.screen
        for digit, entry in zip(DIGITS, PANES):
            await pilot.press(digit)
            await rest(app, pilot)
            said = main.panes[entry.id].as_text()
            if app.screen is not main:
                said += " ".join(str(each.content) for each in app.screen.query(Static))
                await pilot.press("escape")
                await rest(app, pilot)
            print(f"{entry.id}:", " ".join(said.split()))


async def chosen(paths):
    app = NanreplayApp(paths)
    async with app.run_test(size=(200, 50)) as pilot:
        await rest(app, pilot)
        table = app.screen.query_one(DataTable)
        for row in range(table.row_count):
            print(" ".join(" ".join(map(str, table.get_row_at(row))).split()))


full, bare = map(Path, sys.argv[1:])
asyncio.run(tabs(full))
asyncio.run(chosen([full, bare]))
"""
