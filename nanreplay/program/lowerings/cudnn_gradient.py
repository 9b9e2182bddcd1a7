"""The gradient of CudnnRNN: back through the layers, and in each through time.

The forward pass is computed again, with the states before each time step kept. In each time step
TensorFlow differentiates the cell, which holds no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.program.lowerings.cudnn_rnn import (
    SCALAR,
    UNKNOWN_2D,
    UNKNOWN_3D,
    DirectionInput,
    RnnCall,
    cell,
    direction_input,
    exchanged,
    in_order,
    is_time_major,
    of_state,
    one_direction,
    state_of,
)
from nanreplay.program.lowerings.emitting import Attrs


class _DirectionGradient(NamedTuple):
    """The gradients of one layer in one direction."""

    sequence: Any
    h: Any
    c: Any
    matrices: Any
    """Flat, in the order of the parameters."""
    biases: Any


def backward(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`CudnnRNNBackprop`, V2 and V3: gradients of input, states and parameters."""
    has_lengths = len(inputs) > 12
    call = RnnCall.of(attrs, inputs[:4], inputs[4] if has_lengths else None)
    time_major = is_time_major(attrs)
    first = 8 if has_lengths else 7  # after the inputs and outputs of the forward op
    of_output, of_h, of_c = inputs[first : first + 3]
    of_output, of_h = exchanged(of_output, time_major), exchanged(of_h, time_major)
    of_c = exchanged(of_c, time_major) if call.form.mode == "lstm" else tf.zeros_like(call.c)
    for tensor in (of_output, of_h, of_c):
        tensor.set_shape(UNKNOWN_3D)
    of_inputs, h, c, of_params = _all_layers_back(call, of_output, of_h, of_c)
    of_state_c = state_of(call, c, time_major)
    return [exchanged(of_inputs, time_major), exchanged(h, time_major), of_state_c, of_params]


def _inputs_of_layers(call: RnnCall) -> Any:
    """A TensorArray of what each layer gets: the input, then the output of the layer before."""

    def following(number: Any, sequence: Any, sequences: Any) -> Any:
        sequences = sequences.write(number, sequence)
        n_directions = call.form.n_directions
        outputs = []
        for d in range(n_directions):
            outputs.append(one_direction(call, number, sequence, d)[0])
        joined = tf.ensure_shape(tf.concat(outputs, axis=2), UNKNOWN_3D)
        return number + 1, joined, sequences

    array = tf.TensorArray(
        call.inputs.dtype, call.n_layers, infer_shape=False, element_shape=UNKNOWN_3D
    )
    last = call.n_layers - 1
    number, sequence, sequences = tf.while_loop(
        lambda number, *_: number < last,
        following,
        (tf.constant(0), call.inputs, array),
        shape_invariants=(SCALAR, UNKNOWN_3D, tf.TensorShape(None)),
    )
    return sequences.write(number, sequence)


def _all_layers_back(call: RnnCall, of_output: Any, of_h: Any, of_c: Any) -> tuple[Any, ...]:
    """Gradients of the input, of first states, and of the parameters."""
    sequences = _inputs_of_layers(call)
    n_directions = call.form.n_directions

    def preceding(number: Any, of_output: Any, hs: Any, cs: Any, matrices: Any, biases: Any) -> Any:
        sequence = tf.ensure_shape(sequences.read(number), UNKNOWN_3D)
        of_directions = tf.split(of_output, n_directions, axis=2)
        parts = []
        for d in range(n_directions):
            parts.append(
                _one_direction_back(call, number, sequence, d, (of_directions[d], of_h, of_c))
            )
        of_sequence = tf.ensure_shape(tf.add_n([part.sequence for part in parts]), UNKNOWN_3D)
        return (
            number - 1,
            of_sequence,
            tf.concat([tf.stack([part.h for part in parts]), hs], 0),
            tf.concat([tf.stack([part.c for part in parts]), cs], 0),
            tf.concat([*(part.matrices for part in parts), matrices], 0),
            tf.concat([*(part.biases for part in parts), biases], 0),
        )

    kind = call.inputs.dtype
    none = tf.zeros([0], kind)
    vector = tf.TensorShape([None])
    values = (call.n_layers - 1, of_output, call.h[:0], call.c[:0], none, none)
    _, of_inputs, h, c, matrices, biases = tf.while_loop(
        lambda number, *_: number >= 0,
        preceding,
        values,
        shape_invariants=(SCALAR, UNKNOWN_3D, UNKNOWN_3D, UNKNOWN_3D, vector, vector),
    )
    return of_inputs, h, c, tf.concat([matrices, biases], 0)


