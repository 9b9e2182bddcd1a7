"""How to write a fix in the user's code.

It is the user's own line with the operand changed, where the line can be parsed and one operand
fits the op; else a line that shows the call. The report shows it beside the result of each fix.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nanreplay.records import Frame

_FUNCTIONS = {
    "Acos": ("acos", "arccos"),
    "Acosh": ("acosh", "arccosh"),
    "Asin": ("asin", "arcsin"),
    "Atan2": ("atan2",),
    "Atanh": ("atanh", "arctanh"),
    "Cholesky": ("cholesky",),
    "DivNoNan": ("divide_no_nan",),
    "Exp": ("exp",),
    "Expm1": ("expm1",),
    "Lgamma": ("lgamma",),
    "Log": ("log",),
    "Log1p": ("log1p",),
    "LogMatrixDeterminant": ("slogdet", "logdet"),
    "MatrixDeterminant": ("det",),
    "MatrixInverse": ("inv", "pinv"),
    "MatrixSolve": ("solve",),
    "Pow": ("pow", "power"),
    "RealDiv": ("divide", "true_divide", "truediv", "div"),
    "Reciprocal": ("reciprocal",),
    "Rsqrt": ("rsqrt",),
    "Softmax": ("softmax",),
    "Sqrt": ("sqrt",),
    "Xlogy": ("xlogy",),
}
"""Python functions that make an op, by their last name."""
_LARGEST_FLOAT32 = 3.4028235e38
_EXAMPLES = {
    "Cholesky": "tf.linalg.cholesky({})",
    "MatrixInverse": "tf.linalg.inv({})",
    "RealDiv": "x / {}",
    "Div": "x / {}",
    "Reciprocal": "1 / {}",
    "Pow": "{} ** p",
    "Xlogy": "tf.math.xlogy(x, {})",
}
"""How ops are shown without a line of the user's, where that is no call of `tf.math`."""


def rewritten(source: Frame | None, op_type: str, template: str, number: int | None = None) -> str:
    """Return the source line with the op's operand replaced.

    Args:
        source: The line that made the op. None, or one without code, gives a line that shows the
            call.
        op_type: Type of the op.
        template: How the operand is written now; `{}` or `{0}` stands for what it was.
        number: Which of several operands of such ops, in the order in which they are computed.
    """
    code = _code_of(source)
    places = _places(code, op_type)
    if len(places) == 1 or (number is not None and number < len(places)):
        return _replaced(code, places[number or 0], template)
    function = _FUNCTIONS.get(op_type, (op_type.lower(),))[0]
    operand = template.replace("{0}", "x").replace("{}", "x")
    if op_type in _EXAMPLES and not operand.startswith("tf."):
        operand = f"({operand})"
    return _EXAMPLES.get(op_type, f"tf.math.{function}({{}})").replace("{}", operand)


def count_operands(source: Frame | None, op_type: str) -> int:
    """Return how many operands of such ops a source line shows."""
    return len(_places(_code_of(source), op_type))


def _places(code: str, op_type: str) -> list[OperandRef]:
    """Operands in the order in which they are computed: what is within another comes first."""
    # Where only whole calls are looked at, a call within a call is found twice, at one place.
    found = {(operand.start, operand.end): operand for operand in _operands(code, op_type)}
    return sorted(found.values(), key=lambda operand: (operand.made, operand.start))


def operand_text(source: Frame | None, op_type: str) -> str | None:
    """Return how the source line writes the op's operand, None when that cannot be told."""
    code = _code_of(source)
    raw = code.encode()  # ast counts bytes
    operands = _operands(code, op_type)
    texts = {raw[operand.start : operand.end].decode() for operand in operands}
    return texts.pop() if len(texts) == 1 else None


def _code_of(source: Frame | None) -> str:
    return source.code.strip() if source is not None and source.code else ""


def short_number(number: float) -> str:
    """A number as one writes it: `1e-7`."""
    # `1e-07` and `1e+06` are how Python writes them.
    text = f"{number:g}"
    return re.sub(r"e([-+])0*", lambda sign: "e" + sign[1].replace("+", ""), text)


class OperandRef(NamedTuple):
    """Where an operand stands in a line, in bytes of UTF-8 as `ast` counts them."""

    start: int
    end: int
    made: int
    """Where the expression that makes the op ends."""
    binds: bool
    """Whether `operand + eps` needs no brackets around the operand."""
    is_argument: bool
    """Whether `operand + eps` needs no brackets around the whole."""


def _operands(code: str, op_type: str) -> Iterator[OperandRef]:
    """Operands of calls and operators that make such an op.

    A line may be only a part of a statement, such as `loss = tf.reduce_mean(` or an argument of a
    call over several lines. Then its whole calls are looked at.
    """
    try:
        parts: list[tuple[int, ast.AST]] = [(0, ast.parse(code))]
    except SyntaxError:
        parts = list(_whole_calls(code, _FUNCTIONS.get(op_type, ())))
    for offset, tree in parts:
        for node in ast.walk(tree):
            yield from _operands_of(node, op_type, offset)


