"""Links to a view: what they name, what is refused, and that the interface begins there."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from tui.stored import ROOT
from tui.stored_steps import StoredSteps
from tui.waiting import workers_done

from nanreplay.commands import run_command_line
from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.screens.capture_screen import CaptureScreen
from nanreplay.tui.view_link import ViewLink, ViewLinkError, link_command, parse_link
from nanreplay.tui.widgets.op_tree import OpTree

SAMPLE = ROOT / "sample_runs" / "log_of_zero.h5"
SOFTMAX = "sequential_1/species_1/Softmax"


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("source", ViewLink("source")),
        ("bisect:a/b/Log", ViewLink("bisect", "a/b/Log")),
        ("tensor:a/b/Log:1", ViewLink("tensor", "a/b/Log", 1)),
        ("timeline:12", ViewLink("timeline", step=12)),
        ("batch:0", ViewLink("batch", step=0)),
    ],
)
def test_a_link_names_a_tab_and_a_place(text: str, link: ViewLink) -> None:
    assert parse_link(text) == link


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bisekt:Log", "There is no tab 'bisekt'"),
        ("timeline:last", "takes a step, such as timeline:12"),
        ("source:14", "takes no place"),
    ],
)
def test_what_names_no_view_is_one_line_and_exit_2(
    text: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ViewLinkError, match=said):
        parse_link(text)
    assert run_command_line(["open", str(SAMPLE), "--at", text]) == 2
    assert said in capfd.readouterr().err


def test_a_link_takes_one_capture(capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        run_command_line(
            ["open", str(SAMPLE), str(SAMPLE.with_name("exploding_rnn.h5")), "--at", "source"]
        )
        == 2
    )
    assert "--at takes one capture" in capfd.readouterr().err


def test_a_copied_link_is_ready_for_a_shell() -> None:
    command = link_command("my run.h5", "bisect", SOFTMAX)
    assert command == f"nanreplay open 'my run.h5' --at bisect:{SOFTMAX}"


async def settled(pilot: Pilot[None]) -> CaptureScreen:
    for _ in range(4):
        await pilot.pause()
        await workers_done(pilot.app)
    screen = pilot.app.screen
    assert isinstance(screen, CaptureScreen)
    return screen


async def test_the_interface_begins_at_the_op() -> None:
    link = parse_link(f"bisect:{SOFTMAX}")
    app = NanreplayApp([Path(SAMPLE)], engine=StoredSteps(), at=link)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        assert screen.shown == "bisect"
        op = screen.query_one(OpTree).op
        assert op is not None
        assert op.name == SOFTMAX


async def test_an_op_that_did_not_run_is_told() -> None:
    link = parse_link("bisect:no/such/op")
    app = NanreplayApp([Path(SAMPLE)], engine=StoredSteps(), at=link)
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        assert any("No op no/such/op ran in step 12." in n.message for n in app._notifications)


async def test_a_step_of_the_timeline_needs_no_report() -> None:
    app = NanreplayApp([Path(SAMPLE)], engine=StoredSteps(waits=True), at=parse_link("timeline:4"))
    async with app.run_test(size=(120, 40)) as pilot:
        for _ in range(200):
            await pilot.pause(0.02)
            screen = pilot.app.screen
            if isinstance(screen, CaptureScreen) and "timeline" in screen.panes:
                break
        await pilot.pause(0.2)
        assert isinstance(screen, CaptureScreen)
        assert screen.shown == "timeline"
        assert screen.panes["timeline"].step == 4  # type: ignore[attr-defined]
