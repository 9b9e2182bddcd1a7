"""What a rerun gave: its result, its steps beside the recorded ones, its sentence and its JSON.

`Rerun.result` puts these together for users, the command line and the pytest plugin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanreplay.capture import Capture
from nanreplay.program.fingerprint import was_measured
from nanreplay.records import BatchRecord, Incident, Signature, VariableInfo
from nanreplay.replay import StepResult
from nanreplay.replay.step_results import compare_step
from nanreplay.report.contents import Report
from nanreplay.report.numbers import readable_list, readable_trigger
from nanreplay.report.replayed_steps import steps_to_json
from nanreplay.report.report_json import to_json
from nanreplay.rerun.current_step import CurrentRun
from nanreplay.rerun.recorded_window import RecordedWindow
from nanreplay.rerun.variable_match import pairs_with_learning_rates


@dataclass(frozen=True, slots=True)
class RerunResult:
    """Recorded state and batches through the user's current code."""

    path: str
    """The capture."""
    model: str
    """Name of the factory that made the current model."""
    finite: bool
    """Whether every step of the window was finite now, by the recorder's own rule."""
    fixed: bool | None
    """Whether that shows the recorded failure to be gone.

    None when nothing non-finite was recorded, or it does not reproduce in the recorded program
    either.
    """
    sentence: str
    """All of it in one sentence."""
    steps: Sequence[StepResult]
    """The steps as they ran now, the failing one last.

    Each is compared with its recording where the two can be.
    """
    report: Report | None = None
    """Where the value was born in the current code, with file and line; None when all is finite."""
    notes: Sequence[str] = ()
    """Readable lines: what did not match, what could not be repeated."""

    is_healthy: bool = False
    """Whether nothing non-finite was recorded in the first place."""

    @property
    def exit_code(self) -> int:
        """0 fixed (or nothing was wrong), 1 still non-finite, 3 could not be decided."""
        if not self.finite:
            return 1
        return 0 if self.fixed or self.is_healthy else 3

    @property
    def line(self) -> str:
        """The sentence after the path."""
        return f"{self.path}: {self.sentence}"


def rerun_to_json(result: RerunResult) -> dict[str, Any]:
    """Return one capture of `nanreplay replay --model --json`, as `docs/report-format.md` has it.

    It has the keys of a replay of the recorded program and some of its own.
    """
    return {
        **steps_to_json(result.path, "today", result.steps, result.notes),
        "finite": result.finite,
        "model": result.model,
        "fixed": result.fixed,
        "sentence": result.sentence,
        "report": None if result.report is None else to_json(result.report),
    }


def sentence_of(
    model: str,
    incident: Incident,
    window: RecordedWindow,
    run: CurrentRun,
    report: Report | None,
    *,
    fixed: bool | None,
    is_healthy: bool,
    random_ops: Sequence[str] = (),
) -> str:
    """Say whether the current code is finite on the recording, and where it is not.

    Args:
        model: Name of the factory.
        incident: What was recorded.
        window: The steps that were run.
        run: How they ran.
        report: Where a non-finite value was born, when that is known.
        fixed: Whether the failure is gone; None when that is not known.
        is_healthy: Whether nothing non-finite was recorded.
        random_ops: Types of ops in the current step that give something else in every run.
    """
    if run.trigger is not None:
        where = f"step {run.failed_step} · {readable_trigger(run.trigger)}."
        if report is not None:
            where = report.sentence
        verdict = "non-finite" if is_healthy else "still non-finite"
        return f"{verdict} with today's {model}: {where}"
    count = len(window.steps)
    finite = f"{count} step{'' if count == 1 else 's'} finite with today's {model}"
    if is_healthy:
        return f"{finite}; nothing non-finite was recorded"
    recorded = f"step {incident.step} of the recording: {readable_trigger(incident.trigger)}"
    if fixed:
        return f"fixed: {finite} ({recorded})"
    if random_ops:
        doubt = (
            f"today's step draws other numbers in every run ({readable_list(random_ops)}), "
            f"and so may miss the failure ({recorded})"
        )
    elif window.reproduces is None:
        doubt = f"the recorded program cannot be run here to show that it still fails ({recorded})"
    else:
        doubt = (
            f"the recorded program is finite on this window as well ({recorded}): "
            "that says nothing of today's code"
        )
    return f"cannot decide: {finite}, but {doubt}"


