"""The user's own line with the fix written into it."""

from __future__ import annotations

import ast

import pytest

from nanreplay.records import Frame
from nanreplay.whatif.fix_code import operand_text, rewritten, short_number

LINES = [
    ("return tf.math.log(p)", "Log", "{} + 1e-7", "return tf.math.log(p + 1e-7)"),
    (
        "loss = -tf.reduce_sum(y * tf.math.log(p), axis=-1)",
        "Log",
        "{} + 1e-7",
        "loss = -tf.reduce_sum(y * tf.math.log(p + 1e-7), axis=-1)",
    ),
    ("return a / b", "RealDiv", "{} + 1e-7", "return a / (b + 1e-7)"),
    ("return a / (b - c)", "RealDiv", "{} + 1e-7", "return a / (b - c + 1e-7)"),
    ("return a / tf.norm(b)", "RealDiv", "{} + 1e-7", "return a / (tf.norm(b) + 1e-7)"),
    ("return tf.divide(a, b)", "RealDiv", "{} + 1e-7", "return tf.divide(a, b + 1e-7)"),
    (
        "x = tf.sqrt(v if training else w)",
        "Sqrt",
        "{} + 1e-7",
        "x = tf.sqrt((v if training else w) + 1e-7)",
    ),
    (
        "d = Lambda(lambda t: tf.sqrt(t[0] - t[1]),",
        "Sqrt",
        "{} + 1e-7",
        "d = Lambda(lambda t: tf.sqrt(t[0] - t[1] + 1e-7),",
    ),
    (
        "if tf.reduce_any(tf.math.log(x) > 3):",
        "Log",
        "tf.maximum({}, 1e-7)",
        "if tf.reduce_any(tf.math.log(tf.maximum(x, 1e-7)) > 3):",
    ),
    ("y = x ** 0.5", "Sqrt", "{} + 1e-7", "y = (x + 1e-7) ** 0.5"),
    (
        "y = tf.math.log(größe)",
        "Log",
        "tf.where({0} > 0, {0}, 1.0)",
        "y = tf.math.log(tf.where(größe > 0, größe, 1.0))",
    ),
]


@pytest.mark.parametrize(("line", "op", "template", "expected"), LINES)
def test_the_operand_is_exchanged_in_the_line_itself(
    line: str, op: str, template: str, expected: str
) -> None:
    assert rewritten(Frame("train.py", 3, "call", line), op, template) == expected


@pytest.mark.parametrize(
    "line", ["return tf.math.log(p) + tf.math.log(q)", "model.fit(x, y)", "", None]
)
def test_a_line_that_does_not_tell_which_operand_shows_the_call_instead(line: str | None) -> None:
    assert (
        rewritten(Frame("train.py", 3, "call", line), "Log", "{} + 1e-7") == "tf.math.log(x + 1e-7)"
    )
    assert rewritten(None, "RealDiv", "{} + 1e-7") == "x / (x + 1e-7)"


@pytest.mark.parametrize(
    ("line", "op", "template", "expected"),
    [each for each in LINES if not each[0].endswith((",", ":"))],
)
def test_what_is_written_is_python(line: str, op: str, template: str, expected: str) -> None:
    ast.parse(rewritten(Frame("train.py", 3, "call", line), op, template))


def test_the_operand_as_the_user_wrote_it() -> None:
    assert (
        operand_text(Frame("train.py", 3, "call", "return tf.math.log(spread)"), "Log") == "spread"
    )
    assert operand_text(Frame("train.py", 3, "call", "model.fit(x)"), "Log") is None


@pytest.mark.parametrize(
    ("number", "text"),
    [(1e-7, "1e-7"), (1.0, "1"), (0.1, "0.1"), (-1e9, "-1e9"), (1e-12, "1e-12"), (2e20, "2e20")],
)
def test_numbers_are_written_short(number: float, text: str) -> None:
    assert short_number(number) == text
