"""CudnnRNN gives what its formulas say, written out step by step and sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from nanreplay.errors import UnsupportedOpError
from nanreplay.program.lowered_graph import lowered_function
from nanreplay.replay.kernels import run_kernel

RNN = settings(max_examples=3, deadline=None, derandomize=True)
GATES = {"lstm": 4, "gru": 3, "rnn_relu": 1, "rnn_tanh": 1}


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape) * 0.5


def _node(op_type: str, tensors: list[Any], **attrs: Any) -> dict[str, Any]:
    """Attributes of an op as a trace has them."""
    call = getattr(tf.raw_ops, op_type)
    definition = _definition(op_type)
    names = [argument.name for argument in definition.input_arg]
    with tf.Graph().as_default() as graph:
        call(**dict(zip(names, tensors, strict=True)), **attrs)
    return dict(next(node for node in graph.as_graph_def().node if node.op == op_type).attr)


def _definition(op_type: str) -> Any:
    from nanreplay.tensorflow_internals.tf_eager import op_definition

    return op_definition(op_type)


def _run(op_type: str, tensors: list[Any], **attrs: Any) -> list[np.ndarray]:
    arrays = [np.asarray(tensor) for tensor in tensors]
    outputs = run_kernel(op_type, _node(op_type, arrays, **attrs), arrays)
    return [output.numpy() for output in outputs]


# The plain form: one sample, one time step, one gate at a time.


def _parts(params: Any, mode: str, layers: int, n_inputs: int, units: int, n_dir: int) -> Any:
    """(input matrix, recurrent matrix, input bias, recurrent bias) of each gate, by layer."""
    gates, at = GATES[mode], 0
    matrices, biases = [], []
    for layer in range(layers * n_dir):
        width = n_inputs if layer < n_dir else n_dir * units
        own = []
        for columns in [width] * gates + [units] * gates:
            own.append(tf.reshape(params[at : at + units * columns], [units, columns]))
            at += units * columns
        matrices.append(own)
    for _ in range(layers * n_dir):
        own = []
        for _ in range(2 * gates):
            own.append(params[at : at + units])
            at += units
        biases.append(own)
    assert at == params.shape[0]
    return matrices, biases


def _plain_cell(mode: str, matrices: Any, biases: Any, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    gates = GATES[mode]
    of_x = [tf.linalg.matvec(matrices[g], x) + biases[g] for g in range(gates)]
    of_h = [tf.linalg.matvec(matrices[gates + g], h) + biases[gates + g] for g in range(gates)]
    if mode == "lstm":
        i, f, g, o = (left + right for left, right in zip(of_x, of_h, strict=True))
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        return tf.sigmoid(o) * tf.tanh(c), c
    if mode == "gru":
        r, z = tf.sigmoid(of_x[0] + of_h[0]), tf.sigmoid(of_x[1] + of_h[1])
        return (1 - z) * tf.tanh(of_x[2] + r * of_h[2]) + z * h, c
    total = of_x[0] + of_h[0]
    return (tf.nn.relu(total) if mode == "rnn_relu" else tf.tanh(total)), c


def _plain(mode: str, x: Any, h0: Any, c0: Any, params: Any, lengths: Any, n_dir: int) -> Any:
    """Time steps first. Outputs, last h, last c."""
    steps, samples, n_inputs = x.shape
    units, layers = h0.shape[2], h0.shape[0] // n_dir
    matrices, biases = _parts(params, mode, layers, n_inputs, units, n_dir)
    rows = [[x[t, b] for t in range(int(lengths[b]))] for b in range(samples)]
    last_h = [[None] * samples for _ in range(layers * n_dir)]
    last_c = [[None] * samples for _ in range(layers * n_dir)]
    for layer in range(layers):
        following = []
        for b, row in enumerate(rows):
            of_directions = []
            for d in range(n_dir):
                k = layer * n_dir + d
                h, c = h0[k, b], c0[k, b]
                outputs = []
                for value in reversed(row) if d else row:
                    h, c = _plain_cell(mode, matrices[k], biases[k], value, h, c)
                    outputs.append(h)
                of_directions.append(outputs[::-1] if d else outputs)
                last_h[k][b], last_c[k][b] = h, c
            following.append([tf.concat(pair, 0) for pair in zip(*of_directions, strict=True)])
        rows = following
    zero = tf.zeros([n_dir * units], x.dtype)
    padded = [row + [zero] * (steps - len(row)) for row in rows]
    return tf.stack([tf.stack(row) for row in padded], 1), tf.stack(last_h), tf.stack(last_c)


@RNN
@given(
    steps=st.integers(1, 3),
    layers=st.integers(1, 2),
    units=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 3), min_size=1, max_size=2),
)
@pytest.mark.parametrize(
    ("mode", "direction", "time_major"),
    [
        ("lstm", "unidirectional", True),
        pytest.param("lstm", "bidirectional", True, marks=pytest.mark.slow),
        pytest.param("gru", "unidirectional", True, marks=pytest.mark.slow),
        ("gru", "bidirectional", False),
        pytest.param("rnn_tanh", "bidirectional", True, marks=pytest.mark.slow),
        pytest.param("rnn_relu", "unidirectional", True, marks=pytest.mark.slow),
    ],
)
def test_v3_and_its_gradient(
    mode: str,
    direction: str,
    time_major: bool,
    steps: int,
    layers: int,
    units: int,
    lengths: list[int],
) -> None:
    lengths = [min(length, steps) for length in lengths]
    n_dir, samples, n_inputs = (2 if direction == "bidirectional" else 1), len(lengths), 2
    (size,) = _run(
        "CudnnRNNParamsSize", [np.int32(layers), np.int32(units), np.int32(n_inputs)],
        T=tf.float64, S=tf.int32, rnn_mode=mode, direction=direction,
    )  # fmt: skip
    arrays = [
        _noise(steps, samples, n_inputs),
        _noise(layers * n_dir, samples, units, seed=1),
        _noise(layers * n_dir, samples, units, seed=2),
        _noise(int(size[0]), seed=3),
    ]
    values = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(values)
        expected = _plain(mode, *values, lengths, n_dir)
        weights = [_noise(*result.shape, seed=4) for result in expected]
        if mode != "lstm":
            weights[2] = weights[2] * 0
        total = sum(tf.reduce_sum(a * b) for a, b in zip(expected, weights, strict=True))
    zero = tf.UnconnectedGradients.ZERO
    expected_gradients = tape.gradient(total, values, unconnected_gradients=zero)

    def turned(array: Any) -> Any:
        return np.asarray(array) if time_major else np.swapaxes(np.asarray(array), 0, 1)

    given_inputs = [turned(array) for array in arrays[:3]] + [arrays[3]]
    if mode != "lstm":
        given_inputs[2] = np.float64(0)
    given_inputs.append(np.array(lengths, np.int32))
    attrs = {"rnn_mode": mode, "direction": direction, "time_major": time_major}
    outputs = _run("CudnnRNNV3", given_inputs, **attrs)
    n_compared = 3 if mode == "lstm" else 2
    for actual, wanted in zip(outputs[:n_compared], expected, strict=False):
        np.testing.assert_allclose(actual, turned(wanted), rtol=1e-10, atol=1e-12)
    incoming = [turned(weight) for weight in weights]
    if mode != "lstm":
        incoming[2] = np.float64(0)
    reserved = [outputs[3], outputs[4]]
    backward = _run(
        "CudnnRNNBackpropV3", [*given_inputs, *outputs[:3], *incoming, *reserved], **attrs
    )
    wanted_gradients = [turned(gradient) for gradient in expected_gradients[:3]]
    wanted_gradients.append(expected_gradients[3].numpy())
    for k, (actual, wanted) in enumerate(zip(backward, wanted_gradients, strict=True)):
        if k != 2 or mode == "lstm":
            np.testing.assert_allclose(actual, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("version", [pytest.param("", marks=pytest.mark.slow), "V2"])
def test_the_versions_without_lengths_run_all_time_steps(version: str) -> None:
    values = [_noise(3, 2, 4), _noise(1, 2, 3, seed=1), _noise(1, 2, 3, seed=2)]
    values.append(_noise(4 * 3 * (4 + 3) + 8 * 3, seed=3))
    full = _run("CudnnRNNV3", [*values, np.array([3, 3], np.int32)])
    short = _run(f"CudnnRNN{version}", values)
    for k in range(3):
        np.testing.assert_array_equal(short[k], full[k])
    incoming = [np.ones_like(output) for output in full[:3]]
    reserved = full[3:]
    expected = _run(
        "CudnnRNNBackpropV3",
        [*values, np.array([3, 3], np.int32), *full[:3], *incoming, *reserved],
    )
    of_version = reserved if version else reserved[:1]
    actual = _run(f"CudnnRNNBackprop{version}", [*values, *full[:3], *incoming, *of_version])
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_input_that_is_skipped_is_added_to_every_gate() -> None:
    x, h, c = _noise(3, 2, 3), _noise(1, 2, 3, seed=1), _noise(1, 2, 3, seed=2)
    recurrent_and_biases = _noise(4 * 3 * 3 + 8 * 3, seed=3)
    as_matrices = np.concatenate([np.tile(np.eye(3), (4, 1)).reshape(-1), recurrent_and_biases])
    lengths = np.array([3, 2], np.int32)
    expected = _run("CudnnRNNV3", [x, h, c, as_matrices, lengths])
    for mode in ("skip_input", "auto_select"):
        actual = _run("CudnnRNNV3", [x, h, c, recurrent_and_biases, lengths], input_mode=mode)
        np.testing.assert_allclose(actual[0], expected[0], rtol=1e-12)


@pytest.mark.parametrize("suffix", ["", "V2"])
def test_parameters_come_apart_and_together(suffix: str) -> None:
    sizes = [np.int32(2), np.int32(3), np.int32(4)]
    attrs = {"rnn_mode": "gru", "direction": "bidirectional"}
    (size,) = _run("CudnnRNNParamsSize", sizes, T=tf.float64, S=tf.int64, **attrs)
    params = _noise(int(size[0]))
    count = 2 * 2 * 2 * 3  # layers, directions, input and recurrent, gates
    numbers = {"num_params": count}
    if suffix:
        numbers = {"num_params_weights": count, "num_params_biases": count}
    parts = _run(f"CudnnRNNParamsToCanonical{suffix}", [*sizes, params], **numbers, **attrs)
    assert [part.shape for part in parts[:count]] == [
        *[(3, 4)] * 3, *[(3, 3)] * 3, *[(3, 4)] * 3, *[(3, 3)] * 3,
        *[(3, 6)] * 3, *[(3, 3)] * 3, *[(3, 6)] * 3, *[(3, 3)] * 3,
    ]  # fmt: skip
    op_type = f"CudnnRNNCanonicalToParams{suffix}"
    with tf.Graph().as_default() as graph:
        getattr(tf.raw_ops, op_type)(
            num_layers=2, num_units=3, input_size=4, weights=parts[:count], biases=parts[count:],
            **attrs,
        )  # fmt: skip
    node = next(node for node in graph.as_graph_def().node if node.op == op_type)
    (together,) = run_kernel(op_type, dict(node.attr), [*sizes, *parts])
    np.testing.assert_array_equal(together, params)


def test_half_precision_is_computed_in_float32_and_kept_in_half() -> None:
    values = [_noise(5, 2, 4), _noise(1, 2, 3, seed=1), _noise(1, 2, 3, seed=2)]
    values.append(_noise(4 * 3 * (4 + 3) + 8 * 3, seed=3))
    halves = [value.astype(np.float16) for value in values]
    lengths = np.array([5, 4], np.int32)
    expected = _run("CudnnRNNV3", [half.astype(np.float64) for half in halves] + [lengths])
    actual = _run("CudnnRNNV3", [*halves, lengths])
    assert actual[0].dtype == np.float16
    np.testing.assert_allclose(actual[0], expected[0], atol=2e-3)


def test_a_nan_beyond_the_end_of_a_sequence_reaches_nothing() -> None:
    x = _noise(4, 2, 3)
    x[3, 1] = np.nan
    values = [x, _noise(1, 2, 2, seed=1), _noise(1, 2, 2, seed=2)]
    values += [_noise(4 * 2 * (3 + 2) + 8 * 2, seed=3), np.array([4, 3], np.int32)]
    outputs = _run("CudnnRNNV3", values)
    incoming = [np.ones_like(output) for output in outputs[:3]]
    gradients = _run("CudnnRNNBackpropV3", [*values, *outputs[:3], *incoming, *outputs[3:]])
    assert all(np.isfinite(value).all() for value in (*outputs[:3], *gradients))


def test_dropout_inside_of_it_is_refused_with_what_to_do() -> None:
    values = [_noise(3, 2, 4), _noise(1, 2, 3), _noise(1, 2, 3), _noise(108), [3, 3]]
    attrs = _node("CudnnRNNV3", values, dropout=0.5)
    with pytest.raises(UnsupportedOpError, match="dropout outside of the op"):
        lowered_function("CudnnRNNV3", "rnn", attrs)
