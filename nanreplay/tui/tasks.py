"""Tasks for the worker process that call the library's engines. Imports no TensorFlow; the tasks do when they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from nanreplay.findings import Report
from nanreplay.tui.worker import Task, WorkerContext

if TYPE_CHECKING:
    from nanreplay.replay.programs import Mode
    from nanreplay.report.explain import Fixes


@dataclass(frozen=True)
class ReplayedStep:
    """What one step gave; the part of `nanreplay.replay.StepResult` that is shown, without that module's imports."""

    step: int
    finite: bool
    loss: float | None
    bit_exact: bool | None
    max_ulp: int | None


@dataclass(frozen=True)
class ReplayedSteps:
    """The window replayed in one mode."""

    mode: str
    steps: tuple[ReplayedStep, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Explain(Task[Report]):
    """Replay, judge, bisect, diagnose, try fixes. Its early part is the report without fixes."""

    fixes: Fixes = "fast"
    """Which fixes are tried."""
    label: ClassVar[str] = "replaying"

    def run(self, context: WorkerContext) -> Report:
        """Explain the capture."""
        from nanreplay.report.explain import explain

        given = None if self.fixes == "none" else context.partial
        return explain(self.path, trust=context.trust, fixes=self.fixes, progress=context.progress, say=context.say, before_fixes=given)


@dataclass(frozen=True)
class ReplaySteps(Task[ReplayedSteps]):
    """Replay every step of the window in one mode."""

    mode: str = "recorded"
    """`recorded`, `graph`, `ops` or `float64`."""
    label: ClassVar[str] = "replaying the window"

    def run(self, context: WorkerContext) -> ReplayedSteps:
        """Replay the steps."""
        from nanreplay.capture import Capture
        from nanreplay.report.steps import replay_steps

        context.say(f"replaying the window, {self.mode}")
        with Capture(self.path) as capture:
            results, notes = replay_steps(capture, cast("Mode", self.mode), trust=context.trust, progress=context.progress)
        steps = tuple(ReplayedStep(each.step, each.finite, each.loss, each.bit_exact, each.max_ulp) for each in results)
        return ReplayedSteps(self.mode, steps, notes)
