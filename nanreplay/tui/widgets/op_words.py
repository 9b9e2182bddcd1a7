"""Ops, tensors and hops in few words; what the panes of a step share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.style import Style
from rich.text import Text
from textual.color import Color

from nanreplay.bisect.tensor_stats import TensorStat
from nanreplay.explore import Health, Op, StepView
from nanreplay.findings import LoopIteration
from nanreplay.records import Frame
from nanreplay.replay.provenance import ValueId
from nanreplay.report.numbers import readable_number
from nanreplay.tui.capture_state import MARKS

ORIGIN = "◆"
"""Mark of an op or value where something non-finite was born."""


def number(value: float | None) -> str:
    """A number in four digits; "" for none."""
    return "" if value is None else readable_number(float(f"{value:.4g}"))


def shape_words(stat: TensorStat | None) -> str:
    """Type and shape: `float32[32, 3]`."""
    return (
        ""
        if stat is None
        else f"{stat.dtype}{index_words(stat.shape)}"
        if stat.dtype not in ("resource", "variant")
        else stat.dtype
    )


def index_words(index: Sequence[int]) -> str:
    """An index or shape: `[18, 0]`; "" for that of a scalar."""
    return f"[{', '.join(map(str, index))}]" if index else ""


def bad_words(stat: TensorStat | None) -> str:
    """How many elements are non-finite: `2 NaN 1 inf`; "" when none is."""
    if stat is None:
        return ""
    return " ".join(
        f"{count} {name}" for count, name in ((stat.nan, "NaN"), (stat.inf, "inf")) if count
    )


def range_words(stat: TensorStat | None) -> str:
    """The finite elements: `-1.2 to 3.4`; "" when there is none."""
    if stat is None or stat.minimum is None or stat.maximum is None:
        return ""
    low, high = number(stat.minimum), number(stat.maximum)
    return low if low == high else f"{low} to {high}"


def name_tail(op: Op) -> str:
    """The end of an op's name where it says more than its type: `MatMul_1`."""
    tail = op.name.rsplit("/", 1)[-1]
    return "" if tail == op.type else tail


def place_words(op: Op) -> str:
    """Where an op is: `forward · encoder/norm · while, iteration 3`."""
    return " · ".join(filter(None, (op.phase, op.layer_path, loop_words(op.loop))))


def loop_words(loop: Sequence[LoopIteration]) -> str:
    """Enclosing loops: `while, iteration 3`."""
    return " · ".join(f"{each.op.rsplit('/', 1)[-1]}, iteration {each.iteration}" for each in loop)


def source_words(source: Frame | None) -> str:
    """A line of code: `train.py:88  x / tf.sqrt(var)`."""
    if source is None:
        return ""
    return f"{source.file.replace(chr(92), '/').rsplit('/', 1)[-1]}:{source.line}  {(source.code or '').strip()}".rstrip()


def tone(colours: Mapping[str, str], name: str) -> Style:
    """A colour of the theme as a style; dim for one that depends on its background.

    Args:
        colours: The theme's variables, `app.theme_variables`.
        name: E.g. `error`, `text-muted`.
    """
    colour = colours[name.removeprefix("$")]
    return (
        Style(dim=True)
        if colour.startswith("auto")
        else Style(color=Color.parse(colour).rich_color)
    )


def health_tone(colours: Mapping[str, str], health: Health) -> Style:
    """The colour of a health; dim for what is finite."""
    return tone(colours, "text-disabled" if health == "finite" else MARKS[health][2])


def mark_text(health: Health, colours: Mapping[str, str], *, is_origin: bool = False) -> Text:
    """Health mark, and the mark of an origin or a blank, each in its colour."""
    return Text.assemble(
        (MARKS[health][0], health_tone(colours, health)),
        (ORIGIN if is_origin else " ", tone(colours, "text-accent")),
    )


def value_title(view: StepView, value: ValueId) -> str:
    """What made a value: the type of the op, or the name of what entered the step."""
    op = view.op(value.serial)
    return view.name(value) if op is None else op.type
