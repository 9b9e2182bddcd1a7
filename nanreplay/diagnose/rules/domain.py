"""Rules about the domain of functions: logarithms, roots, powers, arcs.

Each looks at the operand of the function, and, in the backward pass, at the op of its gradient that
has the same pole.
"""

from __future__ import annotations

import re

import numpy as np

from nanreplay.bisect.tensor_stats import words
from nanreplay.diagnose.case import Case, Values, capital, shown
from nanreplay.diagnose.rules.division import divides_by_zero
from nanreplay.diagnose.rules.selection import underflow_in_words
from nanreplay.findings import Cause

_LOGS = {"Log": 0, "Log1p": 0, "Xlogy": 1, "Xlog1py": 1}
"""Position of the operand that the logarithm is taken of."""
_BORDER = {"Log": 0.0, "Xlogy": 0.0, "Log1p": -1.0, "Xlog1py": -1.0}
"""Where the operand makes the logarithm -inf."""
_LOG_GRADIENTS = words("Reciprocal Inv RealDiv Xdivy")
_ROOTS = words("Sqrt Rsqrt")
_ARCS = {"Acos": (-1.0, 1.0), "Asin": (-1.0, 1.0), "Atanh": (-1.0, 1.0), "Acosh": (1.0, np.inf)}
"""The domain of each arc function."""
_NORM_SCOPE = re.compile(
    r"(^|/)(norm|reduce_euclidean_norm|normalize)(_\d+)?/(Sqrt|norm|Pow|EuclideanNorm)[^/]*$"
)
"""Names that TensorFlow and Keras give to the ops of a norm."""
_NORM_CALL = re.compile(r"\b(norm|euclidean_norm|reduce_euclidean_norm)\(")
"""A call of a norm in the user's line."""


def log_of_zero(case: Case) -> Cause | None:
    """A logarithm of exactly 0, forward or as the pole of its gradient."""
    log = _log_operand(case)
    if log is None:
        return None
    position, border = log
    at_border = case.told(position) == border
    if not at_border.any():
        return None
    value = float(case.told(position)[at_border][0])
    is_forward = case.op in _LOGS
    result = "-inf" if is_forward else "infinite in its gradient"
    sentence = (
        f"{capital(case.subject_at(position))} is exactly {shown(value)}, "
        f"and {_log_call(value, border)} is {result}."
    )
    sentence += underflow_in_words(case, position) if is_forward else ""
    return Cause(
        "log_of_zero", 0.92 if is_forward else 0.85, sentence, _log_evidence(case, position)
    )


def log_of_negative(case: Case) -> Cause | None:
    """A logarithm of a number below 0."""
    log = _log_operand(case)
    if log is None:
        return None
    position, border = log
    is_below = case.told(position) < border
    if not is_below.any():
        return None
    value = float(case.told(position)[is_below][0])
    sentence = (
        f"{capital(case.subject_at(position))} is negative: {shown(value)}, "
        f"and {_log_call(value, border)} is NaN."
    )
    confidence = 0.92 if case.op in _LOGS else 0.85
    return Cause("log_of_negative", confidence, sentence, _log_evidence(case, position))


def _log_operand(case: Case) -> tuple[int, float] | None:
    """Return which operand a logarithm (or the gradient of one) takes, and the domain's border."""
    if case.op in _LOGS:
        return _LOGS[case.op], _BORDER[case.op]
    # The gradient of log(x) is 1 / x, of log1p too: TensorFlow's takes 1 + x for x there.
    if case.forward in _LOGS and case.op in _LOG_GRADIENTS:
        return (1 if case.op in ("RealDiv", "Xdivy") else 0), 0.0
    return None


def _log_call(value: float, border: float) -> str:
    return f"log({shown(value)})" if border == 0 else f"log1p({shown(value)})"


def _log_evidence(case: Case, position: int) -> tuple[str, ...]:
    function = case.op if case.op in _LOGS else case.forward
    became = f"`{function}`{case.where}: {case.count} became non-finite."
    return (became, *_came_from(case))


def _came_from(case: Case) -> list[str]:
    """What the fatal operand was made by, in one line."""
    links = case.bisection.findings.upstream[:3]
    return [f"It came from {', '.join(f'`{link.op_type}`' for link in links)}."] if links else []


def sqrt_of_negative(case: Case) -> Cause | None:
    """A root of a number below 0."""
    values = case.told(0)
    if case.op not in _ROOTS or case.forward not in ("", *_ROOTS) or not (values < 0).any():
        return None
    value = float(values[values < 0][0])
    sentence = (
        f"{capital(case.subject_at(0))} is {value:.6g}: `{case.op}` of a negative number is NaN."
    )
    evidence = _came_from(case)
    value_id = case.input_id(0)
    variance = None
    if case.graph is not None and value_id is not None:
        variance = case.graph.variance(value_id)
    differences = None if variance is None else case.told_of(variance)
    if differences is not None and (differences < 0).any():
        evidence.insert(
            0,
            "It is a variance, computed as a difference of two close numbers, "
            "and rounding made it negative.",
        )
    return Cause("sqrt_of_negative", 0.95, sentence, tuple(evidence))


def sqrt_grad_at_zero(case: Case) -> Cause | None:
    """The gradient of a root at 0."""
    if not _is_root_gradient_at_zero(case):
        return None
    root = f"`{case.forward or 'Sqrt'}`"
    if case.forward == "Rsqrt":
        root = f"the operand of {root}"
    sentence = (
        f"The gradient of a square root at 0.0 is infinite: {root}{case.where} is 0.0{case.place}."
    )
    evidence = [_backward_evidence(case)]
    sum_of_squares = _sum_of_squares(case)
    if sum_of_squares:
        evidence.append(f"The root is taken of `{sum_of_squares}`, which is 0.")
    return Cause("sqrt_grad_at_zero", 0.9, sentence, tuple(evidence))


