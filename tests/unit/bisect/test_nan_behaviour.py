"""The table of what ops make of a NaN holds what the kernels do."""

from __future__ import annotations

import pytest
from unit.bisect import nan_kernels

from nanreplay.bisect import influence
from nanreplay.bisect.nan_behaviour import TABLE, outcomes

WITHOUT_EXAMPLE = frozenset({
    # other names of ops in the table, by which old graphs and fused kernels call them
    "BatchToSpace", "BatchToSpaceND", "Concat", "Conv", "Conv1D", "MatrixDiagPartV2",
    "MatrixDiagPartV3", "MatrixDiagV2", "MatrixDiagV3", "MatrixSetDiagV2", "MatrixSetDiagV3",
    "ParallelDynamicStitch", "Reverse", "ReverseSequence", "SpaceToBatch", "SpaceToBatchND",
    "_MklSwish",
})  # fmt: skip
SAMPLE = ["Cast:int32", "MatMul+BiasAdd+Relu", "MaxPool", "Relu"]


def _lines() -> list[str]:
    return [line for line in TABLE.read_text().splitlines() if not line.startswith("#")]


def test_a_sample_of_the_table_is_what_the_kernels_do() -> None:
    expected = [line for line in _lines() if line.split()[0] in SAMPLE]
    assert nan_kernels.table_lines(SAMPLE) == expected


@pytest.mark.slow
def test_the_table_is_what_the_kernels_do() -> None:
    assert nan_kernels.table_lines() == _lines()


def test_every_op_with_a_rule_is_in_the_table() -> None:
    held = {line.split()[0].partition(":")[0] for line in _lines()}
    tables = (
        influence.ELEMENTWISE, influence.COMPARISONS, influence.REDUCTIONS, influence.ROWWISE,
        influence.ACCUMULATIONS, influence.MOVEMENTS, influence.BATCHED,
    )  # fmt: skip
    assert frozenset().union(*tables) - held == WITHOUT_EXAMPLE


def test_the_table_answers_what_the_walk_asks() -> None:
    assert outcomes("MaxPool", 0, "nan", "eager") == "f"
    assert outcomes("Relu", 0, "nan", "eager") == "n"
    assert outcomes("MatMul+BiasAdd+Relu", 0, "nan", "graph") == "f"
    assert outcomes("NoSuchOp", 0, "nan", "eager") is None
