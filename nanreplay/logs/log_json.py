"""The answers as JSON: the stable contract of `docs/logs.md`. Every key is always there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nanreplay.logs.log_answer import LogAnswer
from nanreplay.logs.log_kinds import LogAnomaly
from nanreplay.logs.log_places import LoggedValue
from nanreplay.logs.log_sentence import log_sentence
from nanreplay.logs.logged_run import Checkpoint, ScalarSeries, VariableHealth
from nanreplay.logs.next_step import NextStep, next_step
from nanreplay.report.numbers import jsonable

FORMAT = "nanreplay-logs"
VERSION = 1


def logs_to_json(
    answers: Sequence[LogAnswer], problems: Sequence[str], script: str
) -> dict[str, Any]:
    """All answers, and what could not be read, as plain values; NaN is the text "nan"."""
    value = {
        "format": FORMAT,
        "version": VERSION,
        "runs": [_answer(each, script) for each in answers],
        "problems": list(problems),
    }
    plain: dict[str, Any] = jsonable(value)
    return plain


def _answer(answer: LogAnswer, script: str) -> dict[str, Any]:
    found, weights = answer.found, answer.weights
    return {
        "name": answer.run.name,
        "sources": answer.run.sources,
        "status": answer.status,
        "sentence": log_sentence(answer),
        "kind": None if found is None else found.kind,
        "doubt": None if found is None else found.doubt,
        "evidence": [] if found is None else found.evidence,
        "first": _value(answer.first),
        "others": list(map(_value, answer.others)),
        "finite_again": answer.is_passing,
        "resumed_at": answer.resumed_at,
        "restarts": answer.restarts,
        "anomaly": None if found is None else _anomaly(found.anomaly),
        "triggers": [] if found is None else list(map(_anomaly, found.triggers)),
        "checkpoints": list(map(_checkpoint, answer.run.checkpoints)),
        "last_healthy": _path(weights.last_healthy),
        "last_before_anomaly": _path(weights.before_anomaly),
        "first_broken": _path(weights.first_broken),
        "hit_variables": [each.name for each in weights.hit],
        "hit_layers": weights.hit_layers,
        "spared_layers": weights.spared_layers,
        "next": _next(next_step(answer, script)),
        "series": list(map(_series, answer.run.series)),
        "notes": answer.notes,
    }


def _value(value: LoggedValue | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {
        "tag": value.tag,
        "axis": value.axis,
        "at": _whole(value.step),
        "epoch": value.epoch,
        "time": value.time_s,
        "value": value.value,
    }


def _whole(step: float) -> int | float:
    return int(step) if float(step).is_integer() else step


def _anomaly(anomaly: LogAnomaly | None) -> dict[str, Any] | None:
    if anomaly is None:
        return None
    return {
        "kind": anomaly.kind,
        "tag": anomaly.value.tag,
        "axis": anomaly.value.axis,
        "at": _whole(anomaly.value.step),
        "sentence": anomaly.sentence,
    }


def _path(checkpoint: Checkpoint | None) -> str | None:
    return None if checkpoint is None else checkpoint.path


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "path": checkpoint.path,
        "kind": checkpoint.kind,
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "number": checkpoint.number,
        "finite": checkpoint.is_finite,
        "error": checkpoint.error,
        "variables": list(map(_variable, checkpoint.variables)),
    }


def _variable(each: VariableHealth) -> dict[str, Any]:
    return {
        "name": each.name,
        "layer": each.layer,
        "part": each.part,
        "dtype": each.dtype,
        "shape": each.shape,
        "nan": each.nan,
        "inf": each.inf,
        "largest": each.largest,
        "norm": each.norm,
        "error": each.error,
    }


def _next(step: NextStep | None) -> dict[str, Any] | None:
    if step is None:
        return None
    return {
        "advice": step.advice,
        "shell": step.shell,
        "python": step.python,
        "log_more": step.log_more,
    }


def _series(series: ScalarSeries) -> dict[str, Any]:
    return {
        "tag": series.tag,
        "role": series.role,
        "axis": series.axis,
        "values": len(series),
        "nonfinite": int((~series.is_finite).sum()),
        "from": _whole(float(np.min(series.steps, initial=np.inf))) if len(series) else None,
        "to": _whole(float(np.max(series.steps, initial=-np.inf))) if len(series) else None,
        "source": series.source,
    }
