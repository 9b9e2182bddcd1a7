"""Looking into the failing step with the keys of a user: tree, dataflow, tensor, batch; on real
captures."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.app import App
from textual.widgets import OptionList, Static
from tui.in_process import SAMPLES, Screen, close_all, opened
from tui.stored import StoredEngine

from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.panes.base import Pane
from nanreplay.tui.panes.batch_pane import BatchPane, SampleStrip
from nanreplay.tui.panes.bisect_pane import BisectPane
from nanreplay.tui.panes.dataflow_pane import DataflowPane
from nanreplay.tui.panes.source_pane import SourcePane
from nanreplay.tui.panes.tensor_pane import TensorPane
from nanreplay.tui.screens.capture_screen import CaptureScreen
from nanreplay.tui.widgets.code_view import CodeView
from nanreplay.tui.widgets.op_tree import OpTree
from nanreplay.tui.widgets.op_words import value_title
from nanreplay.tui.widgets.tensor_picture import TensorPicture
from nanreplay.tui.widgets.tensor_table import TensorTable

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.xdist_group("opened captures"),  # one worker explains them
]


@pytest.fixture(scope="module", autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    close_all()


def type_of(screen: Screen) -> str:
    op = screen.screen.query_one(OpTree).op
    return "" if op is None else op.type


def words(screen: Screen, query: str) -> str:
    return str(screen.screen.query_one(query, Static).content)


def way(screen: Screen) -> list[str]:
    pane = screen.screen.query_one(DataflowPane)
    assert pane.view is not None
    return [value_title(pane.view, value) for value in pane.trail.places[: pane.trail.at + 1]]


# The tree


async def test_the_tree_opens_at_the_origin_and_says_what_made_it() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3")
        assert type_of(screen) == "Log"
        detail = words(screen, "BisectPane #op")
        assert "log_of_zero.py" not in detail  # the line stands above, in its file
        assert "log_of_zero.py:14" in str(screen.screen.query_one(CodeView).render())
        assert "0.0 at [18, 0]" in detail
        assert "2 inf of 96" in detail


async def test_enter_goes_to_what_produced_it_and_backspace_returns() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "enter")
        assert type_of(screen) == "Softmax"
        assert words(screen, "BisectPane #where").startswith("Log → Softmax")
        await screen.press("backspace")
        assert type_of(screen) == "Log"
        await screen.press("plus")
        assert type_of(screen) == "Softmax"


async def test_keys_go_through_non_finite_ops_in_the_order_of_execution() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "n")
        assert type_of(screen) == "Mul"
        await screen.press("n", "N", "N")
        assert type_of(screen) == "Log"
        await screen.press("N")
        assert type_of(screen) == "Log"
        await screen.press("O")
        assert type_of(screen) == "Reciprocal"
        await screen.press("O")
        assert type_of(screen) == "Log"


async def test_stepping_skips_what_computes_nothing_until_it_is_shown() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "home")
        await screen.press("f")
        shown = type_of(screen)
        await screen.press("f", "b")
        assert type_of(screen) == shown
        before = len(screen.screen.query_one(OpTree).ops)
        await screen.press("p")
        assert len(screen.screen.query_one(OpTree).ops) > before


async def test_the_filter_shows_what_fits_and_escape_takes_it_away() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "slash")
        await screen.type("is:origin")
        await screen.press("enter")
        tree = screen.screen.query_one(OpTree)
        assert [op.type for op in tree.ops] == ["Log", "Reciprocal"]
        assert tree.has_focus
        await screen.press("escape")
        assert len(tree.ops) > 100


async def test_a_healthy_step_of_the_window_can_be_opened() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "less_than_sign")
        assert words(screen, "BisectPane #where").startswith("step 11 · 270 ops · all finite")
        await screen.press("n", "greater_than_sign")
        assert words(screen, "BisectPane #where").startswith("step 12")


async def test_layers_open_and_close_with_keys_and_mouse() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "home")
        tree = screen.screen.query_one(OpTree)
        lines = len(tree.rows)
        await screen.press("l")
        opened_lines = len(tree.rows)
        assert opened_lines > lines
        await screen.press("h")
        assert len(tree.rows) == lines
        await screen.pilot.click(OpTree, offset=(1, 1))
        await screen.settle()
        assert len(tree.rows) == opened_lines


async def test_an_origin_in_the_batch_leads_to_its_values() -> None:
    async with opened("nan_in_one_sample") as screen:
        await screen.press("3", "O")
        assert screen.screen.shown == "tensor"
        assert "batch[0] [13, 1] = NaN" in words(screen, "TensorPane #name")


# Dataflow


async def test_dataflow_goes_back_to_the_batch_and_returns() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "d")
        assert screen.screen.shown == "dataflow"
        assert way(screen) == ["Log"]
        await screen.press("u")
        assert way(screen) == ["Log", "Softmax"]
        await screen.press("backspace", "enter")
        assert way(screen) == ["Log", "Softmax"]
        await screen.press("backspace")
        lines = screen.screen.query_one(DataflowPane).as_text()
        # What the failing element took, then the range and the shape.
        assert re.search(r"Softmax +0\.0 +0\.0 to 1\.0 +float32\[32, 3\]", lines)
        assert "batch[0]" in lines
        assert "via ReadVariableOp" in lines


async def test_dataflow_goes_forward_to_consumers() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("4", "end", "enter")
        steps = way(screen)
        assert steps[:3] == ["Log", "Mul", "Sum"]  # by way of all that lies between
        hops = screen.screen.query_one(OptionList)
        assert hops.highlighted is not None


async def test_from_dataflow_the_op_is_shown_in_the_tree() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("4", "u", "b")
        assert screen.screen.shown == "bisect"
        assert type_of(screen) == "Softmax"


# Code beside ops


async def test_ops_read_like_the_code_that_made_them_and_names_are_a_key_away() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3")
        tree = screen.screen.query_one(OpTree)
        lines = [tree.render_line(y).text for y in range(12)]
        (log,) = (line for line in lines if "Log" in line)
        assert "return -tf.reduce_sum(labels" in log
        assert ":14" in log
        assert "-inf" in log
        await screen.press("m")
        lines = [tree.render_line(y).text for y in range(12)]
        assert any("Log  compile_loss/cross_entropy/Log" in line for line in lines)


async def test_the_code_beside_the_tree_follows_the_cursor() -> None:
    async with opened("float16_overflow") as screen:
        await screen.press("3")
        code = screen.screen.query_one(CodeView)
        shown = str(code.render())
        assert shown.startswith("float16_overflow.py:17  call  → inf")
        assert "✗ 17" in shown
        assert "    def call(self, images):" in shown  # of the file, which has not changed
        await screen.press("n")
        assert str(code.render()).startswith("float16_overflow.py:18  call")


async def test_from_an_op_to_its_line_and_from_a_line_to_its_ops() -> None:
    async with opened("float16_overflow") as screen:
        await screen.press("3", "n", "s")
        assert screen.screen.shown == "source"
        pane = screen.screen.query_one(SourcePane)
        frame = pane.frame()
        assert frame is not None
        assert frame.line == 18
        await screen.press("f", "enter")
        assert screen.screen.shown == "bisect"
        tree = screen.screen.query_one(OpTree)
        assert {op.source.line for op in tree.ops if op.source} == {17}
        assert [op.type for op in tree.ops if op.phase == "forward"] == ["Square"]
        await screen.press("escape")
        assert len(tree.ops) > 50


async def test_the_editor_opens_at_the_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **named: object) -> None:
        asked.append(command)

    monkeypatch.setattr("nanreplay.tui.editor.subprocess.run", run)
    monkeypatch.setattr(App, "suspend", lambda app: contextlib.nullcontext())
    monkeypatch.setenv("VISUAL", "")
    monkeypatch.setenv("EDITOR", "vi -u NONE")
    async with opened("log_of_zero") as screen:
        await screen.press("3", "o")
        (command,) = asked
        assert command[:4] == ["vi", "-u", "NONE", "+14"]
        assert command[4].endswith("log_of_zero.py")
        monkeypatch.setenv("EDITOR", "code")
        await screen.press("7", "o")
        assert asked[-1][:2] == ["code", "-g"]
        assert asked[-1][2].endswith("log_of_zero.py:14")


# Tensors


async def test_a_tensor_opens_at_its_failing_element() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "t")
        assert screen.screen.query_one(TensorTable).index == (18, 0)
        assert words(screen, "TensorPane #name").startswith(
            "◆ Log [18, 0] = -inf · float32[32, 3] · 2 inf of 96"
        )
        assert "[18, 0] was computed from\n     0.0 at [18, 0]  of Softmax" in words(
            screen, "TensorPane #words"
        )


async def test_enter_goes_to_the_very_element_it_was_computed_from() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("5", "n")
        assert screen.screen.query_one(TensorTable).index == (18, 1)
        await screen.press("enter")
        assert words(screen, "TensorPane #name").startswith("Softmax [18, 1] = 0")
        await screen.press("backspace")
        assert words(screen, "TensorPane #name").startswith("◆ Log [18, 1] = -inf")


async def test_an_index_and_slices_of_higher_ranks() -> None:
    async with opened("float16_overflow") as screen:
        await screen.press("5")
        table = screen.screen.query_one(TensorTable)
        assert table.index == (5, 3, 5, 0)
        await screen.press("x")
        assert table.index == (5, 4, 5, 0)
        await screen.press("i")
        await screen.type("0, 1, 2, 0")
        await screen.press("enter")
        assert table.index == (0, 1, 2, 0)


async def test_a_tensor_is_followed_over_the_steps_and_compared_with_the_step_before() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("5", "w")
        lines = words(screen, "TensorPane #words").splitlines()
        assert lines[0].split() == ["step", "element", "|max|"]
        steps = [line.split() for line in lines[1:]]
        assert [int(line[0]) for line in steps] == list(range(13))
        assert "-inf" in steps[-1]
        assert "inf" not in steps[-2]
        await screen.press("c")
        shown = words(screen, "TensorPane #words")
        assert "step 11" in shown.splitlines()[0]
        assert "step 12: values" in shown or "step 12: |x| in powers of ten" in shown
        await screen.press("c")
        assert "was computed from" in words(screen, "TensorPane #words")


async def test_a_tensor_is_a_picture_with_what_is_not_finite_hatched() -> None:
    async with opened("float16_overflow") as screen:
        await screen.press("5")
        table, beside = (screen.screen.query_one(each) for each in (TensorTable, TensorPicture))
        assert table.display
        assert beside.display  # a table of one column leaves room
        await screen.press("z")
        assert not table.display
        picture = words(screen, "TensorPicture")
        assert picture.startswith("height down (8), width across (8); batch 5, channel 0")
        assert "✗ is not finite (1 of 64 patches)" in picture
        assert any("✗✗" in line for line in picture.splitlines()[2:])
        await screen.press("z", "x")
        assert screen.screen.query_one(TensorTable).index == (5, 4, 5, 0)


# The room that there is


async def test_a_small_step_is_seen_whole_and_its_op_stays_when_the_terminal_shrinks() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3")
        tree = screen.screen.query_one(OpTree)
        closed = [row.node for row in tree.rows if row.node.children and not row.is_open]
        assert all(len(tree.rows) + len(node.children) > tree.size.height - 1 for node in closed)
        await screen.press("end")
        await screen.pilot.resize_terminal(80, 24)
        await screen.settle()
        assert 0 <= tree.cursor - tree.scroll_offset.y < tree.size.height - 1


# The batch


async def test_the_batch_opens_at_the_sample_to_blame() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("6")
        shown = words(screen, "BatchPane #about")
        assert shown.startswith("step 12 · sample 18 of 32 · ◆ sample 18")
        arrays = words(screen, "BatchPane #arrays")
        assert "▲ [0]" in arrays
        await screen.press("right")
        assert "▲" not in words(screen, "BatchPane #arrays").split("batch[1]")[0]
        await screen.press("n")
        assert screen.screen.query_one(BatchPane).row == 18
        await screen.pilot.click(SampleStrip, offset=(4, 0))
        await screen.settle()
        assert screen.screen.query_one(BatchPane).row == 3


async def test_images_and_tokens_are_shown_as_such() -> None:
    async with opened("float16_overflow") as screen:
        await screen.press("6")
        assert "▀▀▀" in words(screen, "BatchPane #arrays")
    async with opened("empty_mask_zero_over_zero") as screen:
        await screen.press("6")
        assert "▌      5  0 0 0 0 0 0 0 0 0 0" in words(screen, "BatchPane #arrays")


# All of them


@pytest.mark.parametrize(
    "size",
    [
        (80, 24),
        pytest.param((110, 30), marks=pytest.mark.slow),
        pytest.param((200, 60), marks=pytest.mark.slow),
    ],
)
async def test_panes_fit_any_terminal(size: tuple[int, int]) -> None:
    async with opened("log_of_zero", size) as screen:
        for key, kind in (
            ("3", BisectPane),
            ("4", DataflowPane),
            ("5", TensorPane),
            ("6", BatchPane),
        ):
            await screen.press(key)
            pane: Pane = screen.screen.query_one(kind)
            await screen.pilot.resize_terminal(80, 24)
            await screen.pilot.resize_terminal(*size)
            await screen.settle()
            assert pane.as_text()
            assert pane.copies()
            assert pane.HELP


async def test_another_theme_colours_everything_anew() -> None:
    async with opened("log_of_zero") as screen:
        for key, query in (
            ("3", "BisectPane #op"),
            ("5", "TensorPane #words"),
            ("6", "BatchPane #arrays"),
        ):
            await screen.press(key)
            before = screen.screen.query_one(query, Static).content
            await screen.press("f2")
            assert screen.screen.query_one(query, Static).content != before


async def test_an_op_that_does_not_fit_the_filter_takes_it_away() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "slash")
        await screen.type("is:nan")
        await screen.press("enter", "O")
        assert type_of(screen) == "Log"
        assert len(screen.screen.query_one(OpTree).ops) > 100
        assert not screen.screen.query_one("BisectPane #query").display


async def test_ops_are_there_before_the_step_has_run() -> None:
    app = NanreplayApp([SAMPLES / "float16_overflow.h5"], engine=StoredEngine(waits=True))
    async with app.run_test(size=(120, 40)) as pilot:
        screen = Screen(app, pilot)
        await pilot.press("3")
        for _ in range(500):
            trees = app.screen.query(OpTree)
            if trees and trees.first().view is not None and trees.first().has_focus:
                break
            await pilot.pause(0.02)
        tree = app.screen.query_one(OpTree)
        assert words(screen, "BisectPane #where").startswith(
            "step 12 · 151 ops · as recorded, not run yet"
        )
        (relu,) = (op for op in tree.ops if op.type == "Relu")
        assert (relu.layer_path, relu.phase, relu.health) == ("conv", "forward", "unknown")
        assert tree.has_focus  # a key that comes before the first tab is built keeps its tab


async def test_all_panes_are_served_by_the_run_that_found_the_origin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*arguments: object, **named: object) -> None:
        raise AssertionError("the step runs again")

    async with opened("log_of_zero") as screen:
        monkeypatch.setattr("nanreplay.replay.Replay.run", run)
        for key in ("3", "4", "5", "6", "3", "enter", "t"):
            await screen.press(key)
        assert words(screen, "TensorPane #name").startswith("Softmax [0, 0] = ")
        assert isinstance(screen.app.screen, CaptureScreen)  # no error has come up
