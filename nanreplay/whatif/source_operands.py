"""Where a line of code shows the operand of an op: `b` in `a / b`, `x` in `tf.math.log(x)`."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

FUNCTIONS = {
    "Acos": ("acos", "arccos"),
    "Acosh": ("acosh", "arccosh"),
    "Asin": ("asin", "arcsin"),
    "Atan2": ("atan2", "arctan2"),
    "Atanh": ("atanh", "arctanh"),
    "Cholesky": ("cholesky",),
    "Digamma": ("digamma",),
    "DivNoNan": ("divide_no_nan",),
    "Erfinv": ("erfinv",),
    "Exp": ("exp",),
    "Expm1": ("expm1",),
    "Lgamma": ("lgamma",),
    "Log": ("log",),
    "Log1p": ("log1p",),
    "LogMatrixDeterminant": ("slogdet", "logdet"),
    "MatrixDeterminant": ("det",),
    "MatrixInverse": ("inv", "pinv"),
    "MatrixSolve": ("solve",),
    "Ndtri": ("ndtri",),
    "Pow": ("pow", "power"),
    "RealDiv": ("divide", "true_divide", "truediv", "div"),
    "Reciprocal": ("reciprocal",),
    "Rsqrt": ("rsqrt",),
    "Softmax": ("softmax",),
    "Sqrt": ("sqrt",),
    "Xdivy": ("xdivy",),
    "Xlog1py": ("xlog1py",),
    "Xlogy": ("xlogy",),
}
"""Python functions that make an op, by their last name."""
DIVISIONS = frozenset(
    ("RealDiv", "Div", "FloorDiv", "TruncateDiv", "FloorMod", "Mod", "Xdivy", "DivNoNan")
)
"""Ops that divide by their second operand."""
_OPERAND_IS_SECOND = DIVISIONS | {"Xlogy", "Xlog1py"}
_OPERATORS: Mapping[type[ast.operator], Sequence[str]] = {
    ast.Div: ("RealDiv", "Div", "Reciprocal", "DivNoNan"),
    ast.FloorDiv: ("FloorDiv",),
    ast.Mod: ("FloorMod", "Mod"),
    ast.Pow: ("Pow", "Sqrt", "Rsqrt"),
}
"""Operators of Python that make an op. That of a power is the left one, of a quotient the right."""
_ROOTS = {
    "tf.norm": "tf.reduce_sum(tf.square({}){})",
    "tf.linalg.norm": "tf.reduce_sum(tf.square({}){})",
    "tf.math.reduce_std": "tf.math.reduce_variance({}{})",
}
"""Functions of TensorFlow that take the root of this, of their first and their other arguments."""
_NUMBERS = ("np", "numpy", "math")
"""Modules whose constants are no tensors."""


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
    maker: tuple[int, int]
    """Where the expression that makes the op begins and ends."""
    arguments: tuple[str, ...] = ()
    """Both operands of an operator, or all arguments of a call, as they are written."""
    written_out: str | None = None
    """What the operand is, where a function such as `tf.norm` computes it itself."""


def operands_in(code: str, op_type: str) -> list[OperandRef]:
    """Return the operands of such ops that a line shows, in the order in which they are computed.

    What is within another comes first. A line may be only a part of a statement, such as
    `loss = tf.reduce_mean(` or an argument of a call over several lines. Then its whole calls are
    looked at.

    Args:
        code: The line.
        op_type: Type of the ops.
    """
    parts: list[tuple[int, str, ast.AST]]
    try:
        parts = [(0, code, ast.parse(code))]
    except SyntaxError:
        names = [
            *FUNCTIONS.get(op_type, ()),
            *(("norm", "reduce_std") if op_type == "Sqrt" else ()),
        ]
        parts = list(_whole_calls(code, names))
    # Where only whole calls are looked at, a call within a call is found twice, at one place.
    operands = {}
    for offset, text, tree in parts:
        for node in ast.walk(tree):
            for operand in _operands_of(node, op_type, offset, text):
                operands[(operand.start, operand.end)] = operand
    return sorted(operands.values(), key=lambda operand: (operand.made, operand.start))


def _whole_calls(code: str, names: Sequence[str]) -> Iterator[tuple[int, str, ast.AST]]:
    """Calls of some functions that begin and end in the code, and where they begin (in bytes).

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
            text = code[match.start() : end]
            yield len(code[: match.start()].encode()), text, ast.parse(text)


