"""The bisect pane: a step as a tree of ops, and a walk through the ops forward and backward.

It shows where the NaN was born: the first op whose result is worse than its inputs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.widgets import Input, Static

from nanreplay.capture import Capture
from nanreplay.capture.storage import Location
from nanreplay.errors import NanreplayError
from nanreplay.explore import Op, StepView, worst_producer
from nanreplay.explore.dataflow import is_bad, line_name, neighbour, next_origin
from nanreplay.explore.recorded_step import recorded_step
from nanreplay.replay.provenance import ValueId
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.panes.base import CURSOR_REST_S, Copyable, Go, StepPane, worst_output
from nanreplay.tui.trail import Trail, end_words
from nanreplay.tui.view_link import link_command
from nanreplay.tui.view_tasks import ElementRef, ViewOperands
from nanreplay.tui.widgets.code_view import CodeView
from nanreplay.tui.widgets.op_detail import op_text
from nanreplay.tui.widgets.op_tree import OpTree
from nanreplay.tui.widgets.op_words import ORIGIN, code_words, run_words, value_title
from nanreplay.tui.widgets.text_box import TextBox


class BisectPane(StepPane):
    """Tree on one side, the op under the cursor on the other."""

    HELP = (
        "The step as it ran op by op: phase, layer, loop, op. ✗ holds NaN, ∞ infinities, "
        "◌ non-finite values that reached nothing (a mask, a dropped branch), · is finite; "
        "◆ is an origin, where a value became worse than what it was made of. Ops stand under the "
        "line of code that made them; m shows their names. enter goes to what produced the worst "
        "input, backspace back, + forward. The filter takes words, is:nan, is:inf, is:bad, "
        "is:origin, at:train.py:88, >1e4 and <1e-6."
    )
    DEFAULT_CSS = """
    BisectPane #where {
        height: 1; padding: 0 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis;
    }
    BisectPane #both { layout: horizontal; height: 1fr; }
    BisectPane OpTree { width: 3fr; }
    BisectPane #beside { width: 2fr; height: 1fr; border-left: vkey $panel; }
    BisectPane CodeView { height: 2fr; border-bottom: hkey $panel; }
    BisectPane #detail { height: 3fr; padding: 0 1; background: $background; }
    BisectPane #detail Static { height: auto; }
    BisectPane #query { height: 1; border: none; padding: 0 1; display: none; background: $boost; }
    BisectPane #query.-open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "n",
            "bad(1)",
            "Next bad",
            id="bisect.next",
            tooltip="The next op, as they ran, with a NaN or infinity that matters",
        ),
        Binding(
            "N",
            "bad(-1)",
            "Bad before",
            show=False,
            id="bisect.before",
            tooltip="The op before with a NaN or infinity that matters",
        ),
        Binding(
            "O",
            "origin",
            "Origin",
            id="bisect.origin",
            tooltip="The next origin: where something non-finite was born",
        ),
        Binding("f", "step(1)", "Forward", id="bisect.forward", tooltip="The op that ran next"),
        Binding(
            "b", "step(-1)", "Backward", id="bisect.backward", tooltip="The op that ran before"
        ),
        Binding(
            "slash",
            "filter",
            "Filter",
            key_display="/",
            id="bisect.filter",
            tooltip="Show only ops that fit a query",
        ),
        Binding(
            "d",
            "dataflow",
            "Dataflow",
            id="bisect.dataflow",
            tooltip="Where the op's values came from and went",
        ),
        Binding("t", "tensor", "Tensor", id="bisect.tensor", tooltip="The values that the op gave"),
        Binding(
            "p",
            "plumbing",
            "Plumbing",
            show=False,
            id="bisect.plumbing",
            tooltip="Show or hide ops that compute nothing",
        ),
        Binding(
            "escape",
            "no_filter",
            "Show all",
            show=False,
            id="bisect.no_filter",
            tooltip="Take the filter away",
        ),
    ]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.trail: Trail[int] = Trail()
        """Serials of the ops that the user went through."""
        self._computed_from: dict[tuple[int, int], ElementRef] = {}
        """What the first failing element of an op was computed from, by step and serial."""

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield TextBox("The step is shown once the replay has found it.", id="where", markup=False)
        with Container(id="both"):
            yield OpTree()
            with Vertical(id="beside"):
                yield CodeView()
                with VerticalScroll(id="detail"):
                    yield TextBox(id="op", markup=False)
        yield Input(
            placeholder="words, is:nan, is:bad, is:origin, at:train.py:88, >1e4, <1e-6",
            id="query",
            compact=True,
        )

    @property
    def op_tree(self) -> OpTree:
        """The tree."""
        return self.query_one(OpTree)

    # The step

    def on_mount(self) -> None:
        """Show the ops that the file names, until the step has run."""
        super().on_mount()
        if self.state.failing_step not in self.state.viewed_steps:
            self.show_recorded(self.state.failing_step)

    @work(exclusive=True, group="recorded", exit_on_error=False)
    async def show_recorded(self, step: int) -> None:
        """Read the ops of a step from the file, in a thread, and show them."""
        try:
            recorded = await asyncio.to_thread(_recorded, self.state.opened.path, step)
        except NanreplayError:  # the file holds no program of this step; a run may tell why
            return
        if self.view is None and self.is_attached:
            self.op_tree.show(recorded)
            self._show_where()

    def show_theme(self) -> None:
        """Draw in other colours."""
        self._show_op()

    def on_resize(self) -> None:
        """Cut lines anew, once the widgets have their new sizes."""
        self.call_after_refresh(self._show_op)

    def show_view(self, view: StepView, value: ValueId | None) -> None:
        """Show a step at an op; at its origin unless given."""
        tree = self.op_tree
        if tree.view is not view:
            self.trail = Trail()
            tree.show(view)
        op = view.op(value.serial) if value is not None else None
        if op is not None:
            tree.go_to(op)
        if tree.op is not None:
            self.trail.go(tree.op.serial)
        self._show_where()
        self._show_op()

    def show_place(self, place: ViewPosition) -> None:
        """Look at an op of a step, or at the ops that a line of code made."""
        if place.frame is None:
            super().show_place(place)
            return
        query = self.query_one("#query", Input)
        query.add_class("-open")
        query.value = f"at:{line_name(place.frame)}"
        self.op_tree.focus()

    def _show_where(self) -> None:
        """Show the first line: `step 12 · 340 ops · 27 non-finite · ◆ Log · 80 hidden, ...`."""
        view, query = self.view or self.op_tree.view, self.op_tree.query_text
        if view is None:
            return
        bad, hidden = sum(map(is_bad, view.ops)), len(view.ops) - len(self.op_tree.ops)
        words = [
            f"step {view.step}",
            f"{len(view.ops)} ops",
            run_words(view, bad),
        ]
        if view.origins:
            words.append(f"{ORIGIN} {value_title(view, view.origins[0])}")
        if hidden:
            words.append(
                f"{hidden} hidden by / {query}" if query else f"{hidden} hidden, p shows them"
            )
        shown = Text(" · ".join(words))
        if len(self.trail.places) > 1:
            shown = Text.assemble(self.trail.text(self._title), "  ·  ", (shown.plain, "dim"))
        self.query_one("#where", Static).update(shown)

    def _title(self, serial: int) -> str:
        op = self.view.op(serial) if self.view is not None else None
        return "?" if op is None else op.type

    # The op

    @on(OpTree.Moved)
    def _moved(self, event: OpTree.Moved) -> None:
        event.stop()
        self._show_op()
        view, op = self.view, self.op_tree.op
        if view is None or op is None or not is_bad(op):
            return
        if (view.step, op.serial) not in self._computed_from:
            self.find_operands(view.step, op)

    def _show_op(self) -> None:
        view, node = self.op_tree.view, self.op_tree.node
        shown = Text("")
        if view is not None and node is not None and node.op is not None:
            shown = self._op_text(view, node.op)
        elif node is not None:
            about = f"  {node.kind}\n{node.ops} ops"
            if view is not None and view.has_run:
                about += f", {node.nonfinite} of them non-finite"
            shown = Text.assemble((node.label, "bold"), about)
        self.query_one("#op", Static).update(shown)
        self.show_code()

    def shown_op(self) -> Op | None:
        """The op under the cursor."""
        return self.op_tree.op

    def _op_text(self, view: StepView, op: Op, *, is_whole: bool = False) -> Text:
        """What is known of an op; without what stands elsewhere on the screen, unless whole."""
        return op_text(
            view,
            op,
            self.app.theme_variables,
            self._computed_from.get((view.step, op.serial)),
            with_code=is_whole or not self.query_one(CodeView).display,
            width=0 if is_whole else self.query_one("#op").content_size.width,
        )

    @work(exclusive=True, group="operands", exit_on_error=False)
    async def find_operands(self, step: int, op: Op) -> None:
        """Ask what the first failing element was computed from, once the cursor rests."""
        value = ValueId(op.serial, worst_output(op))
        element = self.state.elements.get((step, value))
        if element is None:
            await asyncio.sleep(CURSOR_REST_S)
            element = await self.ask(ViewOperands(self.path, self.origin, step, value, None))
        self._computed_from[step, op.serial] = element
        self._show_op()

    @on(OpTree.Chosen)
    def _chosen(self, event: OpTree.Chosen) -> None:
        """Go to what produced the op's worst input."""
        event.stop()
        hop = worst_producer(self.view, event.op) if self.view is not None else None
        if hop is None:
            self.notify(f"{event.op.type} takes no input.", timeout=3)
        elif hop.op is None:  # what it read entered the step: the tree has no line for it
            assert self.view is not None
            self.post_message(Go("tensor", ViewPosition(self.view.step, hop.value.serial)))
        else:
            self.trail.go(event.op.serial)
            self.trail.go(hop.op.serial)
            self._go_to(hop.op)

    def _go_to(self, op: Op | None, otherwise: str = "") -> None:
        """Put the cursor on an op; where there is none, say so.

        Args:
            op: The op.
            otherwise: What is said when there is none.
        """
        if op is not None:
            self.op_tree.go_to(op)
            if not self.op_tree.query_text:  # the tree drops a filter that hides the op
                self._close_filter()
            self._show_where()
        elif otherwise:
            self.notify(otherwise, timeout=3)

    # Keys

    def action_back(self, by: int) -> None:
        """Go back along the way, or forward again."""
        serial = self.trail.move(by)
        op = self.view.op(serial) if self.view is not None and serial is not None else None
        self._go_to(op, end_words(by))

    def action_names(self) -> None:
        """Show ops by name, or by the code that made them."""
        self.op_tree.show_names(not self.op_tree.shows_names)

    def action_bad(self, by: int) -> None:
        """Go to the next, or the previous, op with something non-finite."""
        op = neighbour(self.op_tree.ops, self.op_tree.serial, 1 if by > 0 else -1, is_bad)
        side = "after" if by > 0 else "before"
        self._go_to(op, f"No op {side} this one is non-finite.")

    def action_origin(self) -> None:
        """Go to the next origin."""
        if self.view is None:
            return
        origin = next_origin(self.view, self.op_tree.serial)
        if origin is None and self.view.origins:
            # No op made it: it entered the step, and the tensor pane shows it.
            place = ViewPosition(self.view.step, self.view.origins[0].serial)
            self.post_message(Go("tensor", place))
        else:
            if origin is not None:
                self.trail.go(origin.serial)
            self._go_to(origin, "Nothing that matters became non-finite in this step.")

    def action_step(self, by: int) -> None:
        """Go to the op that ran next, or before."""
        op = neighbour(self.op_tree.ops, self.op_tree.serial, 1 if by > 0 else -1)
        self._go_to(op, f"This is the {'last' if by > 0 else 'first'} op.")

    def action_plumbing(self) -> None:
        """Show or hide ops that compute nothing."""
        tree = self.op_tree
        tree.filter(tree.query_text, hides_plumbing=not tree.hides_plumbing)
        self._show_where()

    def action_dataflow(self) -> None:
        """Show where the op's values came from and went."""
        self._show_elsewhere("dataflow")

    def action_tensor(self) -> None:
        """Show the values that the op gave."""
        self._show_elsewhere("tensor")

    def _show_elsewhere(self, pane: str) -> None:
        op = self.op_tree.op
        if self.view is not None and op is not None:
            place = ViewPosition(self.view.step, op.serial, output=worst_output(op))
            self.post_message(Go(pane, place))

    # The filter

    def action_filter(self) -> None:
        """Open the filter."""
        query = self.query_one("#query", Input)
        query.add_class("-open")
        query.focus()

    @on(Input.Changed, "#query")
    def _query_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.op_tree.filter(event.value, hides_plumbing=self.op_tree.hides_plumbing)
        self._show_where()

    @on(Input.Submitted, "#query")
    def _query_done(self, event: Input.Submitted) -> None:
        event.stop()
        event.input.set_class(bool(event.value), "-open")
        self.op_tree.focus()

    def action_no_filter(self) -> None:
        """Take the filter away."""
        self.op_tree.filter("", hides_plumbing=self.op_tree.hides_plumbing)
        self._close_filter()
        self.op_tree.focus()
        self._show_where()

    def _close_filter(self) -> None:
        query = self.query_one("#query", Input)
        with self.prevent(Input.Changed):  # it would filter anew, and move the cursor
            query.value = ""
        query.remove_class("-open")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave the escape key to the screen while there is no filter."""
        return action != "no_filter" or self.query_one("#query", Input).has_class("-open")

    def copies(self) -> Sequence[Copyable]:
        """Offer the op's name and its facts."""
        op = self.op_tree.op
        if self.view is None or op is None:
            return ()
        return (
            Copyable("the op's name", op.name),
            Copyable("a link to this op", link_command(self.path, "bisect", op.name)),
            Copyable("what is known of the op", self._op_text(self.view, op, is_whole=True).plain),
        )

    def as_text(self) -> str:
        """The lines of the tree that are open."""
        lines = [str(self.query_one("#where", Static).content), ""]
        for row in self.op_tree.rows:
            origin = "  origin" if row.node.has_origin else ""
            op = row.node.op
            code = code_words(op.source) if op is not None else ""
            words = "  ".join(filter(None, (row.node.label, row.node.health, code)))
            lines.append(f"{'  ' * row.depth}{words}{origin}")
        return "\n".join(lines)


def _recorded(path: Location, step: int) -> StepView:
    with Capture(path) as capture:
        return recorded_step(capture, step)
