"""What a cause says of an element, a matrix or a channel is so of the very one that failed first.

Each step is a few ops that run in numpy. In each of them something else looks like the cause.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from unit.bisect.graphs import Graph, GraphRunner
from unit.diagnose.test_claims import NOTHING, causes, f32, row_mean, total

from nanreplay.bisect.origin import Bisection
from nanreplay.diagnose.causes import causes_of
from nanreplay.findings import Cause, Findings, OperandFacts, Origin, OutputFacts, Verdict
from nanreplay.records import OpInfo
from nanreplay.replay.provenance import ValueId


def kinds(found: tuple[Cause, ...]) -> list[str]:
    return [cause.kind for cause in found]


def gradient_of(graph: Graph, forward: ValueId, made: ValueId) -> tuple[Cause, ...]:
    return causes(graph, total(graph, forward), made)


def test_what_comes_to_the_gradient_of_a_logarithm_is_not_said_to_be_its_operand() -> None:
    graph = Graph()
    x = graph("ReadVariableOp", graph.variable(f32([1, 1e-10])))
    log = graph("Log", x)
    graph.phase = "backward"
    reciprocal = graph("Reciprocal", x, forward=log)
    made = graph("Mul", graph.const(f32([-1, -1e30])), reciprocal, forward=log)
    assert kinds(gradient_of(graph, log, made)) == ["exploding_gradient"]


@pytest.mark.parametrize("x", [1.0, 0.999])
def test_the_gradient_of_an_arc_is_said_to_be_infinite_where_it_is(x: float) -> None:
    graph = Graph()
    angle = graph("ReadVariableOp", graph.variable(f32([0.5, x])))
    arc = graph("Acos", angle)
    graph.phase = "backward"
    rest = graph("Sub", graph.const(f32(1)), graph("Square", angle, forward=arc), forward=arc)
    slope = graph("Reciprocal", graph("Sqrt", rest, forward=arc), forward=arc)
    made = graph("Mul", graph.const(f32([1, 3e38])), slope, forward=arc)
    found = kinds(gradient_of(graph, arc, made))
    assert found[0] == ("acos_domain" if x == 1 else "exploding_gradient")
    assert ("acos_domain" in found) is (x == 1)


@pytest.mark.parametrize(
    ("x", "upstream", "words"),
    [
        (1e-2, 1e36, ""),
        (1e-24, 1e4, "is -5e+35, and overflows times 1e+04."),
        (1e-30, 1.0, "-0.5 / sqrt(x)^3, overflows."),
    ],
)
def test_the_gradient_of_a_reciprocal_root_is_blamed_for_its_own_part(
    x: float, upstream: float, words: str
) -> None:
    graph = Graph()
    operand = graph("ReadVariableOp", graph.variable(f32([1, x])))
    root = graph("Rsqrt", operand)
    graph.phase = "backward"
    made = graph("RsqrtGrad", root, graph.const(f32([1, upstream])), forward=root)
    found = gradient_of(graph, root, graph("Mul", made, graph.const(f32([1, 1]))))
    if words:
        assert found[0].kind == "division_by_zero"
        assert found[0].sentence.endswith(words)
    else:  # finite, or what came to it is to blame
        assert "division_by_zero" not in kinds(found)


def test_a_root_beside_the_first_that_failed_is_not_told_in_its_place() -> None:
    graph = Graph()
    x = graph("ReadVariableOp", graph.variable(f32([1, 0, -4])))
    (cause,) = causes(graph, total(graph, x), graph("Rsqrt", x))
    assert (cause.kind, "at [1] is exactly 0.0" in cause.sentence) == ("division_by_zero", True)

    graph = Graph()
    x = graph("ReadVariableOp", graph.variable(f32([1e-30, 0])))
    root = graph("Sqrt", x)
    graph.phase = "backward"
    made = graph("SqrtGrad", root, graph.const(f32([1e30, 1])), forward=root)
    assert "sqrt_grad_at_zero" not in kinds(gradient_of(graph, root, made))


def test_an_operand_at_a_pole_beside_the_first_that_failed_is_not_told_in_its_place() -> None:
    graph = Graph()
    found = causes(graph, total(graph, graph("Lgamma", graph.batch(f32([1, 3e38, -1])))))
    assert [cause.sentence for cause in found] == [
        "`Lgamma` in the loss gave inf at [1]; no known cause fits its operands."
    ]


@pytest.mark.parametrize("first", [0.0, 1e-30])
def test_weights_that_are_0_are_those_of_the_group_that_failed_first(first: float) -> None:
    graph = Graph()
    sums = graph("Sum", graph.batch(f32([[1e30, 1]])), graph.const(np.array([0])))
    weights = graph("Sum", graph.batch(f32([[first, 0]])), graph.const(np.array([0])))
    found = causes(graph, total(graph, graph("RealDiv", sums, weights)))
    assert ("empty_reduction" in kinds(found)) is (first == 0)


@pytest.mark.parametrize("group", [0, 1])
def test_a_group_without_rows_is_blamed_for_its_own_element(group: int) -> None:
    graph = Graph()
    x = graph.batch(f32([1e37, 2]))
    largest = graph("UnsortedSegmentMax", x, graph.const(np.zeros(2, int)), graph.const(2))
    scale = f32([1, 99]) if group else f32([99, 1])
    found = causes(graph, total(graph, graph("Mul", largest, graph.const(scale))))
    assert ("empty_reduction" in kinds(found)) is (group == 1)


@pytest.mark.parametrize("begin", [0, 3])
def test_a_mask_is_said_to_keep_nothing_where_it_keeps_nothing(begin: int) -> None:
    graph = Graph()
    x = graph.batch(f32([1, 2, 3]))
    kept = graph("Where", graph("Greater", x, graph.const(f32(0 if begin else 9))))
    rest = graph("StridedSlice", graph("GatherNd", x, kept), graph.const(begin))
    (cause, *_) = causes(graph, graph("Mean", rest, graph.const(np.array([0]))))
    assert cause.kind == "empty_reduction"
    assert ("a mask kept no element" in cause.sentence) is (begin == 0)


def test_a_dead_channel_is_not_blamed_for_what_another_channel_gave() -> None:
    graph = Graph()
    x = f32([[0, 2e38], [0, 2e38], [0, -2e38]])
    made = graph("FusedBatchNormV2", graph.batch(x))
    found = causes(graph, total(graph, graph("Mul", made, graph.const(f32([0, 1]))), 0, 1))
    assert not [cause for cause in found if "channel 0" in cause.sentence]


@pytest.mark.parametrize("variance", [0.0, -1e-9])
def test_a_compiled_normalization_is_said_to_have_a_variance_of_0_where_it_has(
    variance: float,
) -> None:
    graph, name = Graph(), "model/batch_norm/batchnorm/Rsqrt"
    runner = GraphRunner(graph, loss=total(graph, graph.batch(f32([1]))))
    graph.infos["", name] = OpInfo("", name, "Rsqrt", "", "forward", "layer", -1, "", "")
    value = float("inf") if variance == 0 else float("nan")
    origin = Origin(
        0, "forward", "layer", None, None, "Rsqrt", name,
        outputs=(OutputFacts("float32", (4,), 1, 4, ((2,),), value),),
        operands=(OperandFacts("x:0", "float32", (4,), variance, variance, variance),),
    )  # fmt: skip
    compiled = Verdict("xla_only", True)
    found = causes_of(runner, Bisection(Findings(origin=origin)), compiled, NOTHING)
    assert found[0].kind == ("variance_zero" if variance == 0 else "sqrt_of_negative")
    assert ("variance_zero" in kinds(found)) is (variance == 0)
    assert not any("is a mean of squared deviations" in line for line in found[0].evidence)


def matrix_causes(op_type: str, *matrices: Any) -> tuple[Cause, ...]:
    graph = Graph()
    made = graph(op_type, *(graph.batch(matrix) for matrix in matrices))
    if op_type == "MatrixDeterminant":
        return causes(graph, total(graph, graph("Log", made)))
    return causes(graph, total(graph, made, 0, 1, 2))


def stacked(*diagonals: Any) -> Any:
    return np.stack([np.diag(f32(diagonal)) for diagonal in diagonals])


@pytest.mark.parametrize(
    ("op_type", "matrices", "is_at_fault"),
    [
        ("MatrixInverse", [stacked([1, 2], [1e-39, 1e-39])], False),
        ("MatrixDeterminant", [stacked([1] * 8, [1e-6] * 8)], False),
        ("MatrixDeterminant", [stacked([1, 2], [1, 0])], True),
        ("MatrixTriangularSolve", [stacked([1, 2], [1, 1e-5]), np.full((2, 2, 1), 1e35)], False),
        ("Cholesky", [stacked([1, 2], [1, -1])], True),
    ],
)
def test_a_matrix_is_said_to_be_at_fault_where_it_is(
    op_type: str, matrices: list[Any], is_at_fault: bool
) -> None:
    found = matrix_causes(op_type, *(f32(matrix) for matrix in matrices))
    assert ("linalg_singular" in kinds(found)) is is_at_fault


@pytest.mark.parametrize("taken_off", [0.0, 1.0])
def test_the_rank_of_a_product_is_told_where_nothing_else_made_the_rank(taken_off: float) -> None:
    graph = Graph()
    x = graph.batch(f32([[1, 2, 3]]))
    product = graph("MatMul", graph("Transpose", x, graph.const(np.array([1, 0]))), x)
    matrix = graph("Sub", product, graph.const(f32(taken_off * np.eye(3))))
    (cause, *_) = causes(graph, total(graph, graph("Cholesky", matrix), 0, 1))
    assert cause.kind == "linalg_singular"
    told = "It is a product (`MatMul`) of 1 row in 3 dimensions, so its rank is at most 1"
    assert (told in cause.sentence) is (taken_off == 0)


def test_an_exponential_is_blamed_where_it_is_large() -> None:
    for exponents, factors, is_blamed in ([0, 40], [3e38, 1e30], True), ([40, 1], [1, 3e38], False):
        graph = Graph()
        exponential = graph("Exp", graph.batch(f32(exponents)))
        product = graph("Mul", exponential, graph.batch(f32(factors)))
        found = causes(graph, total(graph, product))
        assert ("exp_overflow" in kinds(found)) is is_blamed


def test_a_dropped_branch_may_divide_0_by_0() -> None:
    graph = Graph()
    x = graph("ReadVariableOp", graph.variable(f32([1, 0])))
    angle = graph("Atan2", x, x)
    is_kept = graph.const(np.array([True, False]))
    loss = total(graph, graph("SelectV2", is_kept, angle, graph.const(f32([0, 0]))))
    graph.phase = "backward"
    squares = graph("Square", x, forward=angle)
    made = graph("RealDiv", graph.const(f32([1, 0])), squares, forward=angle)
    (cause,) = causes(graph, loss, made)
    assert cause.kind == "where_gradient"
    assert cause.sentence.endswith("drops its value: 0 / 0 is NaN.")


def test_a_product_of_numbers_is_no_count() -> None:
    graph = Graph()
    x = graph.batch(f32([[1, 2], [0, 3]]))
    product = graph("Prod", x, graph.const(np.array([1])))
    found = causes(graph, total(graph, graph("RealDiv", total(graph, x, 1), product)))
    assert kinds(found) == ["division_by_zero"]


@pytest.mark.parametrize("row", [0, 1])
def test_only_terms_of_the_sum_that_failed_are_said_to_be_rounded_to_0(row: int) -> None:
    graph = Graph()
    x, w = np.zeros((2, 3), np.float16), np.ones((2, 3), np.float16)
    x[1], w[1] = 1e-4, 1e-5
    if row == 0:  # in the other row a term is rounded away, and its sum is 1
        x[1, 0], w[1, 0] = 1, 1
    else:
        x[0] = 1
    terms = graph("Mul", graph.batch(x), graph.batch(w))
    found = causes(graph, total(graph, graph("Log", total(graph, terms, 1))))
    assert found[0].kind == ("fp16_underflow" if row else "log_of_zero")
    assert ("fp16_underflow" in kinds(found)) is (row == 1)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_a_variance_is_said_to_be_of_one_value_where_its_sum_is_0(spread: float) -> None:
    graph = Graph()
    x = graph.batch(f32([[2 - spread, 2 + spread], [1, 1]]))
    deviations = graph("Square", graph("Sub", x, row_mean(graph, x)))
    sums = graph("Sum", deviations, graph.const(np.array([1])))
    found = causes(graph, total(graph, graph("RealDiv", sums, graph.const(f32([0, 1])))))
    assert found[0].kind == ("division_by_zero" if spread else "variance_zero")
    assert ("variance_zero" in kinds(found)) is (spread == 0)


def test_a_softmax_by_hand_subtracts_infinities() -> None:
    graph = Graph()
    row = graph.batch(f32([[0, 1], [1, 2]]))
    is_kept = graph("Greater", graph.batch(f32([[1, 1], [-1, -1]])), graph.const(f32(0)))
    masked = graph("SelectV2", is_kept, row, graph.const(f32(-np.inf)))
    largest = graph("ExpandDims", graph("Max", masked, graph.const(np.array([1]))),
                    graph.const(np.array(1)))  # fmt: skip
    found = causes(graph, total(graph, graph("Exp", graph("Sub", masked, largest)), 0, 1))
    assert found[0].kind == "mask_all"
    assert found[0].sentence.endswith("and -inf less its largest, -inf, is NaN.")


def test_a_constant_that_is_divided_by_may_be_0() -> None:
    graph = Graph()
    quotient = graph("RealDiv", graph.batch(f32([1, 2])), graph.const(f32(0)))
    assert kinds(causes(graph, total(graph, quotient))) == ["division_by_zero"]
