"""What causes claim beyond the type of the op: said where it is so, and not where it only looks so.

Each step is a few ops that run in numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from unit.bisect.graphs import Graph, GraphRunner

from nanreplay.bisect import bisect
from nanreplay.diagnose.causes import causes_of
from nanreplay.findings import Cause, Verdict
from nanreplay.records import Timeline, Trigger
from nanreplay.replay.provenance import ValueId

NOTHING = Timeline({"step": np.zeros(0, int)}, {}, ())


def causes(graph: Graph, loss: ValueId, *gradients: ValueId) -> tuple[Cause, ...]:
    trigger = Trigger("gradient", "v0", "nan") if gradients else None
    runner = GraphRunner(graph, loss=loss, gradients=gradients, trigger=trigger)
    return causes_of(runner, bisect(runner), Verdict("reproduced", True), NOTHING)


def f32(values: Any) -> Any:
    return np.array(values, np.float32)


def total(graph: Graph, value: ValueId, *axes: int) -> ValueId:
    return graph("Sum", value, graph.const(np.array(axes or (0,))))


def test_the_element_that_is_told_is_the_one_that_was_divided_by_zero() -> None:
    graph = Graph()
    numerator, denominator = graph.batch(f32([1, 1e30, 2])), graph.batch(f32([1, 1e-12, 0]))
    found = causes(graph, total(graph, graph("RealDiv", numerator, denominator)))
    # at [1], which is told, nothing is divided by 0; at [2] it is
    assert not [cause for cause in found if "exactly 0.0" in cause.sentence]

    graph = Graph()
    numerator, denominator = graph.batch(f32([1, 2, 1e30])), graph.batch(f32([1, 0, 1e-12]))
    (cause, *_) = causes(graph, total(graph, graph("RealDiv", numerator, denominator)))
    assert (cause.kind, "at [1] is exactly 0.0" in cause.sentence) == ("division_by_zero", True)


def row_mean(graph: Graph, value: ValueId) -> ValueId:
    mean = graph("Mean", value, graph.const(np.array([1])))
    return graph("ExpandDims", mean, graph.const(np.array(1)))


ROWS = f32([[0, 1, 2], [-200, -300, -400]])
MASKED = f32([[0, 1, 2], [-np.inf, -np.inf, -np.inf]])
HALF_MASKED = f32([[0, 1, 2], [-200, -np.inf, -np.inf]])


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        (ROWS, "log_of_zero", "All 3 exponentials that it sums round to 0: the largest one is "),
        (MASKED, "mask_all", "Every term of the log-sum-exp in the loss is exp(-inf) = 0 at [1]"),
        (HALF_MASKED, "log_of_zero", "is exactly 0.0, and log(0.0) is -inf."),
    ],
)
def test_a_sum_of_exponentials_is_0_by_a_mask_or_by_rounding(
    rows: Any, kind: str, words: str
) -> None:
    graph = Graph()
    loss = total(graph, graph("Log", total(graph, graph("Exp", graph.batch(rows)), 1)))
    (cause, *others) = causes(graph, loss)
    assert cause.kind == kind
    assert words in cause.sentence
    assert kind == "mask_all" or "mask_all" not in [other.kind for other in others]


def test_weights_that_a_mask_makes_0_are_told_from_those_that_round_to_0() -> None:
    graph = Graph()
    weights = graph("Exp", graph.batch(ROWS.T))  # the columns are summed
    shares = graph("RealDiv", weights, total(graph, weights, 0))
    (cause, *others) = causes(graph, total(graph, shares, 0, 1))
    assert cause.kind == "zero_over_zero"
    assert cause.sentence.endswith("round to 0: the largest one is exp(-200).")
    assert not others

    for choose in (False, True):
        graph = Graph()
        mask = graph.batch(f32([[1, 0], [1, 0], [0, 0]]))
        weights = graph("Exp", graph.batch(f32([[1, 2], [3, 4], [5, 6]])))
        if choose:
            is_kept = graph("Greater", mask, graph.const(f32(0)))
            weights = graph("SelectV2", is_kept, weights, graph.const(np.zeros((3, 2), "float32")))
        else:
            weights = graph("Mul", weights, mask)
        shares = graph("RealDiv", weights, total(graph, weights, 0))
        (cause, *_) = causes(graph, total(graph, shares, 0, 1))
        assert cause.kind == "mask_all"
        assert "All weights in the loss are 0 at [0, 1]: the mask leaves nothing" in cause.sentence


@pytest.mark.parametrize(("scale", "kind"), [(-1.0, "log_of_negative"), (0.0, "linalg_singular")])
def test_a_determinant_below_0_is_not_said_to_be_0(scale: float, kind: str) -> None:
    graph = Graph()
    matrices = np.stack([np.eye(3), scale * np.eye(3)]).astype(np.float32)
    determinants = graph("MatrixDeterminant", graph.batch(matrices))
    found = causes(graph, total(graph, graph("Log", determinants)))
    assert found[0].kind == kind
    assert (kind == "linalg_singular") is ("the matrix is singular" in found[0].sentence)


@pytest.mark.parametrize("op_type", ["MatrixDeterminant", "Svd"])
def test_a_matrix_that_is_too_large_is_not_said_to_be_singular(op_type: str) -> None:
    graph = Graph()
    made = graph(op_type, graph.batch(np.stack([np.eye(3, dtype=np.float32) * f32(1e30)] * 2)))
    found = causes(graph, total(graph, made, *range(1 if op_type[0] == "M" else 2)))
    assert "linalg_singular" not in [cause.kind for cause in found]


@pytest.mark.parametrize("less", [0.0, 4.0])
def test_a_variance_of_which_something_is_taken_off_is_not_said_to_be_0(less: float) -> None:
    graph = Graph()
    x = graph.batch(f32([[1, 5], [2, 2]]) if less else f32([[2, 2], [1, 5]]))
    deviations = graph("Sub", x, row_mean(graph, x))
    variance = graph("Mean", graph("Square", deviations), graph.const(np.array([1])))
    divisor = graph("Sub", variance, graph.const(f32(less))) if less else variance
    found = causes(graph, total(graph, graph("RealDiv", graph.const(f32([1, 1])), divisor)))
    assert found[0].kind == ("division_by_zero" if less else "variance_zero")
    assert bool(less) is ("variance_zero" not in [cause.kind for cause in found])


@pytest.mark.parametrize("less", [0.0, 5.0])
def test_only_a_negative_variance_is_said_to_be_one_by_rounding(less: float) -> None:
    graph = Graph()
    x = graph.batch(f32([[1, 5], [2, 2]]))
    deviations = graph("Sub", x, row_mean(graph, x))
    variance = graph("Mean", graph("Square", deviations), graph.const(np.array([1])))
    if not less:  # E[x^2] - E[x]^2 in float32
        x = graph.batch(f32([[1e4, 1e4 + 0.01, 1e4 + 0.02], [1, 1, 1]]))
        squares = graph("Mean", graph("Square", x), graph.const(np.array([1])))
        mean = graph("Mean", x, graph.const(np.array([1])))
        variance = graph("Sub", squares, graph("Square", mean))
    value = graph("Sub", variance, graph.const(f32(less or 20)))
    found = causes(graph, total(graph, graph("Sqrt", value)))
    assert found[0].kind == "sqrt_of_negative"
    assert not any("rounding made it negative" in line for line in found[0].evidence)


def test_the_gradient_of_a_reciprocal_root_overflows_near_0_and_not_at_0() -> None:
    graph = Graph()
    x = graph("ReadVariableOp", graph.variable(f32([1, 1e-30])))
    root = graph("Rsqrt", x)
    loss = total(graph, root)
    graph.phase = "backward"
    gradient = graph("RsqrtGrad", root, graph.const(f32([1, 1])), forward=root)
    (cause, *_) = causes(graph, loss, gradient)
    assert cause.kind == "division_by_zero"
    assert (
        "The operand of `Rsqrt` in the loss is 1e-30 at [1], so close to 0 that" in cause.sentence
    )


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_root_at_0_that_a_gather_keeps_is_not_said_to_be_dropped(is_kept: bool) -> None:
    graph = Graph()
    x = graph("ReadVariableOp", graph.variable(f32([1, 0, 4])))
    root = graph("Sqrt", x)
    loss = total(
        graph, graph("GatherNd", root, graph.const(np.array([[0], [1 if is_kept else 2]])))
    )
    graph.phase = "backward"
    # What comes to the dropped rows is 0, and a gradient too small to be told from it: the kernel
    # of SqrtGrad gives inf for it, as it does for the kept ones.
    upstream = graph.const(f32([1, 1 if is_kept else 1e-30, 1]))
    gradient = graph("SqrtGrad", root, upstream, forward=root)
    factor = x if is_kept else graph("Mul", upstream, graph.const(f32([1, 0, 1])))
    found = causes(graph, loss, graph("Mul", gradient, factor))
    assert found[0].kind == ("sqrt_grad_at_zero" if is_kept else "where_gradient")


@pytest.mark.parametrize(("row", "kind"), [(0, "log_of_zero"), (1, "fp16_underflow")])
def test_only_an_element_that_was_rounded_to_0_is_said_to_be(row: int, kind: str) -> None:
    graph = Graph()
    x, w = np.ones((2, 4), np.float16)
    x[1], x[2], w[2] = 0, 1e-4, 1e-5
    x, w = (x, w) if row == 0 else (x[::-1].copy(), w[::-1].copy())
    product = graph("Mul", graph.batch(x), graph.batch(w))
    found = causes(graph, total(graph, graph("Log", product)))
    assert found[0].kind == kind
    assert (kind == "fp16_underflow") is ("gives numbers up to 1e-09 there" in found[0].sentence)


@pytest.mark.parametrize("is_constant", [True, False])
def test_a_channel_is_said_to_be_constant_where_it_is(is_constant: bool) -> None:
    graph = Graph()
    x = f32([[1, 7], [2, 7], [3, 7]]) if is_constant else f32([[1, 2e38], [2, 2e38], [3, -2e38]])
    found = causes(graph, total(graph, graph("FusedBatchNormV3", graph.batch(x)), 0, 1))
    sentences = [cause.sentence for cause in found if cause.kind == "variance_zero"]
    assert len(sentences) == is_constant
    assert all("channel 1 is constant over the batch" in sentence for sentence in sentences)
