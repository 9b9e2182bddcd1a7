"""Which op is blamed, and which step, on small graphs made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from unit.bisect.graphs import Graph, GraphRunner

from nanreplay.bisect import find_origin
from nanreplay.findings import Findings
from nanreplay.records import BatchRecord, Trigger
from nanreplay.replay.provenance import ValueId


def total(graph: Graph, value: ValueId, *axes: int) -> ValueId:
    return graph("Sum", value, graph.const(np.array(axes)))


def op_of(findings: Findings) -> str | None:
    assert findings.origin is not None, findings.reason
    return findings.origin.op_type


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def test_an_infinity_is_blamed_before_the_nan_that_it_became() -> None:
    graph = Graph()
    x = graph.batch(np.array([1.0, 0.0, 2.0], np.float32))
    loss = total(graph, graph("Mul", graph("Log", x), x), 0)
    findings = find_origin(GraphRunner(graph, loss=loss))
    assert op_of(findings) == "Log"
    assert findings.consequence == "became NaN in Mul and reached the loss"


def test_an_infinite_constant_is_meant_and_the_op_that_spoils_it_is_blamed() -> None:
    graph = Graph()
    x = graph.batch(np.array([1.0, 0.0, 2.0], np.float32))
    loss = total(graph, graph("Mul", x, graph.const(np.full(3, -np.inf, np.float32))), 0)
    assert op_of(find_origin(GraphRunner(graph, loss=loss))) == "Mul"


def test_an_infinity_made_of_constants_is_blamed_where_it_reaches_the_loss() -> None:
    graph = Graph()
    graph.variable(ones(3))
    x = graph.batch(ones(3))
    priorities = graph.const(np.array([0.5, 0.0, 0.5], np.float32))
    weights = graph("Log", priorities)
    loss = total(graph, graph("Mul", weights, x), 0)
    graph.phase = "backward"
    gradient = graph("Mul", weights, graph.const(np.zeros(3, np.float32)))
    trigger = Trigger("loss", "loss", "inf")
    runner = GraphRunner(graph, loss=loss, gradients=[gradient], trigger=trigger)
    assert op_of(find_origin(runner)) == "Log"


def test_a_division_of_constants_by_0_is_blamed_and_not_who_spoils_its_infinity() -> None:
    graph = Graph()
    x = graph.batch(np.array([1.0, 0.0, 2.0], np.float32))
    degrees = graph.const(np.array([2.0, 0.0, 1.0], np.float32))
    loss = total(graph, graph("Mul", x, graph("Rsqrt", degrees)), 0)
    findings = find_origin(GraphRunner(graph, loss=loss))
    assert op_of(findings) == "Rsqrt"
    assert findings.other_origins == ()


def test_a_mask_made_of_indicators_is_meant_and_softmax_is_blamed() -> None:
    graph = Graph()
    scores, visible = (
        graph.batch(ones(3, 2)),
        graph.batch(np.array([[1, 1], [0, 0], [0, 1]], np.float32)),
    )
    loss = total(graph, graph("Softmax", graph("AddV2", scores, graph("Log", visible))), 0, 1)
    findings = find_origin(GraphRunner(graph, loss=loss))
    assert op_of(findings) == "Softmax"
    assert findings.origin is not None
    assert findings.origin.rows == (1,)


def log_sum_exp_by_hand(graph: Graph, logarithms: ValueId) -> ValueId:
    """What is left of a row after its maximum was taken off; a row of -inf gives NaN."""
    largest = graph("Max", logarithms, graph.const(np.array([1])))
    return total(graph, graph("Exp", graph("Sub", logarithms, largest)), 0)


@pytest.mark.parametrize("is_trained", [True, False])
def test_probabilities_that_weights_saturated_are_no_mask(is_trained: bool) -> None:
    graph = Graph()
    rows = graph.batch(np.array([[1.0], [0.0]], np.float32))
    if is_trained:
        handle = graph.variable(np.ones((1, 1), np.float32))
        rows = graph("Mul", rows, graph("ReadVariableOp", handle))
        graph("AssignVariableOp", handle, graph.const(np.ones((1, 1), np.float32)))
    loss = log_sum_exp_by_hand(graph, graph("Log", rows))
    assert op_of(find_origin(GraphRunner(graph, loss=loss))) == ("Log" if is_trained else "Sub")


def test_a_maximum_that_is_taken_off_before_no_exponential_takes_no_mask() -> None:
    graph = Graph()
    logarithms = graph("Log", graph.batch(np.array([[1.0], [0.0]], np.float32)))
    largest = graph("Max", logarithms, graph.const(np.array([1])))
    loss = total(graph, graph("Sub", logarithms, largest), 0)
    assert op_of(find_origin(GraphRunner(graph, loss=loss))) == "Log"


def test_a_mask_of_the_batch_itself_is_meant() -> None:
    graph = Graph()
    scores = graph.batch(ones(3, 2))
    mask = graph.batch(np.array([[0, 0], [-np.inf, -np.inf], [-np.inf, 0]], np.float32))
    loss = total(graph, graph("Softmax", graph("AddV2", scores, mask)), 0, 1)
    assert op_of(find_origin(GraphRunner(graph, loss=loss))) == "Softmax"


def test_logits_that_overflow_are_blamed_and_not_softmax() -> None:
    graph = Graph()
    x = graph.batch(np.array([[1, 2], [1e38, 1e38]], np.float32))
    loss = total(graph, graph("Softmax", graph("Mul", x, graph.const(np.float32(1e3)))), 0, 1)
    assert op_of(find_origin(GraphRunner(graph, loss=loss))) == "Mul"


def dropped(graph: Graph, op_type: str, value: float) -> tuple[ValueId, ValueId, ValueId]:
    """where(x < 50, op(x), 0), and what its gradient starts with."""
    x = graph.batch(np.array([1.0, value, 2.0], np.float32))
    zero = graph.const(np.zeros(3, np.float32))
    usable = graph("Greater", graph.const(np.full(3, 50.0, np.float32)), x)
    made = graph(op_type, x)
    loss = total(graph, graph("SelectV2", usable, made, zero), 0)
    graph.phase = "backward"
    return made, loss, graph("SelectV2", usable, graph.const(ones(3)), zero)


def test_a_branch_that_where_drops_is_blamed_where_the_gradient_uses_it() -> None:
    graph = Graph()
    graph.variable(ones(3))
    made, loss, upstream = dropped(graph, "Exp", 1000.0)
    gradient = graph("Mul", upstream, made)
    findings = find_origin(
        GraphRunner(
            graph, loss=loss, gradients=[gradient], trigger=Trigger("gradient", "v0", "nan")
        )
    )
    assert findings.origin is not None
    assert (findings.origin.phase, findings.origin.op_type, findings.origin.rows) == (
        "backward",
        "Mul",
        (1,),
    )
    assert findings.consequence == "reached the gradient of `v0`"


def test_an_array_of_the_batch_that_is_nan_is_the_origin() -> None:
    graph = Graph()
    loss = total(
        graph, graph("Square", graph.batch(np.array([[1.0, 2.0], [3.0, np.nan]], np.float32))), 0, 1
    )
    findings = find_origin(GraphRunner(graph, loss=loss))
    assert findings.origin is not None
    assert (findings.origin.phase, findings.origin.op_type, findings.origin.rows) == (
        "input",
        None,
        (1,),
    )
    assert findings.origin.outputs[0].indices == ((1, 1),)


def updating() -> tuple[Graph, ValueId]:
    """loss = sum(v * x), then v = v / x: a zero in a batch shows in the next step's loss."""
    graph = Graph()
    x, v = graph.batch(np.array([1.0, 2.0], np.float32)), graph.variable(ones(2))
    value = graph("ReadVariableOp", v)
    loss = total(graph, graph("Mul", value, x), 0)
    graph.phase = "update"
    graph("AssignVariableOp", v, graph("RealDiv", value, x))
    return graph, loss


