"""The tabs of an open capture, and the contract that each of them keeps.

**A pane** is a subclass of `Pane` (module `base`) in a module of its own, listed in `PANES`. The
module is imported and the pane mounted when its tab is shown for the first time, so that the first
picture waits for none but the overview. No such module may import TensorFlow or pandas, and an
expensive import belongs into the module of the one pane that needs it.

**What it sees** is `self.state`: `state.opened` (tables of the capture, there at once),
`state.report` (None until the replay is done), `state.place` (the step, op and tensor that the user
last went to).

**What it is told**: `show_report(report)` when a report arrives (on mounting, when it is there
already; twice when fixes follow later), `show_failure(reason)` when there will be none,
`show_place(place)` when another pane sends the user here. All of them run in the event loop: no
work of more than a few milliseconds there.

**Work** runs in the worker process (see `worker`), which is asked with a `Task`, a frozen dataclass
that says what to run:

```python
@dataclass(frozen=True)
class ViewStep(Task[StepView]):
    step: int
    label: ClassVar[str] = "running the step op by op"

    def run(self, context: WorkerContext) -> StepView:  # in the worker process, with TensorFlow
        explorer = context.kept((ViewStep, self.path), lambda: Explorer(Replay(self.path)))
        return explorer.step_view(self.step)

class BisectPane(Pane):
    @work(exclusive=True, group="step", exit_on_error=False)
    async def load(self, step: int) -> None:
        view = await self.ask(ViewStep(self.path, step))
        self.query_one(OpTree).show(view)
```

- `exclusive=True` with a `group` makes the newest request win: the older one's Textual worker is
  cancelled, and with it its task.
- Progress (`context.say`, `context.progress`) is shown by the status line; the escape key stops the
  running task. A task that does not report progress cannot stop by itself: its process is ended
  two seconds after escape, or ten after a newer task replaced it, and what `context.kept` holds is
  lost. While TensorFlow is loaded, it is left to finish that.
- A task that fails (any exception in a `@work` of a pane, with `exit_on_error=False`) is shown as
  an error screen, a stopped one as a notification. The pane need not handle either.
- `context.kept` holds what is expensive to make, such as an open replay, for the next task.
- Results are pickled: plain frozen dataclasses and numpy arrays, and of tensors only the window
  that is shown.
- Only `asyncio` workers as above, no threads: results arrive in the event loop.

**Going elsewhere**: `self.post_message(Go("dataflow", ViewPosition(step=12, serial=340)))` shows
another tab at a place.

**Copying and exporting**: `copies()` returns what `y` offers besides the sentence and the JSON,
`as_text()` what an export as text holds.

**Narrow terminals**: the screen has the class `-narrow` under 110 columns and `-wide` above,
`-short` under 36 lines and `-tall` above. DEFAULT_CSS is scoped to its widget, so rules such as
`.-narrow BisectPane #tree` belong into `styles.tcss`.

**Keys**: bindings have an id, a label, and a tooltip that the help screen shows; `HELP` says in a
few sentences what the pane is for. Keys taken by the capture screen: digits, `[`, `]`, `y`, `e`,
`q`, `?`, escape, ctrl+p, ctrl+o, ctrl+l.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanreplay.tui.panes.base import Pane


@dataclass(frozen=True)
class PaneEntry:
    """One tab."""

    id: str
    """What `Go` names."""
    title: str
    """Label of the tab."""
    module: str
    """Module of this package."""
    name: str
    """Class in the module."""
    about: str
    """What it shows, for the command palette."""

    def load(self) -> type[Pane]:
        """Import the pane's class; the first call can take longer than a key may wait."""
        pane: type[Pane] = getattr(import_module(f"{__name__}.{self.module}"), self.name)
        return pane


PANES: tuple[PaneEntry, ...] = (
    PaneEntry(
        "overview",
        "Overview",
        "overview_pane",
        "OverviewPane",
        "The answer: sentence, verdict, cause, fixes, facts of the run",
    ),
    PaneEntry(
        "timeline",
        "Timeline",
        "timeline_pane",
        "TimelinePane",
        "How the run got there: plots of the steps, layers by step",
    ),
    PaneEntry(
        "bisect",
        "Bisect",
        "bisect_pane",
        "BisectPane",
        "The failing step op by op: where the NaN was born",
    ),
    PaneEntry(
        "dataflow",
        "Dataflow",
        "dataflow_pane",
        "DataflowPane",
        "Where a value came from and where it went",
    ),
    PaneEntry(
        "tensor",
        "Tensor",
        "tensor_pane",
        "TensorPane",
        "The values of one tensor, at the elements that failed",
    ),
    PaneEntry(
        "batch", "Batch", "batch_pane", "BatchPane", "The sample that did it beside its neighbours"
    ),
    PaneEntry(
        "source",
        "Source",
        "source_pane",
        "SourcePane",
        "Your lines of code, the failing one marked",
    ),
    PaneEntry("whatif", "What-if", "whatif_pane", "WhatIfPane", "Fixes, tried on the recording"),
    PaneEntry(
        "verdict", "Verdict", "verdict_pane", "VerdictPane", "The ways of replaying, side by side"
    ),
)
"""All tabs, in order; the digits show them."""
DIGITS = "1234567890"
"""The key of each tab, in their order, as they lie on a keyboard: of a tenth one it is 0."""