def _backward_evidence(case: Case) -> str:
    return f"`{case.op}` in the backward pass: {case.count} are non-finite."


def _is_root_gradient_at_zero(case: Case) -> bool:
    if case.op == "SqrtGrad" or (case.is_backward and case.forward in ("Sqrt", "EuclideanNorm")):
        # SqrtGrad takes the root, not what it was taken of; both are 0 together.
        values = case.told(1) if case.op in ("RealDiv", "Div") else case.told(0)
        return bool((values == 0).any())
    if case.op == "RsqrtGrad":
        return bool(np.isinf(case.told(0)).any())  # it takes 1 / sqrt(x)
    operand = case.forward_input(0) if case.is_backward and case.forward == "Rsqrt" else None
    return operand is not None and bool((operand == 0).any())


def _sum_of_squares(case: Case) -> str:
    """Name of the sum of squares that the root is taken of, "" where it is something else."""
    if case.graph is None or case.fact is None:
        return ""
    for root in case.graph.forward_of(case.fact):
        total = case.graph.squares_under(root.input_ids[0]) if root.input_ids else None
        if total is not None:
            return total.name
    return ""


def norm_grad_at_zero(case: Case) -> Cause | None:
    """The gradient of a norm (`tf.norm`, `keras.ops.norm`) at a vector of zeros."""
    if not _is_root_gradient_at_zero(case):
        return None
    name = case.info.forward if case.info is not None and case.info.forward else ""
    is_called = _NORM_CALL.search(case.code) is not None
    if case.forward != "EuclideanNorm":
        # another root of the line, or of a layer of that name, is none of a sum of squares
        is_named = is_called or (_NORM_SCOPE.search(name) is not None and _is_of_library(case))
        if not is_named or not _sum_of_squares(case):
            return None
    sentence = (
        f"The norm{case.where} of a vector of zeros{case.place}: its gradient is 0/0 or infinite."
    )
    evidence = [_backward_evidence(case)]
    if is_called:
        evidence.append(f"Source: `{case.code}`")
    return Cause("norm_grad_at_zero", 0.93, sentence, tuple(evidence))


def _is_of_library(case: Case) -> bool:
    """Whether a sum of squares is written as TensorFlow's norm does.

    That is x * conj(x), and not Square, as a user's layer named `norm` may have it.
    """
    if case.graph is None or case.fact is None:
        return False
    for root in case.graph.forward_of(case.fact):
        total = case.graph.maker(root.input_ids[0])
        if total is not None and total.type == "Sum":
            squares = case.graph.maker(total.input_ids[0])
            if squares is not None and squares.type == "Square":
                return False
    return True


def pow_domain(case: Case) -> Cause | None:
    """A fractional power of a negative base, or a negative power of 0.

    The gradient of a power is a power itself: TensorFlow takes no other op there that has a pole.
    """
    if case.op != "Pow":
        return None
    if not case.operand(0).size:
        return _pow_without_operands(case)
    base, exponent = case.told(0), case.told(1)
    if (base < 0).any() and np.isnan(case.value):
        reason = f"{base[base < 0][0]:.6g} is negative, and a fractional power of it is NaN"
    elif (base == 0).any() and case.is_infinite:
        reason = f"0.0 to the negative power {_first(exponent)} is infinite"
    else:
        return None
    if case.is_backward:  # the gradient of x ** y computes x ** (y - 1)
        reason = f"the gradient of a power takes this power: {reason}"
    evidence = f"`Pow`{case.where}: {case.count} became non-finite."
    return Cause("pow_domain", 0.93, f"{capital(reason)}{case.place}.", (evidence,))


def _pow_without_operands(case: Case) -> Cause | None:
    if case.is_infinite:
        return None
    sentence = (
        f"A power{case.where} of finite operands is NaN: "
        "a negative base with a fractional exponent."
    )
    return Cause("pow_domain", 0.7, sentence)


def _first(values: Values) -> str:
    return shown(float(values[0])) if values.size else "given"


def acos_domain(case: Case) -> Cause | None:
    """An arc function outside of its domain, or its gradient at the border."""
    if case.op in _ARCS:
        return _arc(case)
    if case.is_backward and case.forward in _ARCS and divides_by_zero(case):
        border = "1" if case.forward == "Acosh" else "1 or -1"
        sentence = (
            f"The gradient of `{case.forward}`{case.where} is infinite "
            f"at the border of its domain, {border}{case.place}."
        )
        return Cause("acos_domain", 0.92, sentence, (_backward_evidence(case),))
    return None


def _arc(case: Case) -> Cause | None:
    low, high = _ARCS[case.op]
    values = case.operand(0)
    is_pole = (np.abs(values) == 1) & (case.op == "Atanh")
    outside = values[(values < low) | (values > high) | is_pole]
    if not outside.size:
        return None
    where = "below 1" if case.op == "Acosh" else f"outside of {low:.0f} to {high:.0f}"
    if abs(outside[0]) == 1:
        where = "the border of its domain"
    sentence = f"`{case.op}` of {outside[0]:.8g}{case.place} is {where}."
    return Cause("acos_domain", 0.95, sentence, tuple(_came_from(case)))
