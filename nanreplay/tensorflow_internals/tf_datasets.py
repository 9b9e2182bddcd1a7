"""The one module that may import private TensorFlow and Keras modules, but for those of distribution strategies.

A test names what an upgrade moved. Everything else of the package goes through the small functions below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensorflow.python.data.util import structure as _structure
from tensorflow.python.framework import tensor as _tensor
from tensorflow.python.ops import gen_dataset_ops as _gen_dataset_ops
from tensorflow.python.ops import gen_optional_ops as _gen_optional_ops
from tensorflow.python.util import nest as _nest


def fetch_functions() -> list[tuple[Any, str]]:
    """Module and name of the functions that take the next element of an iterator eagerly."""
    names = (
        "iterator_get_next",
        "iterator_get_next_sync",
        "iterator_get_next_as_optional",
        "multi_device_iterator_get_next_from_shard",
    )
    optional = ("optional_has_value", "optional_get_value")
    return [
        *((_gen_dataset_ops, name) for name in names),
        *((_gen_optional_ops, name) for name in optional),
    ]


def flatten_with_paths(structure: Any) -> list[tuple[str, Any]]:
    """(path, leaf) pairs in the order of `tf.nest.flatten(structure, expand_composites=True)`.

    A path is e.g. `0/ids`, and `replica_1/0/ids` for the part of a distributed batch that the second replica gets.
    """
    return [
        (_replica_first(str(path)), leaf)
        for path, leaf in _nest.flatten_with_joined_string_paths(structure, expand_composites=True)
    ]


def _replica_first(path: str) -> str:
    before, found, after = path.partition("PerReplica/")
    if not found:
        return path
    replica, _, rest = after.partition("/")
    return "/".join(part for part in (f"replica_{replica}", before.rstrip("/"), rest) if part)


def iterator_handle(iterator: Any) -> Any:
    """The resource of an iterator of `tf.data`."""
    return iterator._iterator_resource


def element_spec(spec: Any) -> Any:
    """Spec of the elements of an iterator or a dataset, given the spec of that; None for any other spec."""
    return getattr(spec, "_element_spec", None)


def decoded_element(spec: Any, components: Sequence[Any]) -> list[Any]:
    """The tensors, ragged and sparse ones taken apart, of an element that a dataset handed over as flat components."""
    element = _structure.from_compatible_tensor_list(spec, list(components))
    flat = _nest.flatten(element, expand_composites=True)
    return [
        leaf
        for leaf in flat
        if isinstance(leaf, _tensor.Tensor) and leaf.dtype.name not in ("variant", "resource")
    ]
