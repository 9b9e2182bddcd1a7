"""Private names of TensorFlow for `tf.data`: iterators and the structure of their elements.

The recorder uses them to see which batch a step fetched and to name each array of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensorflow.python.data.util import structure as _structure
from tensorflow.python.framework import tensor as _tensor
from tensorflow.python.ops import gen_dataset_ops as _gen_dataset_ops
from tensorflow.python.ops import gen_optional_ops as _gen_optional_ops
from tensorflow.python.util import nest as _nest

_ITERATOR_FUNCTIONS = (
    "iterator_get_next",
    "iterator_get_next_sync",
    "iterator_get_next_as_optional",
    "multi_device_iterator_get_next_from_shard",
)
_OPTIONAL_FUNCTIONS = ("optional_has_value", "optional_get_value")


def fetch_functions() -> list[tuple[Any, str]]:
    """Module and name of the functions that take the next element of an iterator eagerly.

    `next(iterator)` calls these generated functions by their module, and has no public hook.
    """
    return [
        *((_gen_dataset_ops, name) for name in _ITERATOR_FUNCTIONS),
        *((_gen_optional_ops, name) for name in _OPTIONAL_FUNCTIONS),
    ]


def flatten_with_paths(structure: Any) -> list[tuple[str, Any]]:
    """(path, leaf) pairs in the order of `tf.nest.flatten(structure, expand_composites=True)`.

    A path is e.g. `0/ids`, and `replica_1/0/ids` for the part of a distributed batch that the
    second replica gets. The public `tf.nest` flattens without paths.
    """
    pairs = _nest.flatten_with_joined_string_paths(structure, expand_composites=True)
    return [(_replica_first(str(path)), leaf) for path, leaf in pairs]


def _replica_first(path: str) -> str:
    """A path with the number of the replica in front: `0/PerReplica/1/ids` -> `replica_1/0/ids`."""
    before, separator, after = path.partition("PerReplica/")
    if not separator:
        return path
    replica, _, rest = after.partition("/")
    parts = (f"replica_{replica}", before.rstrip("/"), rest)
    return "/".join(part for part in parts if part)


ITERATOR_HANDLE = "_iterator_resource"
"""Attribute of an iterator of `tf.data` that holds its resource, for which there is no public one.

Each step of `fit` reads it.
"""


def element_spec(spec: Any) -> Any:
    """Spec of the elements of an iterator or a dataset, given its own spec; None for any other.

    Specs of iterators, of datasets and of distributed iterators have no public name in common.
    """
    return getattr(spec, "_element_spec", None)


def decoded_element(spec: Any, components: Sequence[Any]) -> list[Any]:
    """The tensors of an element that a dataset handed over as flat components.

    A dataset packs a ragged or sparse tensor into one variant; here it is unpacked into its
    dense parts. Only `tf.data` itself knows how it packed them.
    """
    element = _structure.from_compatible_tensor_list(spec, list(components))
    leaves = _nest.flatten(element, expand_composites=True)
    tensors = []
    for leaf in leaves:
        if isinstance(leaf, _tensor.Tensor):
            tensors.append(leaf)
    return [tensor for tensor in tensors if tensor.dtype.name not in ("variant", "resource")]
