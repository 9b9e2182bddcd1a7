"""The headline says what failed in one short line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nanreplay.findings import Findings, OperandFacts, Origin, OutputFacts, Verdict
from nanreplay.records import Trigger
from nanreplay.report.contents import Report
from nanreplay.report.headline import headline

NAN = float("nan")
DIVISION = Origin(
    step=21,
    phase="forward",
    where="layer",
    layer="contrast",
    layer_path="contrast",
    op_type="RealDiv",
    op_name="contrast/truediv",
    outputs=(OutputFacts("float32", (64, 3), 1, 192, ((37, 0),), NAN),),
    operands=(
        OperandFacts("a:0", "float32", (64, 3), 0.0, 0.0, 1.0),
        OperandFacts("b:0", "float32", (64, 3), 0.0, 0.0, 1.0),
    ),
    rows=(37,),
)


def report(origin: Origin | None, kind: str = "reproduced") -> Report:
    verdict = Verdict(kind, True)  # type: ignore[arg-type]
    trigger = Trigger("loss", "loss", "nan")
    return Report("run.h5", (0, 21), 21, trigger, verdict, Findings(origin), "")


def test_an_operator_stands_between_its_operands() -> None:
    assert headline(report(DIVISION)) == "0.0 / 0.0 = NaN in layer contrast, step 21, sample 37"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": (1, 2)}, "in layer contrast, step 21, samples 1 and 2"),
        ({"rows": tuple(range(9))}, "in layer contrast, step 21, 9 samples"),
        ({"rows": None}, "in layer contrast, step 21"),
        ({"phase": "backward"}, "in the gradient of layer contrast, step 21, sample 37"),
        ({"phase": "update", "rows": None}, "in the optimizer, step 21"),
        (
            {"layer": None, "layer_path": None, "phase": "loss", "where": "loss"},
            "in the loss, step 21",
        ),
        ({"replica": 1}, "in layer contrast, replica 1, step 21, sample 37"),
    ],
)
def test_place_and_samples(changes: dict[str, object], said: str) -> None:
    assert f"0.0 / 0.0 = NaN {said}" in headline(report(replace(DIVISION, **changes)))  # type: ignore[arg-type]


def test_an_op_of_many_values_is_named() -> None:
    many = replace(DIVISION.operands[0], value=None)
    origin = replace(DIVISION, op_type="MatMul", operands=(many, many))
    assert headline(report(origin)).startswith("MatMul gave NaN in layer contrast")


def test_a_batch_that_is_not_finite_names_the_element() -> None:
    origin = replace(DIVISION, op_type=None, op_name="batch[0]", layer=None, layer_path=None)
    assert headline(report(origin)) == "NaN in batch[0][37, 0], step 21, sample 37"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("healthy", "Nothing non-finite in the recorded steps, step 21"),
        ("transient", "loss is NaN in training, finite in every replay, step 21"),
        ("inconclusive", "loss is NaN; what made it could not be decided, step 21"),
        ("reproduced", "loss is NaN; no op could be named, step 21"),
    ],
)
def test_without_an_origin(kind: str, said: str) -> None:
    assert headline(report(None, kind)) == said
