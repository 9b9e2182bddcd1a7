"""Tasks for the worker process that call the library's engines. Imports no TensorFlow; the tasks do when they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nanreplay.findings import Report
from nanreplay.tui.worker import Task, WorkerContext

if TYPE_CHECKING:
    from nanreplay.report.explain import Fixes


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
