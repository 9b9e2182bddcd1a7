"""Keys that come faster than screens, bytes that are no keys, files that change: none ends the
interface."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import h5py
import numpy as np
import pytest
from textual.command import CommandPalette
from textual.drivers.linux_driver import LinuxDriver
from tui.stored import ROOT
from tui.stored_steps import StoredSteps
from tui.waiting import workers_done

from nanreplay.errors import FormatError
from nanreplay.report.batch_reader import BatchReader
from nanreplay.tui import copying
from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.engine import _end_words
from nanreplay.tui.screens.capture_screen import CaptureScreen
from nanreplay.tui.screens.dialogs import ErrorScreen, HelpScreen, JumpScreen
from nanreplay.tui.steady_driver import SteadyDriver
from nanreplay.tui.widgets.steady_list import SteadyList

SAMPLE = ROOT / "sample_runs" / "log_of_zero.h5"


async def test_a_second_key_that_closes_a_dialog_does_not_close_what_is_below() -> None:
    app = NanreplayApp([SAMPLE], engine=StoredSteps())
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("question_mark")
        await pilot.pause()
        dialog = app.screen
        assert isinstance(dialog, HelpScreen)
        dialog.dismiss()
        dialog.dismiss()  # as the key does that came before the dialog had gone
        await pilot.pause()
        assert isinstance(app.screen, CaptureScreen)
        await pilot.press("ctrl+p")
        palette = app.screen
        assert isinstance(palette, CommandPalette)
        # Before its list is drawn.
        palette._action_command_list("page_down")
        palette._action_command_list("page_up")
        palette.dismiss()
        palette.dismiss()
        await pilot.pause()
        palette._list_visible = not palette._list_visible  # keys that were on their way
        palette._gather_commands("step")
        assert isinstance(app.screen, CaptureScreen)


def test_page_keys_before_a_list_has_lines_do_nothing() -> None:
    options = SteadyList("one", "two")
    options.action_page_down()
    options.action_page_up()
    assert options.highlighted in (None, 0, 1)


async def test_a_key_for_a_dialog_that_is_covered_closes_nothing() -> None:
    app = NanreplayApp([SAMPLE], engine=StoredSteps())
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("ctrl+o")
        await pilot.pause()
        jump = app.screen
        assert isinstance(jump, JumpScreen)
        await pilot.press("ctrl+p")
        await pilot.pause()
        jump.dismiss(None)
        jump.dismiss(None)
        await pilot.pause()
        assert isinstance(app.screen, CommandPalette)


def test_bytes_that_are_no_text_do_not_end_the_reading_of_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def read(self: LinuxDriver) -> None:
        calls.append(self)
        if len(calls) < 3:
            b"\xff".decode()

    monkeypatch.setattr(LinuxDriver, "run_input_thread", read)
    SteadyDriver.run_input_thread(SteadyDriver.__new__(SteadyDriver))
    assert len(calls) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="no such driver there")
def test_that_driver_reads_the_terminal() -> None:
    app = NanreplayApp([SAMPLE], engine=StoredSteps())
    assert app.driver_class is SteadyDriver


@pytest.mark.skipif(sys.platform == "win32", reason="no such driver there")
def test_that_driver_ends_with_its_terminal() -> None:
    """Where SIGHUP is ignored, nothing else tells of it."""
    ours, terminal = os.openpty()
    ended: list[str] = []
    driver = SteadyDriver.__new__(SteadyDriver)
    driver.fileno, driver.exit_event = terminal, threading.Event()
    driver._app = cast(Any, SimpleNamespace(exit=lambda: ended.append("exit")))
    driver._loop = cast(Any, SimpleNamespace(call_soon_threadsafe=lambda do: do()))
    try:
        thread = threading.Thread(target=driver._wait_for_hang_up, daemon=True)
        thread.start()
        assert not ended
        os.close(ours)
        thread.join(30.0)
        assert ended == ["exit"]
        assert driver.exit_event.is_set()
    finally:
        os.close(terminal)


async def test_f5_opens_what_was_written_in_the_place_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / SAMPLE.name
    shutil.copy(SAMPLE, path)
    app = NanreplayApp([path], engine=StoredSteps())
    async with app.run_test(size=(100, 30)) as pilot:
        await workers_done(app)
        before = app.screen
        assert isinstance(before, CaptureScreen)
        created = before.state.opened.facts["metadata"]["created"]
        shutil.copy(SAMPLE, tmp_path / "new.h5")
        with h5py.File(tmp_path / "new.h5", "r+") as file:
            text = zlib.decompress(bytes(file["metadata"][()])).decode()
            text = text.replace(created, "2031-01-01T00:00:00+00:00")
            del file["metadata"]
            file["metadata"] = np.frombuffer(zlib.compress(text.encode()), np.uint8)
        (tmp_path / "new.h5").replace(path)
        with pytest.raises(FormatError, match="another capture was written in its place"):
            BatchReader(path, created).view(12, None)  # no batch of the one beside the other's
        await pilot.press("f5")
        await pilot.pause()
        await workers_done(app)
        assert isinstance(app.screen, CaptureScreen)
        assert app.screen is not before
        assert app.screen.state.opened.facts["metadata"]["created"].startswith("2031")
        path.unlink()
        await pilot.press("f5")
        await pilot.pause()
        await workers_done(app)
        assert isinstance(app.screen, ErrorScreen)
        assert "no such file" in str(app.screen.error)


def test_what_was_not_written_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x.txt"

    def full(self: Path, text: str, encoding: str) -> None:
        os.close(os.open(self, os.O_CREAT | os.O_WRONLY))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        copying.write_text(target, "text")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_killed_is_said_to_be() -> None:
    assert "memory" in _end_words(-signal.SIGKILL)
    assert _end_words(-signal.SIGSEGV) == "signal 11"
    assert _end_words(3) == "exit code 3"


_STARTS_A_WORKER = """
import asyncio, sys, time
from nanreplay.tui.engine import Engine
from tui.small_tasks import Small

async def main():
    engine = Engine()
    running = asyncio.ensure_future(engine.run(Small("x", steps=10_000, pause_s=0.01)))
    while engine.progress is None or not engine.progress.done:
        await asyncio.sleep(0.01)
    print(engine._process.pid, flush=True)
    await running

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for the process in /proc")
def test_the_process_that_replays_ends_with_the_interface_even_if_that_is_killed(
    tmp_path: Path,
) -> None:
    script = tmp_path / "starts_a_worker.py"
    script.write_text(_STARTS_A_WORKER, encoding="utf-8")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    child = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert child.stdout is not None
    with child.stdout as told:
        worker = int(told.readline())
        child.kill()
        child.wait()
    ends = time.monotonic() + 60
    while _is_alive(worker) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not _is_alive(worker)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
