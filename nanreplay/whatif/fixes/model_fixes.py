"""Fixes of the model: activation, precision, initial weights, masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.bisect.tensor_stats import words
from nanreplay.program.graph_editor import ProgramEditor
from nanreplay.whatif.edits import BadValueError, CannotTryError, Edit, Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fix_code import short
from nanreplay.whatif.fixes.update_fixes import number

_HALF = ("float16", "bfloat16", "half")
_SOFTMAXES = words("Softmax LogSoftmax")


def leaky_relu(failure: Failure, value: str | None) -> Fix:
    """Let relu pass a part of what is negative."""
    slope = number(value, 0.2)

    def edit(editor: ProgramEditor) -> None:
        found = [*editor.ops({"Relu"}), *editor.ops({"ReluGrad"})]
        for key in found:
            node = editor.node(key)
            node.op = {"Relu": "LeakyRelu", "ReluGrad": "LeakyReluGrad"}[node.op]
            node.attr["alpha"].f = slope

    if not any(info.type == "Relu" for info in failure.infos.values()):
        raise CannotTryError("The step holds no relu.")
    code = f"keras.layers.LeakyReLU(negative_slope={slope:g})"
    return Fix("leaky_relu", {"negative_slope": slope}, Edit(programs=(edit,)), code)


def float32(failure: Failure, value: str | None) -> Fix:
    """Compute in float32 what was computed in 16 bits."""
    replay = failure.window.replay
    kinds = {spec.dtype for spec in replay.signature(failure.step).inputs} | set(
        replay.signature(failure.step).policy.split(", ")
    )
    outputs = failure.origin.outputs if failure.origin is not None else ()
    if not any(
        half in kind for kind in (*kinds, *(output.dtype for output in outputs)) for half in _HALF
    ):
        raise CannotTryError("The step computes in float32 already.")
    layer = failure.origin.layer if failure.origin is not None else None
    everywhere = 'keras.mixed_precision.set_global_policy("float32")'
    code = f'dtype="float32"  # of the layer `{layer}` and those it feeds' if layer else everywhere
    return Fix("float32", {}, Edit(widen_half=True), code)


def finite_mask(failure: Failure, value: str | None) -> Fix:
    """Put a large negative number in the place of -inf where softmax takes it."""
    low = -number(value and value.lstrip("-"), 1e9)
    softmaxes = {key for key, info in failure.infos.items() if info.type in _SOFTMAXES}
    if failure.op in softmaxes:
        softmaxes = {failure.op}

    def edit(editor: ProgramEditor) -> None:
        for key in (editor.locate(key) for key in softmaxes):
            taken = editor.data_inputs(key)[0]
            editor.set_input(
                key,
                0,
                editor.add(
                    key[0],
                    lambda x: tf.maximum(x, tf.cast(max(low, x.dtype.min), x.dtype)),
                    [taken],
                )[0],
            )

    if not softmaxes:
        raise CannotTryError("The step holds no softmax that takes a mask.")
    code = f"tf.where(mask, scores, {short(low)})  # in place of -inf"
    return Fix(
        "finite_mask", {"value": low}, Edit(programs=(edit,)), code, failure.source(failure.op)
    )


def init(failure: Failure, value: str | None) -> Fix:
    """Draw the kernels anew as Glorot or He do, with the recorded shapes."""
    scheme = value or "glorot"
    if scheme not in ("glorot", "he"):
        raise BadValueError(f"Expected glorot or he. Received: {scheme}")
    if not failure.window.reaches_start:
        first = failure.window.steps[0]
        raise CannotTryError(
            f"The capture reaches back to step {first}, not to the first step, so the initial weights are not in it."
        )
    variables = failure.window.replay.variables
    kernels = [
        index
        for index, info in enumerate(variables)
        if info.role == "trainable" and len(info.shape) >= 2
    ]
    if not kernels:
        raise CannotTryError("The model has no kernel to draw anew.")

    def change(state: Mapping[int, Any]) -> Mapping[int, Any]:
        random = np.random.default_rng(0)
        held = [(index, variables[index]) for index in kernels if index in state]
        return {
            index: tf.cast(drawn(random, info.shape, scheme), info.dtype) for index, info in held
        }

    name = {"glorot": "glorot_uniform", "he": "he_normal"}[scheme]
    return Fix("init", {"scheme": scheme}, Edit(state=(change,)), f'kernel_initializer="{name}"')


def drawn(random: np.random.Generator, shape: tuple[int, ...], scheme: str) -> Any:
    """A kernel drawn uniformly with the variance of Glorot & Bengio (2010), or normally with that of He et al. (2015).

    Args:
        random: Where numbers come from.
        shape: Of the kernel; the last two axes are input and output, those before them the receptive field.
        scheme: "glorot" or "he".
    """
    field = math.prod(shape[:-2])
    fan_in, fan_out = field * shape[-2], field * shape[-1]
    if scheme == "he":
        return random.normal(scale=math.sqrt(2 / fan_in), size=shape)
    limit = math.sqrt(6 / (fan_in + fan_out))
    return random.uniform(-limit, limit, size=shape)
