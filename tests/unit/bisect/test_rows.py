"""Rows of the batch are proved by replay, not guessed from indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from unit.bisect.graphs import Graph, GraphRunner

from nanreplay.bisect import find_origin
from nanreplay.findings import Origin

ROWS = 16


def origin_of(graph: Graph, made: Any, **options: Any) -> tuple[Origin, GraphRunner]:
    axes = graph.const(np.arange(0))
    runner = GraphRunner(graph, loss=made if made is not None else axes, **options)
    findings = find_origin(runner)
    assert findings.origin is not None, findings.reason
    return findings.origin, runner


def healthy() -> Any:
    return np.linspace(1.0, 2.0, ROWS).astype(np.float32)


def summed(graph: Graph, value: Any) -> Any:
    return graph("Sum", value, graph.const(np.array([0])))


@pytest.mark.parametrize("bad", [[3], [0, 15], [1, 2, 7], list(range(ROWS - 1))])
def test_rows_that_an_index_names_are_proved_each(bad: list[int]) -> None:
    graph = Graph()
    x = healthy()
    x[bad] = 0.0
    origin, runner = origin_of(graph, summed(graph, graph("Log", graph.batch(x))))
    assert origin.rows == tuple(bad)
    assert runner.runs <= 1 + 2 * len(bad) + 4


@pytest.mark.parametrize("bad", [[5], [2, 11]])
def test_rows_behind_a_reduction_are_found_by_halving(bad: list[int]) -> None:
    graph = Graph()
    x = healthy()
    x[bad] = 200.0
    largest = graph("Max", graph.batch(x), graph.const(np.array([0])))
    origin, runner = origin_of(graph, graph("Exp", largest))
    assert origin.rows == tuple(bad)
    assert runner.runs <= 41


def test_what_every_row_is_needed_for_has_no_rows() -> None:
    graph = Graph()
    weights = graph.batch(np.zeros(ROWS, np.float32))
    made = graph("RealDiv", graph.const(np.float32(1)), summed(graph, weights))
    origin, _ = origin_of(graph, made, batches=[[healthy()]])
    assert origin.rows is None
    assert "whole batch" in str(origin.rows_reason)


def test_what_no_row_has_an_influence_on_has_no_rows() -> None:
    graph = Graph()
    huge = graph(
        "Exp", graph("ReadVariableOp", graph.variable(np.float32(1000) + np.zeros(2, np.float32)))
    )
    made = graph("AddV2", summed(graph, graph.batch(healthy())), summed(graph, huge))
    origin, _ = origin_of(graph, made, batches=[[healthy() + 1]])
    assert origin.rows is None
    assert "Does not depend" in str(origin.rows_reason)


def test_two_rows_that_fail_together_only_are_named_together() -> None:
    graph = Graph()
    x = healthy()
    x[[4, 9]] = 3e38
    origin, _ = origin_of(graph, summed(graph, graph.batch(x)))
    assert origin.rows == (4, 9)


def test_a_lone_row_is_proved_with_an_earlier_batch() -> None:
    graph = Graph()
    x = graph.batch(np.array([0.0], np.float32))
    origin, _ = origin_of(
        graph, summed(graph, graph("Log", x)), batches=[[np.array([1.0], np.float32)]]
    )
    assert origin.rows == (0,)


def test_a_batch_that_fails_for_what_it_lacks_blames_no_rows() -> None:
    graph = Graph()
    lacking, other = np.zeros(ROWS, np.float32), np.zeros(ROWS, np.float32)
    other[[1, 6]] = 1.0
    made = graph("RealDiv", graph.const(np.float32(1)), summed(graph, graph.batch(lacking)))
    origin, _ = origin_of(graph, made, batches=[[other]])
    assert origin.rows is None
    assert "whole batch" in str(origin.rows_reason)
