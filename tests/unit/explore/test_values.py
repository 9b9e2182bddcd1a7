"""Tensors as tables, histograms and maps; operands at an element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from unit.bisect.graphs import Graph, GraphRunner

from nanreplay.errors import MissingPartError
from nanreplay.explore import Explorer, plane
from nanreplay.explore.tensor_view import view_tensor
from nanreplay.records import VariableInfo
from nanreplay.replay.provenance import ValueId

VALUE = ValueId(0, 0)


def test_statistics_are_of_the_finite_elements() -> None:
    view = view_tensor(VALUE, "x", np.array([1.0, 3.0, np.nan, np.inf], np.float32))
    assert (view.mean, view.deviation) == (2.0, 1.0)
    assert (view.stat.nan, view.stat.inf, view.failing, view.failing_count) == (
        1,
        1,
        ((2,), (3,)),
        2,
    )


def test_a_histogram_of_a_wide_range_counts_powers_of_ten() -> None:
    wide = view_tensor(VALUE, "x", np.array([1e-8, 1.0, -1e30, 0.0])).histogram
    narrow = view_tensor(VALUE, "x", np.array([1.0, 2.0, 3.0])).histogram
    assert wide is not None
    assert narrow is not None
    assert (wide.scale, sum(wide.counts), wide.zeros, wide.negative) == ("log", 3, 1, 1)
    assert (wide.edges[0], wide.edges[-1]) == (-8.0, 30.0)
    assert (narrow.scale, sum(narrow.counts), narrow.edges[0], narrow.edges[-1]) == (
        "linear",
        3,
        1.0,
        3.0,
    )


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 4)),
        np.full(3, np.nan),
        np.float32(7.0),
        np.array([b"a", b"b"], object),
        np.full(2, 1e300),
    ],
)
def test_every_tensor_has_a_view(array: np.ndarray) -> None:
    view = view_tensor(VALUE, "x", array)
    assert view.plane.cells.size == min(np.size(array), view.plane.cells.size)
    assert (view.histogram is None) == (view.mean is None)


def test_a_table_shows_the_last_two_axes_at_the_failing_element() -> None:
    array = np.zeros((2, 3, 4, 5), np.float32)
    array[1, 2, 3, 4] = np.nan
    view = view_tensor(VALUE, "x", array)
    assert (view.plane.leading, view.plane.size, view.plane.cell((1, 2, 3, 4))) == (
        (1, 2),
        (4, 5),
        (3, 4),
    )
    assert view.plane.cell((0, 2, 3, 4)) is None
    assert view.plane.index(3, 4) == (1, 2, 3, 4)


def test_a_large_table_is_cut_around_the_wanted_element() -> None:
    shown = plane(np.arange(5000 * 300).reshape(5000, 300), (4000, 250))
    assert shown.cells.shape == (1000, 200)
    cell = shown.cell((4000, 250))
    assert cell is not None
    assert shown.cells[cell] == 4000 * 300 + 250
    assert shown.index(*cell) == (4000, 250)


def test_a_vector_is_a_column_and_a_scalar_a_cell() -> None:
    assert plane(np.arange(3)).cells.shape == (3, 1)
    assert plane(np.arange(3)).index(2, 0) == (2,)
    assert plane(np.float32(1)).cells.shape == (1, 1)
    assert plane(np.float32(1)).index(0, 0) == ()


def test_the_map_says_which_share_of_each_patch_is_bad() -> None:
    array = np.zeros((32, 96), np.float32)
    array[0:2, 0:2] = np.nan
    array[31, 95] = np.inf
    share = view_tensor(VALUE, "x", array).bad_share
    assert (share.shape, share[0, 0], share[-1, -1], share.sum()) == ((16, 48), 1.0, 0.25, 1.25)


def softmaxed() -> tuple[Explorer, GraphRunner, ValueId, ValueId, ValueId]:
    graph = Graph()
    x, kernel = (
        graph.batch(np.array([[1.0, 2.0], [0.0, 0.0]], np.float32)),
        graph.variable(np.ones((2, 1), np.float32)),
    )
    product = graph("MatMul", x, graph("ReadVariableOp", kernel))
    log = graph("Log", product)
    runner = GraphRunner(graph, loss=graph("Sum", log, graph.const(np.array([0, 1]))))
    runner.variables = [VariableInfo("dense/kernel", (2, 1), "float32", "trainable")]
    return Explorer(runner), runner, product, log, kernel


def test_operands_are_those_that_the_element_was_computed_from() -> None:
    explorer, _, product, log, _ = softmaxed()
    (operand,) = explorer.operands(0, log, (1, 0))
    assert (operand.facts.value, operand.index, operand.used) == (0.0, (1, 0), 1)
    row, kernel = explorer.operands(0, product, (0, 0))
    assert (row.facts.name, row.facts.value, row.facts.max, row.used) == ("batch[x0]", None, 2.0, 2)
    assert row.index == (0, 1)  # the largest of the two
    assert kernel.used == 2


def test_values_that_were_not_kept_take_one_run_and_their_neighbours_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nanreplay.bisect.recent_events.RECENT_BYTES", 0)  # as in a large model
    explorer, runner, product, log, kernel = softmaxed()
    explorer.step_view(0)
    before = runner.runs
    assert explorer.tensor(0, log).failing == ((1, 0),)
    assert runner.runs == before
    assert explorer.tensor(0, product).plane.cells.tolist() == [[3.0], [0.0]]
    assert explorer.tensor(0, ValueId(product.serial - 1, 0)).name == "readvariableop_0:0"
    assert runner.runs == before + 1
    assert explorer.tensor(0, kernel).name == "dense/kernel"


def test_what_is_not_there_is_said() -> None:
    explorer, _, _, _, _ = softmaxed()
    with pytest.raises(MissingPartError, match="Nothing is known"):
        explorer.tensor(0, ValueId(999, 0))


def test_a_run_can_be_stopped_at_any_op() -> None:
    graph = Graph()
    loss = graph("Sum", graph.batch(np.ones(3, np.float32)), graph.const(np.array([0])))

    def tick(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Explorer(GraphRunner(graph, loss=loss), tick=tick).step_view(0)


def test_a_tensor_that_was_not_kept_is_had_by_running_what_leads_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nanreplay.bisect.recent_events.RECENT_BYTES", 0)  # as in a large model
    graph = Graph()
    x = graph.batch(np.array([1.0, 4.0], np.float32))
    beside = graph("Exp", x)
    root = graph("Sqrt", x)
    half = graph("Mul", root, graph.const(np.array([0.5], np.float32)))
    both = graph("AddV2", half, beside)
    runner = GraphRunner(graph, loss=graph("Sum", both, graph.const(np.array([0]))))
    explorer = Explorer(runner)
    explorer.step_view(0)
    ran: list[str] = []
    run = runner.run

    def watched(step: int, observer: Any, **named: Any) -> Any:
        def observe(event: Any) -> Any:
            ran.append(event.type)
            return observer(event)

        return run(step, observe, **named)

    monkeypatch.setattr(runner, "run", watched)
    assert not explorer.holds(0, half)
    tensor = explorer.tensor(0, half)
    assert tensor.plane.cells.ravel().tolist() == [0.5, 1.0]
    assert "Exp" not in ran
    assert ran[-1] == "Mul"
    ran.clear()
    assert explorer.holds(0, root)
    assert explorer.tensor(0, root).plane.cells.ravel().tolist() == [1.0, 2.0]
    assert not ran  # it came with the run before