def test_state_that_was_bad_already_leads_to_the_step_that_wrote_it() -> None:
    graph, loss = updating()
    zero, good = [np.array([1.0, 0.0], np.float32)], [np.array([1.0, 2.0], np.float32)]
    runner = GraphRunner(
        graph,
        loss=loss,
        batches=[good, zero],
        states=[{0: ones(2)}, {0: ones(2)}, {0: np.array([1.0, np.inf], np.float32)}],
    )
    findings = find_origin(runner)
    assert findings.origin is not None
    assert (findings.origin.step, findings.origin.phase, findings.origin.op_type) == (
        1,
        "update",
        "RealDiv",
    )
    assert findings.origin.operands[0].name == "v0"
    assert findings.origin.rows == (1,)
    assert findings.consequence == "reached the loss in step 2"
    assert [link.op_type for link in findings.chain] == ["Mul", "Sum"]


def test_state_that_was_bad_before_the_first_step_is_the_origin() -> None:
    graph, loss = updating()
    bad = {0: np.array([1.0, np.nan], np.float32)}
    findings = find_origin(GraphRunner(graph, loss=loss, states=[bad]))
    assert findings.origin is not None
    assert (findings.origin.kind, findings.origin.step) == ("set", 0)
    assert findings.origin.operands[0].name == "v0"


