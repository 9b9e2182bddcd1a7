"""Recorded state and batches through the user's current code: is it finite now, and where not?

`replay_with` is what users, `nanreplay replay --model` and exported tests call. `Rerun` is one
capture with one model; a diff of a capture and current code uses it as well.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from nanreplay.capture import Capture
from nanreplay.capture.arrays import as_array
from nanreplay.errors import ModelError, NanreplayError
from nanreplay.program.nonfinite_values import has_nonfinite
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
    """Run the recorded batches of a capture through the current code, from the recorded state.

    The result says whether the code is finite now, and where it is not. Use it after a fix, and in
    a test that keeps the failure fixed.

    Examples:
        >>> result = replay_with("run.h5", "train.py:make_model")
        >>> result.fixed
        True

        A layer that has been renamed since is mapped:

        >>> result = replay_with("run.h5", make_renamed_model, renamed={"hidden": "features"})
        >>> result.fixed
        True

    Args:
        path: The capture.
        factory: Makes the current training: `module:function`, `file.py:function` or a function
            that returns a compiled Keras model, or `(model, optimizer, step)` of a training loop.
        allow_missing: Let variables without recorded state keep the values that the current code
            gives them, and leave recorded ones out that have no place in it.
        renamed: What parts of recorded variable paths are called in the current code, such as
            `{"encoder/old": "encoder/new"}`.
        learning_rate: "today" as the current code sets it, "recorded" step by step, or "auto": that
            of the code, unless it was changed while the recorded training ran.
        trust: Let the recorded program reach files, the network or processes. Only for captures of
            your own.
        progress: Called with (steps done, steps in all).

    Raises:
        CaptureError: The file cannot be read.
        ModelError: The current model cannot be made, or the recorded state does not fit it.
        AttachError: The current model is not compiled.
        ReplayError: The capture holds no batches that can be replayed.
    """
    name, make = load_factory(factory)
    with Capture(path) as capture, tempfile.TemporaryDirectory(prefix="nanreplay-") as folder:
        rerun = Rerun(capture, name, make, allow_missing, renamed or {}, learning_rate, trust)
        run = rerun.run(str(Path(folder) / "today.h5"), progress)
        report = None
        if run.trigger is None:
            rerun.try_failing_state()
        else:
            try:
                report = _explained(run, str(capture.path))
            except NanreplayError as error:  # that it is non-finite stays true
                rerun.notes.append(f"Where it was born could not be told: {error}")
        run.close()
        return rerun.result(run, report)


def _explained(run: CurrentRun, path: str) -> Report | None:
    """Where the failure of a run was born; None when that could not be told."""
    written = run.write()
    if written is None:
        return None
    # What was written here is the user's own code, so its program may run.
    return replace(explain(written, trust=True, fixes="none"), path=path)


@dataclass
class Rerun:
    """A capture and the user's current code.

    Raises:
        ModelError: The current model cannot be made, or the recorded state does not fit it.
        AttachError: The current model is not compiled.
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
        """Make the step and match its variables.

        Nothing has run yet but, where the step is plain Python, one step.
        """
        self.notes: list[str] = []
        compilation = compilation_of(self.capture)
        self.step = CurrentStep(make_training(self.name, self.make), compilation)
        self.window: RecordedWindow = recorded_window(self.capture, trust=self.trust)
        self.step.build(self.capture.batch(self.window.steps[0]))
        self._initial_state = self.step.state()
        # Before the first update slots hold initial values, which the code makes itself: a capture
        # that begins there fits another optimizer as well.
        self._has_updates = iterations_of(self.capture, self.window.state) != 0
        self.match = self._matched()
        self.rates = self._rates()

    def _matched(self) -> Match:
        recorded, current = self.capture.variables_info, self.step.table.infos
        match = match_variables(
            recorded, current, self.renamed or {}, with_optimizer=self._has_updates
        )
        path, hint = self.capture.path, suggestion(match, recorded, current)
        mismatches = problems(match, recorded, current)
        if mismatches and not self.allow_missing:
            reasons = "; ".join(mismatches)
            raise ModelError(
                f"{path}: the recorded state does not fit {self.name}: {reasons}.", hint=hint
            )
        weights = []
        for index, info in enumerate(recorded):
            if info.role == "trainable":
                weights.append(index)
        # Without weights nothing would be left of the recording but its batches.
        if weights and not any(index in match.pairs for index in weights):
            raise ModelError(
                f"{path}: none of the recorded weights has a place in {self.name}.", hint=hint
            )
        self.notes += notes_of(match, recorded, current)
        return match

    def _rates(self) -> dict[int, float]:
        """Learning rates to set before steps."""
        capture = self.capture
        program = capture.batch(capture.incident.step).program
        if program:
            is_variable = capture.signature(program).learning_rate is not None
        else:
            paths = [info.path for info in capture.variables_info]
            is_variable = any(path.endswith("learning_rate") for path in paths)
        rates, notes = chosen_rates(
            recorded_rates(capture.timeline_record()),
            self.window.steps,
            rate_of(self.step.optimizer),
            self.learning_rate,
            is_variable=is_variable,
        )
        self.notes += notes
        return rates

    def run(self, path: str, progress: Progress | None = None) -> CurrentRun:
        """Run the window, up to the first step that is not finite.

        Args:
            path: The capture that the run can be written to.
            progress: Called with (steps done, steps in all).

        Raises:
            ModelError: The step does not take a recorded batch.
        """
        return self._run_steps(path, self.window.state, self.window.steps, progress, self.match)

    def try_failing_state(self) -> None:
        """Note whether the failing step alone is finite too, from the state in which it failed.

        For when the window is finite: the code may keep out of that state or survive it.
        """
        state = self.window.failing_state
        if state is None:
            return
        self.step.load(self._initial_state)
        failing_step = self.capture.incident.step
        # In that state the optimizer has made updates, so its slots are matched as well.
        full_match = match_variables(
            self.capture.variables_info, self.step.table.infos, self.renamed or {}
        )
        run = self._run_steps("", state, [failing_step], None, full_match)
        run.close()
        alone = f"Step {failing_step} alone, from the recorded state just before it,"
        if run.trigger is None:
            self.notes.append(f"{alone} is finite too.")
            return
        self.notes.append(
            f"{alone} still fails ({readable_trigger(run.trigger)}): "
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
        values = {}
        for recorded, current in match.pairs.items():
            if recorded in state:
                values[current] = state[recorded]
        self.step.load(values)
        run = self.step.start_run(path, steps[0], steps=len(steps), max_skipped=self._max_skipped())
        # What was not finite before the first step is no failure of a step, unless it is what the
        # recorded incident names.
        recorded_failure, infos = self.capture.incident.trigger.name, self.step.table.infos
        run.ignore(
            index
            for index, value in values.items()
            if infos[index].path != recorded_failure and has_nonfinite(as_array(value))
        )
        for done, step in enumerate(steps, start=1):
            if step in self.rates:
                set_rate(self.step.optimizer, self.rates[step])
            is_finite = run.run(self.capture.batch(step))
            if progress is not None:
                progress(done, len(steps))
            if not is_finite:
                break
        return run

    def _max_skipped(self) -> int:
        """Updates that loss scaling may skip in a row before that is an incident.

        As few as made the recorded incident, within this window: the user may have set a lower
        limit than the default, and the window may begin after the first skip.
        """
        default = Settings("").max_skipped
        if self.capture.incident.trigger.name != "loss scale":
            return default
        columns = self.capture.timeline_columns()
        flags = zip(columns["step"], columns["skipped"], strict=True)
        skipped = []
        for step, flag in flags:
            if int(step) in self.window.steps:
                skipped.append(bool(flag))
        last_in_a_row = len(list(takewhile(bool, reversed(skipped))))
        return max(1, min(default, last_in_a_row))

    def result(self, run: CurrentRun, report: Report | None) -> RerunResult:
        """What a run says of the recorded failure.

        Raises:
            ModelError: The step raised something that has nothing to do with the recorded failure.
        """
        incident, window = self.capture.incident, self.window
        if run.error is not None and not self._is_failure(run, report):
            problem = (
                f"{self.name}: step {run.failed_step} of the recording raised with today's code"
            )
            raise raised(problem, run.error) from run.error
        is_finite = run.trigger is None
        notes = [*incident.notes, *self.notes, *self._limits(is_finite=is_finite)]
        if report is not None:
            notes += report.findings.notes
        is_healthy = incident.trigger.what == "manual" and not window.reproduces
        fixed = self._is_fixed(is_finite=is_finite, is_healthy=is_healthy)
        sentence = sentence_of(
            self.name,
            incident,
            window,
            run,
            report,
            fixed=fixed,
            is_healthy=is_healthy,
            random_ops=self.step.random_ops,
        )
        return RerunResult(
            path=str(self.capture.path),
            model=self.name,
            finite=is_finite,
            fixed=fixed,
            sentence=sentence,
            steps=step_results(self.capture, self.renamed or {}, run),
            report=report,
            notes=tuple(dict.fromkeys(notes)),
            is_healthy=is_healthy,
        )

    def _is_fixed(self, *, is_finite: bool, is_healthy: bool) -> bool | None:
        """Whether the recorded failure is gone; None when that is not known.

        A finite run shows it only where the recorded program fails on the same window, and where
        the current step draws no other random numbers than the recorded one.
        """
        if not is_finite:
            return False
        reproduces = self.window.reproduces
        if reproduces is None:
            reproduces = self.capture.incident.reproduced
        if reproduces and not is_healthy and not self.step.random_ops:
            return True
        return None

    def _is_failure(self, run: CurrentRun, report: Report | None) -> bool:
        """Whether an exception is the recorded one, or stands for a non-finite value."""
        recorded, trigger = self.capture.incident.trigger, run.trigger
        if recorded.what == "exception" and trigger is not None and trigger.name == recorded.name:
            return True
        return report is not None and report.findings.origin is not None

    def _limits(self, *, is_finite: bool) -> list[str]:
        """What of the recorded training the run cannot repeat."""
        notes, window = [], self.window
        if window.changed:
            changed = readable_list(list(window.changed), 3)
            notes.append(
                f"Something outside of the steps changed {changed} while training ran; "
                "that is not repeated with today's code."
            )
        if window.reason is not None:
            outcome = "so whether it still fails is not known"
            if self.capture.incident.reproduced:
                outcome = "it did when the file was written"
            reason = window.reason.rstrip(".")
            notes.append(f"The recorded program was not run beside it ({reason}); {outcome}.")
        if window.steps[0] == 0 and not is_finite:
            notes.append(
                "Step 0 began with the recorded initial weights: "
                "other initial weights of today's code were not tried."
            )
        return notes
