"""The table of rules, and rules on incidents that no small training gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from unit.bisect.graphs import Graph, GraphRunner

from nanreplay.bisect import bisect
from nanreplay.bisect.origin import Bisection
from nanreplay.diagnose.causes import RULES, causes_of
from nanreplay.diagnose.outliers import find_outliers
from nanreplay.findings import (
    Cause,
    CauseKind,
    Evidence,
    Findings,
    OperandFacts,
    Origin,
    OutputFacts,
    Verdict,
)
from nanreplay.records import Incident, Timeline, Trigger

NOTHING = Timeline({"step": np.zeros(0, int)}, {}, ())
REPRODUCED = Verdict("reproduced", True)
DOCUMENT = (Path(__file__).parents[3] / "docs" / "causes.md").read_text()


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def runner(trigger: Trigger | None = None) -> GraphRunner:
    """A step that nothing happens in."""
    graph = Graph()
    return GraphRunner(
        graph, loss=graph("Sum", graph.batch(ones(2)), graph.const(np.array([0]))), trigger=trigger
    )


def compiled_only(
    op_type: str, *operands: float, value: float, dtype: str = "float32"
) -> tuple[Cause, ...]:
    """Causes of an origin that exists only in the compiled step: facts of it, and nothing that ran
    op by op."""
    facts = tuple(
        OperandFacts(f"x{i}:0", dtype, (4,), operand, operand, operand)
        for i, operand in enumerate(operands)
    )
    outputs = (OutputFacts(dtype, (4,), 1, 4, ((2,),), value),)
    origin = Origin(
        0, "update", "optimizer", None, None, op_type, "scope/op", outputs=outputs, operands=facts
    )
    return causes_of(
        runner(), Bisection(Findings(origin=origin)), Verdict("xla_only", True), NOTHING
    )


def test_every_kind_has_a_rule_and_a_row_in_the_document() -> None:
    kinds = set(get_args(CauseKind))
    assert set(RULES) == kinds
    assert {kind for kind in kinds if f"\n| `{kind}` |" in DOCUMENT} == kinds


def test_a_power_that_only_xla_computes_below_zero() -> None:
    assert compiled_only("Pow", -1.5e-8, 0.9, value=float("nan"))[0].kind == "pow_domain"


def test_a_division_that_only_xla_makes_by_zero() -> None:
    assert compiled_only("RealDiv", 2.0, 0.0, value=float("inf"))[0].kind == "division_by_zero"
    assert compiled_only("RealDiv", 0.0, 0.0, value=float("nan"))[0].kind == "zero_over_zero"


def test_an_op_that_no_rule_knows_is_other_with_what_is_known() -> None:
    (cause,) = compiled_only("Spence", 0.0, value=float("inf"))
    assert cause.kind == "other"
    assert (
        cause.sentence
        == "`Spence` in the optimizer gave inf at [2]; no known cause fits its operands."
    )
    assert cause.confidence <= 0.2


def test_a_step_that_is_finite_in_every_replay_looks_like_hardware() -> None:
    verdict = Verdict(
        "transient", True, (Evidence("recorded", True, True), Evidence("ops", True, None))
    )
    (cause,) = causes_of(runner(), Bisection(Findings()), verdict, NOTHING)
    assert cause.kind == "hardware_like"
    assert cause.evidence[0] == "Replayed as `recorded`: finite."


def test_skipped_updates_name_the_loss_scale() -> None:
    trigger = Trigger("gradient", "loss scale", "20 updates in a row were skipped")
    timeline = Timeline(
        {
            "step": np.arange(3),
            "loss_scale": np.array([32768.0, 2.0, 1.0]),
            "skipped": np.array([True] * 3),
        },
        {},
        (),
    )
    (cause,) = causes_of(runner(trigger), Bisection(Findings()), REPRODUCED, timeline)
    assert cause.kind == "loss_scale_stuck"
    assert "32768 to 1" in cause.evidence[0]


def test_an_index_that_raised_before_any_origin_is_known() -> None:
    trigger = Trigger("exception", "InvalidArgumentError", "indices[3,1] = 10 is not in [0, 10)")
    assert (
        causes_of(runner(trigger), Bisection(Findings()), REPRODUCED, NOTHING)[0].kind
        == "label_out_of_range"
    )


def test_a_healthy_step_has_no_cause() -> None:
    assert causes_of(runner(), Bisection(Findings()), Verdict("healthy", True), NOTHING) == ()


def test_a_number_in_every_row_far_from_the_other_batches_is_an_outlier() -> None:
    graph = Graph()
    x = graph.batch(np.array([[0.5], [3e30]], np.float32))
    loss = graph("Sum", graph("Square", x), graph.const(np.array([0, 1])))
    before = [[np.random.RandomState(i).rand(8, 1).astype("float32")] for i in range(3)]
    made = GraphRunner(graph, loss=loss, batches=before)
    found = causes_of(made, bisect(made), REPRODUCED, NOTHING)
    assert found[0].kind == "data_outlier"
    assert "holds 3e+30 in row 1, column 0 of step 3" in found[0].sentence


def outliers_of(x: Any, others: list[Any]) -> int:
    graph = Graph()
    loss = graph("Sum", graph.batch(x), graph.const(np.array([0])))
    return len(
        find_outliers(
            GraphRunner(graph, loss=loss, batches=[[other] for other in others]), len(others)
        )
    )


def test_usual_noise_and_sparse_columns_hold_no_outlier() -> None:
    draws = np.random.RandomState(0)
    assert (
        outliers_of(
            draws.standard_t(3, size=(32, 50)),
            [draws.standard_t(3, size=(32, 50)) for _ in range(8)],
        )
        == 0
    )
    sparse = [(draws.rand(32, 200) > 0.99).astype(np.float32) for _ in range(9)]
    assert outliers_of(sparse[0], sparse[1:]) == 0


def test_a_batch_of_another_scale_is_far_out_as_a_whole() -> None:
    draws = np.random.RandomState(0)
    assert outliers_of(draws.rand(8, 3) * 1e4, [draws.rand(8, 3) for _ in range(8)]) == 1


def test_an_incident_has_a_step_even_without_an_origin() -> None:
    made = runner()
    made.incident = Incident(0, Trigger("loss", "loss", "nan"))
    assert (
        causes_of(
            made,
            Bisection(Findings(reason="The recorded window begins too late.")),
            REPRODUCED,
            NOTHING,
        )
        == ()
    )


def test_an_error_of_a_rule_costs_its_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(case: Any) -> Cause | None:
        raise TypeError("no such thing")

    trigger = Trigger("exception", "ValueError", "label out of range")
    monkeypatch.setitem(RULES, "log_of_zero", fails)
    notes: list[str] = []
    causes = causes_of(runner(trigger), Bisection(Findings()), REPRODUCED, NOTHING, notes)
    assert [cause.kind for cause in causes] == ["label_out_of_range"]
    assert notes == [
        "Whether it is log_of_zero could not be told; please report this: TypeError: no such thing"
    ]
    with pytest.raises(TypeError):
        causes_of(runner(trigger), Bisection(Findings()), REPRODUCED, NOTHING)


@pytest.mark.parametrize(
    ("operation", "dtype", "limit"),
    [
        ("Exp", "float32", "88.72"),
        ("Cosh", "float32", "89.42"),
        ("Exp", "float16", "11.09"),
        ("Exp", "bfloat16", "88.72"),
        ("Exp", "float64", "709.8"),
        ("BesselI0", "float32", "88.72"),
        ("BesselI0", "float16", None),
    ],
)
def test_the_largest_operand_is_that_of_the_very_function_and_type(
    operation: str, dtype: str, limit: str | None
) -> None:
    found = compiled_only(operation, 1000.0, value=float("inf"), dtype=dtype)
    (cause,) = [cause for cause in found if cause.kind == "exp_overflow"]
    told = f"The largest operand that {dtype} takes is {limit}."
    assert cause.evidence == (() if limit is None else (told,))


def test_an_outlier_of_a_constant_column_is_no_number_of_deviations_away() -> None:
    graph = Graph()
    weights = ones(16)
    weights[2] = 1e25
    leaf = graph.batch(weights)
    replay = GraphRunner(graph, loss=graph("Sum", leaf, graph.const(np.array([0]))))
    (outlier,) = find_outliers(replay, 0)
    assert outlier.sentence == "`batch[x0]` holds 1e+25 in row 2 of step 0 (always 1 otherwise)."


@pytest.mark.parametrize(
    ("op_type", "operand", "value", "words"),
    [
        ("Erfinv", 2.0, float("nan"), "is 2.0, and the inverse error function is finite between"),
        ("Ndtri", 0.0, -float("inf"), "is 0.0, and the normal quantile function is finite between"),
        ("BesselK0", -1.0, float("nan"), "is -1.0, and this Bessel function is finite above 0"),
        ("Acosh", 0.5, float("nan"), "`Acosh` of 0.5 at [2] is below 1."),
        ("Atanh", 1.0, float("inf"), "`Atanh` of 1 at [2] is the border of its domain."),
    ],
)
def test_a_function_outside_of_its_domain_is_told_with_the_operand(
    op_type: str, operand: float, value: float, words: str
) -> None:
    assert words in compiled_only(op_type, operand, value=value)[0].sentence


def test_a_label_of_a_compiled_step_is_told_without_a_place_that_is_not_known() -> None:
    op_type = "SparseSoftmaxCrossEntropyWithLogits"
    (cause, *_) = compiled_only(op_type, 0.5, -1.0, value=float("nan"))
    assert cause.kind == "label_out_of_range"
    assert cause.sentence == "A label is -1, but there are only 4 classes (0 to 3)."


@pytest.mark.parametrize(("first", "kinds"), [(32768.0, ["loss_scale_stuck"]), (1.0, [])])
def test_a_loss_scale_that_begins_at_1_is_not_said_to_be_used_up(
    first: float, kinds: list[str]
) -> None:
    columns = {"step": np.arange(3), "loss_scale": np.array([first, 1.0, 1.0])}
    made = runner(Trigger("gradient", "v0", "nan"))
    found = causes_of(made, Bisection(Findings()), REPRODUCED, Timeline(columns, {}, ()))
    assert [cause.kind for cause in found] == kinds


@pytest.mark.parametrize("missing", [np.nan, np.inf])
def test_a_column_without_numbers_has_no_usual_range(missing: float) -> None:
    draws = np.random.RandomState(0)
    others = [draws.rand(8, 3) for _ in range(4)]
    for other in others:
        other[:, 1] = missing
    x = draws.rand(8, 3)
    x[3, 1] = 500
    assert outliers_of(x, others) == 0
    others[0][:, 1] = 10 + draws.rand(8)  # which tell one, however many batches have none
    assert outliers_of(x, others) == 1
    x[3, 1] = 14
    assert outliers_of(x, others) == 1
