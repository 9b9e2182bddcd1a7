"""The one vector that holds the parameters of a CudnnRNN, and its parts.

cuDNN's order: the matrices of all layers, then the biases of all layers. A layer of two directions
is two layers here, the forward one first. A layer has an input matrix and then a recurrent one for
each gate, rows for units, and as many biases: the input's and the recurrent ones. Gates of an LSTM
are i, f, g, o; those of a GRU are r, z, n. The first layer has no input matrices where its input is
skipped, that is, added as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.program.lowerings.emitting import Attrs, text

GATES = {"lstm": 4, "gru": 3, "rnn_relu": 1, "rnn_tanh": 1}
"""How many matrices a layer has for its input, by mode."""


class RnnForm(NamedTuple):
    """What the attributes of a CudnnRNN say of its form."""

    mode: str
    n_gates: int
    n_directions: int
    input_mode: str

    @staticmethod
    def of(op_type: str, attrs: Attrs) -> RnnForm:
        """Read the attributes of an op of the family."""
        mode = text(op_type, attrs, "rnn_mode")
        both = text(op_type, attrs, "direction") == "bidirectional"
        n_directions = 2 if both else 1
        return RnnForm(mode, GATES[mode], n_directions, text(op_type, attrs, "input_mode"))


class LayerParts(NamedTuple):
    """Parameters of one layer of one direction."""

    input_matrix: Any
    """Gates times units, by width of the input; no columns where the input is skipped."""
    recurrent_matrix: Any
    """Gates times units, by units."""
    input_bias: Any
    recurrent_bias: Any


def matrix_width(form: RnnForm, n_inputs: Any, n_units: Any) -> Any:
    """Return how many columns the input matrices of the first layer have."""
    if form.input_mode == "linear_input":
        return n_inputs
    if form.input_mode == "skip_input":
        return tf.zeros_like(n_inputs)
    return tf.where(n_inputs == n_units, 0, n_inputs)


def layer_width(form: RnnForm, layer: Any, first_width: Any, n_units: Any) -> Any:
    """Return how many columns the input matrices of a layer have, of layers counted by two."""
    return tf.where(layer < form.n_directions, first_width, form.n_directions * n_units)


def matrices_before(form: RnnForm, layer: Any, first_width: Any, n_units: Any) -> Any:
    """Return how many numbers the matrices of all layers before one hold."""
    n_first = tf.minimum(layer, form.n_directions)
    n_later = layer - n_first
    per_column = form.n_gates * n_units
    first = n_first * per_column * (first_width + n_units)
    return first + n_later * per_column * (form.n_directions * n_units + n_units)


def layer_parts(
    form: RnnForm, params: Any, layer: Any, n_layers: Any, first_width: Any, n_units: Any
) -> LayerParts:
    """Cut the parameters of one layer out of the vector.

    Args:
        form: See `RnnForm`.
        params: The vector.
        layer: Number of the layer, directions counted as layers.
        n_layers: How many there are.
        first_width: See `matrix_width`.
        n_units: Units of a layer.
    """
    rows = form.n_gates * n_units
    width = layer_width(form, layer, first_width, n_units)
    start = matrices_before(form, layer, first_width, n_units)
    middle = start + rows * width
    end = middle + rows * n_units
    bias = matrices_before(form, n_layers, first_width, n_units) + layer * 2 * rows
    return LayerParts(
        tf.reshape(params[start:middle], [rows, width]),
        tf.reshape(params[middle:end], [rows, n_units]),
        params[bias : bias + rows],
        params[bias + rows : bias + 2 * rows],
    )


# The ops that convert between the vector and its parts.


def params_size(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`CudnnRNNParamsSize`."""
    form = RnnForm.of("CudnnRNNParamsSize", attrs)
    n_layers, n_units, n_inputs = inputs
    n_layers = n_layers * form.n_directions
    width = matrix_width(form, n_inputs, n_units)
    size = matrices_before(form, n_layers, width, n_units)
    size += n_layers * 2 * form.n_gates * n_units
    kind = attrs["S"].type if "S" in attrs else tf.int32
    return [tf.cast(tf.reshape(size, [1]), kind)]


def _n_layers(form: RnnForm, n_weights: int) -> int:
    return n_weights // (2 * form.n_gates)


def _n_weights(attrs: Attrs) -> int:
    name = "num_params" if "num_params" in attrs else "num_params_weights"
    return int(attrs[name].i)


def to_canonical(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`CudnnRNNParamsToCanonical` and V2: all matrices, then all biases."""
    form = RnnForm.of("CudnnRNNParamsToCanonical", attrs)
    _, n_units, n_inputs, params = inputs
    n_layers = _n_layers(form, _n_weights(attrs))
    first_width = matrix_width(form, n_inputs, n_units)
    matrices, biases = [], []
    for layer in range(n_layers):
        parts = layer_parts(form, params, layer, n_layers, first_width, n_units)
        for matrix in (parts.input_matrix, parts.recurrent_matrix):
            matrices += tf.split(matrix, form.n_gates)
        for bias in (parts.input_bias, parts.recurrent_bias):
            biases += tf.split(bias, form.n_gates)
    return [*matrices, *biases]


def from_canonical(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`CudnnRNNCanonicalToParams` and V2."""
    return [tf.concat([tf.reshape(part, [-1]) for part in inputs[3:]], axis=0)]
