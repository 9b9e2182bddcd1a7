"""Tasks for the worker process that look into steps and tensors, and what they return.

The panes of a step ask them. All tasks of one capture share an `Explorer`, which remembers the
replay and the tensors of the last steps; see `WorkerContext.kept`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

from nanreplay.explore import OperandElement, StepView, TensorView
from nanreplay.findings import Origin
from nanreplay.replay.provenance import ValueId
from nanreplay.tui.worker import Task, WorkerContext

if TYPE_CHECKING:
    from nanreplay.explore import Explorer

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


class _OpenCapture:
    """An open capture in the worker process, with its replay."""

    def __init__(self, path: str, context: WorkerContext, origin: Origin | None) -> None:
        from nanreplay.capture import Capture
        from nanreplay.explore import Explorer
        from nanreplay.replay import Replay

        self.capture = Capture(path)
        self.replay = Replay(self.capture, trust=context.trust)
        self.expected_ops = 0
        """Ops of the step that was last run; other steps have about as many."""

        def tick(done: int) -> None:
            # A total of 0 shows no bar: nothing ran yet, or this step has more ops than the last.
            context.progress(done, self.expected_ops if done <= self.expected_ops else 0)

        self.explorer = Explorer(self.replay, origin=origin, tick=tick)

    def close(self) -> None:
        """Let go of the replay and the file."""
        self.replay.close()
        self.capture.close()


@dataclass(frozen=True)
class ExploreTask(Task[T]):
    """A question to the explorer of a capture; all of them share one."""

    origin: Origin | None
    """What the report says of the origin; None when there is none, or no report."""

    def explorer(self, context: WorkerContext) -> Explorer:
        """Return the capture's explorer, with everything that it remembers."""
        return self.open_capture(context).explorer

    def open_capture(self, context: WorkerContext) -> _OpenCapture:
        """Return the open capture, opened by the first task that needs it."""
        # The origin is part of the key: the explorer marks it, and a report may bring another.
        key = ("explorer", self.path, self.origin)
        return context.kept(key, lambda: _OpenCapture(self.path, context, self.origin))


@dataclass(frozen=True)
class ViewStep(ExploreTask[ViewedStep]):
    """Run a step op by op and show it."""

    step: int
    label: ClassVar[str] = "running the step op by op"

    def run(self, context: WorkerContext) -> ViewedStep:
        """Run it, unless that was done before."""
        opened = self.open_capture(context)
        view = opened.explorer.step_view(self.step)
        opened.expected_ops = len(view.ops)
        return ViewedStep(view, tuple(opened.explorer.steps))


@dataclass(frozen=True)
class ViewTensor(ExploreTask[TensorView]):
    """Show a tensor of a step."""

    step: int
    value: ValueId
    at: tuple[int, ...] | None = None
    """The element that its table is to show; the first failing one unless given."""
    label: ClassVar[str] = "running the step for a tensor"

    def run(self, context: WorkerContext) -> TensorView:
        """Run the step again when the tensor was not kept."""
        return self.explorer(context).tensor(self.step, self.value, self.at)


@dataclass(frozen=True)
class ViewOperands(ExploreTask[ElementRef]):
    """Show what one element of a tensor was computed from."""

    step: int
    value: ValueId
    index: tuple[int, ...] | None
    """The element; the first failing one when None."""
    label: ClassVar[str] = "looking up operands"

    def run(self, context: WorkerContext) -> ElementRef:
        """Run the step again when the tensor was not kept."""
        explorer, index = self.explorer(context), self.index
        if index is None:
            failing = explorer.tensor(self.step, self.value).failing
            index = failing[0] if failing else ()
        return ElementRef(index, explorer.operands(self.step, self.value, index))
