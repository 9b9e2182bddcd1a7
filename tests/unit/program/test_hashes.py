"""Hashes of tensors: the same for the same numbers, whether numpy or a compiled program takes
them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nanreplay.program.bit_hashes import compiled_hashes, hash_array
from nanreplay.records import InputSpec, ProgramRecord, Signature


@pytest.mark.parametrize("compilation", ["graph", "xla"])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
def test_a_compiled_program_hashes_as_numpy_does(compilation: Any, dtype: Any) -> None:
    concrete = tf.function(lambda x: x + tf.cast(0.0, x.dtype)).get_concrete_function(
        tf.TensorSpec([2, 5], dtype)
    )
    name = concrete.inputs[0].name
    signature = Signature(
        compilation,
        (InputSpec(name, 0, "x", dtype.name, (2, 5)),),
        (),
        outputs=(concrete.outputs[0].name,),
    )
    record = ProgramRecord("p0", concrete.graph.as_graph_def().SerializeToString(), signature)
    x = tf.cast(
        tf.constant([[0.0, -0.0, 1.5, -3e4, np.nan], [np.inf, -np.inf, 1e-6, 7.0, 2.0]]), dtype
    )
    found = compiled_hashes(record, [name], batch=[x], variables=[])[name]
    assert found == hash_array(x)
    assert found.nonfinite == 3


FLOATS = arrays.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32))


@given(FLOATS)
def test_signs_of_zero_and_kinds_of_nan_make_no_difference(values: Any) -> None:
    other = np.where(values == 0, -values, values)
    bits = other.view(np.uint32)
    bits[np.isnan(other)] ^= 0x80000001
    assert np.isnan(other[np.isnan(values)]).all()
    assert hash_array(values) == hash_array(other)


@given(FLOATS, st.data())
def test_one_other_bit_is_another_hash(values: Any, draw: Any) -> None:
    if not values.size:
        return
    place, bit = draw.draw(st.integers(0, values.size - 1)), draw.draw(st.integers(0, 31))
    other = values.copy()
    other.view(np.uint32)[place] ^= np.uint32(1 << bit)
    same = values[place] == other[place] or (np.isnan(values[place]) and np.isnan(other[place]))
    assert (hash_array(values) == hash_array(other)) == bool(same)


def test_the_order_of_elements_counts() -> None:
    assert hash_array(np.array([1.0, 2.0], np.float32)) != hash_array(
        np.array([2.0, 1.0], np.float32)
    )
