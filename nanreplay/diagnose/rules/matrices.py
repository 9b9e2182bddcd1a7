"""The rule about matrices that cannot be inverted or factored."""

from __future__ import annotations

from nanreplay.bisect.tensor_stats import words
from nanreplay.diagnose.case import Case
from nanreplay.findings import Cause

_FACTORS = words(
    "BatchMatrixInverse Cholesky CholeskyGrad Eig LogMatrixDeterminant Lu MatrixDeterminant "
    "MatrixInverse MatrixLogarithm MatrixSolve MatrixSolveLs MatrixSquareRoot "
    "MatrixTriangularSolve Qr SelfAdjointEig SelfAdjointEigV2 Svd BandedTriangularSolve "
    "TridiagonalSolve"
)


def linalg_singular(case: Case) -> Cause | None:
    """A matrix that is singular or not positive definite.

    Or one with equal eigenvalues, where gradients divide by their differences.
    """
    if case.op in _FACTORS:
        how = "raises op by op" if case.kind == "raised" else "gives no finite result"
        needs = "is not positive definite" if "Cholesky" in case.op else "is singular"
        sentence = f"`{case.op}`{case.where} {how}{case.place}: its matrix {needs}."
        return Cause("linalg_singular", 0.93, sentence, (f"{case.count} are non-finite.",))
    if case.is_backward and case.forward in _FACTORS:
        sentence = (
            f"The gradient of `{case.forward}`{case.where} divides by 0{case.place}: "
            "equal eigenvalues, or a matrix that is singular."
        )
        evidence = f"`{case.op}` in the backward pass: {case.count} are non-finite."
        return Cause("linalg_singular", 0.93, sentence, (evidence,))
    # A determinant of 0 is finite; what takes its logarithm or divides by it is not.
    value = case.input_id(0)
    if case.op not in ("Log", "Reciprocal") or case.graph is None or value is None:
        return None
    if any(maker.type == "MatrixDeterminant" for maker in case.graph.upstream(value, 2)):
        sentence = f"The determinant{case.where} is 0.0{case.place}: the matrix is singular."
        return Cause("linalg_singular", 0.94, sentence)
    return None
