"""Tasks for the worker process that look into steps and tensors, and what they return.

The panes of a step ask them. All tasks of one capture share an `Explorer`, which remembers the
replay and the tensors of the last steps; see `WorkerContext.kept`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

from nanreplay.explore import OperandElement, StepView, TensorAtStep, TensorView
from nanreplay.findings import Origin
from nanreplay.replay.provenance import ValueId
from nanreplay.tui.worker import Task, WorkerContext

if TYPE_CHECKING:
    from nanreplay.explore import Explorer
    from nanreplay.report.explain import ExplainedReplay

T = TypeVar("T")


class ViewedStep(NamedTuple):
    """A step as it ran op by op, and which others can be looked at."""

    view: StepView
    steps: tuple[int, ...]
    """Steps that can be run op by op, ascending."""


class ElementRef(NamedTuple):
    """One element of a tensor, and what it was computed from."""

    at: tuple[int, ...]
    """Index of the element; () for that of a scalar."""
    operands: tuple[OperandElement, ...]


@dataclass(frozen=True)
class StepLook:
    """What panes show first of the step of the origin; it comes before the report does."""

    viewed: ViewedStep
    tensors: Mapping[ValueId, TensorView]
    """That of the origin, where one is known."""
    elements: Mapping[ValueId, ElementRef]
    """Of each tensor its first failing element."""


class OpenCapture:
    """An open capture in the worker process: its replay, and what its one run showed.

    Args:
        path: The capture file.
        context: Of the task that opens it.
    """

    def __init__(self, path: str, context: WorkerContext) -> None:
        from nanreplay.capture import Capture
        from nanreplay.replay import Replay

        self._context = context
        self.capture = Capture(path)
        self.replay = Replay(self.capture, trust=context.trust)
        self.explained: ExplainedReplay | None = None
        """What was found; None before the capture was explained."""
        self._expected_ops = 0
        """Ops of the step that was last run; other steps have about as many."""
        self._explorer: Explorer | None = None
        self._marked: tuple[object, ...] | None = None
        """Step, name and type of the op that the explorer marks."""

    def explorer(self, origin: Origin | None) -> Explorer:
        """Return the explorer, with everything that was run before.

        Args:
            origin: What it marks where nothing was found in this process.
        """
        from nanreplay.explore import Explorer

        # Not the origin itself: it may hold NaN, and is then not equal to its own copy.
        marked = None if origin is None else (origin.step, origin.op_name, origin.op_type)
        if self.explained is None and marked != self._marked:
            self._explorer = None
        if self._explorer is None:
            found = self.explained.bisection if self.explained is not None else None
            self._marked = marked
            self._explorer = Explorer(
                self.replay, found, origin=None if found is not None else origin, tick=self._tick
            )
        return self._explorer

    def take(self, explained: ExplainedReplay) -> None:
        """Take what was found; the explorer goes on from the run that found it."""
        self.explained, self._explorer = explained, None

    def viewed_step(self, origin: Origin | None, step: int) -> ViewedStep:
        """Return a step as it ran; run it unless that was done before."""
        explorer = self.explorer(origin)
        view = explorer.step_view(step)
        self._expected_ops = len(view.ops)
        return ViewedStep(view, tuple(explorer.steps))

    def look(self, origin: Origin) -> StepLook | None:
        """Return the step of the origin and its tensor, without a run; None where none ran."""
        explorer = self.explorer(origin)
        if not explorer.has_run(origin.step):
            return None
        viewed = self.viewed_step(origin, origin.step)
        values = viewed.view.origins[:1]
        tensors = {value: explorer.tensor(origin.step, value) for value in values}
        elements = {}
        for value, tensor in tensors.items():
            at = tensor.failing[0] if tensor.failing else ()
            elements[value] = ElementRef(at, explorer.operands(origin.step, value, at))
        return StepLook(viewed, tensors, elements)

    def _tick(self, done: int) -> None:
        # A total of 0 shows no bar: nothing ran yet, or this step has more ops than the last.
        self._context.progress(done, self._expected_ops if done <= self._expected_ops else 0)

    def close(self) -> None:
        """Let go of the replay and the file."""
        self.replay.close()
        self.capture.close()


def key_of_capture(path: str) -> Hashable:
    """Return the key under which the worker process keeps an open capture."""
    return "capture", path


def open_in_worker(path: str, context: WorkerContext) -> OpenCapture:
    """Return the open capture that all tasks of a file share, opened by the first one."""
    return context.kept(key_of_capture(path), lambda: OpenCapture(path, context))


@dataclass(frozen=True)
class ExploreTask(Task[T]):
    """A question to the explorer of a capture; all of them share one."""

    origin: Origin | None
    """What the report says of the origin; None when there is none, or no report."""
    goes_first: ClassVar[bool] = True

    def explorer(self, context: WorkerContext) -> Explorer:
        """Return the capture's explorer, with everything that it remembers."""
        return open_in_worker(self.path, context).explorer(self.origin)


