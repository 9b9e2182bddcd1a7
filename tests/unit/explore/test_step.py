"""What a step shows: health, origins, the tree, search, dataflow; on small graphs made by hand."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from unit.bisect.graphs import Graph, GraphRunner

from nanreplay.explore import (
    Explorer,
    StepView,
    consumers,
    downstream,
    grow,
    keys_of,
    producers,
    rows_of,
    upstream,
    worst_producer,
)
from nanreplay.explore.dataflow import is_bad, neighbour, next_origin, search
from nanreplay.explore.step_tree import Node
from nanreplay.explore.step_view import Segment
from nanreplay.replay.provenance import ValueId


@dataclass
class Made:
    """A step whose loss is NaN: log(0) through a copy, times 0; beside it an infinity that nothing
    uses."""

    explorer: Explorer
    runner: GraphRunner
    view: StepView
    x: ValueId
    log: ValueId
    copy: ValueId
    product: ValueId
    unused: ValueId
    loss: ValueId


@pytest.fixture
def made() -> Made:
    graph = Graph()
    x = graph.batch(np.array([1.0, 0.0, 2.0], np.float32))
    graph.layer = "encoder/norm"
    log = graph("Log", x)
    copy = graph("Identity", log)
    graph.layer = "encoder"
    product = graph("Mul", copy, x)
    unused = graph("Reciprocal", x)
    graph.phase, graph.layer = "loss", ""
    loss = graph("Sum", product, graph.const(np.array([0])))
    runner = GraphRunner(graph, loss=loss)
    explorer = Explorer(runner)
    return Made(explorer, runner, explorer.step_view(0), x, log, copy, product, unused, loss)


def test_health_tells_what_the_failure_came_through_from_what_reached_nothing(made: Made) -> None:
    health = {op.type: op.health for op in made.view.ops}
    assert health == {
        "Log": "inf",
        "Identity": "inf",
        "Mul": "nan",
        "Reciprocal": "contained",
        "Const": "finite",
        "Sum": "nan",
    }


def test_the_origin_is_the_one_that_bisecting_names(made: Made) -> None:
    assert made.view.origins == (made.log,)
    assert [op.type for op in made.view.ops if op.is_origin] == ["Log"]
    assert made.view.failed == ("the loss",)


def test_a_healthy_step_has_no_origin() -> None:
    graph = Graph()
    loss = graph("Sum", graph.batch(np.ones(3, np.float32)), graph.const(np.array([0])))
    view = Explorer(GraphRunner(graph, loss=loss)).step_view(0)
    assert (view.origins, view.failed) == ((), ())


def test_a_batch_that_holds_nan_is_the_origin_itself() -> None:
    graph = Graph()
    x = graph.batch(np.array([1.0, np.nan], np.float32))
    view = Explorer(GraphRunner(graph, loss=graph("Sum", x, graph.const(np.array([0]))))).step_view(
        0
    )
    feed = view.feed(x)
    assert view.origins == (x,)
    assert feed is not None
    assert (feed.name, feed.health, feed.is_origin) == ("batch[x0]", "nan", True)
    assert next_origin(view, None) is None


def test_a_view_survives_the_way_to_another_process(made: Made) -> None:
    assert pickle.loads(pickle.dumps(made.view)) == made.view


def labels(nodes: tuple[Node, ...]) -> list[object]:
    return [[node.label, labels(node.children)] if node.children else node.label for node in nodes]


def test_the_tree_follows_phases_and_layers(made: Made) -> None:
    nodes = grow(made.view.ops)
    assert labels(nodes) == [
        ["forward", [["encoder", [["norm", ["Log", "Identity"]], "Mul", "Reciprocal"]]]],
        ["loss", ["Const", "Sum"]],
    ]
    forward = nodes[0]
    assert (forward.ops, forward.nonfinite, forward.health, forward.has_origin) == (
        4,
        4,
        "nan",
        True,
    )
    assert not nodes[1].has_origin


def test_a_tree_of_some_ops_keeps_the_keys_of_the_whole(made: Made) -> None:
    whole, part = grow(made.view.ops), grow(op for op in made.view.ops if not op.is_plumbing)
    assert [node.key for node in part] == [node.key for node in whole]
    assert "Identity" not in str(labels(part))


def test_an_only_child_opens_with_its_parent(made: Made) -> None:
    nodes = grow(made.view.ops)
    assert [row.node.label for row in rows_of(nodes, set())] == ["forward", "loss"]
    opened = [(row.depth, row.node.label) for row in rows_of(nodes, {"forward"})]
    assert opened == [
        (0, "forward"),
        (1, "encoder"),
        (2, "norm"),
        (2, "Mul"),
        (2, "Reciprocal"),
        (0, "loss"),
    ]


def test_the_keys_of_an_op_lead_to_it(made: Made) -> None:
    op = made.view.ops[0]
    nodes = {row.node.key: row.node for row in rows_of(grow(made.view.ops), set(keys_of(op)))}
    assert nodes[keys_of(op)[-1]].op == op


def test_iterations_of_a_loop_are_levels_of_their_own(made: Made) -> None:
    ops = [
        dataclasses.replace(
            made.view.ops[0],
            serial=i,
            place=(Segment("layer", "rnn"), Segment("loop", "while"), Segment("iteration", str(i))),
        )
        for i in range(3)
    ]
    (forward,) = grow(ops)
    assert labels(forward.children) == [
        ["rnn", [["while", [[f"iteration {i}", ["Log"]] for i in range(3)]]]]
    ]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("log", ["Log"]),
        ("encoder norm", ["Log", "Identity"]),
        ("is:nan", ["Mul", "Sum"]),
        ("is:contained", ["Reciprocal"]),
        ("is:origin", ["Log"]),
        ("is:bad encoder mul", ["Mul"]),
        (">1.2", ["Mul"]),
        ("<0.9", ["Log", "Identity"]),
        ("nowhere", []),
        (">nothing", []),
    ],
)
def test_search_takes_words_health_and_sizes(made: Made, query: str, found: list[str]) -> None:
    assert [op.type for op in search(made.view.ops, query)] == found


def test_neighbours_are_those_in_the_order_of_execution(made: Made) -> None:
    ops = made.view.ops
    first = neighbour(ops, -1, 1, is_bad)
    assert first is not None
    assert first.type == "Log"
    following = neighbour(ops, made.product.serial, 1, is_bad)
    assert following is not None
    assert following.type == "Sum"
    before = neighbour(ops, made.loss.serial, -1, is_bad)
    assert before is not None
    assert before.type == "Mul"
    assert neighbour(ops, ops[-1].serial, 1) is None


def test_the_next_origin_starts_over_at_the_end(made: Made) -> None:
    assert (
        next_origin(made.view, None)
        == next_origin(made.view, made.log.serial)
        == made.view.op(made.log.serial)
    )


def test_producers_skip_copies_and_tell_them(made: Made) -> None:
    mul = made.view.op(made.product.serial)
    assert mul is not None
    first, second = producers(made.view, mul)
    assert (first.value, [op.type for op in first.skipped]) == (made.log, ["Identity"])
    assert (second.value, second.op, made.view.name(second.value)) == (made.x, None, "batch[x0]")


def test_consumers_skip_copies_and_tell_them(made: Made) -> None:
    (hop,) = consumers(made.view, made.log)
    assert hop.op is not None
    assert (hop.op.type, hop.slot, [op.type for op in hop.skipped]) == ("Mul", 0, ["Identity"])


def test_the_worst_producer_is_the_least_healthy_one(made: Made) -> None:
    mul, total = made.view.op(made.product.serial), made.view.op(made.loss.serial)
    assert mul is not None
    assert total is not None
    worst = worst_producer(made.view, mul)
    assert worst is not None
    assert worst.value == made.log
    worst = worst_producer(made.view, total)
    assert worst is not None
    assert worst.value == made.product


def test_a_copy_that_is_an_origin_is_not_skipped(made: Made) -> None:
    ops = tuple(
        dataclasses.replace(op, type="Cast", is_origin=True) if op.type == "Identity" else op
        for op in made.view.ops
    )
    view = dataclasses.replace(made.view, ops=ops)
    mul = view.op(made.product.serial)
    assert mul is not None
    assert producers(view, mul)[0].value == made.copy


def test_upstream_goes_on_to_what_entered_the_step(made: Made) -> None:
    stops = upstream(made.view, made.loss)
    shown = [
        (stop.level, stop.before, made.view.name(stop.hop.value).split("_")[0]) for stop in stops
    ]
    assert shown == [(0, None, "mul"), (1, 0, "log"), (1, 0, "batch[x0]"), (0, None, "const")]


def test_downstream_goes_on_to_what_failed(made: Made) -> None:
    stops = downstream(made.view, made.log)
    assert [(stop.level, stop.hop.op.type) for stop in stops if stop.hop.op is not None] == [
        (0, "Mul"),
        (1, "Sum"),
    ]


def test_ways_end_where_there_is_no_more_room(made: Made) -> None:
    assert len(upstream(made.view, made.loss, most=3)) == 2
