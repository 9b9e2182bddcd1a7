"""`Pane`, the base of all tabs, and `StepPane`, the base of those that look into a step.

The contract of a pane is told in the docstring of the package. Messages from a pane to its screen
(`Go`, `Failed`) and what it offers to copy (`Copyable`) stand here as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.worker import Worker, WorkerState

from nanreplay.explore import Op, StepView
from nanreplay.explore.dataflow import is_bad
from nanreplay.findings import Origin
from nanreplay.records import Frame
from nanreplay.replay.provenance import ValueId
from nanreplay.report.contents import Report
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.view_tasks import ViewedStep, ViewStep
from nanreplay.tui.widgets.code_view import CodeView, coloured_file
from nanreplay.tui.widgets.op_words import value_words
from nanreplay.tui.worker import Task

T = TypeVar("T")
CURSOR_REST_S = 0.1
"""Seconds that a cursor rests before the worker process is asked about what is under it."""


@dataclass(frozen=True)
class Copyable:
    """Something that can be copied to the clipboard."""

    label: str
    """What it is, e.g. `the tensor's name`."""
    text: str


class Go(Message):
    """Ask for another tab.

    Args:
        pane: Id of the tab, as in `PANES`.
        place: What to show there; what it showed last unless given.
    """

    def __init__(self, pane: str, place: ViewPosition | None = None) -> None:
        super().__init__()
        self.pane = pane
        self.place = place


class Failed(Message):
    """Work of a pane has failed; the screen shows why."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Pane(Vertical):
    """One tab of an open capture.

    Args:
        state: The capture, its report, and the worker process.
    """

    HELP: ClassVar[str] = ""
    """What the pane is for, in a few sentences."""

    DEFAULT_CSS = "Pane { height: 1fr; }"

    def __init__(self, state: CaptureState) -> None:
        super().__init__()
        self.state = state

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield from ()

    def on_mount(self) -> None:
        """Show what is known already."""
        if self.state.report is not None:
            self.show_report(self.state.report)
        elif self.state.failure is not None:
            self.show_failure(self.state.failure)

    @property
    def path(self) -> str:
        """The capture file, as tasks take it."""
        return str(self.state.opened.path)

    @property
    def origin(self) -> Origin | None:
        """What the report says of the origin; None when there is none, or no report yet."""
        return self.state.report.findings.origin if self.state.report is not None else None

    def show_report(self, report: Report) -> None:
        """Show a report that has arrived."""

    def show_failure(self, reason: str) -> None:
        """Show that there will be no report, and why."""

    def show_place(self, place: ViewPosition) -> None:
        """Show a place that the user wants to see here."""

    def frame(self) -> Frame | None:
        """The line of code that is shown, for the editor; the failing one unless there is one."""
        return self.origin.source if self.origin is not None else None

    def copies(self) -> Sequence[Copyable]:
        """Return what can be copied here, besides the sentence and the JSON of the report."""
        return ()

    def exports(self) -> Mapping[str, Callable[[], object]]:
        """Return what can be exported here besides the screen and the text, by label."""
        return {}

    def as_text(self) -> str:
        """Return all of what is shown, in lines; "" where only a picture can be exported."""
        return ""

    async def ask(self, task: Task[T], *, partial: Callable[[Any], None] | None = None) -> T:
        """Run a task in the worker process.

        Args:
            task: What to do.
            partial: Called with early parts of the result.
        """
        return await self.state.engine.run(task, partial=partial)

    def show_failing_step_if_idle(self) -> None:
        """Show the failing step when no report is there, and none is on its way."""
        if self.state.report is None and self.state.engine.progress is None:
            self.show_place(ViewPosition(self.state.failing_step))

    @on(Worker.StateChanged)
    def _worker_changed(self, event: Worker.StateChanged) -> None:
        # Workers have exit_on_error=False: Textual would end the application at the first error.
        if event.state == WorkerState.ERROR and event.worker.error is not None:
            event.stop()
            self.post_message(Failed(event.worker.error))


# Panes that look into a step

_STEPS_KEPT = 4
"""Steps that are remembered for the panes; one of a large model takes some megabytes."""
STEP_BINDINGS = (
    Binding(
        "less_than_sign,comma",
        "other_step(-1)",
        "Step before",
        key_display="<",
        show=False,
        id="step.before",
        tooltip="The step before",
    ),
    Binding(
        "greater_than_sign,full_stop",
        "other_step(1)",
        "Next step",
        key_display=">",
        show=False,
        id="step.next",
        tooltip="The next step",
    ),
)
"""Keys of every pane that shows a step."""
OP_BINDINGS = (
    Binding(
        "backspace,minus,alt+left",
        "back(-1)",
        "Back",
        id="step.back",
        tooltip="Back to where you came from",
    ),
    Binding(
        "plus,alt+right",
        "back(1)",
        "Forward",
        show=False,
        key_display="+",
        id="step.forward",
        tooltip="Forward again, after going back",
    ),
    Binding(
        "m",
        "names",
        "Names",
        show=False,
        id="step.names",
        tooltip="Show ops by type and name, or by the code that made them",
    ),
    Binding("s", "source", "Source", show=False, id="step.source", tooltip="The line of code"),
)
"""Keys of every pane that shows an op of a step."""


