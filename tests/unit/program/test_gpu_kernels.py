"""No op that only a GPU runs is missed: TensorFlow's own registry of kernels is gone through.

The `tensorflow` of pip for Linux is built for GPUs, so that it knows their kernels without one.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nanreplay.errors import UnsupportedOpError
from nanreplay.program.lowerings import LOWERINGS, REFUSED, REFUSED_IN_HALF, lowering_of
from nanreplay.program.safety import reach_of
from nanreplay.replay.kernels import run_kernel
from nanreplay.tensorflow_internals.tf_eager import op_definition, registered_ops
from nanreplay.tensorflow_internals.tf_kernels import gpu_only_types, gpu_op_types, has_kernel

EXCHANGED = frozenset({"NcclAllReduce", "NcclReduce", "NcclBroadcast"})
"""Ops of several replicas, which `local_program` replaces before anything runs."""
FIRST = ("NCHW", "NCDHW", "CHANNELS_FIRST")
NOWHERE = frozenset("Conv2DBackpropFilterV2 Conv2DBackpropInputV2 RiscConv RiscPool".split())
"""Ops that TensorFlow declares and has no kernel of for any device."""

needs_gpu_build = pytest.mark.skipif(
    not tf.test.is_built_with_cuda(), reason="this TensorFlow knows no kernels of GPUs"
)


def _may_be_in_a_training(op_type: str, types: dict[str, int]) -> bool:
    """Whether an op's own declaration allows the types, and one of them is a float or complex.

    A kernel without any types may be of anything.
    """
    dtypes = {name: tf.dtypes.as_dtype(kind) for name, kind in types.items()}
    for attribute in op_definition(op_type).attr:
        allowed = attribute.allowed_values.list.type
        if attribute.name in types and allowed and types[attribute.name] not in allowed:
            return False
    return not types or any(kind.is_floating or kind.is_complex for kind in dtypes.values())


def _gpu_only() -> dict[str, list[dict[str, int]]]:
    found = {
        op_type: [
            types for types in gpu_only_types(op_type) if _may_be_in_a_training(op_type, types)
        ]
        for op_type in gpu_op_types()
        if op_definition(op_type) is not None
    }
    return {op_type: all_types for op_type, all_types in found.items() if all_types}


def _attrs(types: dict[str, int]) -> dict[str, Any]:
    return {name: tf.compat.v1.AttrValue(type=kind) for name, kind in types.items()}


def _is_answered(op_type: str, types: dict[str, int]) -> bool:
    """Whether the op has a form for a CPU, or is refused with a reason."""
    if op_type in EXCHANGED:
        return True
    try:
        return lowering_of(op_type, "op", _attrs(types)) is not None
    except UnsupportedOpError as error:
        return ";" in error.reason  # why, and what to do


@needs_gpu_build
def test_every_op_that_only_a_gpu_runs_has_a_form_for_a_cpu_or_a_reason() -> None:
    missed = {
        op_type: [types for types in all_types if not _is_answered(op_type, types)]
        for op_type, all_types in _gpu_only().items()
    }
    assert {op_type: types for op_type, types in missed.items() if types} == {}


@needs_gpu_build
def test_no_reason_is_given_for_an_op_that_the_cpu_runs() -> None:
    gpu_only = _gpu_only()
    elsewhere = {"XlaCustomCall", "XlaCustomCallV2"}  # compiled code has no kernel of its own
    assert set(REFUSED) - elsewhere - set(gpu_only) == set()
    assert set(REFUSED_IN_HALF) - set(gpu_only) == set()
    assert set(LOWERINGS) - set(gpu_only) == set()


def test_every_form_is_held_against_the_plain_one_by_name() -> None:
    """Versions of an op that share a form share its test; four replicas have tests elsewhere."""
    here = Path(__file__).parent
    tests = "".join(path.read_text(encoding="utf-8") for path in here.glob("test_*.py"))
    forms = {form for op_type, form in LOWERINGS.items() if f'"{op_type}' in tests}
    assert [op_type for op_type, form in LOWERINGS.items() if form not in forms] == []
    assert [op_type for op_type in EXCHANGED if f"{op_type}(" not in tests] == ["NcclAllReduce"]


def test_every_op_with_a_layout_runs_with_channels_first() -> None:
    unanswered = []
    for op_type in registered_ops():
        for attribute in op_definition(op_type).attr:
            layouts = [value.decode() for value in attribute.allowed_values.list.s]
            if attribute.name != "data_format" or op_type in NOWHERE:
                continue
            if reach_of(op_type) is not None:  # refused, as only TensorFlow itself makes it
                continue
            unanswered += [(op_type, layout) for layout in layouts if not _runs(op_type, layout)]
    assert unanswered == []


def _runs(op_type: str, layout: str) -> bool:
    """Whether an op of a layout has a form, is refused, or is run by the CPU as it is."""
    from nanreplay.program.lowerings.cpu_trial import cpu_runs

    attrs = _attrs(_types_of_a_kernel(op_type))
    attrs["data_format"] = tf.compat.v1.AttrValue(s=layout.encode())
    if layout.startswith("CHANNELS"):
        attrs["strides"] = tf.compat.v1.AttrValue()
        attrs["strides"].list.i.extend([1, 1, 1, 1])
    try:
        if lowering_of(op_type, "op", attrs) is not None:
            return layout in FIRST
    except UnsupportedOpError:
        return "VECT_C" in layout
    return cpu_runs(op_type, attrs)


def _types_of_a_kernel(op_type: str) -> dict[str, int]:
    """The first types for which the CPU has a kernel: float64 where it can."""
    attributes = [entry for entry in op_definition(op_type).attr if entry.type == "type"]
    kinds = [kind.as_datatype_enum for kind in (tf.float64, tf.float32, tf.int32)]
    allowed = [
        [kind for kind in kinds if kind in (entry.allowed_values.list.type or kinds)]
        for entry in attributes
    ]
    names = [entry.name for entry in attributes]
    for chosen in itertools.product(*allowed):
        types = dict(zip(names, chosen, strict=True))
        if has_kernel(op_type, {name: (kind,) for name, kind in types.items()}):
            return types
    raise AssertionError(f"the CPU has no kernel of {op_type}")


# Half precision between casts, and the few other ops.


def _list_attr(*numbers: int) -> Any:
    attr = tf.compat.v1.AttrValue()
    attr.list.i.extend(numbers)
    return attr


def test_half_precision_runs_in_float32_between_casts() -> None:
    image = tf.cast(np.random.default_rng(0).random((1, 4, 4, 4, 2)), tf.half)
    attrs = _attrs({"T": tf.half.as_datatype_enum})
    attrs["padding"] = tf.compat.v1.AttrValue(s=b"VALID")
    attrs["ksize"] = attrs["strides"] = _list_attr(1, 2, 2, 2, 1)
    (pooled,) = run_kernel("AvgPool3D", attrs, [image])
    assert pooled.dtype == tf.half
    expected = tf.nn.avg_pool3d(tf.cast(image, tf.float32), 2, 2, "VALID")
    np.testing.assert_array_equal(pooled, tf.cast(expected, tf.half))


def test_rounding_in_half_precision_has_a_form() -> None:
    attrs = _attrs({"T": tf.half.as_datatype_enum})
    assert not has_kernel("Rint", {"T": (tf.half.as_datatype_enum,)})
    (rounded,) = run_kernel("Rint", attrs, [tf.constant([0.5, 1.5, -2.7], tf.half)])
    np.testing.assert_array_equal(rounded, np.array([0, 2, -3], np.float16))


def test_a_half_variable_that_is_updated_in_place_is_refused() -> None:
    attrs = _attrs({"T": tf.half.as_datatype_enum})
    with pytest.raises(UnsupportedOpError, match="keep variables in float32"):
        lowering_of("ResourceApplyProximalAdagrad", "update", attrs)
    attrs = _attrs({"T": tf.float32.as_datatype_enum})
    assert lowering_of("ResourceApplyProximalAdagrad", "update", attrs) is None


def test_a_ctc_loss_of_cudnn_is_the_plain_one_with_another_blank() -> None:
    logits = np.random.default_rng(1).standard_normal((6, 2, 4)).astype(np.float32)
    labels = tf.sparse.from_dense(tf.constant([[1, 3, 2], [2, 1, 0]]))
    lengths = np.array([6, 5], np.int32)
    inputs = [logits, labels.indices, labels.values, lengths]
    loss, gradient = run_kernel("CTCLossV2", {}, inputs)
    value = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(value)
        dense = tf.constant([[1, 3, 2], [2, 1, 0]])
        expected = tf.nn.ctc_loss(dense, value, [3, 2], lengths, blank_index=0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, tape.gradient(expected, value), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("axes", [(0, 1), (2, 0), (-1,), (0, 1, 2)])
def test_transforms_over_several_axes(axes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    reals = rng.standard_normal((3, 4, 6))
    complexes = reals + 1j * rng.standard_normal(reals.shape)
    lengths = np.array([reals.shape[axis] for axis in axes], np.int32)
    sizes = [lengths, np.array(axes, np.int32)]
    attrs = _attrs({"Tcomplex": tf.complex128.as_datatype_enum})
    for op_type, expected in (("FFTND", np.fft.fftn), ("IFFTND", np.fft.ifftn)):
        (actual,) = run_kernel(op_type, attrs, [complexes, *sizes])
        np.testing.assert_allclose(actual, expected(complexes, axes=axes), atol=1e-12)
    attrs |= _attrs({"Treal": tf.float64.as_datatype_enum})
    (half,) = run_kernel("RFFTND", attrs, [reals, *sizes])
    np.testing.assert_allclose(half, np.fft.rfftn(reals, axes=axes), atol=1e-12)
    (whole,) = run_kernel("IRFFTND", attrs, [half, *sizes])
    np.testing.assert_allclose(whole, reals, atol=1e-12)


@pytest.mark.parametrize("with_batch", [False, True])
def test_the_second_gradient_of_pooling_with_argmax(with_batch: bool) -> None:
    rng = np.random.default_rng(3)
    image, gradient = rng.standard_normal((2, 4, 4, 3)), rng.standard_normal((2, 4, 4, 3))
    output, argmax = tf.nn.max_pool_with_argmax(
        image, 2, 2, "VALID", include_batch_in_index=with_batch
    )
    attrs = _attrs({"T": tf.float64.as_datatype_enum, "Targmax": tf.int64.as_datatype_enum})
    attrs["include_batch_in_index"] = tf.compat.v1.AttrValue(b=with_batch)
    (actual,) = run_kernel("MaxPoolGradGradWithArgmax", attrs, [image, gradient, argmax])
    expected = tf.raw_ops.MaxPoolGradGrad(
        orig_input=image, orig_output=output, grad=gradient, ksize=[1, 2, 2, 1],
        strides=[1, 2, 2, 1], padding="VALID",
    )  # fmt: skip
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("op_type", sorted({*REFUSED, *REFUSED_IN_HALF}))
def test_a_refused_op_says_why_and_what_to_do(op_type: str) -> None:
    kind = tf.half if op_type in REFUSED_IN_HALF else tf.float32
    types = {"T": kind.as_datatype_enum, "Tindices": tf.int64.as_datatype_enum}
    with pytest.raises(UnsupportedOpError, match=r"cannot be replayed: .+; .+\."):
        lowering_of(op_type, "an_op", _attrs(types))
