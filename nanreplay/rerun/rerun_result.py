"""The one sentence that replaying with today's code says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nanreplay.capture import Capture
from nanreplay.program.fingerprint import was_measured
from nanreplay.records import BatchRecord, Incident, Signature, Trigger, VariableInfo
from nanreplay.replay import StepResult
from nanreplay.replay.step_results import compare_step
from nanreplay.report.contents import Report
from nanreplay.report.numbers import readable_list, readable_trigger
from nanreplay.report.replayed_steps import steps_to_json
from nanreplay.report.report_json import to_json
from nanreplay.rerun.current_step import CurrentRun
from nanreplay.rerun.recorded_window import RecordedWindow
from nanreplay.rerun.variable_match import is_setting, match_variables

if TYPE_CHECKING:
    from nanreplay.replay import StepResult


# What replaying a capture with today's code gave. Pure data.


@dataclass(frozen=True, slots=True)
class RerunResult:
    """Recorded state and batches through today's code."""

    path: str
    """The capture."""
    model: str
    """Name of the factory that made today's model."""
    finite: bool
    """Whether every step of the window was finite with today's code, by the recorder's own rule."""
    fixed: bool | None
    """Whether that shows the recorded failure to be gone; None when nothing non-finite was recorded, or it does not
    reproduce in the recorded program either."""
    sentence: str
    """All of it in one sentence."""
    steps: Sequence[StepResult]
    """Today's steps, the failing one last, each held against its recording where the two can be compared."""
    report: Report | None = None
    """Where the value was born in today's code, with file and line; None when all steps were finite."""
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


# Today's steps beside the recorded ones.


def step_results(
    capture: Capture, renamed: Mapping[str, str], run: CurrentRun
) -> tuple[StepResult, ...]:
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
        signature = Signature(
            "graph", (), (), watch_layout=names, loss_scaled="loss_scale" in names
        )
        held = (
            np.array([recorded[name] for name in names])
            if names and all(name in recorded for name in names)
            else None
        )
        with np.errstate(over="ignore"):
            values = np.array([own[name] for name in names]).astype(
                np.float32 if held is None else held.dtype
            )
        found = compare_step(
            step, signature, values, held, paths=paths, count_skips=False, bad_variable=lambda i: "",
        )  # fmt: skip
        is_bad = step == run.failed
        loss = next(
            (float(value) for name, value in own.items() if name.startswith("loss:")), found.loss
        )
        results.append(
            replace(found, finite=not is_bad, nonfinite=run.trigger if is_bad else None, loss=loss)
        )
    if run.failed is not None and all(
        result.step != run.failed for result in results
    ):  # it raised before it was watched
        results.append(StepResult(run.failed, False, run.trigger, None, None, None, None))
    return tuple(results)


def _recorded_indices(
    recorded: Sequence[VariableInfo], today: Sequence[VariableInfo], renamed: Mapping[str, str]
) -> list[int]:
    """Which recorded variable each of today's is; -1 for none."""
    pairs = match_variables(recorded, today, renamed).pairs
    settings = [
        [index for index, info in enumerate(infos) if is_setting(info)]
        for infos in (recorded, today)
    ]
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
    return {
        name: value
        for name, value in pairs
        if was_measured(name, float(value)) and not name.startswith("logged:")
    }


# A replay with today's code as JSON: `nanreplay replay --model` in `docs/report-format.md`.


def rerun_to_json(result: RerunResult) -> dict[str, Any]:
    """One capture of the document, with the keys of a replay of the recorded program and some of its own."""
    return {
        **steps_to_json(result.path, "today", result.steps, result.notes),
        "finite": result.finite,
        "model": result.model,
        "fixed": result.fixed,
        "sentence": result.sentence,
        "report": None if result.report is None else to_json(result.report),
    }


# --- today.words


def sentence_of(
    model: str,
    incident: Incident,
    window: RecordedWindow,
    trigger: Trigger | None,
    failed: int | None,
    report: Report | None,
    *,
    fixed: bool | None,
    is_healthy: bool,
    draws: Sequence[str] = (),
) -> str:
    """Say whether today's code is finite on the recording, and where it is not.

    Args:
        model: Name of the factory.
        incident: What was recorded.
        window: The steps that were run.
        trigger: What failed today, or None.
        failed: The step at which that was.
        report: Where it was born, when that is known.
        fixed: Whether the failure is gone; None when that is not known.
        is_healthy: Whether nothing non-finite was recorded.
        draws: Types of ops in today's step that give something else in every run.
    """
    with_today = f"with today's {model}"
    if trigger is not None:
        where = (
            report.sentence
            if report is not None
            else f"step {failed} · {readable_trigger(trigger)}."
        )
        return f"{'non-finite' if is_healthy else 'still non-finite'} {with_today}: {where}"
    count = len(window.steps)
    finite = f"{count} step{'' if count == 1 else 's'} finite {with_today}"
    if is_healthy:
        return f"{finite}; nothing non-finite was recorded"
    was = f"step {incident.step} of the recording: {readable_trigger(incident.trigger)}"
    if fixed:
        return f"fixed: {finite} ({was})"
    if draws:
        why = f"today's step draws other numbers in every run ({readable_list(draws)}), and so may miss the failure ({was})"
    elif window.reproduces is None:
        why = f"the recorded program cannot be run here to show that it still fails ({was})"
    else:
        why = f"the recorded program is finite on this window as well ({was}): that says nothing of today's code"
    return f"cannot decide: {finite}, but {why}"
