"""How to write a fix in the user's code.

It is the user's own line with the operand changed, where the line shows the very expression that
makes the op. Where it does not, as where a library's code makes the op, or where one of several
expressions may be meant, it is said in words what to change, as a comment. The report shows it
beside the result of each fix.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

from nanreplay.diagnose.keras_lines import is_call_of_keras
from nanreplay.records import Frame
from nanreplay.whatif.source_operands import DIVISIONS, OperandRef, last_name, operands_in

_LONGEST_CODE = 70
"""How much of a line is shown."""
_LARGEST_FLOAT32 = 3.4028235e38


def rewritten(
    source: Frame | None, op_type: str, template: str, number: int | None = None
) -> str | None:
    """Return the source line with the op's operand replaced.

    None where the line shows no such expression, or several of which any may be meant.

    Args:
        source: The line that made the op.
        op_type: Type of the op.
        template: How the operand is written now; `{}` or `{0}` stands for what it was.
        number: Which of several operands of such ops, in the order in which they are computed.
    """
    place = _place(source, op_type, number)
    return None if place is None else _replaced(_code_of(source), place, template)


def in_words(source: Frame | None, op_type: str, advice: str, layer: str = "") -> str:
    """Return what to change, as a comment, where no line can be shown changed.

    Args:
        source: The line that made the op.
        op_type: Type of the op.
        advice: What to do; `{}` stands for the operand.
        layer: Path of the layer that made the op, where one did.
    """
    operand = f"the {'divisor' if op_type in DIVISIONS else 'operand'} of `{op_type}`"
    comment = f"# {advice.format(operand)}"
    code = _code_of(source)
    texts = list(dict.fromkeys(_text(code, place) for place in _places(source, op_type)))
    if len(texts) > 1:
        return f"{comment}; it is one of {', '.join(f'`{text}`' for text in texts)}"
    if texts:
        return f"{comment}, `{texts[0]}`"
    if not code and source is not None:
        name = source.file.replace("\\", "/").rpartition("/")[2]
        return f"{comment}, in line {source.line} of {name}, whose code the capture does not hold"
    if not code:
        return f"{comment}. No line of yours makes the op"
    whose = f" of layer `{layer}`" if layer else ""
    if is_call_of_keras(code):
        return f"{comment}. No line of yours makes the op{whose}, but Keras does"
    if not _is_whole(code):
        return f"{comment}, in the statement that holds `{code}`"
    shown = code if len(code) <= _LONGEST_CODE else f"{code[: _LONGEST_CODE - 4]} ..."
    return f"{comment}. A library makes the op{whose} inside of `{shown}`: write that part yourself"


def _is_whole(code: str) -> bool:
    """Whether a line is more than a part of a statement."""
    try:
        ast.parse(code if not code.endswith(":") else f"{code} pass")
    except SyntaxError:
        return False
    return True


def _place(source: Frame | None, op_type: str, number: int | None) -> OperandRef | None:
    places = _places(source, op_type)
    if len(places) == 1:
        return places[0]
    return places[number] if number is not None and number < len(places) else None


def _places(source: Frame | None, op_type: str) -> list[OperandRef]:
    code = _code_of(source)
    return [] if is_call_of_keras(code) else operands_in(code, op_type)


def count_operands(source: Frame | None, op_type: str) -> int:
    """Return how many operands of such ops a source line shows."""
    return len(_places(source, op_type))


def operand_text(source: Frame | None, op_type: str) -> str | None:
    """Return how the source line writes the op's operand, None when that cannot be told."""
    places = []
    for place in _places(source, op_type):
        if place.written_out is None:
            places.append(place)
    texts = {_text(_code_of(source), place) for place in places}
    return texts.pop() if len(texts) == 1 else None


def _text(code: str, place: OperandRef) -> str:
    return code.encode()[place.start : place.end].decode()  # ast counts bytes


def _code_of(source: Frame | None) -> str:
    return source.code.strip() if source is not None and source.code else ""