@dataclass(frozen=True)
class ViewStep(ExploreTask[ViewedStep]):
    """Run a step op by op and show it."""

    step: int
    label: ClassVar[str] = "running the step op by op"

    def is_ready(self, context: WorkerContext) -> bool:
        """Whether the step was viewed before."""
        opened = context.peek(key_of_capture(self.path))
        return opened is not None and opened.explorer(self.origin).was_viewed(self.step)

    def run(self, context: WorkerContext) -> ViewedStep:
        """Run it, unless that was done before."""
        return open_in_worker(self.path, context).viewed_step(self.origin, self.step)


@dataclass(frozen=True)
class ViewTensor(ExploreTask[TensorView]):
    """Show a tensor of a step."""

    step: int
    value: ValueId
    at: tuple[int, ...] | None = None
    """The element that its table is to show; the first failing one unless given."""
    label: ClassVar[str] = "running what leads to the tensor"

    def is_ready(self, context: WorkerContext) -> bool:
        """Whether the run of the step left the tensor in memory."""
        opened = context.peek(key_of_capture(self.path))
        return opened is not None and opened.explorer(self.origin).holds(self.step, self.value)

    def run(self, context: WorkerContext) -> TensorView:
        """Run what leads to the tensor when it was not kept."""
        return self.explorer(context).tensor(self.step, self.value, self.at)


@dataclass(frozen=True)
class ViewOperands(ExploreTask[ElementRef]):
    """Show what one element of a tensor was computed from."""

    step: int
    value: ValueId
    index: tuple[int, ...] | None
    """The element; the first failing one when None."""
    label: ClassVar[str] = "looking up operands"

    def is_ready(self, context: WorkerContext) -> bool:
        """Whether the run of the step left the tensor in memory."""
        opened = context.peek(key_of_capture(self.path))
        return opened is not None and opened.explorer(self.origin).holds(self.step, self.value)

    def run(self, context: WorkerContext) -> ElementRef:
        """Run what leads to the tensor when it was not kept."""
        explorer, index = self.explorer(context), self.index
        if index is None:
            failing = explorer.tensor(self.step, self.value).failing
            index = failing[0] if failing else ()
        return ElementRef(index, explorer.operands(self.step, self.value, index))


@dataclass(frozen=True)
class FollowTensor(ExploreTask[tuple[TensorAtStep, ...]]):
    """Show a tensor over the steps of the window; each step is an early part of the result."""

    step: int
    value: ValueId
    at: tuple[int, ...]
    """The element that is followed."""
    steps: tuple[int, ...] | None = None
    """Which steps; the last ones of the window unless given."""
    label: ClassVar[str] = "following the tensor over the steps"

    def run(self, context: WorkerContext) -> tuple[TensorAtStep, ...]:
        """Run each step as far as the tensor."""
        found = []
        explorer = self.explorer(context)
        for each in explorer.over_steps(self.step, self.value, self.at, self.steps):
            context.say(f"{self.label}: step {each.step}")
            context.partial(each)
            found.append(each)
        return tuple(found)


@dataclass(frozen=True)
class SaveTensor(ExploreTask[None]):
    """Write a tensor of a step for numpy; it does not cross the pipe."""

    step: int
    value: ValueId
    target: str
    """The file."""
    label: ClassVar[str] = "writing the tensor"

    def run(self, context: WorkerContext) -> None:
        """Run what leads to the tensor when it was not kept, and write it."""
        import numpy as np

        from nanreplay.capture.temporary import written_whole
        from nanreplay.tui.copying import ExportError

        array = self.explorer(context).array(self.step, self.value)
        try:
            with written_whole(Path(self.target)) as part, part.open("xb") as file:
                np.save(file, array, allow_pickle=False)
        except OSError as error:
            raise ExportError(f"{self.target}: {error.strerror or error}.") from error