def _operands_of(node: ast.AST, op_type: str, offset: int, text: str) -> Iterator[OperandRef]:
    if not isinstance(node, (ast.Call, ast.BinOp)) or _is_number(node):
        return
    if isinstance(node, ast.Call):
        is_maker = node.args and last_name(node.func) in FUNCTIONS.get(op_type, ())
        if is_maker:
            is_second = op_type in _OPERAND_IS_SECOND and len(node.args) > 1
            yield _operand(node, node.args[1 if is_second else 0], offset, text)
        elif op_type == "Sqrt":
            yield from _hidden_root(node, offset, text)
    elif op_type in _OPERATORS.get(type(node.op), ()):
        is_power = isinstance(node.op, ast.Pow)
        if is_power and op_type != "Pow" and _is_whole(node.right):
            return  # no root
        yield _operand(node, node.left if is_power else node.right, offset, text)


def _is_whole(node: ast.expr) -> bool:
    """Whether an expression is a whole number that is written out, such as the 2 of `x ** 2`."""
    return isinstance(node, ast.Constant) and float(node.value).is_integer()  # type: ignore[arg-type]


def _is_number(node: ast.AST) -> bool:
    """Whether Python or NumPy computes an expression of constants alone, such as `4 / np.pi`."""
    names = []
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            names.append(one.id)
    return all(name in _NUMBERS for name in names)


def _operand(maker: ast.Call | ast.BinOp, node: ast.expr, offset: int, text: str) -> OperandRef:
    if isinstance(maker, ast.BinOp):
        arguments = [maker.left, maker.right]
    else:
        arguments = [] if maker.keywords else list(maker.args)
    return OperandRef(
        offset + node.col_offset,
        offset + (node.end_col_offset or node.col_offset),
        made=offset + (maker.end_col_offset or maker.col_offset),
        binds=not isinstance(node, (ast.IfExp, ast.Lambda, ast.Compare, ast.BoolOp)),
        is_argument=isinstance(maker, ast.Call),
        maker=(offset + maker.col_offset, offset + (maker.end_col_offset or maker.col_offset)),
        arguments=tuple(_text(text, one) for one in arguments),
    )


def _hidden_root(node: ast.Call, offset: int, text: str) -> Iterator[OperandRef]:
    """The operand of the root that a function such as `tf.norm` takes, written out."""
    form = _ROOTS.get(ast.unparse(node.func))
    is_norm = form is not None and "square" in form
    if form is None or not node.args or (is_norm and len(node.args) > 1):
        return
    others = [_text(text, one) for one in node.args[1:]]
    for keyword in node.keywords:
        if keyword.arg == "ord" and ast.unparse(keyword.value) == "'euclidean'":
            continue
        if keyword.arg not in ("axis", "keepdims"):
            return
        others.append(f"{keyword.arg}={_text(text, keyword.value)}")
    rest = "".join(f", {one}" for one in others)
    begin, end = offset + node.col_offset, offset + (node.end_col_offset or node.col_offset)
    written_out = form.format(_text(text, node.args[0]), rest)
    yield OperandRef(begin, end, end, True, True, (begin, end), (), written_out)


def _text(text: str, node: ast.expr) -> str:
    return text.encode()[node.col_offset : node.end_col_offset].decode()  # ast counts bytes


def last_name(function: ast.expr) -> str:
    """Return the last name of what is called: `log` of `tf.math.log`."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
