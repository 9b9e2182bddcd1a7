"""Constants of graphs, in every way in which a TensorProto may hold them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

import nanreplay
from nanreplay.program.graph_nodes import constant_array

SMALL = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
LARGE = ("float32", "float64", "int8", "int64", "uint16", "bool", "complex64")


Values = list[float]
Shape = tuple[int, ...]


def held_as_bits(kind: str, values: Values, shape: Shape) -> Any:
    """A TensorProto that holds the bits of values one by one, not as the content of an array."""
    tensor = tf.make_tensor_proto(0.0, kind, shape)
    tensor.ClearField("tensor_content")
    tensor.ClearField("half_val")
    bits = np.array(values).astype(tf.as_dtype(kind).as_numpy_dtype)
    if bits.itemsize == 2:
        tensor.half_val.extend(bits.view(np.uint16).tolist())
    else:
        tensor.float8_val = bits.tobytes()
    return tensor


def same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays are equal in type, shape and bits."""
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def expected(kind: str, values: Values, shape: Shape) -> NDArray[Any]:
    return np.array(values).astype(tf.as_dtype(kind).as_numpy_dtype).reshape(shape)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(
    ("held", "values", "shape"),
    [
        ([1.5], [1.5], ()),
        ([0.25], [0.25] * 6, (2, 3)),
        ([1.0, 2.0], [1.0, 2.0, 2.0, 2.0], (4,)),
        ([1.0, -2.0, 0.5, 4.0], [1.0, -2.0, 0.5, 4.0], (2, 2)),
        ([], [0.0, 0.0], (2,)),
        ([], [], (0, 3)),
    ],
)
def test_bits_are_read(kind: str, held: Values, values: Values, shape: Shape) -> None:
    assert same(constant_array(held_as_bits(kind, held, shape)), expected(kind, values, shape))


@pytest.mark.parametrize("kind", [*SMALL, *LARGE])
@pytest.mark.parametrize("values", [[3.0], [1.0, 1.0, 1.0], [1.0, 0.0, 4.0]])
def test_what_tensorflow_makes_is_read_as_it_does(kind: str, values: Values) -> None:
    tensor = tf.make_tensor_proto(np.array(values).astype(tf.as_dtype(kind).as_numpy_dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2.5, of how TensorFlow does it
        wanted = tf.make_ndarray(tensor)
    assert same(constant_array(tensor), wanted)


def test_texts_are_read() -> None:
    assert constant_array(tf.make_tensor_proto(["a", "b"])).tolist() == [b"a", b"b"]


@pytest.mark.parametrize("kind", SMALL)
def test_more_values_than_the_shape_has_are_an_error(kind: str) -> None:
    with pytest.raises(ValueError, match="negative"):
        constant_array(held_as_bits(kind, [1.0, 2.0, 3.0], (2,)))


def test_nothing_else_lets_tensorflow_set_the_dtype_of_an_array() -> None:
    """NumPy 2.5 says that it is deprecated, and users see that of us."""
    root = Path(nanreplay.__file__).parent
    texts = {path.name: path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    assert [name for name in texts if "tf.make_ndarray(" in texts[name]] == ["graph_nodes.py"]
