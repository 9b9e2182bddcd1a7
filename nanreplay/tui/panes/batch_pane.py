"""The batch: which samples are strange, and the one that did it beside its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from rich.style import Style
from rich.text import Text
from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from nanreplay.explore import BatchView
from nanreplay.findings import Origin
from nanreplay.report.contents import Report
from nanreplay.report.numbers import readable_list
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.panes.base import STEP_BINDINGS, Copyable, Pane
from nanreplay.tui.view_tasks import ViewBatch
from nanreplay.tui.widgets.figures import sample_bars
from nanreplay.tui.widgets.op_words import ORIGIN, tone
from nanreplay.tui.widgets.samples import SampleLook, sample_text

AROUND = 4
"""Samples before and after the one that is shown."""


class SampleStrip(Widget):
    """All samples of a batch, one column each: how strange each is, and which are to blame."""

    DEFAULT_CSS = "SampleStrip { height: 2; padding: 0 1; background: $panel; }"

    class Chosen(Message):
        """A sample was clicked."""

        def __init__(self, row: int) -> None:
            super().__init__()
            self.row = row

    def __init__(self) -> None:
        super().__init__()
        self.view: BatchView | None = None
        self.row = 0

    def show(self, view: BatchView, row: int) -> None:
        """Show the samples with the cursor on one."""
        self.view, self.row = view, row
        self.refresh()

    @property
    def first(self) -> int:
        """The first sample that fits, so that the cursor does."""
        size, fitting = (
            self.view.size if self.view is not None else 0,
            max(self.content_size.width, 1),
        )
        return max(0, min(self.row - fitting // 2, size - fitting))

    def render(self) -> Text:
        """Bars, and the marks of samples that are to blame."""
        if self.view is None:
            return Text("")
        shown = range(self.first, min(self.first + max(self.content_size.width, 1), self.view.size))
        colours = self.app.theme_variables
        line = Text(
            sample_bars(np.array([self.view.strangeness[row] for row in shown])),
            tone(colours, "text-primary"),
        )
        marks = Text(
            "".join(ORIGIN if row in self.view.rows else " " for row in shown),
            tone(colours, "text-accent"),
        )
        marks.stylize(Style(reverse=True), self.row - shown.start, self.row - shown.start + 1)
        return Text("\n").join([line, marks])

    def on_click(self, event: events.Click) -> None:
        """Choose the sample under the mouse."""
        at = event.get_content_offset(self)
        if self.view is not None and at is not None and self.first + at.x < self.view.size:
            self.post_message(self.Chosen(self.first + at.x))


class BatchPane(Pane):
    """Strip of all samples above, arrays of one sample below."""

    HELP = (
        "The batch of the step. The strip shows every sample: the higher, the further one of its values is from the other batches of "
        "the window, in standard deviations; ✗ holds non-finite values, ◆ is to blame as far as replays prove it. Below: the sample "
        "beside its neighbours; ▲ and ▼ are 3 deviations or more above and below the mean."
    )
    DEFAULT_CSS = """
    BatchPane #about { height: 1; padding: 0 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis; }
    BatchPane VerticalScroll { padding: 0 1; background: $background; }
    BatchPane VerticalScroll:focus { background: $surface; }
    BatchPane #arrays { height: auto; width: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left,h",
            "sample(-1)",
            "Sample before",
            key_display="←",
            id="batch.before",
            tooltip="The sample before",
        ),
        Binding(
            "right,l",
            "sample(1)",
            "Next sample",
            key_display="→",
            id="batch.next",
            tooltip="The next sample",
        ),
        Binding(
            "n",
            "blamed(1)",
            "Next bad",
            id="batch.blamed",
            tooltip="The next sample that is to blame",
        ),
        Binding(
            "N",
            "blamed(-1)",
            "Bad before",
            show=False,
            id="batch.blamed_before",
            tooltip="The sample before that is to blame",
        ),
        Binding(
            "z",
            "sort",
            "Strangest first",
            id="batch.sort",
            tooltip="Order values by their distance from the mean, or as they are",
        ),
        Binding("j", "scroll(1)", "Down", show=False, id="batch.down", tooltip="One line down"),
        Binding("k", "scroll(-1)", "Up", show=False, id="batch.up", tooltip="One line up"),
        *STEP_BINDINGS,
    ]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.view: BatchView | None = None
        self.row = 0
        self._step: int | None = None
        self._strangest_first = False

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static(
            "The batch is shown once the replay has found the step.", id="about", markup=False
        )
        yield SampleStrip()
        with VerticalScroll():
            yield Static(id="arrays", markup=False)

    def on_mount(self) -> None:
        """Show what is known already; the batch of the incident when no report is on its way."""
        super().on_mount()
        if self.state.report is None and self.state.engine.progress is None:
            self.show_place(ViewPosition(self.state.failing_step))
        self.app.theme_changed_signal.subscribe(self, lambda theme: self._draw())

    @property
    def origin(self) -> Origin | None:
        """What the report says of the origin."""
        return self.state.report.findings.origin if self.state.report is not None else None

    # The batch

    def show_report(self, report: Report) -> None:
        """Look at the batch of the failing step, as soon as it is known."""
        if self._step is None:
            self.show_place(ViewPosition(self.state.failing_step))

    def show_place(self, place: ViewPosition) -> None:
        """Look at the batch of a step."""
        self._step = place.step
        self.fetch(place.step, None)

    @work(exclusive=True, group="batch", exit_on_error=False)
    async def fetch(self, step: int, row: int | None) -> None:
        """Get a sample with its neighbours, and show it."""
        view = await self.ask(ViewBatch(self.path, self.origin, step, row, AROUND))
        self.view = view
        self.row = row if row is not None else view.rows[0] if view.rows else 0
        self._draw()

    def on_resize(self) -> None:
        """Fit as many neighbours as there is room for."""
        self._draw()

    def _draw(self) -> None:
        if self.view is None:
            return
        self.query_one("#about", Static).update(self._about(self.view))
        self.query_one(SampleStrip).show(self.view, self.row)
        self.query_one("#arrays", Static).update(self._arrays(self.view))

    def _about(self, view: BatchView) -> str:
        blamed = view.reason or "no sample stands out by itself"
        if view.rows:
            blamed = f"{ORIGIN} sample {readable_list(view.rows)}: {blamed}"
        usual = (
            f"usual is that of {view.compared} other batches"
            if view.compared
            else "usual is that of this batch"
        )
        return f"step {view.step} · sample {self.row} of {view.size} · {blamed} · {usual}"

    def _arrays(self, view: BatchView) -> Text:
        if not view.size:
            return Text("This batch has no array with a row for each sample.")
        if self.row not in view.shown:
            return Text(f"reading sample {self.row} …")
        look = SampleLook(
            max(self.size.width - 4, 40),
            self.app.theme_variables,
            self._strangest_first,
            self.app.no_color,
        )
        return sample_text(view, self.row, look)

    # Keys

    @on(SampleStrip.Chosen)
    def _chosen(self, event: SampleStrip.Chosen) -> None:
        event.stop()
        self._see(event.row)

    def action_sample(self, by: int) -> None:
        """Go to the next, or the previous, sample."""
        self._see(self.row + by)

    def action_blamed(self, by: int) -> None:
        """Go to the next, or the previous, sample that is to blame."""
        rows = self.view.rows if self.view is not None else ()
        beyond = [row for row in rows if (row - self.row) * by > 0] or list(rows)
        if beyond:
            self._see(min(beyond) if by > 0 else max(beyond))
        else:
            self.notify("No sample is to blame by itself.", timeout=3)

    def _see(self, row: int) -> None:
        if self.view is None or not 0 <= row < self.view.size:
            return
        self.row = row
        if row in self.view.shown:
            self._draw()
        self.query_one(SampleStrip).show(self.view, row)
        self.fetch(self.view.step, row)

    def action_sort(self) -> None:
        """Order values by their distance from the mean, or as they are."""
        self._strangest_first = not self._strangest_first
        self._draw()

    def action_scroll(self, by: int) -> None:
        """Scroll by a line."""
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)

    def action_other_step(self, by: int) -> None:
        """Look at the batch of the step before, or of the next one."""
        held = self.state.opened.steps
        later = [step for step in held if self._step is not None and (step - self._step) * by > 0]
        if later:
            self.show_place(ViewPosition(min(later) if by > 0 else max(later)))
        else:
            self.notify(
                f"Step {self._step} is the {'last' if by > 0 else 'first'} whose batch is held.",
                timeout=3,
            )

    def copies(self) -> Sequence[Copyable]:
        """Offer the sample's values."""
        if self.view is None:
            return ()
        return (
            Copyable("this sample", self._arrays(self.view).plain),
            Copyable("which samples are to blame", self._about(self.view)),
        )

    def as_text(self) -> str:
        """The sample's arrays."""
        return (
            ""
            if self.view is None
            else f"{self._about(self.view)}\n\n{self._arrays(self.view).plain}"
        )
