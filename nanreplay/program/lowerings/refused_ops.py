"""Ops that only a GPU runs and that have no form for a CPU, each with the reason.

A test holds these lists against TensorFlow's registry of kernels.
"""

from __future__ import annotations

from collections.abc import Mapping

_ELSEWHERE = "replay it on a machine with a GPU"
_SPARSE = (
    f"it computes on sparse matrices that are held in a GPU's memory (CSR), and the CPU has no "
    f"kernel for that; {_ELSEWHERE}"
)
_MADE_AT_RUN_TIME = (
    "TensorFlow puts it into graphs as it runs them on a GPU, and no trace of a step holds it; "
    "record the training step itself"
)
_OLD_TRANSFORM = (
    "TensorFlow refuses it in graphs of today (version 15 and later); use the op without Batch in "
    "its name"
)
_BINARY = (
    "it calls code that was compiled for the device it was recorded on; "
    "replay it on a machine of that kind"
)
_HALF_VARIABLE = (
    "it updates a variable of half precision in place, which the CPU has no kernel for; "
    f"keep variables in float32 as mixed precision does, or {_ELSEWHERE}"
)

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        "SparseMatrixAdd SparseMatrixMul SparseMatrixSoftmax SparseMatrixSoftmaxGrad "
        "SparseMatrixZeros".split(),
        _SPARSE,
    ),
    **dict.fromkeys(
        "_CopyFromGpuToHost _CopyFromHostToGpu _FusedBatchNormEx _FusedBatchNormGradEx "
        "_NcclBroadcastRecv _NcclBroadcastSend _NcclReduceRecv _NcclReduceSend".split(),
        _MADE_AT_RUN_TIME,
    ),
    **dict.fromkeys(
        "BatchFFT BatchFFT2D BatchFFT3D BatchIFFT BatchIFFT2D BatchIFFT3D".split(), _OLD_TRANSFORM
    ),
    **dict.fromkeys("XlaCustomCall XlaCustomCallV2".split(), _BINARY),
    "GenerateBoundingBoxProposals": (
        f"it picks boxes in an order that only a GPU's kernel defines; {_ELSEWHERE}"
    ),
    "ExperimentalMapDataset": (
        "it is a part of an input pipeline, which a replay does not run; read batches outside of "
        "the training step"
    ),
}
"""Why an op cannot be replayed without a GPU, and what to do; completes a sentence."""
REFUSED_IN_HALF: Mapping[str, str] = dict.fromkeys(
    "ApplyProximalAdagrad SparseApplyProximalAdagrad ResourceApplyProximalAdagrad "
    "ResourceSparseApplyProximalAdagrad".split(),
    _HALF_VARIABLE,
)
"""The same of ops that a CPU runs in float32."""
VECT_C = (
    "its images are packed by four channels (NCHW_VECT_C), as only quantized inference has them; "
    f"{_ELSEWHERE}"
)
