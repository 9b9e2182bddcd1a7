"""The tree of ten thousand ops draws only what is visible, and answers keys at once."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult
from textual.strip import Strip

from nanreplay.bisect.tensor_stats import TensorStat
from nanreplay.explore import Op, StepView
from nanreplay.explore.step_view import Segment
from nanreplay.replay.provenance import ValueId
from nanreplay.tui.widgets.op_tree import OpTree

pytestmark = pytest.mark.asyncio
N = 10_000


def op(serial: int) -> Op:
    place = (
        Segment("layer", "rnn"),
        Segment("loop", "while"),
        Segment("iteration", str(serial // 20)),
    )
    stat = TensorStat("float32", (8, 8), 64, int(serial > 9_000), 0, 0.0, 1.0)
    health, is_origin = ("nan" if serial > 9_000 else "finite"), serial == 9_001
    inputs = (ValueId(serial - 1, 0),) if serial else ()
    return Op(
        serial,
        "",
        f"rnn/Mul_{serial}",
        "Mul",
        "forward",
        "layer",
        "rnn",
        place,
        (),
        inputs,
        (),
        (stat,),
        health,
        is_origin,
    )  # type: ignore[arg-type]


class CountingTree(OpTree):
    drawn = 0

    def render_line(self, y: int) -> Strip:
        self.drawn += 1
        return super().render_line(y)


class TreeApp(App[None]):
    def compose(self) -> ComposeResult:
        yield CountingTree()


async def test_ten_thousand_ops() -> None:
    view = StepView(
        0, tuple(op(serial) for serial in range(N)), (), (ValueId(9_001, 0),), ("the loss",)
    )
    app = TreeApp()
    async with app.run_test(size=(120, 40)) as pilot:
        tree = app.query_one(CountingTree)
        tree.show(view)
        await pilot.pause()
        assert tree.op is not None
        assert tree.op.serial == 9_001
        assert len(tree.rows) == 3 + 500 + 20  # phase, layer, loop; iterations; the ops of one
        tree.drawn = 0
        await pilot.press(*["down"] * 10)
        assert tree.drawn <= 11 * 40  # a screen a key, and one that was due before
        tree.filter("is:nan", hides_plumbing=True)
        assert len(tree.ops) == N - 9_001