def short_number(number: float) -> str:
    """A number as one writes it: `1e-7`."""
    # `1e-07` and `1e+06` are how Python writes them.
    text = f"{number:g}"
    if abs(float(text) - number) > 1e-9 * abs(number):
        text = f"{number:.8g}"  # 1.000001 is no 1
    return re.sub(r"e([-+])0*", lambda sign: "e" + sign[1].replace("+", ""), text)


def _replaced(code: str, operand: OperandRef, template: str) -> str:
    raw = code.encode()  # ast counts bytes
    before, after = raw[: operand.start].decode(), raw[operand.end :].decode()
    if operand.written_out is not None:
        return f"{before}tf.sqrt({template.format(operand.written_out)}){after}"
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
    infinities = [node for node in ast.walk(tree) if _is_minus_infinity(node)]
    if len(infinities) != 1 or not isinstance(infinities[0], ast.expr):
        return None
    raw, node = code.encode(), infinities[0]
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


def with_expression(
    source: Frame | None, op_type: str, template: str, number: int | None = None
) -> str | None:
    """Return a source line with the expression that makes the op written in another way.

    `x / y` becomes `tf.math.divide_no_nan(x, y)`. None where the line does not show it, as above.

    Args:
        source: The line.
        op_type: Type of the op that the expression makes.
        template: What is written in its place; `{0}` and `{1}` stand for its operands.
        number: Which of several such expressions, in the order in which they are computed.
    """
    place = _place(source, op_type, number)
    if place is None or len(place.arguments) < 1 + ("{1}" in template):
        return None
    raw, (begin, end) = _code_of(source).encode(), place.maker
    new = template.format(*place.arguments)
    return f"{raw[:begin].decode()}{new}{raw[end:].decode()}"


def with_call_of_inner(source: Frame | None, op_type: str, function: str) -> str | None:
    """Return a source line with a nested call as a call of one function.

    `tf.math.log(tf.nn.softmax(x))` becomes `tf.nn.log_softmax(x)`, and
    `tf.math.log(1 + tf.exp(x))` becomes `tf.math.softplus(x)`. None where the line shows no such
    call, or several.

    Args:
        source: The line.
        op_type: Type of the op that the outer call makes.
        function: What is called in its place.
    """
    place = _place(source, op_type, None)
    if place is None or len(place.arguments) != 1:
        return None
    inner = ast.parse(place.arguments[0], mode="eval").body
    if op_type == "Log" and _last_name_of(function) == "softplus":
        inner = _without_one(inner)
    arguments = _call(inner, _INNER[_last_name_of(function)])
    others: list[str] = []
    if _last_name_of(function).endswith("logsumexp") and arguments:
        others, arguments = arguments[1:], _call(_parsed(arguments[0]), ("exp",))
    if len(arguments) != 1:
        return None
    text = ", ".join([*arguments, *others]).replace("{", "{{").replace("}", "}}")
    return with_expression(source, op_type, f"{function}({text})")


_INNER: Mapping[str, Sequence[str]] = {
    "log_softmax": ("softmax",),
    "log_sigmoid": ("sigmoid",),
    "softplus": ("exp",),
    "reduce_logsumexp": ("reduce_sum",),
    "cumulative_logsumexp": ("cumsum",),
}
"""What is called within a logarithm, by the function that stands for both."""


def _last_name_of(function: str) -> str:
    """The last name of a function: `softplus` of `tf.math.softplus`."""
    return function.rpartition(".")[2]


def _parsed(code: str) -> ast.expr:
    return ast.parse(code, mode="eval").body


def _without_one(node: ast.expr) -> ast.expr:
    """What is added to a 1; the expression itself where none is."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for one, other in ((node.left, node.right), (node.right, node.left)):
            if isinstance(one, ast.Constant) and one.value == 1:
                return other
    return ast.Constant(None)


def _call(node: ast.expr, names: Sequence[str]) -> list[str]:
    """The arguments of a call of a function, as they are written; none for other expressions."""
    if not isinstance(node, ast.Call) or last_name(node.func) not in names:
        return []
    keywords = [f"{one.arg}={ast.unparse(one.value)}" for one in node.keywords if one.arg]
    return [*map(ast.unparse, node.args), *keywords]
