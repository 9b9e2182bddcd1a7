"""The rule about matrices that cannot be inverted or factored."""

from __future__ import annotations

from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.tensor_stats import words
from nanreplay.diagnose.case import Case
from nanreplay.diagnose.failure_graph import FailureGraph
from nanreplay.findings import Cause
from nanreplay.replay.provenance import ValueId

_FACTORS = words(
    "BatchMatrixInverse Cholesky CholeskyGrad LogMatrixDeterminant Lu MatrixInverse "
    "MatrixLogarithm MatrixSolve MatrixSolveLs MatrixSquareRoot MatrixTriangularSolve "
    "BandedTriangularSolve TridiagonalSolve"
)
"""Ops that fail for a singular matrix.

A determinant is 0 there, and each matrix has eigenvalues, singular values and a QR decomposition,
whose gradients TensorFlow keeps from dividing by 0.
"""
_PRODUCTS = words("MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum")


def linalg_singular(case: Case) -> Cause | None:
    """A matrix that is singular or not positive definite."""
    if case.op in _FACTORS:
        how = "raises op by op" if case.kind == "raised" else "gives no finite result"
        needs = "is not positive definite" if "Cholesky" in case.op else "is singular"
        sentence = f"`{case.op}`{case.where} {how}{case.place}: its matrix {needs}."
        sentence += _rank_in_words(case, case.input_id(0))
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
            sentence = f"The determinant{case.where} is 0.0{case.place}: the matrix is singular."
            sentence += _rank_in_words(case, fact.input_ids[0])
            return Cause("linalg_singular", 0.94, sentence)
    return None


def _rank_in_words(case: Case, matrix: ValueId | None) -> str:
    """Say so where a matrix is made of fewer rows than it has dimensions: "" where it is not."""
    if case.graph is None or matrix is None:
        return ""
    product = _product_with_itself(case.graph, matrix)
    if product is None or not product.outputs:
        return ""
    factor = case.graph.stat(product.input_ids[0])
    dimensions = product.outputs[0].shape[-1]
    if factor is None or len(factor.shape) < 2:
        return ""
    first, second = factor.shape[-2:]
    rows = second if first == dimensions else first
    centred = _is_centred(case.graph, product.input_ids[0])
    rank = max(rows - 1, 0) if centred else rows
    if rank >= dimensions:
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
