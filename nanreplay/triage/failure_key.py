"""What makes two failures the same one: their cause, op, layers and line of code.

The step, the rows and the values belong to a run and not to the failure, and so do the folder of
the code, the line's number where its text is known, and how many layers Keras had counted before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from nanreplay.diagnose.keras_lines import is_call_of_keras
from nanreplay.triage.capture_answer import CaptureAnswer

_DIGITS = 12
"""Hexadecimal digits of a fingerprint: one of 2^48."""


@dataclass(frozen=True, order=True)
class FailureKey:
    """What failures of one group have in common; "" where a report does not tell."""

    cause: str
    """Kind of the cause."""
    op_type: str
    layer: str
    """The chain of layers, as `counted_from_first` writes it."""
    file: str
    """Name of the source file, without its folder; that of the program where no line is known."""
    code: str
    """Text of the line.

    Empty where the line only starts a training, for its arguments are no part of the failure.
    """
    line: int
    """Number of the line where the capture holds no text of it; else 0."""
    trigger: str
    """What failed, where the origin is not known."""

    @property
    def fingerprint(self) -> str:
        """The same text for the same failure, in every run of every machine."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def failure_key(answer: CaptureAnswer) -> FailureKey | None:
    """The key of an answer; None where nothing non-finite was found."""
    report = answer.report
    if answer.status != "nonfinite" or report is None:
        return None
    origin: dict[str, Any] = report["origin"] or {}
    source: dict[str, Any] = origin.get("source") or {}
    cause: dict[str, Any] = report["cause"] or {}
    trigger = report["capture"]["trigger"]
    code = (source.get("code") or "").strip()
    file = source.get("file") or answer.script or ""
    return FailureKey(
        cause=cause.get("kind") or "",
        op_type=origin.get("op_type") or "",
        layer=answer.layer or "",
        file=file.replace("\\", "/").rpartition("/")[2],
        code="" if is_call_of_keras(code) else code,
        line=0 if code else source.get("line") or 0,
        trigger="" if origin else f"{trigger['what']} {trigger['name']}",
    )
