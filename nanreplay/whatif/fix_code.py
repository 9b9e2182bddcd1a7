"""How to write a fix: the user's own line with the operand changed, else a line that shows the call."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nanreplay.records import Frame

_CALLS = {
    "Log": ("log",), "Log1p": ("log1p",), "Sqrt": ("sqrt",), "Rsqrt": ("rsqrt",), "Exp": ("exp",), "Expm1": ("expm1",),
    "Reciprocal": ("reciprocal",), "RealDiv": ("divide", "truediv", "div"), "Acos": ("acos", "arccos"), "Asin": ("asin", "arcsin"),
    "Acosh": ("acosh",), "Atanh": ("atanh", "arctanh"), "Pow": ("pow",), "Softmax": ("softmax",), "Xlogy": ("xlogy",),
    "DivNoNan": ("divide_no_nan",), "MatrixInverse": ("inv", "pinv"), "Cholesky": ("cholesky",), "MatrixSolve": ("solve",),
    "LogMatrixDeterminant": ("slogdet", "logdet"), "MatrixDeterminant": ("det",), "Lgamma": ("lgamma",), "Atan2": ("atan2",),
}  # fmt: skip
"""Python functions that make an op, by their last name."""
_SHOWN = {
    "Cholesky": "tf.linalg.cholesky({})",
    "MatrixInverse": "tf.linalg.inv({})",
    "RealDiv": "x / {}",
    "Div": "x / {}",
    "Reciprocal": "1 / {}",
    "Pow": "{} ** p",
    "Xlogy": "tf.math.xlogy(x, {})",
}


def rewritten(source: Frame | None, op_type: str, template: str) -> str:
    """Return the source line with the op's operand replaced.

    Args:
        source: The line that made the op; None, or one without code, gives a line that shows the call.
        op_type: Type of the op.
        template: How the operand is written now; `{}` or `{0}` stands for what it was.
    """
    code = source.code.strip() if source is not None and source.code else ""
    found = {(operand.start, operand.end): operand for operand in _operands(code, op_type)}
    if len(found) == 1:
        return _replaced(code, next(iter(found.values())), template)
    shown = _SHOWN.get(op_type, f"tf.math.{_CALLS.get(op_type, (op_type.lower(),))[0]}({{}})")
    operand = template.replace("{0}", "x").replace("{}", "x")
    return shown.replace(
        "{}", f"({operand})" if op_type in _SHOWN and not operand.startswith("tf.") else operand
    )


def operand_text(source: Frame | None, op_type: str) -> str | None:
    """Return how the source line writes the op's operand, None when that cannot be told."""
    code = source.code.strip() if source is not None and source.code else ""
    found = {
        code.encode()[operand.start : operand.end].decode() for operand in _operands(code, op_type)
    }
    return found.pop() if len(found) == 1 else None


def short(number: float) -> str:
    """A number as one writes it: `1e-7`."""
    return re.sub(r"e([-+])0*", lambda sign: "e" + sign[1].replace("+", ""), f"{number:g}")


class OperandRef(NamedTuple):
    """Where an operand stands in a line."""

    start: int
    end: int
    binds: bool
    """Whether `operand + eps` needs no brackets around the operand."""
    is_argument: bool
    """Whether `operand + eps` needs no brackets around the whole."""


def _operands(code: str, op_type: str) -> Iterator[OperandRef]:
    """Operands of calls and operators that make such an op; of a line that is only a part of a statement, of its whole calls."""
    try:
        parts: list[tuple[int, ast.AST]] = [(0, ast.parse(code))]
    except SyntaxError:
        parts = list(_whole_calls(code, _CALLS.get(op_type, ())))
    for offset, tree in parts:
        for node in ast.walk(tree):
            yield from _operands_of(node, op_type, offset)


def _whole_calls(code: str, names: Sequence[str]) -> Iterator[tuple[int, ast.AST]]:
    for match in re.finditer(rf"[\w.]*\b(?:{'|'.join(names)})\(", code) if names else ():
        depth, end = 1, match.end()
        while end < len(code) and depth:
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        with contextlib.suppress(SyntaxError):
            yield match.start(), ast.parse(code[match.start() : end])


def _operands_of(node: ast.AST, op_type: str, offset: int) -> Iterator[OperandRef]:
    if isinstance(node, ast.Call) and node.args and _name(node.func) in _CALLS.get(op_type, ()):
        second = op_type in ("RealDiv", "DivNoNan", "Xlogy") and len(node.args) > 1
        yield _operand(node.args[1 if second else 0], offset, is_argument=True)
    elif isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Div) and op_type in ("RealDiv", "Div", "Reciprocal", "DivNoNan"):
            yield _operand(node.right, offset, is_argument=False)
        elif isinstance(node.op, ast.Pow) and op_type in ("Pow", "Sqrt", "Rsqrt"):
            yield _operand(node.left, offset, is_argument=False)


def _operand(node: ast.expr, offset: int, *, is_argument: bool) -> OperandRef:
    binds = not isinstance(node, (ast.IfExp, ast.Lambda, ast.Compare, ast.BoolOp))
    return OperandRef(
        offset + node.col_offset,
        offset + (node.end_col_offset or node.col_offset),
        binds,
        is_argument,
    )


def _name(function: ast.expr) -> str:
    return (
        function.attr
        if isinstance(function, ast.Attribute)
        else function.id
        if isinstance(function, ast.Name)
        else ""
    )


def _replaced(code: str, operand: OperandRef, template: str) -> str:
    raw = code.encode()  # ast counts bytes
    before, text, after = (
        part.decode()
        for part in (raw[: operand.start], raw[operand.start : operand.end], raw[operand.end :])
    )
    is_sum = template.startswith("{}") and template != "{}"
    new = template.format(text if operand.binds else f"({text})")
    in_brackets = operand.is_argument or (before.endswith("(") and after.startswith(")"))
    return f"{before}{new if in_brackets or not is_sum else f'({new})'}{after}"
