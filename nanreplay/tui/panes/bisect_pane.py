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
from textual.containers import Container, VerticalScroll
from textual.widgets import Input, Static

from nanreplay.explore import Op, StepView, worst_producer
from nanreplay.explore.dataflow import is_bad, neighbour, next_origin
from nanreplay.replay.provenance import ValueId
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.panes.base import CURSOR_REST_S, Copyable, Go, StepPane, worst_output
from nanreplay.tui.view_link import link_command
from nanreplay.tui.view_tasks import ElementRef, ViewOperands
from nanreplay.tui.widgets.op_detail import op_text
from nanreplay.tui.widgets.op_tree import OpTree
from nanreplay.tui.widgets.op_words import ORIGIN, value_title

_TRAIL_SHOWN = 4
"""How many ops of the way are named in the first line."""


class BisectPane(StepPane):
    """Tree on one side, the op under the cursor on the other."""

    HELP = (
        "The step as it ran op by op: phase, layer, loop, op. ✗ holds NaN, ∞ infinities, "
        "◌ non-finite values that reached nothing (a mask, a dropped branch), · is finite; "
        "◆ is an origin, where a value became worse than what it was made of. enter goes to what "
        "produced the worst input, backspace back. The filter takes words, is:nan, is:inf, is:bad, "
        "is:origin, >1e4 and <1e-6."
    )
    DEFAULT_CSS = """
    BisectPane #where {
        height: 1; padding: 0 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis;
    }
    BisectPane #both { layout: horizontal; height: 1fr; }
    BisectPane OpTree { width: 3fr; }
    BisectPane #detail {
        width: 2fr; padding: 0 1; border-left: vkey $panel; background: $background;
    }
    BisectPane #detail Static { height: auto; }
    BisectPane #query { height: 1; border: none; padding: 0 1; display: none; background: $boost; }
    BisectPane #query.-open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "backspace", "back", "Back", id="bisect.back", tooltip="Back to where you came from"
        ),
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
            "o",
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
        self._trail: list[int] = []
        """Serials of the ops that the user came through."""
        self._computed_from: dict[tuple[int, int], ElementRef] = {}
        """What the first failing element of an op was computed from, by step and serial."""

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static("The step is shown once the replay has found it.", id="where", markup=False)
        with Container(id="both"):
            yield OpTree()
            with VerticalScroll(id="detail"):
                yield Static(id="op", markup=False)
        yield Input(
            placeholder="words, is:nan, is:inf, is:bad, is:origin, >1e4, <1e-6",
            id="query",
            compact=True,
        )

    @property
    def op_tree(self) -> OpTree:
        """The tree."""
        return self.query_one(OpTree)

    # The step

    def show_theme(self) -> None:
        """Draw in other colours."""
        self._show_op()

    def show_view(self, view: StepView, value: ValueId | None) -> None:
        """Show a step at an op; at its origin unless given."""
        tree = self.op_tree
        if tree.view is not view:
            self._trail.clear()
            tree.show(view)
        op = view.op(value.serial) if value is not None else None
        if op is not None:
            tree.go_to(op)
        self._show_where()
        self._show_op()

    def _show_where(self) -> None:
        """Show the first line: `step 12 · 340 ops · 27 non-finite · ◆ Log · 80 hidden, ...`."""
        view, query = self.view, self.op_tree.query_text
        if view is None:
            return
        bad, hidden = sum(map(is_bad, view.ops)), len(view.ops) - len(self.op_tree.ops)
        words = [
            f"step {view.step}",
            f"{len(view.ops)} ops",
            f"{bad} non-finite" if bad else "all finite",
        ]
        if view.origins:
            words.append(f"{ORIGIN} {value_title(view, view.origins[0])}")
        if hidden:
            words.append(
                f"{hidden} hidden by / {query}" if query else f"{hidden} hidden, p shows them"
            )
        if self._trail:
            ops = [view.op(serial) for serial in self._trail[-_TRAIL_SHOWN:]]
            types = ["?" if op is None else op.type for op in ops]
            words.append(f"came through {' ← '.join(types)}")
        self.query_one("#where", Static).update(Text(" · ".join(words)))

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
        view, node = self.view, self.op_tree.node
        shown = Text("")
        if view is not None and node is not None and node.op is not None:
            shown = self._op_text(view, node.op)
        elif node is not None:
            about = f"  {node.kind}\n{node.ops} ops, {node.nonfinite} of them non-finite"
            shown = Text.assemble((node.label, "bold"), about)
        self.query_one("#op", Static).update(shown)

    def _op_text(self, view: StepView, op: Op) -> Text:
        computed_from = self._computed_from.get((view.step, op.serial))
        return op_text(view, op, self.app.theme_variables, computed_from)

    @work(exclusive=True, group="operands", exit_on_error=False)
    async def find_operands(self, step: int, op: Op) -> None:
        """Ask what the first failing element was computed from, once the cursor rests."""
        await asyncio.sleep(CURSOR_REST_S)
        value = ValueId(op.serial, worst_output(op))
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
            self._trail.append(event.op.serial)
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

    def action_back(self) -> None:
        """Go back to where the user came from."""
        if self.view is not None:
            op = self.view.op(self._trail.pop()) if self._trail else None
            self._go_to(op, "This is where you began.")

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
            Copyable("what is known of the op", self._op_text(self.view, op).plain),
        )

    def as_text(self) -> str:
        """The lines of the tree that are open."""
        lines = [str(self.query_one("#where", Static).content), ""]
        for row in self.op_tree.rows:
            origin = "  origin" if row.node.has_origin else ""
            lines.append(f"{'  ' * row.depth}{row.node.label}  {row.node.health}{origin}")
        return "\n".join(lines)
