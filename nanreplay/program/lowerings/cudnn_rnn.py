"""CudnnRNN, which Keras's LSTM and GRU become on a GPU, as loops over layers and time.

All layers and both directions, sequences of several lengths. Half precision is computed in float32
and kept in half precision between time steps, as cuDNN does. The order of a GPU's sums is its own,
so the last bits differ. `cudnn_gradient` has the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.program.lowerings.cudnn_parameters import (
    LayerParts,
    RnnForm,
    layer_parts,
    matrix_width,
)
from nanreplay.program.lowerings.emitting import Attrs

UNKNOWN_3D = tf.TensorShape([None, None, None])
UNKNOWN_2D = tf.TensorShape([None, None])
SCALAR = tf.TensorShape([])


class RnnCall(NamedTuple):
    """One call, time first."""

    form: RnnForm
    inputs: Any
    """Time steps, samples, features."""
    h: Any
    """Layers (directions counted), samples, units."""
    c: Any
    """The same; zeros unless it is an LSTM."""
    params: Any
    lengths: Any
    """Time steps of each sample."""

    @staticmethod
    def of(attrs: Attrs, inputs: Sequence[Any], lengths: Any) -> RnnCall:
        """Read the attributes and inputs of an op of the family."""
        sequence, h, c, params = inputs
        form, time_major = RnnForm.of("CudnnRNNV3", attrs), is_time_major(attrs)
        sequence, h = exchanged(sequence, time_major), exchanged(h, time_major)
        c = exchanged(c, time_major) if form.mode == "lstm" else tf.zeros_like(h)
        if lengths is None:
            lengths = tf.fill([tf.shape(sequence)[1]], tf.shape(sequence)[0])
        for tensor in (sequence, h, c):
            tensor.set_shape(UNKNOWN_3D)
        return RnnCall(form, sequence, h, c, params, lengths)

    @property
    def n_layers(self) -> Any:
        """How many layers there are; two directions are one layer."""
        return tf.shape(self.h)[0] // self.form.n_directions

    def parts(self, layer: Any) -> LayerParts:
        """Return the parameters of a layer, directions counted as layers."""
        n_units, n_layers = tf.shape(self.h)[2], tf.shape(self.h)[0]
        first_width = matrix_width(self.form, tf.shape(self.inputs)[2], n_units)
        return layer_parts(self.form, self.params, layer, n_layers, first_width, n_units)


class DirectionInput(NamedTuple):
    """What one layer computes from in one direction, in the order in which it runs."""

    sequence: Any
    """Time steps, samples, features; zeros beyond the end of a sample."""
    fed: Any
    """What the gates get of it, in the type that is computed in."""
    is_valid: Any
    """Time steps, samples, 1: whether a time step is before the end of its sample."""
    recurrent_matrix: Any
    recurrent_bias: Any


def is_time_major(attrs: Attrs) -> bool:
    """Whether time comes before samples; only V3 has a choice."""
    return bool(attrs["time_major"].b) if "time_major" in attrs else True


def exchanged(tensor: Any, time_major: bool) -> Any:
    """Exchange samples with time, or with layers, where samples come first; the same way back."""
    return tensor if time_major else tf.transpose(tensor, [1, 0, 2])


def state_of(call: RnnCall, c: Any, time_major: bool) -> Any:
    """The cell state of an LSTM; other modes have none, and give a scalar in its place."""
    if call.form.mode != "lstm":
        return tf.zeros([], call.inputs.dtype)
    return exchanged(c, time_major)


def refusal(attrs: Attrs) -> str | None:
    """Return why an op of the family cannot be repeated, None for one that can."""
    if "dropout" in attrs and attrs["dropout"].f:
        return (
            "the dropout inside of it draws from a state of cuDNN's own, which no capture holds; "
            "train with dropout outside of the op to have captures that replay anywhere"
        )
    if "num_proj" in attrs and attrs["num_proj"].i:
        return (
            "it projects its output (num_proj), and the order of its parameters then is known to "
            "cuDNN alone; replay it on a machine with a GPU"
        )
    return None


def forward(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`CudnnRNN`, V2 and V3: output, last states, and what the gradient is given of them.

    The gradient here computes the forward pass again, so that the reserved outputs are empty.
    """
    call = RnnCall.of(attrs, inputs[:4], inputs[4] if len(inputs) > 4 else None)
    time_major = is_time_major(attrs)
    output, h, c = _all_layers(call)
    states = [exchanged(h, time_major), state_of(call, c, time_major)]
    reserved = [tf.zeros([0], output.dtype), tf.zeros([0], tf.int8)]
    return [exchanged(output, time_major), *states, *reserved]


