"""What the tasks that look into a step gave, stored beside the reports: the same pictures at every
run, without TensorFlow.

`python tests/tui/stored_steps.py` writes them anew; do so when the sample runs, or what
`nanreplay.explore` tells, have changed.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from nanreplay.replay.provenance import ValueId
from nanreplay.tui.view_tasks import (
    ElementRef,
    ExploreTask,
    ViewOperands,
    ViewStep,
    ViewTensor,
)
from nanreplay.tui.worker import Task, WorkerContext

try:
    from tui.stored import REPORTS, ROOT, StoredEngine, stored_report
except ImportError:  # run as a script
    from stored import REPORTS, ROOT, StoredEngine, stored_report  # type: ignore[import-not-found,no-redef]

Key = tuple[object, ...]
NAMES = ("log_of_zero", "float16_overflow")


def key_of(task: Task[Any]) -> Key:
    """What is asked, whichever file it is asked of."""
    return (
        type(task).__name__,
        *(
            getattr(task, field.name)
            for field in fields(task)
            if field.name not in ("path", "origin")
        ),
    )


class StoredSteps(StoredEngine):
    """Answers what is stored of steps, tensors and batches, too."""

    def _answer(self, task: Task[Any]) -> Any:
        if not isinstance(task, ExploreTask):
            return super()._answer(task)
        found = pickle.loads(_file(task.path).read_bytes())
        if isinstance(task, ViewOperands) and key_of(task) not in found:
            return ElementRef((), ())
        return found[key_of(task)]


def _file(path: str) -> Path:
    return REPORTS / f"{Path(path).stem}.pickle"


def _tasks(name: str) -> Iterator[Task[Any]]:
    path, origin = str(ROOT / "sample_runs" / f"{name}.h5"), stored_report(name).findings.origin
    assert origin is not None
    yield ViewStep(path, origin, origin.step)
    view = ViewStep(path, origin, origin.step).run(CONTEXT).view
    value = view.origins[0]
    yield ViewTensor(path, origin, view.step, value, None)
    yield ViewOperands(path, origin, view.step, ValueId(value.serial, 0), None)
    yield ViewOperands(path, origin, view.step, value, origin.outputs[0].indices[0])


CONTEXT = WorkerContext(lambda message: None, lambda task_id: False, trust=False)

if __name__ == "__main__":
    for each in NAMES:
        found = {key_of(task): task.run(CONTEXT) for task in _tasks(each)}
        (REPORTS / f"{each}.pickle").write_bytes(pickle.dumps(found))
        print(each, len(found), (REPORTS / f"{each}.pickle").stat().st_size)
