"""Tasks for the worker process that look at steps, tensors and batches, and the values that panes remember of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

from nanreplay.explore import BatchView, OperandElement, StepView, TensorView
from nanreplay.findings import Origin
from nanreplay.replay.provenance import ValueId
from nanreplay.tui.worker import Task, WorkerContext

if TYPE_CHECKING:
    from nanreplay.explore import Explorer

T = TypeVar("T")


class Seen(NamedTuple):
    """A step, and which others can be looked at."""

    view: StepView
    steps: tuple[int, ...]
    """Steps that can be run op by op, ascending."""


class ElementRef(NamedTuple):
    """One element of a tensor, and what it was computed from."""

    at: tuple[int, ...]
    operands: tuple[OperandElement, ...]


class _Held:
    """An open capture in the worker process, with its replay."""

    def __init__(self, path: str, context: WorkerContext, origin: Origin | None) -> None:
        from nanreplay.capture import Capture
        from nanreplay.explore import Explorer
        from nanreplay.replay import Replay

        self.capture = Capture(path)
        self.replay = Replay(self.capture, trust=context.trust)
        self.explorer = Explorer(
            self.replay,
            origin=origin,
            tick=lambda done: context.progress(done, self.ops if done <= self.ops else 0),
        )
        self.ops = 0
        """Ops of the step that was last run; other steps have about as many."""

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
        return self.held(context).explorer

    def held(self, context: WorkerContext) -> _Held:
        """Return the open capture."""
        return context.kept(
            ("explorer", self.path, self.origin), lambda: _Held(self.path, context, self.origin)
        )


@dataclass(frozen=True)
class ViewStep(ExploreTask[Seen]):
    """Run a step op by op and show it."""

    step: int
    label: ClassVar[str] = "running the step op by op"

    def run(self, context: WorkerContext) -> Seen:
        """Run it, unless that was done before."""
        held = self.held(context)
        view = held.explorer.step_view(self.step)
        held.ops = len(view.ops)
        return Seen(view, tuple(held.explorer.steps))


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


@dataclass(frozen=True)
class ViewBatch(ExploreTask[BatchView]):
    """Show some samples of a batch."""

    step: int
    row: int | None = None
    """The sample; the first of those to blame unless given."""
    around: int = 2
    """How many samples before and after it."""
    label: ClassVar[str] = "reading the batches"

    def run(self, context: WorkerContext) -> BatchView:
        """Read the batches of the window, the first time."""
        return self.explorer(context).batch(self.step, self.row, self.around)
