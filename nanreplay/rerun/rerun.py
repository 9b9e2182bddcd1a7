"""Recorded state and batches through today's code: does it still turn non-finite, and where?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np

from nanreplay.capture import Capture
from nanreplay.errors import ModelError, NanreplayError
from nanreplay.program.fingerprint import has_nonfinite
from nanreplay.recorder.settings import Settings
from nanreplay.records import ArrayLike
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain
from nanreplay.report.numbers import readable_list, readable_trigger
from nanreplay.rerun.current_step import CurrentRun, CurrentStep
from nanreplay.rerun.model_factory import Factory, load_factory, make_training, raised
from nanreplay.rerun.recorded_window import (
    LearningRate,
    RecordedWindow,
    chosen_rates,
    compilation_of,
    iterations_of,
    rate_of,
    recorded_rates,
    recorded_window,
    set_rate,
)
from nanreplay.rerun.rerun_result import RerunResult, sentence_of, step_results
from nanreplay.rerun.variable_match import Match, match_variables, notes_of, problems, suggestion

Progress = Callable[[int, int], None]


def replay_with(
    path: str | os.PathLike[str],
    factory: str | Factory,
    *,
    allow_missing: bool = False,
    renamed: Mapping[str, str] | None = None,
    learning_rate: LearningRate = "auto",
    trust: bool = False,
    progress: Progress | None = None,
) -> RerunResult:
    """Run the recorded batches of a capture through today's code, from the recorded state, and say whether it is finite now.

    ```python
    result = replay_with("nan.h5", "train:make_model")
    assert result.fixed, result.sentence
    ```

    Args:
        path: The capture.
        factory: Makes today's training: `module:function`, `file.py:function` or a function that returns a compiled Keras
            model, or `(model, optimizer, step)` of a training loop.
        allow_missing: Let variables without recorded state keep the values that today's code gives them, and leave
            recorded ones out that have no place today.
        renamed: What parts of recorded variable paths are called today, such as `{"encoder/old": "encoder/new"}`.
        learning_rate: "today" as today's code sets it, "recorded" step by step, or "auto": today's, unless it was
            changed while the recorded training ran.
        trust: Let the recorded program reach files, the network or processes; only for captures of your own.
        progress: Called with (steps done, steps in all).

    Raises:
        CaptureError: The file cannot be read.
        ModelError: Today's model cannot be made, or the recorded state does not fit it.
        AttachError: Today's model is not compiled.
        ReplayError: The capture holds no batches that can be replayed.
    """
    name, make = load_factory(factory)
    with Capture(path) as capture, tempfile.TemporaryDirectory(prefix="nanreplay-") as folder:
        today = Rerun(
            capture,
            name,
            make,
            allow_missing=allow_missing,
            renamed=renamed or {},
            learning_rate=learning_rate,
            trust=trust,
        )
        run = today.run(str(Path(folder) / "today.h5"), progress)
        report = None
        if run.trigger is not None:
            try:
                report = _explained(run, str(capture.path))
            except NanreplayError as error:  # that it is non-finite stays true
                today.notes.append(f"Where it was born could not be told: {error}")
        else:
            today.try_failing_state()
        run.close()
        return today.result(run, report)


@dataclass
class Rerun:
    """A capture and today's code.

    Raises:
        ModelError: Today's model cannot be made, or the recorded state does not fit it.
        AttachError: Today's model is not compiled.
        ReplayError: The capture holds no batches that can be replayed.
    """

    capture: Capture
    name: str
    make: Factory
    allow_missing: bool = False
    renamed: Mapping[str, str] | None = None
    learning_rate: LearningRate = "auto"
    trust: bool = False

    def __post_init__(self) -> None:
        """Make today's step and match its variables; nothing has run yet but, where it is plain Python, one step."""
        self.notes: list[str] = []
        compilation = compilation_of(self.capture)
        self.step = CurrentStep(make_training(self.name, self.make), compilation)
        self.window: RecordedWindow = recorded_window(self.capture, trust=self.trust)
        self.step.build(self.capture.batch(self.window.steps[0]))
        self._fresh = self.step.state()
        self.begins_fresh = iterations_of(self.capture, self.window.state) == 0
        self.match = self._matched()
        self.rates = self._rates()

    def _matched(self) -> Match:
        recorded, today = self.capture.variables_info, self.step.table.infos
        match = match_variables(
            recorded, today, self.renamed or {}, with_optimizer=not self.begins_fresh
        )
        wrong = problems(match, recorded, today)
        if wrong and not self.allow_missing:
            said = "; ".join(wrong)
            raise ModelError(
                f"{self.capture.path}: the recorded state does not fit {self.name}: {said}.",
                hint=suggestion(match, recorded, today),
            )
        weights = [index for index, info in enumerate(recorded) if info.role == "trainable"]
        if weights and not any(
            index in match.pairs for index in weights
        ):  # nothing would be left of the recording but its batches
            raise ModelError(
                f"{self.capture.path}: none of the recorded weights has a place in {self.name}.",
                hint=suggestion(match, recorded, today),
            )
        self.notes += notes_of(match, recorded, today)
        return match

    def _rates(self) -> dict[int, float]:
        timeline, step = recorded_rates(self.capture.timeline_record()), self.capture.incident.step
        program = self.capture.batch(step).program
        held = any(info.path.endswith("learning_rate") for info in self.capture.variables_info)
        is_variable = self.capture.signature(program).learning_rate is not None if program else held
        rates, notes = chosen_rates(
            timeline,
            self.window.steps,
            rate_of(self.step.optimizer),
            self.learning_rate,
            is_variable=is_variable,
        )
        self.notes += notes
        return rates

    def run(self, path: str, progress: Progress | None = None) -> CurrentRun:
        """Run the window, up to the first step that is not finite.

        Raises:
            ModelError: Today's step does not take a recorded batch.
        """
        return self._run_steps(path, self.window.state, self.window.steps, progress, self.match)

    def try_failing_state(self) -> None:
        """Note whether the failing step alone, from the state in which it failed, is finite too; for when the window is."""
        if self.window.failing_state is not None:
            self.step.load(self._fresh)
            self.notes.append(self._on_failing_state(self.window.failing_state))

    def _on_failing_state(self, state: Mapping[int, ArrayLike]) -> str:
        """Run the failing step alone, from the state in which it failed."""
        failing = self.capture.incident.step
        full = match_variables(
            self.capture.variables_info, self.step.table.infos, self.renamed or {}
        )
        alone = self._run_steps("", state, [failing], None, full)
        alone.close()
        if alone.trigger is None:
            return f"Step {failing} alone, from the recorded state just before it, is finite too."
        return (
            f"Step {failing} alone, from the recorded state just before it, still fails ({readable_trigger(alone.trigger)}): "
            "today's code keeps out of that state, it does not survive it."
        )

    def _run_steps(
        self,
        path: str,
        state: Mapping[int, ArrayLike],
        steps: Sequence[int],
        progress: Progress | None,
        match: Match,
    ) -> CurrentRun:
        placed = {
            today: state[recorded] for recorded, today in match.pairs.items() if recorded in state
        }
        self.step.load(placed)
        run = self.step.recording(path, steps[0], steps=len(steps), max_skipped=self._max_skipped())
        claimed, infos = self.capture.incident.trigger.name, self.step.table.infos
        run.ignore(
            index
            for index, value in placed.items()
            if infos[index].path != claimed and has_nonfinite(np.asarray(value))
        )
        for done, step in enumerate(steps):
            if step in self.rates:
                set_rate(self.step.optimizer, self.rates[step])
            is_finite = run.run(self.capture.batch(step))
            if progress is not None:
                progress(done + 1, len(steps))
            if not is_finite:
                break
        return run

    def _max_skipped(self) -> int:
        """Updates that loss scaling may skip in a row: as few as made the recorded incident, within this window."""
        usual = Settings("").max_skipped
        incident = self.capture.incident
        if incident.trigger.name != "loss scale":
            return usual
        columns = self.capture.timeline_columns()
        skipped = [
            bool(flag)
            for step, flag in zip(columns["step"], columns["skipped"], strict=True)
            if int(step) in self.window.steps
        ]
        return max(1, min(usual, len(list(takewhile(bool, reversed(skipped))))))

    def result(self, run: CurrentRun, report: Report | None) -> RerunResult:
        """What a run says of the recorded failure.

        Raises:
            ModelError: Today's step raised something that has nothing to do with the recorded failure.
        """
        incident, window = self.capture.incident, self.window
        if run.raised is not None and not self._is_failure(run, report):
            raise raised(
                f"{self.name}: step {run.failed} of the recording raised with today's code",
                run.raised,
            ) from run.raised
        notes = [
            *incident.notes,
            *self.notes,
            *self._limits(is_finite=run.trigger is None),
            *(report.findings.notes if report else ()),
        ]
        is_healthy = incident.trigger.what == "manual" and not window.reproduces
        known = window.reproduces if window.reproduces is not None else incident.reproduced
        fixed = (
            False
            if run.trigger is not None
            else True
            if known and not is_healthy and not self.step.draws
            else None
        )
        return RerunResult(
            path=str(self.capture.path),
            model=self.name,
            finite=run.trigger is None,
            fixed=None if is_healthy and fixed is not False else fixed,
            sentence=sentence_of(
                self.name,
                incident,
                window,
                run.trigger,
                run.failed,
                report,
                fixed=fixed,
                is_healthy=is_healthy,
                draws=self.step.draws,
            ),
            steps=step_results(self.capture, self.renamed or {}, run),
            report=report,
            notes=tuple(dict.fromkeys(notes)),
            is_healthy=is_healthy,
        )

    def _is_failure(self, run: CurrentRun, report: Report | None) -> bool:
        """Whether an exception is the recorded one again, or stands for a non-finite value that was found."""
        incident = self.capture.incident
        again = (
            incident.trigger.what == "exception"
            and run.trigger is not None
            and run.trigger.name == incident.trigger.name
        )
        return again or (report is not None and report.findings.origin is not None)

    def _limits(self, *, is_finite: bool) -> list[str]:
        """What of the recorded training today's run cannot repeat."""
        notes, window = [], self.window
        if window.changed:
            said = readable_list(list(window.changed), 3)
            notes.append(
                f"Something outside of the steps changed {said} while training ran; that is not repeated with today's code."
            )
        if window.reason is not None:
            how = (
                "it did when the file was written"
                if self.capture.incident.reproduced
                else "so whether it still fails is not known"
            )
            notes.append(
                f"The recorded program was not run beside it ({window.reason.rstrip('.')}); {how}."
            )
        if window.steps[0] == 0 and not is_finite:
            notes.append(
                "Step 0 began with the recorded initial weights: other initial weights of today's code were not tried."
            )
        return notes


def _explained(run: CurrentRun, path: str) -> Report | None:
    """Where the failure of a run was born; None when that could not be told."""
    written = run.write()
    if written is None:
        return None
    return replace(explain(written, trust=True, fixes="none"), path=path)
