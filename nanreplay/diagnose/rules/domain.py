"""Rules about the domain of functions: logarithms, roots, powers, arcs."""

from __future__ import annotations

import re

import numpy as np

from nanreplay.bisect.tensor_stats import words
from nanreplay.diagnose.case import Case, Values, capital, shown
from nanreplay.findings import Cause, CauseKind

_LOGS = {"Log": 0, "Log1p": 0, "Xlogy": 1, "Xlog1py": 1}
"""Position of the operand that the logarithm is taken of."""
_BORDER = {"Log": 0.0, "Xlogy": 0.0, "Log1p": -1.0, "Xlog1py": -1.0}
_ROOTS = words("Sqrt Rsqrt")
_ARCS = {"Acos": (-1.0, 1.0), "Asin": (-1.0, 1.0), "Atanh": (-1.0, 1.0), "Acosh": (1.0, np.inf)}
_NORM_SCOPE = re.compile(
    r"(^|/)(norm|reduce_euclidean_norm|normalize)(_\d+)?/(Sqrt|norm|Pow|EuclideanNorm)[^/]*$"
)
_NORM_CALL = re.compile(r"\b(norm|euclidean_norm|reduce_euclidean_norm)\(")
_ROOT_GRADIENTS = words("SqrtGrad RsqrtGrad")


def log_of_zero(case: Case) -> Cause | None:
    """A logarithm of exactly 0, forward or as the pole of its gradient."""
    return _log(case, "log_of_zero", lambda values, border: values == border, "exactly")


def log_of_negative(case: Case) -> Cause | None:
    """A logarithm of a number below 0."""
    return _log(case, "log_of_negative", lambda values, border: values < border, "negative:")


def _log(case: Case, kind: CauseKind, matches: object, word: str) -> Cause | None:
    if case.op in _LOGS:
        position, border, confidence, function = _LOGS[case.op], _BORDER[case.op], 0.92, case.op
    elif case.forward in _LOGS and case.op in ("Reciprocal", "Inv", "RealDiv", "Xdivy", "Mul"):
        position, border, confidence, function = (
            (1 if case.op in ("RealDiv", "Xdivy") else 0),
            0.0,
            0.85,
            case.forward,
        )
    else:
        return None
    values = case.operand(position)
    if not values.size or not callable(matches) or not matches(values, border).any():
        return None
    value = float(values[matches(values, border)][0])
    gives = (
        "NaN"
        if kind == "log_of_negative"
        else "-inf"
        if case.op in _LOGS
        else "infinite in its gradient"
    )
    call = f"log({shown(value)})" if border == 0 else f"log1p({shown(value)})"
    sentence = f"{capital(case.subject(position))}{case.place} is {word} {shown(value)}, and {call} is {gives}."
    return Cause(
        kind,
        confidence,
        sentence,
        (f"`{function}`{case.where}: {case.count} became non-finite.", *_made_by(case, position)),
    )


def _made_by(case: Case, i: int) -> list[str]:
    """What the operand was made by, in one line."""
    links = case.bisection.findings.upstream[:3]
    return [f"It came from {', '.join(f'`{link.op_type}`' for link in links)}."] if links else []


def sqrt_of_negative(case: Case) -> Cause | None:
    """A root of a number below 0."""
    values = case.operand(0)
    if case.op not in _ROOTS or case.forward not in ("", *_ROOTS) or not (values < 0).any():
        return None
    value = float(values[values < 0][0])
    evidence = list(_made_by(case, 0))
    value_id = case.input_id(0)
    if (
        case.graph is not None
        and value_id is not None
        and case.graph.variance(value_id) is not None
    ):
        evidence.insert(
            0,
            "It is a variance, computed as a difference of two close numbers, and rounding made it negative.",
        )
    return Cause(
        "sqrt_of_negative",
        0.95,
        f"{capital(case.subject(0))}{case.place} is {value:.6g}: `{case.op}` of a negative number is NaN.",
        tuple(evidence),
    )


def sqrt_grad_at_zero(case: Case) -> Cause | None:
    """The gradient of a root at 0."""
    if not _is_root_gradient_at_zero(case):
        return None
    sum_of_squares = _squares(case)
    evidence = (f"The root is taken of `{sum_of_squares}`, which is 0.",) if sum_of_squares else ()
    sentence = f"The gradient of a square root at 0.0 is infinite: `{case.forward or 'Sqrt'}`{case.where} is 0.0{case.place}."
    return Cause(
        "sqrt_grad_at_zero",
        0.9,
        sentence,
        (f"`{case.op}` in the backward pass: {case.count} are non-finite.", *evidence),
    )


