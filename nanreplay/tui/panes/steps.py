"""`StepPane`, the base of the panes that look into a step."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType

from nanreplay.explore import Op, StepView
from nanreplay.findings import Origin, Report
from nanreplay.replay.events import ValueId
from nanreplay.tui.exploring import Seen, ViewStep
from nanreplay.tui.panes.base import Pane
from nanreplay.tui.state import CaptureState, Place

_STEPS_KEPT = 4
STEP_BINDINGS = (
    Binding(
        "less_than_sign,comma", "other_step(-1)", "Step before", key_display="<", show=False, id="step.before", tooltip="The step before"
    ),
    Binding(
        "greater_than_sign,full_stop", "other_step(1)", "Next step", key_display=">", show=False, id="step.next", tooltip="The next step"
    ),
)
"""Keys of every pane that shows a step."""


class StepPane(Pane):
    """Shows a step, the failing one at first; what it ran is remembered for the other panes."""

    BINDINGS: ClassVar[list[BindingType]] = [*STEP_BINDINGS]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.view: StepView | None = None
        """The step that is shown; None before the first one was run."""
        self.steps: tuple[int, ...] = ()
        """Steps that can be looked at."""
        self._wanted: Place | None = None

    def on_mount(self) -> None:
        """Show what is known already; look at the step of the incident when no report is on its way."""
        super().on_mount()
        self.app.theme_changed_signal.subscribe(self, lambda theme: self.show_theme())
        if self.state.report is None and self.state.engine.progress is None:
            self.show_place(Place(self.state.failing_step))

    @property
    def origin(self) -> Origin | None:
        """What the report says of the origin."""
        return self.state.report.findings.origin if self.state.report is not None else None

    def show_report(self, report: Report) -> None:
        """Look at the step of the origin, as soon as it is known."""
        if self._wanted is None:
            self.show_place(self.state.place or Place(self.state.failing_step))

    def show_place(self, place: Place) -> None:
        """Look at a step, and at an op of it."""
        self._wanted = place
        self.load(place)

    @work(exclusive=True, group="step", exit_on_error=False)
    async def load(self, place: Place) -> None:
        """Run the step unless that was done, and show the place."""
        seen = await self.see(place.step)
        self.view, self.steps = seen
        self.show_view(seen.view, value_at(seen.view, place))

    async def see(self, step: int) -> Seen:
        """Return a step as it ran op by op."""
        known = self.state.seen
        if step not in known:
            known[step] = await self.ask(ViewStep(self.path, self.origin, step))
            for old in list(known)[:-_STEPS_KEPT]:
                del known[old]
        return known[step]

    def show_view(self, view: StepView, value: ValueId | None) -> None:
        """Show a step.

        Args:
            view: The step.
            value: What to show of it; None for what matters most.
        """

    def show_theme(self) -> None:
        """Draw in other colours."""

    def action_other_step(self, by: int) -> None:
        """Look at the step before, or at the next one."""
        if self.view is None or not self.steps:
            return
        later = [step for step in self.steps if (step - self.view.step) * by > 0]
        if later:
            self.show_place(Place(min(later) if by > 0 else max(later)))
        else:
            self.notify(f"Step {self.view.step} is the {'last' if by > 0 else 'first'} that can be run op by op.", timeout=3)


def value_at(view: StepView, place: Place) -> ValueId | None:
    """Return the value that a place means; None for a step alone."""
    if place.serial is not None:
        return ValueId(place.serial, place.output)
    named = next((op for op in view.ops if op.name == place.op_name), None) if place.op_name is not None else None
    return None if named is None else ValueId(named.serial, place.output)


def first_value(view: StepView) -> ValueId:
    """Return what matters most in a step: the first origin, else the first non-finite value, else the last op's."""
    if view.origins:
        return view.origins[0]
    bad = next((op for op in view.ops if op.health != "finite"), None) or next((op for op in reversed(view.ops) if op.outputs), None)
    return ValueId(0, 0) if bad is None else ValueId(bad.serial, worst_output(bad))


def worst_output(op: Op) -> int:
    """Return which output of an op to look at first."""
    return max(range(len(op.outputs)), key=lambda k: (op.outputs[k].nan > 0, op.outputs[k].nonfinite, -k), default=0)