def test_state_that_something_else_spoiled_is_the_origin() -> None:
    class Spoiled(GraphRunner):
        def batch(self, step: int) -> BatchRecord:
            batch = super().batch(step)
            return BatchRecord(
                batch.program, batch.leaves, batch.paths, overrides={0: np.full(2, np.nan)}
            )

    graph, loss = updating()
    findings = find_origin(Spoiled(graph, loss=loss, states=[{0: np.full(2, np.nan, np.float32)}]))
    assert findings.origin is not None
    assert (findings.origin.kind, findings.origin.phase) == ("set", "forward")
    assert findings.origin.operands[0].name == "v0"


def test_a_variable_that_holds_a_mask_and_is_never_written_is_meant() -> None:
    graph = Graph()
    x = graph.batch(np.array([0.0, 2.0], np.float32))
    mask = graph("ReadVariableOp", graph.variable(np.array([-np.inf, 0.0], np.float32)))
    loss = total(graph, graph("Mul", x, mask), 0)
    assert op_of(find_origin(GraphRunner(graph, loss=loss))) == "Mul"


def test_a_step_that_is_finite_op_by_op_says_so() -> None:
    graph = Graph()
    findings = find_origin(GraphRunner(graph, loss=total(graph, graph.batch(ones(2)), 0)))
    assert findings.origin is None
    assert "finite op by op" in str(findings.reason)


def test_two_origins_come_in_the_order_of_their_phases() -> None:
    graph = Graph()
    x = graph.batch(np.array([1.0, 0.0], np.float32))
    graph.phase = "loss"
    late = graph("Log", x)
    graph.phase = "forward"
    early = graph("Reciprocal", x)
    findings = find_origin(GraphRunner(graph, loss=total(graph, graph("Sub", early, late), 0)))
    assert op_of(findings) == "Reciprocal"
    assert [origin.op_type for origin in findings.other_origins] == ["Log"]


def test_operands_are_those_of_the_very_element_through_broadcasting() -> None:
    graph = Graph()
    numerators, divisors = (
        graph.batch(np.arange(6, dtype=np.float32).reshape(2, 3) + 1),
        graph.batch(np.array([1.0, 0.0, 2.0], np.float32)),
    )
    findings = find_origin(
        GraphRunner(graph, loss=total(graph, graph("RealDiv", numerators, divisors), 0, 1))
    )
    assert findings.origin is not None
    assert findings.origin.outputs[0].indices == ((0, 1), (1, 1))
    assert [(operand.name, operand.value) for operand in findings.origin.operands] == [
        ("batch[x0]", 2.0),
        ("batch[x1]", 0.0),
    ]


def test_an_operand_of_many_elements_is_told_by_its_extremes() -> None:
    graph = Graph()
    left = graph.batch(np.array([[1.0, 1.0], [3e38, 2e38]], np.float32))
    right = graph.const(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    findings = find_origin(
        GraphRunner(graph, loss=total(graph, graph("MatMul", left, right), 0, 1))
    )
    assert findings.origin is not None
    first, second = findings.origin.operands
    assert (first.value, first.max) == (None, np.float32(3e38))
    assert (second.min, second.max) == (1.0, 3.0)


def test_upstream_leads_from_the_denominator_to_where_it_was_made() -> None:
    graph = Graph()
    x = graph.batch(np.array([[1.0, 2.0], [0.0, 0.0]], np.float32))
    length = graph("Sqrt", graph("Sum", graph("Square", x), graph.const(np.array([1]))))
    findings = find_origin(
        GraphRunner(
            graph,
            loss=total(graph, graph("RealDiv", graph.const(ones(2)), graph("Identity", length)), 0),
        )
    )
    assert [link.op_type for link in findings.upstream] == ["Sqrt", "Sum", "Square"]
