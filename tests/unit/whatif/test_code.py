"""The user's own line with the fix written into it."""

from __future__ import annotations

import ast

import pytest

from nanreplay.records import Frame
from nanreplay.whatif.fix_code import (
    in_words,
    operand_text,
    rewritten,
    short_number,
    with_call_of_inner,
    with_expression,
)

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
    (
        "v = 4 / np.pi ** 2 * tf.square(tf.atan(w / h))",
        "RealDiv",
        "{} + 1e-7",
        "v = 4 / np.pi ** 2 * tf.square(tf.atan(w / (h + 1e-7)))",
    ),
    (
        "d = tf.norm(a - b, axis=-1, keepdims=True)",
        "Sqrt",
        "{} + 1e-7",
        "d = tf.sqrt(tf.reduce_sum(tf.square(a - b), axis=-1, keepdims=True) + 1e-7)",
    ),
    (
        "return tf.concat([x, tf.math.reduce_std(x, 1, True)], 1)",
        "Sqrt",
        "tf.maximum({}, 1e-7)",
        "return tf.concat([x, tf.sqrt(tf.maximum(tf.math.reduce_variance(x, 1, True), 1e-7))], 1)",
    ),
    ("y = a % b", "FloorMod", "{} + 1e-7", "y = a % (b + 1e-7)"),
    ("y = tf.sqrt(a ** 2 + b ** 2)", "Sqrt", "{} + 1e-7", "y = tf.sqrt(a ** 2 + b ** 2 + 1e-7)"),
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


WORDS = [
    (
        "return tf.math.log(p) + tf.math.log(q)",
        "Log",
        "# Add 1e-7 to the operand of `Log`; it is one of `p`, `q`",
    ),
    (
        "y = tf.reduce_mean(rows, axis=1)",
        "RealDiv",
        "# Add 1e-7 to the divisor of `RealDiv`. A library makes the op of layer `pool` inside of "
        "`y = tf.reduce_mean(rows, axis=1)`: write that part yourself",
    ),
    (
        "d = tf.norm(x, ord=1)",
        "Sqrt",
        "# Add 1e-7 to the operand of `Sqrt`. A library makes the op of layer `pool` inside of "
        "`d = tf.norm(x, ord=1)`: write that part yourself",
    ),
    (
        "loss = tf.reduce_mean(",
        "Log",
        "# Add 1e-7 to the operand of `Log`, in the statement that holds `loss = tf.reduce_mean(`",
    ),
    (
        None,
        "Sqrt",
        "# Add 1e-7 to the operand of `Sqrt`, in line 3 of train.py, "
        "whose code the capture does not hold",
    ),
]


@pytest.mark.parametrize(("line", "op", "expected"), WORDS)
def test_a_line_that_does_not_show_the_operand_is_left_alone_and_words_say_what_to_do(
    line: str | None, op: str, expected: str
) -> None:
    source = Frame("train.py", 3, "call", line)
    assert rewritten(source, op, "{} + 1e-7") is None
    assert in_words(source, op, "Add 1e-7 to {}", "pool") == expected


def test_of_several_expressions_the_one_that_is_known_is_changed() -> None:
    source = Frame("train.py", 3, "call", "return a / (1.0 + b) * (c / tf.sqrt(d))")
    no_nan = "tf.math.divide_no_nan({0}, {1})"
    assert with_expression(source, "RealDiv", no_nan) is None
    assert (
        with_expression(source, "RealDiv", no_nan, 1)
        == "return a / (1.0 + b) * (tf.math.divide_no_nan(c, tf.sqrt(d)))"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("loss = -tf.math.log(tf.nn.softmax(h['x']))", "loss = -tf.nn.log_softmax(h['x'])"),
        ("loss = -tf.math.log(p)", None),
        ("loss = -tf.math.log(tf.nn.softmax(h) + 1e-9)", None),
        ("a, b = tf.math.log(tf.nn.softmax(h)), tf.math.log(q)", None),
    ],
)
def test_a_nested_call_becomes_one_call(line: str, expected: str | None) -> None:
    source = Frame("train.py", 3, "call", line)
    assert with_call_of_inner(source, "Log", "tf.nn.log_softmax") == expected


@pytest.mark.parametrize(
    ("line", "op_type", "function", "expected"),
    [
        ("y = tf.math.log(1.0 + tf.exp(-z))", "Log", "softplus", "y = tf.math.softplus(-z)"),
        ("y = tf.math.log(tf.exp(z) + 1)", "Log", "softplus", "y = tf.math.softplus(z)"),
        ("y = tf.math.log1p(tf.exp(z))", "Log1p", "softplus", "y = tf.math.softplus(z)"),
        ("y = tf.math.log(2.0 + tf.exp(z))", "Log", "softplus", None),
        ("y = tf.math.log(tf.exp(z))", "Log", "softplus", None),
        (
            "y = z - tf.math.log(tf.reduce_sum(tf.exp(z), 1, keepdims=True))",
            "Log",
            "reduce_logsumexp",
            "y = z - tf.math.reduce_logsumexp(z, 1, keepdims=True)",
        ),
        ("y = tf.math.log(tf.reduce_sum(mask * tf.exp(z), 1))", "Log", "reduce_logsumexp", None),
    ],
)
def test_a_sum_in_a_logarithm_becomes_one_call(
    line: str, op_type: str, function: str, expected: str | None
) -> None:
    source = Frame("train.py", 3, "call", line)
    assert with_call_of_inner(source, op_type, f"tf.math.{function}") == expected


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
