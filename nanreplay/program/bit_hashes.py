"""Hashes of tensors, the same in a compiled program and in NumPy.

They tell which tensors two runs of one program computed otherwise, without keeping any. A hash is a
sum of the elements' bits, which wraps at 2^64 and so is the same in whatever order a device adds.
The second sum weighs each element by an odd number of its place, so that two elements that change
places are noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nanreplay.capture.arrays import as_array
from nanreplay.program.compiled_program import CompiledProgram, import_graph
from nanreplay.program.safety import parse_graph
from nanreplay.records import ProgramRecord

_INTEGERS = {2: tf.int16, 4: tf.int32, 8: tf.int64}
_HASHES = "nanreplay_hashes"


class BitHash(NamedTuple):
    """What is kept of one float tensor."""

    nonfinite: int
    """How many elements are NaN or infinite."""
    bits: int
    """Sum of the elements' bits as integers, modulo 2^64.

    Zeros of both signs count as 0 and all NaNs as 1: which of them a kernel makes is no property of
    the program.
    """
    places: int
    """The same sum with every element's bits multiplied by an odd number of its place."""


def hash_array(value: Any) -> BitHash:
    """Hash a float tensor or array."""
    array = as_array(value).reshape(-1)
    bits = array.view(f"i{array.dtype.itemsize}").astype(np.int64)
    bits = np.where(array == 0, 0, bits)
    bits = np.where(np.isnan(array), 1, bits)
    weights = 2 * np.arange(array.size, dtype=np.int64) + 1
    n_nonfinite = int((~np.isfinite(array)).sum())
    with np.errstate(over="ignore"):
        return BitHash(n_nonfinite, int(bits.sum()), int((bits * weights).sum()))


def compiled_hashes(
    record: ProgramRecord, names: Sequence[str], *, batch: Sequence[Any], variables: Sequence[Any]
) -> dict[str, BitHash]:
    """Run a program compiled as it was trained; returns hashes of main-graph tensors by name.

    Hashing is part of the program then, and may change how XLA fuses the ops around it.

    Args:
        record: The program.
        names: Float tensors.
        batch: Leaves of the batch.
        variables: `tf.Variable`s by index; the step changes them.
    """
    graph = tf.Graph()
    with graph.as_default():
        moved = import_graph(parse_graph(record.graph))
        hashes = [_hashed(graph.get_tensor_by_name(name)) for name in names]
        fetched = tf.stack(hashes, name=_HASHES).name
    captures = []
    for spec in record.signature.captures:
        captures.append(replace(spec, tensor=moved.get(spec.tensor, spec.tensor)))
    signature = replace(record.signature, captures=tuple(captures))
    jit = signature.compilation == "xla"
    program = CompiledProgram(graph.as_graph_def(), signature, jit=jit, extra_fetches=[fetched])
    _, (rows,) = program(batch, variables, record.constants)
    return {name: BitHash(*map(int, row)) for name, row in zip(names, rows.numpy(), strict=True)}


def _hashed(tensor: Any) -> Any:
    """`hash_array` as ops: a vector of its three numbers."""
    flat = tf.reshape(tensor, [-1])
    bits = tf.cast(tf.bitcast(flat, _INTEGERS[tensor.dtype.size]), tf.int64)
    is_zero, is_nan = tf.equal(flat, 0), tf.math.is_nan(flat)
    bits = tf.where(is_nan, tf.ones_like(bits), tf.where(is_zero, tf.zeros_like(bits), bits))
    weights = 2 * tf.range(tf.size(flat, tf.int64), dtype=tf.int64) + 1
    n_nonfinite = tf.reduce_sum(tf.cast(~tf.math.is_finite(flat), tf.int64))
    return tf.stack([n_nonfinite, tf.reduce_sum(bits), tf.reduce_sum(bits * weights)])