def _whole_calls(code: str, names: Sequence[str]) -> Iterator[tuple[int, ast.AST]]:
    """Calls of some functions that begin and end in the code, and where they begin.

    In `y, tf.math.log(p + tf.exp(q)),` brackets are counted from `tf.math.log(` to their end.
    """
    if not names:
        return
    for match in re.finditer(rf"[\w.]*\b(?:{'|'.join(names)})\(", code):
        depth, end = 1, match.end()
        while end < len(code) and depth:
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        with contextlib.suppress(SyntaxError):
            yield match.start(), ast.parse(code[match.start() : end])


def _operands_of(node: ast.AST, op_type: str, offset: int) -> Iterator[OperandRef]:
    functions = _FUNCTIONS.get(op_type, ())
    if isinstance(node, ast.Call) and node.args and _last_name(node.func) in functions:
        is_second = op_type in ("RealDiv", "DivNoNan", "Xlogy") and len(node.args) > 1
        yield _operand(node, node.args[1 if is_second else 0], offset)
    elif isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Div) and op_type in ("RealDiv", "Div", "Reciprocal", "DivNoNan"):
            yield _operand(node, node.right, offset)
        elif isinstance(node.op, ast.Pow) and op_type in ("Pow", "Sqrt", "Rsqrt"):
            yield _operand(node, node.left, offset)


def _operand(maker: ast.expr, node: ast.expr, offset: int) -> OperandRef:
    return OperandRef(
        offset + node.col_offset,
        offset + (node.end_col_offset or node.col_offset),
        made=offset + (maker.end_col_offset or maker.col_offset),
        binds=not isinstance(node, (ast.IfExp, ast.Lambda, ast.Compare, ast.BoolOp)),
        is_argument=isinstance(maker, ast.Call),
    )


def _last_name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _replaced(code: str, operand: OperandRef, template: str) -> str:
    raw = code.encode()  # ast counts bytes
    before, after = raw[: operand.start].decode(), raw[operand.end :].decode()
    text = raw[operand.start : operand.end].decode()
    new = template.format(text if operand.binds else f"({text})")
    # `{} + 1e-7` in place of `x` in `a / x` needs brackets; in `log(x)` or `a / (x)` it does not.
    is_sum = template.startswith("{}") and template != "{}"
    in_brackets = operand.is_argument or (before.endswith("(") and after.startswith(")"))
    if is_sum and not in_brackets:
        new = f"({new})"
    return f"{before}{new}{after}"


def line_edit(source: Frame | None, code: str) -> list[dict[str, str | int]]:
    """Return a change of one line as data, empty where the line is not known.

    Args:
        source: The line.
        code: What stands there now.
    """
    old = _code_of(source)
    if source is None or not old:
        return []
    return [{"file": source.file, "line": source.line, "old": old, "new": code}]


_INFINITIES = ("np.inf", "numpy.inf", "math.inf", "jnp.inf", "inf", "np.infty", "float('inf')")


def with_finite_mask(source: Frame | None, low: float) -> str | None:
    """Return a source line with a number in the place of its only minus infinity.

    None where the line shows none, or several.
    """
    code = _code_of(source)
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    found = [node for node in ast.walk(tree) if _is_minus_infinity(node)]
    if len(found) != 1 or not isinstance(found[0], ast.expr):
        return None
    raw, node = code.encode(), found[0]
    end = node.end_col_offset or node.col_offset
    return f"{raw[: node.col_offset].decode()}{short_number(low)}{raw[end:].decode()}"


def _is_minus_infinity(node: ast.AST) -> bool:
    """`-np.inf`, `float("-inf")`, `-1e39` (beyond float32)."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = node.operand
        if isinstance(operand, ast.Constant) and isinstance(operand.value, float):
            return operand.value > _LARGEST_FLOAT32
        return ast.unparse(operand) in _INFINITIES
    return isinstance(node, ast.Call) and ast.unparse(node) == "float('-inf')"


def with_call(source: Frame | None, op_type: str, function: str) -> str | None:
    """Return a source line with its only quotient or nested call as a call of one function.

    `x / y` becomes `tf.math.divide_no_nan(x, y)`, `tf.math.log(tf.nn.softmax(x))` becomes
    `tf.nn.log_softmax(x)`. None where the line shows no such expression, or several.

    Args:
        source: The line.
        op_type: Type of the op that the outer expression makes.
        function: What is called in its place.
    """
    code = _code_of(source)
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    found = [node for node in ast.walk(tree) if next(_operands_of(node, op_type, 0), None)]
    if len(found) != 1 or not isinstance(found[0], ast.expr):
        return None
    node = found[0]
    arguments = _inner_arguments(node, op_type)
    if not arguments:
        return None
    raw = code.encode()
    texts = [raw[one.col_offset : one.end_col_offset].decode() for one in arguments]
    call = f"{function}({', '.join(texts)})"
    return f"{raw[: node.col_offset].decode()}{call}{raw[node.end_col_offset :].decode()}"


def _inner_arguments(node: ast.expr, op_type: str) -> list[ast.expr]:
    """What the function is called with: dividend and divisor, or the argument of the inner call."""
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if not isinstance(node, ast.Call) or node.keywords:
        return []
    if op_type in ("RealDiv", "Div"):
        return list(node.args)
    inner = node.args[0] if len(node.args) == 1 else None
    if not isinstance(inner, ast.Call) or _last_name(inner.func) not in ("softmax", "sigmoid"):
        return []
    return inner.args[:1] if len(inner.args) == 1 and not inner.keywords else []