def forward_v1(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`CudnnRNN`, which reserves nothing on the host."""
    return forward(attrs, inputs)[:4]


def _all_layers(call: RnnCall) -> tuple[Any, Any, Any]:
    """Output of the last layer, and last states of all layers."""

    def following(number: Any, sequence: Any, hs: Any, cs: Any) -> Any:
        outputs, new_hs, new_cs = [], [], []
        for direction in range(call.form.n_directions):
            output, h, c = one_direction(call, number, sequence, direction)[:3]
            outputs.append(output)
            new_hs.append(h)
            new_cs.append(c)
        joined = tf.ensure_shape(tf.concat(outputs, axis=2), UNKNOWN_3D)
        return number + 1, joined, tf.concat([hs, new_hs], 0), tf.concat([cs, new_cs], 0)

    values = (tf.constant(0), call.inputs, call.h[:0], call.c[:0])
    shapes = (SCALAR, UNKNOWN_3D, UNKNOWN_3D, UNKNOWN_3D)
    _, output, h, c = tf.while_loop(
        lambda number, *_: number < call.n_layers, following, values, shape_invariants=shapes
    )
    return output, h, c


def one_direction(
    call: RnnCall, layer: Any, sequence: Any, direction: int
) -> tuple[Any, Any, Any, Any, Any]:
    """Run one layer in one direction.

    Returns:
        Outputs by time step, the last h and c, and h and c before each time step, in the order in
        which they run.
    """
    which = layer * call.form.n_directions + direction
    fed_inputs = direction_input(call, call.parts(which), sequence, direction)
    steps = tf.shape(sequence)[0]
    kind, wide = sequence.dtype, fed_inputs.fed.dtype

    def step(t: Any, h: Any, c: Any, outputs: Any, hs: Any, cs: Any) -> Any:
        hs, cs = hs.write(t, h), cs.write(t, c)
        wide_h, wide_c = tf.cast(h, wide), tf.cast(c, wide)
        new_h, new_c = cell(
            call.form.mode, fed_inputs.fed[t], of_state(fed_inputs, wide_h), wide_h, wide_c
        )
        new_h, new_c = tf.cast(new_h, kind), tf.cast(new_c, kind)
        is_valid = fed_inputs.is_valid[t]
        outputs = outputs.write(t, tf.where(is_valid, new_h, tf.zeros_like(new_h)))
        kept = []
        for new, old in ((new_h, h), (new_c, c)):
            kept.append(tf.ensure_shape(tf.where(is_valid, new, old), UNKNOWN_2D))
        return t + 1, *kept, outputs, hs, cs

    arrays = [tf.TensorArray(kind, steps, element_shape=UNKNOWN_2D) for _ in range(3)]
    values = (tf.constant(0), call.h[which], call.c[which], *arrays)
    unknown = tf.TensorShape(None)
    shapes = (SCALAR, UNKNOWN_2D, UNKNOWN_2D, unknown, unknown, unknown)
    _, h, c, outputs, hs, cs = tf.while_loop(
        lambda t, *_: t < steps, step, values, shape_invariants=shapes
    )
    return in_order(call, outputs.stack(), direction), h, c, hs.stack(), cs.stack()


def in_order(call: RnnCall, sequence: Any, direction: int) -> Any:
    """Turn each sample's time steps around for the backward direction; the same way back."""
    if direction == 0:
        return sequence
    return tf.reverse_sequence(sequence, call.lengths, seq_axis=0, batch_axis=1)


def direction_input(
    call: RnnCall, parts: LayerParts, sequence: Any, direction: int
) -> DirectionInput:
    """Prepare what one layer computes from in one direction."""
    is_valid = tf.transpose(tf.sequence_mask(call.lengths, tf.shape(sequence)[0]))[:, :, None]
    # What lies beyond the end of a sample is never read, so a NaN there reaches nothing.
    sequence = tf.where(is_valid, sequence, tf.zeros_like(sequence))
    sequence = in_order(call, sequence, direction)
    wide = tf.float32 if sequence.dtype.size == 2 else sequence.dtype
    flat = tf.cast(tf.reshape(sequence, [-1, tf.shape(sequence)[2]]), wide)
    matrix, bias = tf.cast(parts.input_matrix, wide), tf.cast(parts.input_bias, wide)
    if call.form.input_mode == "linear_input":
        product = tf.matmul(flat, matrix, transpose_b=True)
    else:
        product = tf.cond(
            tf.shape(matrix)[1] == 0,  # an input that is skipped goes to each gate as it is
            lambda: tf.tile(flat, [1, call.form.n_gates]),
            lambda: tf.matmul(flat, matrix, transpose_b=True),
        )
    fed = tf.reshape(product + bias, tf.concat([tf.shape(sequence)[:2], tf.shape(bias)], 0))
    recurrent = tf.cast(parts.recurrent_matrix, wide), tf.cast(parts.recurrent_bias, wide)
    return DirectionInput(sequence, fed, is_valid, *recurrent)


def of_state(given: DirectionInput, h: Any) -> Any:
    """What the gates get of the state."""
    return tf.matmul(h, given.recurrent_matrix, transpose_b=True) + given.recurrent_bias


def cell(mode: str, fed: Any, from_h: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """One time step: the new states, of what the gates get of the input and of the state."""
    if mode == "lstm":
        i, f, g, o = tf.split(fed + from_h, 4, axis=-1)
        new_c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        return tf.sigmoid(o) * tf.tanh(new_c), new_c
    if mode == "gru":
        fed_r, fed_z, fed_n = tf.split(fed, 3, axis=-1)
        h_r, h_z, h_n = tf.split(from_h, 3, axis=-1)
        r, z = tf.sigmoid(fed_r + h_r), tf.sigmoid(fed_z + h_z)
        n = tf.tanh(fed_n + r * h_n)
        return (1 - z) * n + z * h, c
    activation = tf.nn.relu if mode == "rnn_relu" else tf.tanh
    return activation(fed + from_h), c
