"""What verdicts and modes of replaying mean, in words for people."""

from __future__ import annotations

from collections.abc import Mapping

from nanreplay.findings import DifferingOp, Evidence, ModeDifference, VerdictKind
from nanreplay.report.numbers import readable_ulp

VERDICT_MEANINGS: Mapping[VerdictKind, str] = {
    "reproduced": "The step is non-finite again when it is replayed.",
    "xla_only": "Non-finite as XLA compiles it, finite op by op.",
    "precision_only": "Non-finite as it was trained, finite in float64: more precision would have kept it finite.",
    "transient": "Finite in every replay from the recorded state and batch: a race or a hardware fault.",
    "healthy": "Nothing non-finite was recorded, and nothing is when it is replayed.",
    "inconclusive": "Replaying could not decide it.",
}
"""Meaning of each kind of verdict."""

MODE_MEANINGS: Mapping[str, str] = {
    "recorded": "compiled as it was trained",
    "graph": "compiled without XLA",
    "ops": "op by op",
    "float64": "op by op, every float as float64",
}
"""How a step runs in each mode."""


def exactness(evidence: Evidence) -> str:
    """How a mode compares with the recording: "bit for bit", "3 ulp off"; "not compared" where nothing is to be compared."""
    if evidence.bit_exact is None:
        return "not compared"
    return "bit for bit" if evidence.bit_exact else readable_ulp(evidence.max_ulp)


def difference_lines(difference: ModeDifference) -> list[str]:
    """Where two modes part, a line a fact."""
    one, other = difference.modes
    lines = []
    if difference.first is not None:
        size = difference.first.max_ulp
        by = f", by {size} ulp" if size is not None and size < 2**62 else ""
        lines.append(f"{one} and {other} first differ at {_named(difference.first)}{by}.")
    if difference.first_nonfinite is not None:
        lines.append(f"{_named(difference.first_nonfinite)} is the first op that is finite in {other} only.")
    return lines


def _named(op: DifferingOp) -> str:
    return f"{op.op_type} {op.op_name} ({op.phase}{f' of {op.layer_path}' if op.layer_path else ''})"
