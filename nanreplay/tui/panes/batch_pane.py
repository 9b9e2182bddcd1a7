"""The batch pane: which samples are strange, and the one that did it beside its neighbours."""

from __future__ import annotations

import asyncio
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
from nanreplay.report.contents import Report
from nanreplay.report.numbers import readable_list
from nanreplay.report.sample_choice import shown_row
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.panes.base import STEP_BINDINGS, Copyable, Pane, next_beyond
from nanreplay.tui.widgets.figures import sample_bars
from nanreplay.tui.widgets.op_words import ORIGIN, theme_style
from nanreplay.tui.widgets.samples import SampleLook, sample_text
from nanreplay.tui.widgets.text_box import TextBox

_PADDING = 4
"""Columns of the pane that the arrays cannot take."""
_NARROWEST = 40


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
        """The first sample that is shown: with the cursor in the middle, away from the ends."""
        size = self.view.size if self.view is not None else 0
        return max(0, min(self.row - self._fitting // 2, size - self._fitting))

    @property
    def _fitting(self) -> int:
        return max(self.content_size.width, 1)

    def render(self) -> Text:
        """Bars, and the marks of samples that are to blame."""
        view, colours = self.view, self.app.theme_variables
        if view is None:
            return Text("")
        shown = range(self.first, min(self.first + self._fitting, view.size))
        bars = sample_bars(np.array([view.strangeness[row] for row in shown]))
        marks = "".join(ORIGIN if row in view.rows else " " for row in shown)
        mark_line = Text(marks, theme_style(colours, "text-accent"))
        cursor = self.row - shown.start
        mark_line.stylize(Style(reverse=True), cursor, cursor + 1)
        return Text("\n").join([Text(bars, theme_style(colours, "text-primary")), mark_line])

    def on_click(self, event: events.Click) -> None:
        """Choose the sample under the mouse."""
        offset = event.get_content_offset(self)  # None on the padding
        if self.view is None or offset is None:
            return
        row = self.first + offset.x
        if row < self.view.size:
            self.post_message(self.Chosen(row))


class BatchPane(Pane):
    """Strip of all samples above, arrays of one sample below."""

    HELP = (
        "The batch of the step. The strip shows every sample: the higher, the further one of its "
        "values is from the other batches of the window, in standard deviations; ✗ holds "
        "non-finite values, ◆ is to blame as far as replays prove it. Below: the sample beside its "
        "neighbours; ▲ and ▼ are 3 deviations or more above and below the mean."
    )
    DEFAULT_CSS = """
    BatchPane #about {
        height: 1; padding: 0 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis;
    }
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
        """The sample that is shown; `view` may not have its values yet."""
        self._step: int | None = None
        """The step that the user has asked for; None for the failing one."""
        self._strangest_first = False

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield TextBox("Reading the file ...", id="about", markup=False)
        yield SampleStrip()
        with VerticalScroll():
            yield TextBox(id="arrays", markup=False)

    def on_mount(self) -> None:
        """Show the batch of the failing step: the file holds it, whatever is replayed."""
        super().on_mount()
        if self._step is None:
            self.fetch(self.state.failing_step, None)
        self.app.theme_changed_signal.subscribe(self, lambda theme: self._draw())

    # The batch

    def show_report(self, report: Report) -> None:
        """Look at the failing step anew, unless the user went elsewhere: samples are named now."""
        if self._step is None:
            self.fetch(self.state.failing_step, None)

    def show_place(self, place: ViewPosition) -> None:
        """Look at the batch of a step."""
        self._step = place.step
        self.fetch(place.step, None)

    @work(exclusive=True, group="batch", exit_on_error=False)
    async def fetch(self, step: int, row: int | None) -> None:
        """Get a sample with its neighbours, and show it.

        Args:
            step: The step.
            row: The sample; the first of those to blame when None.
        """
        view = await asyncio.to_thread(self.state.batches.view, step, self.origin, row)
        self.view = view
        if row is None:
            row = shown_row(view)
        self.row = row
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
        batches = f"{view.compared} other batches" if view.compared else "this batch"
        sample = f"sample {self.row} of {view.size}"
        return f"step {view.step} · {sample} · {blamed} · usual is that of {batches}"

    def _arrays(self, view: BatchView) -> Text:
        if not view.size:
            return Text("This batch has no array with a row for each sample.")
        if self.row not in view.shown:
            return Text(f"reading sample {self.row} …")
        look = SampleLook(
            width=max(self.size.width - _PADDING, _NARROWEST),
            colours=self.app.theme_variables,
            strangest_first=self._strangest_first,
            plain=self.app.no_color,
        )
        return sample_text(view, self.row, look)

    # Keys

    @on(SampleStrip.Chosen)
    def _chosen(self, event: SampleStrip.Chosen) -> None:
        event.stop()
        self._go_to(event.row)

    def action_sample(self, by: int) -> None:
        """Go to the next, or the previous, sample."""
        self._go_to(self.row + by)

    def action_blamed(self, by: int) -> None:
        """Go to the next, or the previous, sample that is to blame."""
        rows = self.view.rows if self.view is not None else ()
        if not rows:
            self.notify("No sample is to blame by itself.", timeout=3)
            return
        row = next_beyond(rows, self.row, by)
        if row is None:  # at the end: go on from the other end
            row = min(rows) if by > 0 else max(rows)
        if row == self.row:
            self.notify(f"Sample {row} is the only one to blame.", timeout=3)
        self._go_to(row)

    def _go_to(self, row: int) -> None:
        if self.view is None or not 0 <= row < self.view.size:
            return
        self.row, self._step = row, self.view.step
        if row in self.view.shown:  # show at once what is there; its neighbours follow
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
        if self.view is None:
            return
        step = next_beyond(self.state.opened.steps, self.view.step, by)
        if step is not None:
            self.show_place(ViewPosition(step))
            return
        end = "last" if by > 0 else "first"
        self.notify(f"Step {self.view.step} is the {end} whose batch is held.", timeout=3)

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
        if self.view is None:
            return ""
        return f"{self._about(self.view)}\n\n{self._arrays(self.view).plain}"
