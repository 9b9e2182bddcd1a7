"""Hashes of tensors, the same in a compiled program and in numpy: what two runs of one program computed otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nanreplay.program.compiled import CompiledProgram
from nanreplay.program.safety import parse_graph
from nanreplay.records import ProgramRecord

_INTEGERS = {2: tf.int16, 4: tf.int32, 8: tf.int64}
_HASHES = "nanreplay_hashes"


class BitHash(NamedTuple):
    """What is kept of one float tensor."""

    nonfinite: int
    """How many elements are NaN or infinite."""
    bits: int
    """Sum of the elements' bits as integers, modulo 2^64; zeros of both signs and all NaNs count alike."""
    places: int
    """The same sum with every element's bits multiplied by an odd number of its place."""


def hash_array(value: Any) -> BitHash:
    """Hash a float tensor or array."""
    array = np.asarray(value).reshape(-1)
    bits = array.view(f"i{array.dtype.itemsize}").astype(np.int64)
    bits = np.where((array == 0) | np.isnan(array), np.where(np.isnan(array), 1, 0), bits)
    with np.errstate(over="ignore"):
        places = 2 * np.arange(array.size, dtype=np.int64) + 1
        return BitHash(int((~np.isfinite(array)).sum()), int(bits.sum()), int((bits * places).sum()))


def compiled_hashes(record: ProgramRecord, names: Sequence[str], *, batch: Sequence[Any], variables: Sequence[Any]) -> dict[str, BitHash]:
    """Run a program compiled as it was trained, and return the hashes of tensors of its main graph by name.

    Hashing is part of the program then, and may change how XLA fuses the ops around it.

    Args:
        record: The program.
        names: Float tensors.
        batch: Leaves of the batch.
        variables: `tf.Variable`s by index; the step changes them.
    """
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(parse_graph(record.graph), name="")
        hashes = [_hashed(graph.get_tensor_by_name(name)) for name in names]
        fetched = tf.stack(hashes, name=_HASHES).name
    jit = record.signature.compilation == "xla"
    program = CompiledProgram(graph.as_graph_def(), record.signature, jit=jit, extra_fetches=[fetched])
    _, (found,) = program(batch, variables, record.constants)
    return {name: BitHash(*map(int, row)) for name, row in zip(names, found.numpy(), strict=True)}


def _hashed(tensor: Any) -> Any:
    flat = tf.reshape(tensor, [-1])
    bits = tf.cast(tf.bitcast(flat, _INTEGERS[tensor.dtype.size]), tf.int64)
    nan = tf.math.is_nan(flat)
    bits = tf.where(nan, tf.ones_like(bits), tf.where(tf.equal(flat, 0), tf.zeros_like(bits), bits))
    places = 2 * tf.range(tf.size(flat, tf.int64), dtype=tf.int64) + 1
    nonfinite = tf.reduce_sum(tf.cast(~tf.math.is_finite(flat), tf.int64))
    return tf.stack([nonfinite, tf.reduce_sum(bits), tf.reduce_sum(bits * places)])
