"""Today's steps beside the recorded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nanreplay.capture import Capture
from nanreplay.program.fingerprint import was_measured
from nanreplay.records import BatchRecord, Signature, VariableInfo
from nanreplay.replay import StepResult
from nanreplay.replay.compare import compare_step
from nanreplay.today.match import is_setting, match_variables
from nanreplay.today.training import TodayRun


def step_results(capture: Capture, renamed: Mapping[str, str], run: TodayRun) -> tuple[StepResult, ...]:
    """Today's steps, each held against its recording where both watched the same things.

    Args:
        capture: The recording.
        renamed: What parts of recorded paths are called today.
        run: Today's steps.
    """
    named = _recorded_indices(capture.variables_info, run.session.variables.infos, renamed)
    paths = [info.path for info in capture.variables_info]
    results = []
    for step, numbers in run.numbers.items():
        own = {_renumbered(name, named): value for name, value in numbers.items()}
        recorded = _recorded_numbers(capture, capture.batch(step))
        names = tuple(name for name in own if name in recorded) or tuple(own)
        signature = Signature("graph", (), (), watch_layout=names, loss_scaled="loss_scale" in names)
        held = np.array([recorded[name] for name in names]) if names and all(name in recorded for name in names) else None
        with np.errstate(over="ignore"):
            values = np.array([own[name] for name in names]).astype(np.float32 if held is None else held.dtype)
        found = compare_step(
            step, signature, values, held, paths=paths, count_skips=False, bad_variable=lambda i: "",
        )  # fmt: skip
        is_bad = step == run.failed
        loss = next((float(value) for name, value in own.items() if name.startswith("loss:")), found.loss)
        results.append(replace(found, finite=not is_bad, nonfinite=run.trigger if is_bad else None, loss=loss))
    if run.failed is not None and all(result.step != run.failed for result in results):  # it raised before it was watched
        results.append(StepResult(run.failed, False, run.trigger, None, None, None, None))
    return tuple(results)


def _recorded_indices(recorded: Sequence[VariableInfo], today: Sequence[VariableInfo], renamed: Mapping[str, str]) -> list[int]:
    """Which recorded variable each of today's is; -1 for none."""
    pairs = match_variables(recorded, today, renamed).pairs
    settings = [[index for index, info in enumerate(infos) if is_setting(info)] for infos in (recorded, today)]
    if len(settings[0]) == len(settings[1]) == 1:
        pairs[settings[0][0]] = settings[1][0]
    found = {theirs: ours for ours, theirs in pairs.items()}
    return [found.get(index, -1) for index in range(len(today))]


def _renumbered(name: str, named: Sequence[int]) -> str:
    """An element's name with the recorded variable's index; -1 is one that the recording does not have."""
    kind, _, subject = name.partition(":")
    if not subject or kind in ("loss", "logged"):
        return name
    index = int(subject)
    return f"{kind}:{named[index] if 0 <= index < len(named) else -1}"


def _recorded_numbers(capture: Capture, batch: BatchRecord) -> dict[str, Any]:
    """What was recorded of a step, by name of the element; what was not measured is left out."""
    program = batch.program or capture.batch(capture.incident.step).program
    held = list(capture.signature(program).watch_layout) if program else []
    values: Any = batch.fingerprint
    if values is None or len(held) != len(values):
        return {}
    pairs = zip(held, np.asarray(values), strict=True)
    return {name: value for name, value in pairs if was_measured(name, float(value)) and not name.startswith("logged:")}