def _is_root_gradient_at_zero(case: Case) -> bool:
    if case.op == "SqrtGrad" or (case.is_backward and case.forward in ("Sqrt", "EuclideanNorm")):
        values = case.operand(1) if case.op in ("RealDiv", "Div") else case.operand(0)
        return not values.size or bool((values == 0).any())
    return case.op == "RsqrtGrad" or (case.is_backward and case.forward == "Rsqrt")


def _squares(case: Case) -> str:
    """Name of the sum of squares that the root is taken of, "" where it is something else."""
    if case.graph is None or case.fact is None:
        return ""
    found = [
        case.graph.squares_under(fact.input_ids[0])
        for fact in case.graph.forward_of(case.fact)
        if fact.input_ids
    ]
    return next((fact.name for fact in found if fact is not None), "")


def norm_grad_at_zero(case: Case) -> Cause | None:
    """The gradient of a norm (`tf.norm`, `keras.ops.norm`) at a vector of zeros."""
    if not _is_root_gradient_at_zero(case):
        return None
    name = case.info.forward if case.info is not None and case.info.forward else ""
    scoped, called = _NORM_SCOPE.search(name) is not None, _NORM_CALL.search(case.code) is not None
    is_op = case.forward == "EuclideanNorm"
    if not (is_op or called or (scoped and _is_of_library(case))):
        return None
    evidence = [f"`{case.op}` in the backward pass: {case.count} are non-finite."]
    evidence += [f"Source: `{case.code}`"] if called else []
    return Cause(
        "norm_grad_at_zero",
        0.93,
        f"The norm{case.where} of a vector of zeros{case.place}: its gradient is 0/0 or infinite.",
        tuple(evidence),
    )


def _is_of_library(case: Case) -> bool:
    """Whether a sum of squares is written as the library's norm does, x * conj(x), and not as a layer named `norm` may."""
    if case.graph is None or case.fact is None:
        return True
    for root in case.graph.forward_of(case.fact):
        total = case.graph.maker(root.input_ids[0])
        squares = (
            case.graph.maker(total.input_ids[0])
            if total is not None and total.type == "Sum"
            else None
        )
        if squares is not None and squares.type == "Square":
            return False
    return True


def pow_domain(case: Case) -> Cause | None:
    """A power outside of its domain: a fraction of a negative base, a negative one of 0, or their gradients."""
    if case.op != "Pow" and not (case.is_backward and case.forward == "Pow"):
        return None
    base, exponent = case.operand(0), case.operand(1)
    if case.op != "Pow":
        return Cause(
            "pow_domain",
            0.85,
            f"The gradient of a power{case.where} is not finite{case.place}: its base is 0 or negative.",
            (f"`{case.op}` computes the gradient of `Pow`.",),
        )
    if not base.size:
        return (
            None
            if case.is_infinite
            else Cause(
                "pow_domain",
                0.7,
                f"A power{case.where} of finite operands is NaN: a negative base with a fractional exponent.",
            )
        )
    if (base < 0).any() and np.isnan(case.value):
        reason = f"{base[base < 0][0]:.6g} is negative, and a fractional power of it is NaN"
    elif (base == 0).any() and case.is_infinite:
        reason = f"0.0 to the negative power {_first(exponent)} is infinite"
    else:
        return None
    what = "the gradient of a power takes this power: " if case.is_backward else ""
    return Cause(
        "pow_domain",
        0.93,
        f"{capital(what + reason)}{case.place}.",
        (f"`Pow`{case.where}: {case.count} became non-finite.",),
    )


def _first(values: Values) -> str:
    return shown(float(values[0])) if values.size else "given"


def acos_domain(case: Case) -> Cause | None:
    """An arc function outside of its domain, or its gradient at the border."""
    if case.op in _ARCS:
        low, high = _ARCS[case.op]
        values = case.operand(0)
        outside = values[
            (values < low) | (values > high) | ((np.abs(values) == 1) & (case.op == "Atanh"))
        ]
        if not outside.size:
            return None
        where = (
            f"outside of {low:.0f} to {high:.0f}"
            if abs(outside[0]) != 1
            else "the border of its domain"
        )
        return Cause(
            "acos_domain",
            0.95,
            f"`{case.op}` of {outside[0]:.8g}{case.place} is {where}.",
            tuple(_made_by(case, 0)),
        )
    if case.is_backward and case.forward in _ARCS:
        sentence = f"The gradient of `{case.forward}`{case.where} is infinite at the border of its domain, 1 or -1{case.place}."
        return Cause(
            "acos_domain",
            0.92,
            sentence,
            (f"`{case.op}` in the backward pass: {case.count} are non-finite.",),
        )
    return None
