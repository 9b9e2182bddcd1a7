"""The JSON of a report: all keys always there, and nothing that JSON cannot hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from sample_report import FINDINGS, INF, LOOP, NAN, OPERAND, ORIGIN, OUTPUT, sample_report

from nanreplay.findings import (
    Cause,
    DifferingOp,
    Findings,
    FixResult,
    ModeDifference,
    Origin,
    Verdict,
)
from nanreplay.report.report_json import to_json


def plain(**changes: Any) -> Any:
    return json.loads(json.dumps(to_json(sample_report(**changes)), allow_nan=False))


CAUSE = Cause("variance_zero", 0.9, "The variance is 0.", ("var is 0.0",))
FIX = FixResult(
    "epsilon",
    {"value": 1e-5},
    True,
    (48100, 48112),
    source=ORIGIN.source,
    code="x / tf.sqrt(var + 1e-5)",
)


def test_a_full_report() -> None:
    value = plain(
        findings=replace(FINDINGS, origin=replace(ORIGIN, loop=LOOP), other_origins=(ORIGIN,)),
        causes=(CAUSE,),
        fixes=(FIX,),
    )
    assert (value["format"], value["version"]) == ("nanreplay-report", 1)
    assert value["capture"] == {
        "path": "run.h5",
        "steps": [48100, 48112],
        "incident_step": 48112,
        "trigger": {"what": "loss", "name": "loss", "value": "nan"},
    }
    assert value["verdict"]["kind"] == "reproduced"
    assert value["verdict"]["evidence"][0] == {
        "mode": "recorded",
        "finite": False,
        "bit_exact": True,
        "max_ulp": 0,
    }
    origin = value["origin"]
    assert origin["loop"] == [{"op": "functional/rnn/while", "iteration": 4}]
    assert origin["source"] == {
        "file": "/home/me/train.py",
        "line": 88,
        "function": "call",
        "code": "x / tf.sqrt(var)",
    }
    assert origin["outputs"] == [
        {
            "dtype": "float32",
            "shape": [32, 8],
            "nonfinite": 1,
            "size": 256,
            "indices": [[17, 3]],
            "value": "inf",
        }
    ]
    assert origin["operands"] == [
        {
            "name": "encoder/norm/var:0",
            "dtype": "float32",
            "shape": [32, 8],
            "value": 0.0,
            "min": 0.0,
            "max": 2.1,
        }
    ]
    assert origin["rows"] == [17]
    assert value["other_origins"][0]["op_type"] == "Rsqrt"
    assert value["root"] == {"step": 48112, "reason": "It did not grow."}
    assert value["cause"] == {
        "kind": "variance_zero",
        "confidence": 0.9,
        "sentence": "The variance is 0.",
        "evidence": ["var is 0.0"],
    }
    assert value["other_causes"] == []
    assert value["fixes"][0]["prevents"] is True
    assert value["fixes"][0]["source"]["line"] == 88
    assert value["notes"] == ["A note."]


def keys_of(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        return {f"{path}/{key}" for key in value}.union(
            *(keys_of(item, f"{path}/{key}") for key, item in value.items())
        )
    return set()


def test_absent_facts_are_null_and_never_missing() -> None:
    bare = Origin(1, "input", "input", None, None, None, None)
    empty = plain(findings=Findings(origin=bare), verdict=Verdict("inconclusive", None))
    full = plain()
    assert keys_of(empty) == keys_of(
        {**full, "origin": {**full["origin"], "source": None}, "root": None}
    )
    assert [
        empty["origin"][key]
        for key in ("layer", "layer_path", "op_type", "op_name", "source", "rows")
    ] == [None] * 6
    assert plain(findings=Findings())["origin"] is None
    assert plain(findings=Findings())["chain"] == []


def test_where_modes_part() -> None:
    op = DifferingOp("Square", "energy/Square", "forward", "energy", None)
    value = plain(
        verdict=Verdict(
            "precision_only", True, difference=ModeDifference(("ops", "float64"), None, op)
        )
    )["verdict"]
    assert value["difference"] == {
        "modes": ["ops", "float64"],
        "first": None,
        "first_nonfinite": {
            "op_type": "Square",
            "op_name": "energy/Square",
            "phase": "forward",
            "layer_path": "energy",
            "max_ulp": None,
        },
    }
    assert plain()["verdict"]["difference"] is None


def test_nan_and_infinities_are_texts() -> None:
    origin = replace(
        ORIGIN,
        outputs=(replace(OUTPUT, value=NAN),),
        operands=(replace(OPERAND, value=-INF, max=np.float32(INF)),),
        rows=(np.int64(3),),
    )
    value = plain(findings=replace(FINDINGS, origin=origin))["origin"]
    assert value["outputs"][0]["value"] == "nan"
    assert value["operands"][0]["value"] == "-inf"
    assert value["operands"][0]["max"] == "inf"
    assert value["rows"] == [3]
