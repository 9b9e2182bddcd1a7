"""Ops, tensors and values in few words: what the panes of a step share.

The functions return plain text where they can, else Rich text in colours of the theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.style import Style
from rich.text import Text
from textual.color import Color

from nanreplay.bisect.tensor_stats import TensorStat
from nanreplay.diagnose.keras_lines import is_call_of_keras
from nanreplay.explore import Health, Node, Op, StepView
from nanreplay.findings import LoopIteration
from nanreplay.records import Frame
from nanreplay.replay.provenance import ValueId
from nanreplay.report.numbers import index_words, readable_number
from nanreplay.tui.capture_state import MARKS

ORIGIN = "◆"
"""Mark of an op or value where something non-finite was born."""
HANDLE_DTYPES = ("resource", "variant")
"""Types of TensorFlow whose tensors hold no numbers: handles of variables, and boxed values."""


def short_number(value: float | None) -> str:
    """A number in four digits; "" for None."""
    return "" if value is None else readable_number(float(f"{value:.4g}"))


def shape_words(stat: TensorStat | None) -> str:
    """Type and shape: `float32[32, 3]`; the type alone for a handle, which has no shape to show."""
    if stat is None:
        return ""
    if stat.dtype in HANDLE_DTYPES:
        return stat.dtype
    return f"{stat.dtype}{index_words(stat.shape)}"


def nonfinite_words(stat: TensorStat | None) -> str:
    """How many elements are non-finite: `2 NaN 1 inf`; "" when none is."""
    if stat is None:
        return ""
    counts = ((stat.nan, "NaN"), (stat.inf, "inf"))
    return " ".join(f"{count} {name}" for count, name in counts if count)


def range_words(stat: TensorStat | None) -> str:
    """The range of the finite elements: `-1.2 to 3.4`; "" when there is none."""
    if stat is None or stat.minimum is None or stat.maximum is None:
        return ""
    low, high = short_number(stat.minimum), short_number(stat.maximum)
    return low if low == high else f"{low} to {high}"


def name_tail(op: Op) -> str:
    """The end of an op's name where it says more than its type: `MatMul_1`."""
    tail = op.name.rsplit("/", 1)[-1]
    return "" if tail == op.type else tail


def code_words(source: Frame | None) -> str:
    """The user's expression and its line, `p = tf.nn.softmax(x)  :12`; "" where none is known.

    A call that hands everything to Keras, such as `model.fit(...)`, says nothing of an op.
    """
    if source is None or not source.code or is_call_of_keras(source.code):
        return ""
    first, *others = source.code.strip().splitlines()
    return f"{first.strip()}{' …' if others else ''}  :{source.line}"


def value_words(op: Op) -> str:
    """The value of an op at its first failing element: `-inf`; "" where nothing failed."""
    if op.failing_at is None:
        return ""
    return "non-finite" if op.failing_value is None else short_number(op.failing_value)


def place_words(op: Op) -> str:
    """Where an op is: `forward · encoder/norm · while, iteration 3`."""
    return " · ".join(filter(None, (op.phase, op.layer_path, _loop_words(op.loop))))


def _loop_words(loops: Sequence[LoopIteration]) -> str:
    return " · ".join(f"{loop.op.rsplit('/', 1)[-1]}, iteration {loop.iteration}" for loop in loops)


def source_words(source: Frame | None) -> str:
    """A line of code: `train.py:88  x / tf.sqrt(var)`."""
    if source is None:
        return ""
    # The capture may come from Windows: its paths are taken apart without pathlib.
    file = source.file.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{file}:{source.line}  {(source.code or '').strip()}".rstrip()


def value_title(view: StepView, value: ValueId) -> str:
    """What made a value: the type of the op, or the name of what entered the step."""
    op = view.op(value.serial)
    return view.name(value) if op is None else op.type


def run_words(view: StepView, bad: int) -> str:
    """How many ops are non-finite, `bad` of them; that is known once the step has run."""
    if not view.has_run:
        return "as recorded, not run yet"
    return f"{bad} non-finite" if bad else "all finite"


# Colours. Rich draws the lines of the step panes, and it does not know the theme: a colour is
# looked up by its name first.


def theme_style(colours: Mapping[str, str], name: str) -> Style:
    """A colour of the theme as a style of Rich.

    Args:
        colours: The theme's variables, `app.theme_variables`.
        name: E.g. `error`, `text-muted`; a `$` before it is ignored.
    """
    colour = colours[name.removeprefix("$")]
    if colour.startswith("auto"):
        # Textual computes `auto 60%` from the background of the widget; Rich cannot, and dims.
        return Style(dim=True)
    return Style(color=Color.parse(colour).rich_color)


def health_style(colours: Mapping[str, str], health: Health) -> Style:
    """The colour of a health; that of disabled text for what is finite."""
    return theme_style(colours, "text-disabled" if health == "finite" else MARKS[health][2])


def mark_text(health: Health, colours: Mapping[str, str], *, is_origin: bool = False) -> Text:
    """Health mark, and the mark of an origin or a blank, each in its colour."""
    return Text.assemble(
        (MARKS[health][0], health_style(colours, health)),
        (ORIGIN if is_origin else " ", theme_style(colours, "text-accent")),
    )


# What a line of the tree of ops says: the user's code, or the op's type and name.


def fitted(title: str, about: str, room: int) -> tuple[str, str]:
    """The two, so that both fit: what is too long ends in dots, before the line of the code."""
    about = f"  {about}" if about else ""
    over = len(title) + len(about) - room
    if over > 0:
        code, colon, line = title.rpartition("  :")
        kept = max(len(code) - over - 1, 1) if colon else max(len(title) - over - 1, 1)
        title = f"{code[:kept]}…{colon}{line}" if colon else f"{title[:kept]}…"
    return title, about


def op_title(node: Node, before: Node | None, *, shows_names: bool) -> tuple[str, str]:
    """What a line says, and what it says beside that.

    Args:
        node: Of the line.
        before: Of the line before: ops of one line of code name it once.
        shows_names: Whether an op is told by its name.
    """
    op = node.op
    if op is None:
        return node.label, ""
    if shows_names:
        return op.type, op.name
    code = code_words(op.source)
    is_same = before is not None and before.op is not None and before.op.source == op.source
    if not code:
        return op.type, name_tail(op)
    return (f"  {op.type}", "") if is_same else (code, op.type)
