"""Arrays in and out of HDF5, bit for bit: numbers, half-precision extension types, strings, scalars, empty arrays."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nanreplay.capture.format import COMPRESS_FROM_BYTES, EXTENSION_DTYPES
from nanreplay.errors import FormatError


def write_array(group: Any, name: str, value: Any) -> None:
    """Write one array as the dataset `name` of `group`.

    Raises:
        TypeError: Its type has no place in the format.
    """
    array = np.asarray(value)
    kind = array.dtype.name
    if kind in EXTENSION_DTYPES:
        dataset = _create(group, name, np.atleast_1d(array).view(f"u{array.dtype.itemsize}").reshape(array.shape))
        dataset.attrs["dtype"] = kind
    elif array.dtype.kind in "OSU":
        texts = np.array([_as_bytes(item) for item in array.reshape(-1)], dtype=object).reshape(array.shape)
        dataset = group.create_dataset(name, data=_hexed(texts), dtype=h5py.string_dtype("ascii"), track_times=False)
        dataset.attrs["dtype"] = "string"
    elif array.dtype.kind in "biufc":
        _create(group, name, array)
    else:
        raise TypeError(f"Expected numbers or strings. Received an array of {array.dtype}")


def _create(group: Any, name: str, array: NDArray[Any]) -> Any:
    options: dict[str, Any] = {}
    if array.ndim and array.nbytes >= COMPRESS_FROM_BYTES:
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    return group.create_dataset(name, data=array, track_times=False, **options)


def _as_bytes(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def _hexed(texts: NDArray[Any]) -> Any:
    """HDF5 strings end at a NUL; tensors of strings may hold any byte."""
    flat = [item.hex() for item in texts.reshape(-1)]
    return np.array(flat, dtype=object).reshape(texts.shape)


def read_array(dataset: Any) -> NDArray[Any]:
    """Read one array that `write_array` wrote.

    Raises:
        FormatError: It is no dataset, or of a type that the format does not know.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise FormatError(f"expected a dataset at {getattr(dataset, 'name', '?')}")
    kind = dataset.attrs.get("dtype")
    if kind == "string":
        texts = [bytes.fromhex(item.decode() if isinstance(item, bytes) else str(item)) for item in np.asarray(dataset[()]).reshape(-1)]
        strings = np.empty(len(texts), dtype=object)
        strings[:] = texts
        return strings.reshape(dataset.shape)
    array: NDArray[Any] = np.asarray(dataset[()])
    if kind is None:
        if array.dtype.kind not in "biufc":
            raise FormatError(f"unexpected type {array.dtype} at {dataset.name}")
        return array
    if kind not in EXTENSION_DTYPES:
        raise FormatError(f"unexpected type {kind!r} at {dataset.name}")
    import ml_dtypes

    extension: np.dtype[Any] = np.dtype(getattr(ml_dtypes, kind))
    if extension.itemsize != array.dtype.itemsize:
        raise FormatError(f"{kind} of the wrong size at {dataset.name}")
    return np.atleast_1d(array).view(extension).reshape(array.shape)
