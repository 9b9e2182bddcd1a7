"""Looking at other tensors while fixes are tried: both are done, and neither changes the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tui.stored import ROOT

from nanreplay.replay.provenance import ValueId
from nanreplay.report.contents import Report
from nanreplay.tui.engine import Explain
from nanreplay.tui.view_tasks import ViewStep, ViewTensor
from nanreplay.tui.worker import WorkerContext

PATH = str(ROOT / "sample_runs" / "log_of_zero.h5")


class Asking(WorkerContext):
    """Looks at one tensor after the other while fixes are tried, as an impatient user does."""

    def __init__(self) -> None:
        super().__init__(
            lambda message: None, lambda task_id: False, trust=False, give_way=self.look
        )
        self.seen: list[str] = []
        self.is_asking = False

    def look(self) -> bool:
        """Look at a tensor that was not kept, in the failing step and in the one before."""
        if not self.is_asking or len(self.seen) >= 6:
            return False
        step = 12 - len(self.seen) % 2
        view = ViewStep(PATH, None, step).run(self).view
        op = [op for op in view.ops if op.outputs and op.outputs[0].size > 1][len(self.seen) * 3]
        seen = ViewTensor(PATH, None, step, ValueId(op.serial, 0)).run(self)
        self.seen.append(f"{seen.name} {seen.stat}")
        return True


@pytest.fixture(scope="module")
def context() -> Iterator[Asking]:
    made = Asking()
    yield made
    made.close()


def test_fixes_give_the_same_whether_or_not_tensors_are_looked_at_meanwhile(
    context: Asking,
) -> None:
    def fixes(report: Report) -> list[str]:
        return [repr(each) for each in report.fixes]

    alone = Explain(PATH).run(context)
    context.is_asking = True
    asked = Explain(PATH, is_anew=False).run(context)
    assert fixes(asked) == fixes(alone) != []
    seen_meanwhile, context.is_asking = context.seen, False
    assert len(seen_meanwhile) == 6
    context.seen, context.is_asking = [], True  # once more, with nothing beside it
    while context.look():
        pass
    assert context.seen == seen_meanwhile
