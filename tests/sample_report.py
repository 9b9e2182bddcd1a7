"""A report for tests that need no replay: a normalisation that divides by a variance of 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nanreplay.findings import (
    ChainLink,
    Evidence,
    Findings,
    LoopIteration,
    OperandFacts,
    Origin,
    OutputFacts,
    Root,
    Verdict,
)
from nanreplay.records import Frame, Incident, Trigger
from nanreplay.report.contents import Report
from nanreplay.report.sentence import sentence

NAN, INF = float("nan"), float("inf")

OUTPUT = OutputFacts("float32", (32, 8), 1, 256, ((17, 3),), INF)
OPERAND = OperandFacts("encoder/norm/var:0", "float32", (32, 8), 0.0, 0.0, 2.1)
ORIGIN = Origin(
    step=48112,
    phase="forward",
    where="layer",
    layer="norm",
    layer_path="encoder/block_2/norm",
    op_type="Rsqrt",
    op_name="functional/norm/Rsqrt",
    source=Frame("/home/me/train.py", 88, "call", "x / tf.sqrt(var)"),
    outputs=(OUTPUT,),
    operands=(OPERAND,),
    rows=(17,),
    rows_reason="Proved by replay.",
)
LOOP = (LoopIteration("functional/rnn/while", 4),)
LINK = ChainLink(
    "Mul", "functional/norm/mul", "forward", "encoder/block_2/norm", (32, 8), 8, "nan", 2.5
)
FINDINGS = Findings(
    origin=ORIGIN, chain=(LINK,), upstream=(replace(LINK, value="finite", nonfinite=0),),
    root=Root(48112, "It did not grow."),
    notes=("A note.",), consequence="became NaN in Mul and reached the loss",
)  # fmt: skip
VERDICT = Verdict(
    "reproduced", True, (Evidence("recorded", False, True, 0), Evidence("ops", False, False, 3))
)
INCIDENT = Incident(48112, Trigger("loss", "loss", "nan"))
STEPS = (48100, 48112)


def say(
    verdict: Verdict = VERDICT,
    findings: Findings = FINDINGS,
    incident: Incident = INCIDENT,
    **origin: Any,
) -> str:
    """The sentence, with facts of the origin changed as asked."""
    if origin:
        findings = replace(findings, origin=replace(ORIGIN, **origin))
    return sentence(verdict, findings, incident, STEPS)


def sample_report(**changes: Any) -> Report:
    """The report, changed as asked."""
    report = Report("run.h5", STEPS, 48112, INCIDENT.trigger, VERDICT, FINDINGS, say())
    return replace(report, **changes)