def _one_direction_back(
    call: RnnCall, layer: Any, sequence: Any, direction: int, given: tuple[Any, Any, Any]
) -> _DirectionGradient:
    """Gradients of one layer in one direction, of those of its outputs and of all last states."""
    of_output, of_h, of_c = given
    which = layer * call.form.n_directions + direction
    parts = call.parts(which)
    *_, hs, cs = one_direction(call, layer, sequence, direction)
    inputs = direction_input(call, parts, sequence, direction)
    kind, wide = sequence.dtype, inputs.fed.dtype
    of_output = tf.cast(in_order(call, of_output, direction), wide)
    last = tf.cast(of_h[which], wide), tf.cast(of_c[which], wide)
    wide_hs = tf.cast(hs, wide)
    states = (wide_hs, tf.cast(cs, wide))
    of_fed, of_from_h, h, c = _through_time(call.form.mode, inputs, states, of_output, last)

    flat_fed = _rows(of_fed)
    flat_sequence = tf.cast(_rows(inputs.sequence), wide)
    of_input_matrix = tf.matmul(flat_fed, flat_sequence, transpose_a=True)
    matrix = tf.cast(parts.input_matrix, wide)
    if call.form.input_mode == "linear_input":
        of_sequence = tf.matmul(flat_fed, matrix)
    else:
        is_skipped = tf.shape(matrix)[1] == 0
        of_input_matrix = tf.cond(
            is_skipped, lambda: of_input_matrix[:, :0], lambda: of_input_matrix
        )
        of_sequence = tf.cond(
            is_skipped,
            lambda: tf.add_n(tf.split(flat_fed, call.form.n_gates, axis=1)),
            lambda: tf.matmul(flat_fed, matrix),
        )
    of_sequence = tf.reshape(of_sequence, tf.shape(sequence))
    flat_from_h = _rows(of_from_h)
    of_recurrent = tf.matmul(flat_from_h, _rows(wide_hs), transpose_a=True)
    matrices = []
    for part in (of_input_matrix, of_recurrent):
        matrices.append(tf.reshape(part, [-1]))
    biases = [tf.reduce_sum(flat_fed, 0), tf.reduce_sum(flat_from_h, 0)]
    return _DirectionGradient(
        tf.cast(in_order(call, of_sequence, direction), kind),
        tf.cast(h, kind),
        tf.cast(c, kind),
        tf.cast(tf.concat(matrices, 0), kind),
        tf.cast(tf.concat(biases, 0), kind),
    )


def _rows(tensor: Any) -> Any:
    """Time steps and samples as rows."""
    return tf.reshape(tensor, [-1, tf.shape(tensor)[2]])


def _through_time(
    mode: str,
    inputs: DirectionInput,
    states: tuple[Any, Any],
    of_output: Any,
    last: tuple[Any, Any],
) -> tuple[Any, Any, Any, Any]:
    """Go back through the time steps.

    Returns:
        Gradients of what the gates got of the input and of the state, by time step, and those of
        the first states.
    """
    hs, cs = states
    steps, wide = tf.shape(of_output)[0], of_output.dtype

    def step(t: Any, of_h: Any, of_c: Any, of_fed: Any, of_from_h: Any) -> Any:
        fed, h, c = tf.identity(inputs.fed[t]), tf.identity(hs[t]), tf.identity(cs[t])
        from_h = of_state(inputs, h)
        results = cell(mode, fed, from_h, h, c)
        is_valid = inputs.is_valid[t]
        of_results = [of_h + of_output[t], of_c]
        zero = tf.UnconnectedGradients.ZERO
        # `from_h` depends on `h`, so the gradient of `h` is the whole one.
        fed_part, state_part, h_part, c_part = tf.gradients(
            list(results), [fed, from_h, h, c], of_results, unconnected_gradients=zero
        )
        of_fed = of_fed.write(t, tf.where(is_valid, fed_part, tf.zeros_like(fed_part)))
        of_from_h = of_from_h.write(t, tf.where(is_valid, state_part, tf.zeros_like(state_part)))
        kept = []
        for new, old in ((h_part, of_h), (c_part, of_c)):
            kept.append(tf.ensure_shape(tf.where(is_valid, new, old), UNKNOWN_2D))
        return t - 1, *kept, of_fed, of_from_h

    arrays = [tf.TensorArray(wide, steps, element_shape=UNKNOWN_2D) for _ in range(2)]
    unknown = tf.TensorShape(None)
    _, h, c, of_fed, of_from_h = tf.while_loop(
        lambda t, *_: t >= 0,
        step,
        (steps - 1, *last, *arrays),
        shape_invariants=(SCALAR, UNKNOWN_2D, UNKNOWN_2D, unknown, unknown),
    )
    return of_fed.stack(), of_from_h.stack(), h, c
