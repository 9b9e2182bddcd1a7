"""Reports of sample runs, stored as text, and an engine that hands them out: the same screen at
every run, without TensorFlow.

`python tests/tui/stored.py` writes the reports anew; do so when the sample runs or the report
have changed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, TypeVar

from nanreplay import findings, records
from nanreplay.report import contents
from nanreplay.report.contents import Report
from nanreplay.report.report_json import to_json
from nanreplay.triage.capture_answer import CaptureAnswer
from nanreplay.tui.engine import (
    AnswerCapture,
    Engine,
    Explain,
    Progress,
    ReplayedStep,
    ReplayedSteps,
    ReplaySteps,
)
from nanreplay.tui.worker import Task

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
REPORTS = Path(__file__).with_name("reports")
NAMES = ("log_of_zero", "exploding_rnn", "float16_overflow")


def stored_report(name: str) -> Report:
    """The report of a sample run: the text is how Python writes the dataclasses."""
    names = {
        **vars(findings),
        **vars(records),
        **vars(contents),
        "nan": float("nan"),
        "inf": float("inf"),
    }
    report: Report = eval((REPORTS / f"{name}.txt").read_text(encoding="utf-8"), names)
    return report


class StoredEngine(Engine):
    """Answers at once from what is stored.

    Args:
        waits: Whether the replay goes on for ever, 12 of 25 steps done.
        error: What every task raises, if given.
    """

    def __init__(self, *, waits: bool = False, error: Exception | None = None) -> None:
        super().__init__()
        self.asked: list[Task[Any]] = []
        self.waits, self.error = waits, error

    async def run(self, task: Task[T], *, partial: Any = None) -> T:
        self.asked.append(task)
        if self.waits:
            self._tell(Progress("replaying", 12, 25))
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        answer: Any = self._answer(task)
        return answer  # type: ignore[no-any-return]

    def _answer(self, task: Task[Any]) -> Any:
        if isinstance(task, Explain):
            return stored_report(Path(task.path).stem)
        if isinstance(task, AnswerCapture):
            report = stored_report(Path(task.path).stem)
            return CaptureAnswer(task.path, "nonfinite", report.sentence, to_json(report))
        if isinstance(task, ReplaySteps):
            steps = (
                ReplayedStep(11, True, 0.5, True, 0),
                ReplayedStep(12, task.mode == "float64", float("nan"), True, 0),
            )
            return ReplayedSteps(task.mode, steps, ())
        raise AssertionError(f"nothing is stored for {task}")


def regenerate() -> None:
    """Replay the sample runs and store their reports."""
    from nanreplay.report.explain import explain

    for name in NAMES:
        report = explain(ROOT / "sample_runs" / f"{name}.h5", fixes="all")
        text = repr(report).replace(str(ROOT) + "/", "")
        (REPORTS / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        print(name, report.sentence)


if __name__ == "__main__":
    regenerate()
