"""From the flat arrays of a recorded batch to what a training step takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.errors import ReplayError
from nanreplay.records import ArrayLike

_Tree = dict[str, Any]
_MADE_OUTSIDE = "made outside TensorFlow"
"""Begins the paths of arrays that an eager step made by itself, and that are no part of its batch."""


def batch_of(paths: Sequence[str], leaves: Sequence[ArrayLike]) -> Any:
    """Nest the arrays as their paths (`0/ids`, `1`) have it: names make dicts, numbers tuples, with None in the gaps.

    Raises:
        ReplayError: The paths contradict each other.
    """
    tensors = {path: as_tensor(leaf) for path, leaf in zip(paths, leaves, strict=True) if not path.startswith(_MADE_OUTSIDE)}
    if list(tensors) == [""]:
        return tensors[""]
    tree: _Tree = {}
    for path, tensor in tensors.items():
        *inner, last = path.split("/")
        node = tree
        for name in inner:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise _unclear(paths)
        if last in node or not last:
            raise _unclear(paths)
        node[last] = tensor
    return _nested(tree)


def as_tensor(leaf: ArrayLike) -> Any:
    """A recorded array as a tensor."""
    array = np.asarray(leaf)
    return tf.convert_to_tensor(array, tf.string if array.dtype.kind in "OSU" else None)


def _unclear(paths: Sequence[str]) -> ReplayError:
    return ReplayError(f"The structure of the recorded batch cannot be rebuilt from its paths: {', '.join(paths)}.")


def _nested(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    inner = {name: _nested(each) for name, each in tree.items()}
    if list(inner) == ["RaggedTensor"]:
        values, splits = inner["RaggedTensor"]
        return tf.RaggedTensor.from_row_splits(values, splits, validate=False)
    if list(inner) == ["SparseTensor"]:
        return tf.SparseTensor(*inner["SparseTensor"])
    if all(name.isdigit() for name in inner):
        return tuple(inner.get(str(index)) for index in range(max(map(int, inner)) + 1))
    return inner


def arguments_for(step: Callable[..., Any], batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """How a loop's step is called with a recorded batch: positional and named arguments.

    A capture keeps arrays by their place: `0`, `1` are two arguments, or one that is a pair; the signature of today's
    step tells which. Arguments that were no arrays are not in a capture.

    Raises:
        ReplayError: The step takes other arguments.
    """
    signature = inspect.signature(getattr(step, "python_function", step))
    candidates: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
    if isinstance(batch, tuple):
        if len(batch) == 2 and isinstance(batch[1], dict) and isinstance(batch[0], tuple):
            candidates.append((batch[0], batch[1]))
        candidates.append((batch, {}))
    if isinstance(batch, tuple) and len(batch) == 2 and batch[0] is None and isinstance(batch[1], dict):
        candidates.insert(0, ((), batch[1]))
    candidates.append(((batch,), {}))
    for args, kwargs in candidates:
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            continue
        if any(arg is None for arg in args):
            raise ReplayError(
                f"Argument {args.index(None)} of the recorded step was no array, and is not in the capture; "
                "today's step cannot be called without it."
            )
        return args, kwargs
    count = len(batch) if isinstance(batch, tuple) else 1
    raise ReplayError(
        f"Today's step takes {signature}, but the capture holds {count} argument{'' if count == 1 else 's'} that are arrays; "
        "others are not recorded."
    )
