"""The slicer and the judge on random graphs with one injected zero: the op and the element are
always found."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.bisect.graphs import Graph, GraphRunner

from nanreplay.bisect import find_origin
from nanreplay.bisect.failing_step import search_back
from nanreplay.replay.provenance import ValueId

SIZE = 3
ONE_INPUT, TWO_INPUTS = ("Neg", "Tanh", "Identity"), ("AddV2", "Sub", "Mul", "MatMul")


@st.composite
def graphs(draw: Any) -> tuple[Graph, ValueId, ValueId]:
    """A graph of square matrices, the op with a zero operand, and the loss."""
    graph = Graph()
    numbers = np.random.RandomState(draw(st.integers(0, 1000)))
    values = [
        graph.batch(numbers.rand(SIZE, SIZE) + 0.5),
        graph.batch(numbers.rand(SIZE, SIZE) + 0.5),
    ]
    length = draw(st.integers(1, 7))
    at = draw(st.integers(0, length - 1))
    injected = None
    for position in range(length):
        source = values[draw(st.integers(0, len(values) - 1))]
        if position == at:
            mask = np.ones((SIZE, SIZE))
            mask[draw(st.integers(0, SIZE - 1)), draw(st.integers(0, SIZE - 1))] = 0.0
            injected = graph("Reciprocal", graph("Mul", source, graph.const(mask)))
            values.append(injected)
        elif draw(st.booleans()):
            values.append(graph(draw(st.sampled_from(ONE_INPUT)), source))
        else:
            other = values[draw(st.integers(0, len(values) - 1))]
            values.append(graph(draw(st.sampled_from(TWO_INPUTS)), source, other))
    assert injected is not None
    return graph, injected, graph("Sum", values[-1], graph.const(np.array([0, 1])))


def ancestors(graph: Graph, value: ValueId) -> set[int]:
    found, pending = set(), [value.serial]
    while pending:
        serial = pending.pop()
        if serial >= 0 and serial not in found:
            found.add(serial)
            pending += [source.serial for source in graph.nodes[serial][2]]
    return found


def operand_of(graph: Graph, injected: ValueId) -> Any:
    values: dict[int, Any] = {}
    GraphRunner(graph).run(
        0, lambda event: values.__setitem__(event.serial, event.inputs[0]) if event.inputs else None
    )
    return values[injected.serial]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(graphs())
def test_the_origin_is_the_op_and_the_element_where_the_zero_was_put(
    case: tuple[Graph, ValueId, ValueId],
) -> None:
    graph, injected, loss = case
    runner = GraphRunner(graph, loss=loss)
    search = search_back(runner, 0, lambda line: None)
    loss_value = search.first.trace.fetched[graph.name(loss)]
    if np.isfinite(loss_value):
        assert not search.first.judgement.suspects
        return
    (first, *_) = search.first.judgement.suspects
    assert first.fact is not None
    assert first.fact.serial == injected.serial
    zeros = operand_of(graph, injected) == 0
    assert first.masks[0].any()
    assert not (first.masks[0] & ~zeros).any()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(graphs())
def test_the_walk_never_leaves_the_causal_slice(case: tuple[Graph, ValueId, ValueId]) -> None:
    graph, _, loss = case
    search = search_back(GraphRunner(graph, loss=loss), 0, lambda line: None)
    walk = search.first.walk
    assert set(walk.failing) <= ancestors(graph, loss)
    for serial, masks in walk.failing.items():
        for k, mask in masks.items():
            event = walk.trace.facts[serial].event
            assert event is not None
            assert not (mask & np.isfinite(event.outputs[k])).any()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(graphs())
def test_the_chain_leads_from_the_origin_to_the_loss(case: tuple[Graph, ValueId, ValueId]) -> None:
    graph, injected, loss = case
    findings = find_origin(GraphRunner(graph, loss=loss))
    if findings.origin is None:
        return
    assert findings.origin.op_name == graph.nodes[injected.serial][0]
    assert findings.chain[-1].op_name == graph.nodes[loss.serial][0]
    assert all(link.value != "finite" for link in findings.chain)