# The steps that ran, beside the recorded ones. Both sides have fingerprints, of which an element is
# named by the index of its variable: `gradient_sum:7`. The current model numbers its variables in
# another way, so its elements get the recorded numbers first.

_NOT_RECORDED = -1


def step_results(
    capture: Capture, renamed: Mapping[str, str], run: CurrentRun
) -> tuple[StepResult, ...]:
    """Return the steps of a run, each compared with its recording.

    Args:
        capture: The recording.
        renamed: What parts of recorded paths are called in the current code.
        run: The steps as they ran now.
    """
    indices = _recorded_indices(capture.variables_info, run.recording.variables.infos, renamed)
    paths = [info.path for info in capture.variables_info]
    results = []
    for step, fingerprint in run.fingerprints.items():
        elements = {}
        for name, value in fingerprint.items():
            elements[_renumbered(name, indices)] = value
        recorded = _recorded_elements(capture, capture.batch(step))
        result = _compared(step, elements, recorded, paths)
        if step == run.failed_step:
            result = replace(result, finite=False, nonfinite=run.trigger)
        else:
            result = replace(result, finite=True, nonfinite=None)
        results.append(result)
    if run.failed_step is not None and run.failed_step not in run.fingerprints:
        # It raised before its fingerprint was read.
        results.append(StepResult(run.failed_step, False, run.trigger, None, None, None, None))
    return tuple(results)


def _compared(
    step: int, elements: Mapping[str, Any], recorded: Mapping[str, Any], paths: Sequence[str]
) -> StepResult:
    """One step compared with its recording in the elements that both have.

    Without a common element the result holds the values of the run alone.
    """
    common_names = tuple(name for name in elements if name in recorded)
    names = common_names or tuple(elements)
    recorded_values = np.array([recorded[name] for name in common_names]) if common_names else None
    dtype = np.float32 if recorded_values is None else recorded_values.dtype
    with np.errstate(over="ignore"):  # a large number may be infinite in the recorded type
        values = np.array([elements[name] for name in names]).astype(dtype)
    result = compare_step(
        step,
        Signature("graph", (), (), watch_layout=names, loss_scaled="loss_scale" in names),
        values,
        recorded_values,
        paths=paths,
        count_skips=False,
        bad_variable=lambda index: "",
    )
    for name, value in elements.items():
        if name.startswith("loss:"):
            return replace(result, loss=float(value))
    return result


def _recorded_indices(
    recorded: Sequence[VariableInfo], current: Sequence[VariableInfo], renamed: Mapping[str, str]
) -> list[int]:
    """Which recorded variable each of the current ones is; `_NOT_RECORDED` for none."""
    pairs = pairs_with_learning_rates(recorded, current, renamed)
    recorded_by_current = {theirs: ours for ours, theirs in pairs.items()}
    return [recorded_by_current.get(index, _NOT_RECORDED) for index in range(len(current))]


def _renumbered(name: str, recorded_indices: Sequence[int]) -> str:
    """An element's name with the recorded variable's index."""
    kind, _, subject = name.partition(":")
    if not subject or kind in ("loss", "logged"):
        return name
    index = int(subject)
    is_known = 0 <= index < len(recorded_indices)
    return f"{kind}:{recorded_indices[index] if is_known else _NOT_RECORDED}"


def _recorded_elements(capture: Capture, batch: BatchRecord) -> dict[str, Any]:
    """The recorded fingerprint of a step by name of the element; unmeasured ones are left out."""
    # A step without a program of its own has the fingerprint of the incident's step.
    program = batch.program or capture.batch(capture.incident.step).program
    layout = list(capture.signature(program).watch_layout) if program else []
    fingerprint: Any = batch.fingerprint
    if fingerprint is None or len(layout) != len(fingerprint):
        return {}
    elements = {}
    for name, value in zip(layout, np.asarray(fingerprint), strict=True):
        if was_measured(name, float(value)) and not name.startswith("logged:"):
            elements[name] = value
    return elements
