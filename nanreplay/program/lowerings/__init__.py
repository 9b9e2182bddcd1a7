"""Forms that a CPU runs of ops that only a GPU has: one family a file, and the table of them.

A recorded program keeps its ops. Where it is run, `lowered_graph` and the interpreter's kernels ask
`lowering_of` for each op, and run a function of plain ops in the place of one that the CPU cannot
run. So what is told of the op (its type, shapes, elements) is what the user's program says.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from nanreplay.errors import UnsupportedOpError
from nanreplay.program.lowerings import (
    cudnn_gradient,
    cudnn_parameters,
    cudnn_rnn,
    rare_ops,
)
from nanreplay.program.lowerings.channels_first import CHANNELS_LAST, channels_last, layout_of
from nanreplay.program.lowerings.cpu_trial import cpu_runs
from nanreplay.program.lowerings.dilated import gradient_by_elements, is_dilated_gradient
from nanreplay.program.lowerings.emitting import Attrs, Compute, declared, emit
from nanreplay.program.lowerings.half_precision import (
    in_float32,
    is_half,
    lacks_half,
    needs_float32,
)

__all__ = ["LOWERINGS", "Attrs", "Compute", "lowering_of"]

LOWERINGS: Mapping[str, Compute] = {
    "CudnnRNN": cudnn_rnn.forward_v1,
    **dict.fromkeys(("CudnnRNNV2", "CudnnRNNV3"), cudnn_rnn.forward),
    **dict.fromkeys(
        ("CudnnRNNBackprop", "CudnnRNNBackpropV2", "CudnnRNNBackpropV3"), cudnn_gradient.backward
    ),
    "CudnnRNNParamsSize": cudnn_parameters.params_size,
    **dict.fromkeys(
        ("CudnnRNNParamsToCanonical", "CudnnRNNParamsToCanonicalV2"), cudnn_parameters.to_canonical
    ),
    **dict.fromkeys(
        ("CudnnRNNCanonicalToParams", "CudnnRNNCanonicalToParamsV2"),
        cudnn_parameters.from_canonical,
    ),
    "CTCLossV2": rare_ops.ctc_loss,
    "MaxPoolGradGradWithArgmax": rare_ops.max_pool_grad_grad_with_argmax,
    "FFTND": rare_ops.fft_nd,
    "IFFTND": rare_ops.ifft_nd,
    "RFFTND": rare_ops.rfft_nd,
    "IRFFTND": rare_ops.irfft_nd,
}
"""Ops that a CPU has no kernel of for any type."""

# Ops that only a GPU runs and that have no form for a CPU, each with the reason. A test holds these
# lists against TensorFlow's registry of kernels.

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


@functools.cache
def _has_other_devices() -> bool:
    """Whether TensorFlow has more than CPUs here: a GPU runs what a GPU recorded, as it is."""
    return any(device.device_type != "CPU" for device in tf.config.list_logical_devices())


def lowering_of(op_type: str, name: str, attrs: Attrs) -> Compute | None:
    """Return what stands for an op on this machine; None for one that runs as it is.

    Args:
        op_type: Type of the op.
        name: Its name, for errors.
        attrs: Its attributes by name (AttrValue protos).

    Raises:
        UnsupportedOpError: Only a GPU runs it.
    """
    if not (_is_special(op_type) or is_half(attrs)) or _has_other_devices():
        return None
    return _on_cpu(op_type, name, attrs)


@functools.cache
def _is_special(op_type: str) -> bool:
    """Whether an op may need another form whatever its type; most ops do not."""
    return (
        op_type in LOWERINGS
        or op_type in REFUSED
        or any(attribute.name == "data_format" for attribute in declared(op_type))
    )


def _on_cpu(op_type: str, name: str, attrs: Attrs) -> Compute | None:
    if op_type in REFUSED:
        raise UnsupportedOpError(op_type, name, REFUSED[op_type])
    if op_type in REFUSED_IN_HALF and lacks_half(op_type, attrs):
        raise UnsupportedOpError(op_type, name, REFUSED_IN_HALF[op_type])
    if op_type in LOWERINGS:
        reason = cudnn_rnn.refusal(attrs) if op_type.startswith("CudnnRNN") else None
        if reason is not None:
            raise UnsupportedOpError(op_type, name, reason)
        return LOWERINGS[op_type]
    layout = layout_of(op_type, attrs)
    if layout == "NCHW_VECT_C":
        raise UnsupportedOpError(op_type, name, VECT_C)
    is_first = layout in CHANNELS_LAST
    if (is_first or is_dilated_gradient(op_type, attrs)) and not cpu_runs(op_type, attrs):
        if is_first:
            return functools.partial(channels_last, _run, op_type)
        return functools.partial(gradient_by_elements, op_type)
    if needs_float32(op_type, attrs):
        return functools.partial(in_float32, _run, op_type)
    return None


def _run(op_type: str, attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """Add an op in the form that the CPU runs."""
    compute = _on_cpu(op_type, op_type, attrs)
    return emit(op_type, attrs, inputs) if compute is None else list(compute(attrs, inputs))
