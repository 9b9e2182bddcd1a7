"""Looking into the failing step with the keys of a user: tree, dataflow, tensor, batch; on real
captures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from textual.widgets import OptionList, Static
from tui.in_process import Screen, close_all, opened

from nanreplay.tui.panes.base import Pane
from nanreplay.tui.panes.batch_pane import BatchPane, SampleStrip
from nanreplay.tui.panes.bisect_pane import BisectPane
from nanreplay.tui.panes.dataflow_pane import DataflowPane
from nanreplay.tui.panes.tensor_pane import TensorPane
from nanreplay.tui.widgets.op_tree import OpTree
from nanreplay.tui.widgets.op_words import value_title
from nanreplay.tui.widgets.tensor_table import TensorTable

pytestmark = pytest.mark.asyncio


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
    return [value_title(pane.view, value) for value in pane.way]


# The tree


async def test_the_tree_opens_at_the_origin_and_says_what_made_it() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3")
        assert type_of(screen) == "Log"
        detail = words(screen, "BisectPane #op")
        assert "log_of_zero.py:14" in detail
        assert "0.0 at [18, 0]" in detail
        assert "2 inf of 96" in detail


async def test_enter_goes_to_what_produced_it_and_backspace_returns() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "enter")
        assert type_of(screen) == "Softmax"
        assert "came through Log" in words(screen, "BisectPane #where")
        await screen.press("backspace")
        assert type_of(screen) == "Log"


async def test_keys_go_through_non_finite_ops_in_the_order_of_execution() -> None:
    async with opened("log_of_zero") as screen:
        await screen.press("3", "n")
        assert type_of(screen) == "Mul"
        await screen.press("n", "N", "N")
        assert type_of(screen) == "Log"
        await screen.press("N")
        assert type_of(screen) == "Log"
        await screen.press("o")
        assert type_of(screen) == "Reciprocal"
        await screen.press("o")
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
        await screen.press("3", "o")
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
        lines = screen.screen.query_one(DataflowPane).as_text()
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


@pytest.mark.parametrize("size", [(80, 24), (110, 30), (200, 60)])
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
        await screen.press("enter", "o")
        assert type_of(screen) == "Log"
        assert len(screen.screen.query_one(OpTree).ops) > 100
        assert not screen.screen.query_one("BisectPane #query").display
