"""Fixes of the model: activation, precision, masks, initial weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program.graph_editor import ProgramEditor
from nanreplay.whatif.edits import BadValueError, CannotTryError, Edit, Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fixes.update_fixes import positive_number

_HALF = ("float16", "bfloat16", "half")
_LEAKY_OPS = {"Relu": "LeakyRelu", "ReluGrad": "LeakyReluGrad"}
_INITIALIZERS = {"glorot": "glorot_uniform", "he": "he_normal"}


def leaky_relu(failure: Failure, value: str | None) -> Fix:
    """Let relu pass a part of what is negative."""
    slope = positive_number(value, 0.2)

    def edit(editor: ProgramEditor) -> None:
        # All are listed before the first one changes its type.
        for key in [*editor.ops({"Relu"}), *editor.ops({"ReluGrad"})]:
            node = editor.node(key)
            node.op = _LEAKY_OPS[node.op]
            node.attr["alpha"].f = slope

    if not any(info.type == "Relu" for info in failure.infos.values()):
        raise CannotTryError("The step holds no relu.")
    code = f"keras.layers.LeakyReLU(negative_slope={slope:g})  # in place of every relu"
    edits = [{"activation": "relu", "replaced_by": "leaky_relu", "negative_slope": slope}]
    return Fix("leaky_relu", {"negative_slope": slope}, Edit(programs=(edit,)), code, edits=edits)


def float32(failure: Failure, value: str | None) -> Fix:
    """Compute in float32 what was computed in 16 bits."""
    signature, origin = failure.window.replay.signature(failure.step), failure.origin
    dtypes = [spec.dtype for spec in signature.inputs] + signature.policy.split(", ")
    if origin is not None:
        dtypes += [output.dtype for output in origin.outputs]
    if not any(half in dtype for dtype in dtypes for half in _HALF):
        raise CannotTryError("The step computes in float32 already.")
    code = (
        'keras.mixed_precision.set_global_policy("float32")  '
        "# and no layer, cast or input of 16 bits"
    )
    edits = [{"policy": "float32"}]
    return Fix("float32", {}, Edit(widen_half=True), code, edits=edits)


def init(failure: Failure, value: str | None) -> Fix:
    """Draw the kernels anew as Glorot or He do, with the recorded shapes."""
    scheme = value or "glorot"
    if scheme not in _INITIALIZERS:
        raise BadValueError(f"Expected glorot or he. Received: {scheme}")
    if not failure.window.reaches_start:
        first = failure.window.steps[0]
        raise CannotTryError(
            f"The capture reaches back to step {first}, not to the first step, "
            "so the initial weights are not in it."
        )
    kernels = {
        index: info
        for index, info in enumerate(failure.window.replay.variables)
        if info.role == "trainable" and len(info.shape) >= 2
    }
    if not kernels:
        raise CannotTryError("The model has no kernel to draw anew.")

    def drawn_kernels(state: Mapping[int, Any]) -> Mapping[int, Any]:
        random = np.random.default_rng(0)
        values = {}
        for index, info in kernels.items():
            if index in state:
                values[index] = tf.cast(_drawn(random, info.shape, scheme), info.dtype)
        return values

    code = f'kernel_initializer="{_INITIALIZERS[scheme]}"'
    edits = [{"argument": "kernel_initializer", "value": _INITIALIZERS[scheme]}]
    return Fix("init", {"scheme": scheme}, Edit(state=(drawn_kernels,)), code, edits=edits)


def _drawn(random: np.random.Generator, shape: tuple[int, ...], scheme: str) -> Any:
    """A kernel drawn as Keras's initializers do.

    "glorot" is uniform with the variance of Glorot & Bengio (2010), "he" is normal with that of He
    et al. (2015).

    Args:
        random: Where numbers come from.
        shape: Of the kernel. The last two axes are input and output, those before them the
            receptive field.
        scheme: "glorot" or "he".
    """
    receptive_field = math.prod(shape[:-2])
    fan_in, fan_out = receptive_field * shape[-2], receptive_field * shape[-1]
    if scheme == "he":
        return random.normal(scale=math.sqrt(2 / fan_in), size=shape)
    limit = math.sqrt(6 / (fan_in + fan_out))
    return random.uniform(-limit, limit, size=shape)