class StepPane(Pane):
    """Shows a step, the failing one at first; what it ran is remembered for the other panes."""

    BINDINGS: ClassVar[list[BindingType]] = [*STEP_BINDINGS, *OP_BINDINGS]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.view: StepView | None = None
        """The step that is shown; None before the first one was run."""
        self.steps: tuple[int, ...] = ()
        """Steps that can be looked at."""
        self._wanted: ViewPosition | None = None
        """What was last asked for; it may still be on its way."""

    def on_mount(self) -> None:
        """Show what is known already, or the step of the incident when no report will come."""
        super().on_mount()
        self.app.theme_changed_signal.subscribe(self, lambda theme: self.show_theme())
        self.show_failing_step_if_idle()

    def show_report(self, report: Report) -> None:
        """Look at the step of the origin, as soon as it is known."""
        if self._wanted is None:
            self.show_place(self.state.place or ViewPosition(self.state.failing_step))

    def show_place(self, place: ViewPosition) -> None:
        """Look at a step, and at an op of it."""
        self._wanted = place
        self.load(place)

    @work(exclusive=True, group="step", exit_on_error=False)
    async def load(self, place: ViewPosition) -> None:
        """Run the step unless that was done, and show the place."""
        viewed = await self.viewed_step(place.step)
        self.view, self.steps = viewed
        value = value_at(viewed.view, place)
        if value is None and place.op_name is not None:
            message = f"No op {place.op_name} ran in step {place.step}."
            self.notify(message, severity="warning", timeout=8)
        self.show_view(viewed.view, value)

    async def viewed_step(self, step: int) -> ViewedStep:
        """Return a step as it ran op by op; run it unless it is remembered."""
        remembered = self.state.viewed_steps
        if step not in remembered and self.state.look_follows is not None:
            await self.state.look_follows.wait()
        if step not in remembered:
            # The worker process, which found the origin, may have run it already.
            remembered[step] = await self.ask(ViewStep(self.path, self.origin, step))
            for oldest in list(remembered)[:-_STEPS_KEPT]:
                del remembered[oldest]
        return remembered[step]

    def show_view(self, view: StepView, value: ValueId | None) -> None:
        """Show a step.

        Args:
            view: The step.
            value: What to show of it; None for what matters most.
        """

    def show_theme(self) -> None:
        """Draw in other colours."""

    def frame(self) -> Frame | None:
        """The line that made the op that is shown."""
        op = self.shown_op()
        return None if op is None else op.source

    def shown_op(self) -> Op | None:
        """The op that is shown; None for a value that entered the step."""
        return None

    def show_code(self) -> None:
        """Mark the line of the op that is shown in the code beside it.

        Its file is read first where that was not done.
        """
        op, code = self.shown_op(), self.query_one(CodeView)
        frame = None if op is None else op.source
        file = None if frame is None else self.state.code.get(frame.file)
        code.show(
            file, frame, is_bad=op is not None and is_bad(op), value=value_words(op) if op else ""
        )
        if frame is not None and file is None:
            self.read_code(frame.file)

    @work(exclusive=True, group="code", exit_on_error=False)
    async def read_code(self, file: str) -> None:
        """Read a file of code in a thread, and show it."""
        read = await asyncio.to_thread(coloured_file, self.state.opened.path, file)
        self.state.code[file] = read
        self.show_code()

    def action_back(self, by: int) -> None:
        """Go back along the way, or forward again."""

    def action_names(self) -> None:
        """Show ops by name, or by the code that made them."""

    def action_source(self) -> None:
        """Show the line that made the op, in its file."""
        frame = self.frame()
        if frame is None:
            self.notify("No line of your code made it.", timeout=3)
        else:
            self.post_message(Go("source", ViewPosition(self.state.failing_step, frame=frame)))

    def action_other_step(self, by: int) -> None:
        """Look at the step before, or at the next one."""
        if self.view is None or not self.steps:
            return
        step = next_beyond(self.steps, self.view.step, by)
        if step is not None:
            self.show_place(ViewPosition(step))
            return
        end = "last" if by > 0 else "first"
        self.notify(f"Step {self.view.step} is the {end} that can be run op by op.", timeout=3)


def next_beyond(numbers: Iterable[int], number: int, direction: int) -> int | None:
    """Return the nearest of some numbers above, or below, one of them; None at the end.

    Args:
        numbers: Steps or rows, in any order.
        number: Where to begin.
        direction: Positive for the next one above, negative for the next one below.
    """
    beyond = [other for other in numbers if (other - number) * direction > 0]
    if direction > 0:
        return min(beyond, default=None)
    return max(beyond, default=None)


def value_at(view: StepView, place: ViewPosition) -> ValueId | None:
    """Return the value that a place means; None for a step alone."""
    if place.serial is not None:
        return ValueId(place.serial, place.output)
    if place.op_name is None:
        return None
    op = next((op for op in view.ops if op.name == place.op_name), None)
    return None if op is None else ValueId(op.serial, place.output)


def first_value(view: StepView) -> ValueId:
    """Return what matters most in a step.

    That is its first origin, else the first value that is not finite, else the last op's.
    """
    if view.origins:
        return view.origins[0]
    op = next((op for op in view.ops if op.health != "finite"), None)
    if op is None:
        op = next((op for op in reversed(view.ops) if op.outputs), None)
    return ValueId(0, 0) if op is None else ValueId(op.serial, worst_output(op))


def worst_output(op: Op) -> int:
    """Return which output of an op to look at first: one with NaN, else the most non-finite."""

    def rank(output: int) -> tuple[bool, int, int]:
        stat = op.outputs[output]
        return stat.nan > 0, stat.nonfinite, -output  # of equals, the first one

    return max(range(len(op.outputs)), key=rank, default=0)
