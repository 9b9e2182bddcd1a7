"""Every key that help names does something: help's own list is pressed, tab by tab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.binding import ActiveBinding
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Input
from tui.in_process import Screen as Opened
from tui.in_process import close_all, opened
from tui.stored import ROOT, StoredEngine
from tui.stored_steps import StoredSteps
from tui.waiting import workers_done

from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.panes import DIGITS, PANES, PaneEntry
from nanreplay.tui.panes.timeline_pane import TimelinePane
from nanreplay.tui.screens.capture_screen import CaptureScreen, tab_bindings
from nanreplay.tui.screens.dialogs import HelpScreen, working_keys

SAMPLE = ROOT / "sample_runs" / "log_of_zero.h5"
BEFORE = {
    "capture.overview": ["2"],
    "tree.down": ["home"],
    "tree.page_down": ["home"],
    "tree.up": ["end"],
    "tree.page_up": ["end"],
    "tree.first": ["end"],
    "tree.last": ["home"],
    "tree.fold": ["home", "right"],
    "tree.unfold": ["home", "left"],
    "tree.toggle": ["home"],
    "tree.choose": ["O"],
    "bisect.no_filter": ["slash", "x"],
    "bisect.next": ["home"],
    "bisect.before": ["end"],
    "bisect.forward": ["O"],
    "bisect.backward": ["O"],
    "bisect.origin": ["home"],
    "bisect.dataflow": ["O"],
    "bisect.tensor": ["O"],
    "step.source": ["O"],
    "tensor.no_index": ["i"],
    "cells.left": ["l"],
    "source.failing": ["up"],
    "heat.right": ["left"],
    "heat.right10": ["shift+left"],
    "timeline.failing": ["left"],
    "timeline.anomaly": ["left"],
}
"""What is pressed first where the key does nothing at the place that a tab shows by itself."""
ELSEWHERE = {
    **dict.fromkeys(
        ("timeline.plot", "timeline.zoom", "batch.down", "batch.up"),
        "test_keys_for_what_does_not_fit",
    ),
    # They scroll a table of more layers than a sample run has: Textual's own handlers.
    **dict.fromkeys(("heat.up", "heat.down"), "test_every_key_of_help_has_a_handler"),
    "app.quit": "test_from_opening_to_the_origin_to_a_copied_answer",
    "app.suspend": "test_ctrl_c_names_the_key_that_help_names_and_ctrl_z_suspends",
    "capture.stop": "test_escape_stops_the_replay_and_f5_begins_it_again",
    "capture.explain": "test_a_finished_answer_stays_when_the_next_replay_is_stopped",
    "capture.list": "test_enter_opens_a_capture_and_ctrl_l_comes_back",
}
"""Keys that end or need something else, and the test that presses them."""


@pytest.fixture(scope="module", autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    close_all()


def helped(screen: Screen[None]) -> dict[str, ActiveBinding]:
    """What help lists, by id of the binding; of several keys of an action the first one."""
    listed: dict[str, ActiveBinding] = {}
    for active in screen.active_bindings.values():
        if active.binding.id and not active.binding.system and active.binding.tooltip:
            listed.setdefault(active.binding.id, active)
    return listed


def picture(app: NanreplayApp) -> object:
    """All that a user can tell apart, colours and the clipboard among it."""
    strips = app.screen._compositor.render_strips()
    drawn = [[(each.text, str(each.style)) for each in strip] for strip in strips]
    return drawn, app.screen, app.focused, len(app._notifications), app.clipboard, app.theme


async def begin(screen: Opened, tab: str) -> None:
    """Show a tab, with nothing above it and no line of input open."""
    app = screen.app
    is_above = len(app.screen_stack) > 2
    while len(app.screen_stack) > 2:
        app.pop_screen()
    for line in screen.screen.query(Input):
        if line.has_focus or line.has_class("-open"):
            is_above = True
            line.value = ""
            line.remove_class("-open")
    app.clear_notifications()
    if is_above or screen.screen.shown != tab or app.focused is None:
        screen.screen.action_show(tab)
    await rest(screen)


async def rest(screen: Opened) -> None:
    """Wait until nothing runs, and what that changed is drawn."""
    await screen.pilot.pause()
    await workers_done(screen.app)
    await screen.pilot.pause()


@pytest.mark.slow
async def test_every_key_of_help_does_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of a tab are pressed in it, those that work everywhere in the overview alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    dead = []
    async with opened("log_of_zero", (120, 36)) as screen:
        for tab in (entry.id for entry in PANES):
            await begin(screen, tab)
            for name, active in helped(screen.screen).items():
                binding = active.binding
                assert binding.id is not None
                is_own = not isinstance(active.node, (Screen, NanreplayApp))
                if binding.id in ELSEWHERE or not (is_own or tab == "overview"):
                    continue
                await begin(screen, tab)
                for key in BEFORE.get(binding.id, ()):
                    await screen.pilot.press(key)
                await rest(screen)
                before = picture(screen.app)
                await screen.pilot.press(binding.key)
                await rest(screen)
                if picture(screen.app) == before:
                    dead.append(f"{tab}: {name} ({binding.tooltip})")
    assert not dead, "\n".join(dead)


async def test_every_key_of_help_has_a_handler() -> None:
    """The fast half of the above: what a key asks for is there, in every tab."""
    app, missing, seen = NanreplayApp([SAMPLE], engine=StoredSteps()), [], 0
    async with app.run_test(size=(120, 36)) as pilot:
        for digit in DIGITS[: len(PANES)]:
            await pilot.press(digit)
            await workers_done(app)
            for name, active in helped(app.screen).items():
                seen += 1
                action = active.binding.action.partition("(")[0]
                if not hasattr(active.node, f"action_{action}"):
                    missing.append(name)
    assert seen > 100
    assert missing == []


async def test_keys_for_what_does_not_fit() -> None:
    path = ROOT / "sample_runs" / "exploding_rnn.h5"
    app = NanreplayApp([path], engine=StoredEngine())
    async with app.run_test(size=(80, 14)) as pilot:
        await workers_done(app)
        screen = app.screen
        assert isinstance(screen, CaptureScreen)
        await pilot.press("2")
        await workers_done(app)
        timeline = screen.panes["timeline"]
        assert isinstance(timeline, TimelinePane)
        await pilot.press("p", "z")
        assert timeline.plot == 1
        assert timeline.is_zoomed
        await pilot.press("6")
        await workers_done(app)
        await pilot.pause()  # only what is laid out can be scrolled
        scroll = screen.panes["batch"].query_one(VerticalScroll)
        for key, line in (("j", 1), ("k", 0)):
            await pilot.press(key)
            await pilot.pause()
            assert scroll.scroll_offset.y == line


def test_keys_that_are_pressed_elsewhere_are_so() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    for test in ELSEWHERE.values():
        assert f"def {test}(" in texts


async def test_help_lists_what_is_pressed_here() -> None:
    async with opened("log_of_zero") as screen:
        listed = {name.split()[0] for name in helped(screen.screen)}
        shown = working_keys(screen.screen)
        await screen.press("question_mark")
        assert isinstance(screen.app.screen, HelpScreen)
        assert screen.app.screen.keys == shown
        assert {"capture.copy", "capture.export", "capture.edit", "app.quit"} <= listed


def test_a_tenth_tab_has_the_digit_zero() -> None:
    tenth = PaneEntry("tenth", "Tenth", "tenth_pane", "TenthPane", "One more")
    nine = (*PANES,)[:9]
    bindings = tab_bindings((*nine, tenth))
    assert [each.key for each in bindings] == [*DIGITS] == [*"1234567890"]
    assert bindings[-1].action == "show('tenth')"
