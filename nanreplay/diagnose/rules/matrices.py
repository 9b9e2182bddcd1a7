"""The rule about matrices that cannot be inverted or factored."""

from __future__ import annotations

import re

import numpy as np

from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.tensor_stats import words
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import Case, Values
from nanreplay.diagnose.failure_graph import FailureGraph
from nanreplay.findings import Cause
from nanreplay.replay.provenance import OpEvent, ValueId

_FACTORS = words(
    "Cholesky LogMatrixDeterminant Lu MatrixInverse MatrixSolve MatrixSolveLs MatrixSquareRoot "
    "MatrixTriangularSolve"
)
"""Ops that fail for a singular matrix, which is their first input.

A determinant is 0 there, and each matrix has eigenvalues, singular values and a QR decomposition,
whose gradients TensorFlow keeps from dividing by 0.
"""
_REFUSED = re.compile(r"not invertible|not successful|singular|rank.deficient", re.IGNORECASE)
"""What TensorFlow's kernels say of such a matrix, where they raise."""
_MOST_DIMENSIONS = 1024
"""The rank of a larger matrix takes too long to find."""
_PRODUCTS = words("MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum")


def linalg_singular(case: Case) -> Cause | None:
    """A matrix that is singular or not positive definite."""
    if case.op in _FACTORS:
        if not _is_at_fault(case):
            return None
        how = "raises op by op" if case.kind == "raised" else "gives no finite result"
        needs = "is not positive definite" if "Cholesky" in case.op else "is singular"
        sentence = f"`{case.op}`{case.where} {how}{case.place}: its matrix {needs}."
        sentence += _rank_in_words(case, case.input_id(0), _matrix(case, case.event))
        counted = [] if case.kind == "raised" else [f"{case.count} are non-finite."]
        return Cause("linalg_singular", 0.93, sentence, tuple(counted))
    # A determinant of 0 is finite; what takes its logarithm or divides by it is not.
    value = case.input_id(0)
    if case.op not in ("Log", "Reciprocal") or case.graph is None or value is None:
        return None
    if not (case.told(0) == 0).any():
        return None
    for fact in case.graph.upstream(value, 2):
        if fact.type == "MatrixDeterminant":
            event = case.kept.get(fact.serial)
            matrix = _matrix(case, event)
            determinant = case.told_of(fact)
            if matrix is None or determinant is None or (determinant != 0).any():
                return None
            if not is_singular(matrix):  # a determinant that is too small for its type is 0 as well
                return None
            sentence = f"The determinant{case.where} is 0.0{case.place}: the matrix is singular."
            sentence += _rank_in_words(case, fact.input_ids[0], matrix)
            return Cause("linalg_singular", 0.94, sentence)
    return None


def _is_at_fault(case: Case) -> bool:
    """Whether the matrix is to blame: what is not finite may be too large for its type as well."""
    if case.kind == "raised":
        error = case.event.error if case.event is not None else None
        return error is not None and _REFUSED.search(str(error)) is not None
    matrix = _matrix(case, case.event)
    if matrix is None or not np.isfinite(matrix).all():
        return False
    if case.op == "MatrixTriangularSolve":
        return bool((np.diagonal(matrix) == 0).any())
    if case.op != "Cholesky":
        return is_singular(matrix)
    eigenvalues = np.linalg.eigvalsh(matrix.astype(np.result_type(matrix, np.float64)))
    return bool(eigenvalues[0] <= 10 * _rounding(matrix) * np.abs(eigenvalues).max())


def _matrix(case: Case, event: OpEvent | None) -> Values | None:
    """Return the matrix that an op took, of several the first that failed; None if not known."""
    if event is None or not event.inputs:
        return None
    matrices = as_array(event.inputs[0])
    while matrices.ndim > 2 and len(matrices) == 1:
        matrices = matrices[0]
    if matrices.ndim == 2:
        return matrices
    batch_axes = matrices.ndim - 2
    if batch_axes < 1 or case.mask is None or case.mask.shape[:batch_axes] != matrices.shape[:-2]:
        return None
    return as_array(matrices[tuple(np.argwhere(case.mask)[0][:batch_axes])])


def is_singular(matrix: Values) -> bool:
    """Whether a matrix is singular as far as its type can tell."""
    wide = matrix.astype(np.result_type(matrix, np.float64))
    is_square = wide.shape[0] == wide.shape[1]
    return not np.linalg.cond(wide, 1 if is_square else None) < 0.1 / _rounding(matrix)


def _rounding(matrix: Values) -> float:
    return float(np.finfo(matrix.dtype).eps)


def _rank_in_words(case: Case, value: ValueId | None, matrix: Values | None) -> str:
    """Say so where a matrix is made of fewer rows than it has dimensions: "" where it is not."""
    if case.graph is None or value is None or matrix is None or len(matrix) > _MOST_DIMENSIONS:
        return ""
    product = _product_with_itself(case.graph, value)
    if product is None or not product.outputs:
        return ""
    factor = case.graph.stat(product.input_ids[0])
    dimensions = product.outputs[0].shape[-1]
    if factor is None or not 2 <= len(factor.shape) == len(product.outputs[0].shape):
        return ""
    first, second = factor.shape[-2:]
    rows = second if first == dimensions else first
    centred = _is_centred(case.graph, product.input_ids[0])
    rank = max(rows - 1, 0) if centred else rows
    # what was taken off, or multiplied element by element, may have made the rank another one
    if rank >= dimensions or int(np.linalg.matrix_rank(matrix)) > rank:
        return ""
    things = f"{rows} {'centred ' if centred else ''}row{'' if rows == 1 else 's'}"
    return (
        f" It is a product (`{product.type}`) of {things} in {dimensions} dimensions, so its rank "
        f"is at most {rank}: it takes more rows, or a multiple of the identity added."
    )


def _product_with_itself(graph: FailureGraph, matrix: ValueId) -> Fact | None:
    """Return the op that made a matrix as x^T x, scaled or less something at most."""
    value = matrix
    for _ in range(4):
        fact = graph.maker(value)
        if fact is None:
            return None
        if fact.type in _PRODUCTS:
            first, last = fact.input_ids[0], fact.input_ids[-1]
            return fact if graph.is_same(first, last) else None
        if fact.type not in ("RealDiv", "Mul", "Sub"):
            return None
        value = fact.input_ids[0]
    return None


def _is_centred(graph: FailureGraph, value: ValueId) -> bool:
    difference = graph.maker(value)
    return difference is not None and difference.type == "Sub" and graph.is_centred(difference)
