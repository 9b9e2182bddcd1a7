"""Every op that TensorFlow may put into a training step gives the same bits op by op as in one
graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from interpreter_cases import CASES

from nanreplay.replay.interpreter import Interpreter


@pytest.fixture(autouse=True)
def graphs_as_written() -> Iterator[None]:
    """Turn the graph optimizer off: it rewrites arithmetic and may change the last bit."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False, **before})


FUSED_ANYWAY = ("layers-conv2d", "layers-conv_variants", "layers-augmentation")
"""oneDNN fuses Conv2DBackpropFilter with BiasAddGrad in any graph, which rounds otherwise;
`graphs_as_written` cannot stop it."""


SLOW = {
    *(f"optimizers-{name}" for name in ("adamw", "adagrad", "adadelta", "adamax", "nadam")),
    *(f"optimizers-{name}" for name in ("rmsprop", "lion", "ftrl")),
    *(f"layers-{name}" for name in ("gru", "bidirectional", "conv_lstm", "conv_variants")),
    *(f"layers-{name}" for name in ("conv1d_causal", "conv3d", "time_distributed", "noise")),
    "policies-float64",
    "policies-mixed_bfloat16",
}
"""Optimizers, layers and policies whose ops others have, too."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]
)
def test_ops_one_by_one_give_the_same_bits_as_the_graph(name: str) -> None:
    step, arguments = CASES[name]()
    # Control flow alone is written in Python; turning Python into it takes as long as all the rest
    has_python = name.startswith("control_flow")
    function = tf.function(step, autograph=has_python).get_concrete_function(*arguments)
    variables = function.graph.variables
    before = [variable.numpy() for variable in variables]
    expected = tf.nest.flatten(function(*arguments), expand_composites=True)
    state = [variable.numpy() for variable in variables]
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)

    found = interpret(function, arguments)

    found += [variable.numpy() for variable in variables]
    expected = [tensor for tensor in expected if tensor is not None] + state
    if name in FUSED_ANYWAY:
        wanted = flat(expected)
        np.testing.assert_allclose(flat(found), wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())
    else:
        assert_same_bits(found, expected)


def interpret(function: Any, arguments: tuple[Any, ...]) -> list[Any]:
    values = [*arguments, *function.captured_inputs]
    feeds = {tensor.name: value for tensor, value in zip(function.inputs, values, strict=True)}
    interpreter = Interpreter(function.graph.as_graph_def().SerializeToString())
    targets = [op.name for op in function.graph.control_outputs]
    return interpreter.run(feeds, [tensor.name for tensor in function.outputs], targets=targets)


def flat(tensors: list[Any]) -> Any:
    return np.concatenate([np.ravel(tensor).astype(np.float32) for tensor in tensors])


def assert_same_bits(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    pairs = zip(map(np.asarray, found), map(np.asarray, expected), strict=True)
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        same = one.tobytes() == other.tobytes() if one.dtype != object else (one == other).all()
        assert same, f"{one} is not {other}"
