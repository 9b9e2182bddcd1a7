"""The first screen: what the file says at once, what the report adds, and nothing twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from textual.pilot import Pilot
from textual.widgets import Static
from tui.stored import ROOT, StoredEngine
from tui.waiting import workers_done

from nanreplay.records import Trigger
from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.panes.batch_pane import BatchPane
from nanreplay.tui.panes.overview_pane import OverviewPane
from nanreplay.tui.screens.capture_screen import CaptureScreen


def made(name: str, engine: StoredEngine | None = None) -> NanreplayApp:
    return NanreplayApp([ROOT / "sample_runs" / f"{name}.h5"], engine=engine or StoredEngine())


async def settled(pilot: Pilot[None]) -> CaptureScreen:
    for _ in range(3):
        await pilot.pause()
        await workers_done(pilot.app)
    screen = pilot.app.screen
    assert isinstance(screen, CaptureScreen)
    return screen


async def until_read(pilot: Pilot[None]) -> CaptureScreen:
    """Wait until the file is read, while the replay goes on for ever."""
    screen = pilot.app.screen
    assert isinstance(screen, CaptureScreen)
    for _ in range(500):
        if not any(
            worker.group in ("look", "batch") and not worker.is_finished
            for worker in pilot.app.workers
        ):
            break
        await pilot.pause(0.02)
    await pilot.pause()
    return screen


def text(screen: CaptureScreen, selector: str) -> str:
    return str(screen.query_one(selector, Static).content)


async def test_lines_batch_loss_and_versions_are_there_while_the_step_is_replayed() -> None:
    app = made("log_of_zero", StoredEngine(waits=True))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        screen = await until_read(pilot)
        assert "your last line before the loss" in text(screen, "#code-title")
        assert "▸ 14" in text(screen, "#code")
        assert "tf.math.log(probabilities)" in text(screen, "#code")
        assert text(screen, "#sample-title") == "Batch  sample 18 of 32 is furthest from the usual"
        assert "▲ [0]" in text(screen, "#sample")
        assert "tensorflow" in str(screen.query_one("#run-facts").render())
        loss = str(screen.query_one("LossLine").render())
        assert "step 12 ▲" in loss  # the last step is to the right, and its words left of it
        assert "┊" in loss


async def test_the_report_marks_the_line_with_its_values_and_names_the_sample() -> None:
    async with made("log_of_zero").run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        code = text(screen, "#code").splitlines()
        at = next(i for i, line in enumerate(code) if line.startswith("✗ 14"))
        assert code[at + 1].strip() == "↳ 0.0  of species_1/Softmax"
        assert code[at + 2].strip().startswith("→ -inf at [18, 0]  of Log")
        assert text(screen, "#sample-title") == "Batch  sample 18 of 32"
        fix = text(screen, "#fix").splitlines()
        goes = next(i for i, line in enumerate(fix) if line.startswith("- "))
        comes = next(i for i, line in enumerate(fix) if line.startswith("+ "))
        assert "log(probabilities)" in fix[goes]
        assert "log(probabilities + 1e-7)" in " ".join(map(str.strip, fix[comes : comes + 2]))
        wrapped = [line for line in fix[goes + 1 : comes] + fix[comes + 1 : comes + 2] if line]
        assert all(line.startswith("    ") for line in wrapped)  # it goes on further in


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("log_of_zero", (80, 24)),
        ("log_of_zero", (120, 40)),
        pytest.param("log_of_zero", (200, 60), marks=pytest.mark.slow),
        ("exploding_rnn", (80, 24)),
        pytest.param("exploding_rnn", (120, 40), marks=pytest.mark.slow),
        pytest.param("exploding_rnn", (200, 60), marks=pytest.mark.slow),
        pytest.param("float16_overflow", (80, 24), marks=pytest.mark.slow),
        pytest.param("float16_overflow", (120, 40), marks=pytest.mark.slow),
        ("float16_overflow", (200, 60)),
    ],
)
async def test_no_line_is_said_twice_and_kinds_are_words(name: str, size: tuple[int, int]) -> None:
    async with made(name).run_test(size=size) as pilot:
        screen = await settled(pilot)
        parts = screen.query_one(OverviewPane).query(Static)
        shown = [str(each.content) for each in parts if each.size.area]
        lines = [line.strip() for each in shown for line in each.splitlines() if line.strip()]
        shown = [*text(screen, "#code").splitlines(), *text(screen, "#sample").splitlines()]
        pictures = {line.strip() for line in shown}
        said = [line for line in lines if line not in pictures]
        assert len(said) == len(set(said))
        assert "fp16_overflow" not in " ".join(lines)


@pytest.mark.parametrize("name", ["log_of_zero", "float16_overflow"])
async def test_a_wide_screen_is_filled_to_its_end(name: str) -> None:
    async with made(name).run_test(size=(160, 50)) as pilot:
        screen = await settled(pilot)
        page = screen.query_one("#page")
        used = screen.query_one("#columns").virtual_region.bottom
        assert page.size.height - 3 <= used <= page.size.height


async def test_the_batch_tab_needs_no_replay() -> None:
    app = made("log_of_zero", StoredEngine(waits=True))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        await pilot.press("6")
        await pilot.pause(0.3)
        screen = await until_read(pilot)
        pane = screen.query_one(BatchPane)
        assert pane.row == 18
        assert text(screen, "BatchPane #about").startswith("step 12 · sample 18 of 32")


async def test_a_capture_without_lines_and_batch_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nanreplay.capture import Capture
    from nanreplay.errors import FormatError, MissingPartError

    def no_batch(self: Capture, step: int) -> None:
        raise MissingPartError("holds no batch")

    def no_frames(self: Capture) -> None:
        raise FormatError("the sources cannot be read")

    monkeypatch.setattr(Capture, "batch", no_batch)
    monkeypatch.setattr(Capture, "frames", property(no_frames))
    app = made("log_of_zero", StoredEngine(waits=True))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        screen = await until_read(pilot)
        assert text(screen, "#sample") == "The file does not hold it."
        assert text(screen, "#code") == "No line of your code is known for it."


async def test_a_capture_of_a_healthy_training_marks_no_step_as_the_failing_one() -> None:
    app = made("log_of_zero", StoredEngine(waits=True))
    assert app._only is not None
    on_demand = Trigger("manual", "dump", "on demand")
    app._only = replace(app._only, incident=replace(app._only.incident, trigger=on_demand))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        screen = await until_read(pilot)
        assert "▲" not in str(screen.query_one("LossLine").render())
        assert text(screen, "#headline") == "written on demand, step 12"
        await pilot.press("2")
        await pilot.pause()
        screen = await until_read(pilot)
        assert "failing" not in text(screen, "#reading")
