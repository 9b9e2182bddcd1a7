"""Weights in HDF5 files and `.keras` archives, read as data.

Keras itself would build layers from the configuration that such a file holds. Here nothing of it is
run: only groups, datasets and the names of layers are looked at. Links to other files, data in
other files, plugins and sizes that the file cannot have are refused.
"""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nanreplay.capture.format import check_stored
from nanreplay.errors import FormatError, NanreplayError
from nanreplay.limits import check_size, readable_size
from nanreplay.logs.logged_run import VariableHealth
from nanreplay.logs.variable_health import measure

WEIGHTS_NAME = "model.weights.h5"
_SLAB_BYTES = 2**22
_MOST_ITEMS = 200_000
_LONGEST_NAME = 512
_LARGEST_RATIO = 200
"""How much larger than its packed bytes a member of an archive may be; weights pack badly."""
_SMALL = 2**24
"""Bytes up to which the ratio does not matter."""

Progress = Callable[[int], None]
Found = tuple[list[VariableHealth], dict[str, int]]
"""Variables of a checkpoint, and its counters by name."""


def is_keras_hdf5(file: Any) -> bool:
    """Whether an HDF5 file holds weights of Keras, and not data of another kind."""
    names = set(file)
    return bool(
        names & {"model_weights", "optimizer_weights", "layers", "_layer_checkpoint_dependencies"}
        or "layer_names" in file.attrs
        or ("vars" in names and isinstance(file.get("vars"), h5py.Group))
    )


def read_hdf5(file: Any, progress: Progress | None = None) -> Found:
    """Measure every variable of an open HDF5 file; a broken one has an error of its own."""
    variables: list[VariableHealth] = []
    counters: dict[str, int] = {}
    for path, dataset in _datasets(file):
        layer, name, is_optimizer = _names(file, path)
        part: Any = "optimizer" if is_optimizer else "weight"
        dtype, shape = str(dataset.dtype), tuple(dataset.shape or ())
        try:
            kind = _numbers_of(dataset)
            if kind is None:
                continue
            dtype = str(kind)
            if kind.kind in "iu" and dataset.size == 1:
                part = "counter"
            if part == "counter" and is_optimizer:
                counters[f"{layer}/{name}"] = int(np.asarray(dataset[()]).reshape(-1)[0])
            measured = measure(_slabs(dataset, kind, progress))
            variables.append(
                VariableHealth(
                    f"{layer}/{name}" if layer else name, layer or name, part, dtype, shape,
                    measured.nan, measured.inf, measured.largest, measured.norm,
                )
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, NanreplayError, TypeError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            variables.append(VariableHealth(name, layer or name, part, dtype, shape, error=reason))
    return variables, counters


def _datasets(file: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and dataset, by hard links only; a group that holds itself is entered once."""
    seen: set[Any] = set()
    waiting = [("", file)]
    n_items = 0
    while waiting:
        path, group = waiting.pop()
        inside = []
        for name in sorted(group, key=_natural):
            n_items += 1
            if n_items > _MOST_ITEMS:
                raise FormatError(f"it has more than {_MOST_ITEMS} entries")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise FormatError(f"{path}/{name} is a link to somewhere else")
            item = group[name]
            place = h5py.h5o.get_info(item.id)
            if (place.fileno, place.addr) in seen:
                continue
            seen.add((place.fileno, place.addr))
            inner = f"{path}/{name}" if path else name
            if isinstance(item, h5py.Group):
                inside.append((inner, item))
            elif isinstance(item, h5py.Dataset):
                yield inner, item
        waiting.extend(reversed(inside))


def _natural(name: str) -> tuple[int, str]:
    """Sorts 10 after 9."""
    return (int(name), "") if name.isascii() and name.isdigit() and len(name) < 9 else (-1, name)


def _numbers_of(dataset: Any) -> Any:
    """The NumPy type of what a dataset holds; None when it holds texts."""
    if dataset.dtype.kind in "OSU":
        return None
    check_stored(dataset, "biufcV")
    if dataset.dtype.kind != "V":
        return dataset.dtype
    # Keras marks bfloat16, which HDF5 does not know, by the size alone and an attribute
    if dataset.dtype.itemsize != 2 or dataset.dtype.names:
        raise FormatError(f"unexpected type {dataset.dtype} at {dataset.name}")
    return np.dtype(ml_dtypes.bfloat16)


def _slabs(dataset: Any, kind: Any, progress: Progress | None) -> Iterator[NDArray[Any]]:
    """Read a dataset in parts of a few MiB."""
    buffer: NDArray[Any] = np.zeros(0, dataset.dtype)
    for place in _places(tuple(dataset.shape), kind.itemsize, dataset.chunks):
        if dataset.shape and dataset.size:
            # into one buffer: fresh memory for each part takes longer than reading it
            shape = _shape_of(place, tuple(dataset.shape))
            if buffer.shape != shape:
                buffer = np.empty(shape, dataset.dtype)
            dataset.read_direct(buffer, source_sel=place)
            part = buffer
        else:
            part = np.asarray(dataset[place])
        if progress is not None:
            progress(part.nbytes)
        yield part.view(kind) if part.dtype.kind == "V" else part


def _shape_of(place: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the part that a selection takes."""
    at = len(place) - 1
    rows = min(place[at].stop, shape[at]) - place[at].start
    return (rows, *shape[at + 1 :])


def _places(
    shape: tuple[int, ...], itemsize: int, chunks: tuple[int, ...] | None
) -> Iterator[tuple[Any, ...]]:
    if not shape or 0 in shape:
        yield (...,)
        return
    inner = itemsize
    axis = len(shape) - 1
    while axis > 0 and inner * shape[axis] <= _SLAB_BYTES:
        inner *= shape[axis]
        axis -= 1
    rows = max(_SLAB_BYTES // inner, 1)
    if chunks:  # a chunk is unpacked as a whole, and should be so once
        rows = max(rows // chunks[axis], 1) * chunks[axis]
    for leading in np.ndindex(*shape[:axis]):
        for start in range(0, shape[axis], rows):
            yield (*leading, slice(start, start + rows))


# Names.


def _names(file: Any, path: str) -> tuple[str, str, bool]:
    """Layer and name of a variable, and whether the optimizer's."""
    parts = path.split("/")
    if parts[0] in ("model_weights", "optimizer_weights") and len(parts) > 2:
        is_optimizer = parts[0] == "optimizer_weights"
        return parts[1], "/".join(parts[2:]), is_optimizer
    if "vars" not in parts:
        return "/".join(parts[:-1]), parts[-1], parts[0] == "optimizer"
    at = parts.index("vars")
    layers = []
    for end in range(1, at + 1):
        name = _layer_name(file, "/".join([*parts[:end], "vars"]))
        if name:
            layers.append(name)
    layer = "/".join(layers) or "/".join(parts[:at]) or "model"
    return layer, "/".join(parts[at + 1 :]), parts[0] == "optimizer"


def _layer_name(file: Any, path: str) -> str | None:
    """What Keras calls the layer whose variables are in a group."""
    try:
        group = file.get(path)
        if not isinstance(group, h5py.Group) or "name" not in group.attrs:
            return None
        attribute = group.attrs.get_id("name")
        if attribute.shape != () or h5py.check_string_dtype(attribute.dtype) is None:
            return None
        name = group.attrs["name"]
    except (OSError, ValueError, RuntimeError, KeyError, TypeError):
        return None
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return text[:_LONGEST_NAME] if text.isprintable() else None


# Archives.


@contextlib.contextmanager
def opened_archive(path: Path) -> Iterator[Any]:
    """The HDF5 file of weights in a `.keras` archive.

    A member that is stored is read in its place; a packed one is unpacked to a temporary file
    under a name of its own, after its sizes were checked.

    Raises:
        FormatError: The archive is damaged, has no weights, or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = []
            for each in archive.infolist():
                if each.filename == WEIGHTS_NAME:
                    members.append(each)
            if len(members) != 1:
                raise FormatError(f"{path}: an archive without {WEIGHTS_NAME}: no Keras model.")
            member = members[0]
            _check_member(path, member)
            with archive.open(member) as stream, _seekable(stream, member) as file:
                yield file
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, UnicodeError) as error:
        raise FormatError(f"{path}: the archive is damaged ({error}).") from error
    except RuntimeError as error:
        raise FormatError(f"{path}: cannot be read ({error}).") from error


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    size, packed = member.file_size, member.compress_size
    if member.flag_bits & 1:
        raise FormatError(f"{path}: {WEIGHTS_NAME} in it is encrypted.")
    if packed > path.stat().st_size:
        raise FormatError(f"{path}: {WEIGHTS_NAME} in it claims more bytes than the file has.")
    if size > _SMALL and size > _LARGEST_RATIO * packed:
        raise FormatError(
            f"{path}: {WEIGHTS_NAME} in it would unpack {readable_size(packed)} to "
            f"{readable_size(size)}, which no weights do; it is not unpacked."
        )
    if member.compress_type != zipfile.ZIP_STORED:
        check_size(f"{path}: {WEIGHTS_NAME} in it", size)


@contextlib.contextmanager
def _seekable(stream: Any, member: zipfile.ZipInfo) -> Iterator[Any]:
    if member.compress_type == zipfile.ZIP_STORED:
        with _hdf5(stream) as file:
            yield file
        return
    with tempfile.TemporaryFile() as unpacked:
        left = member.file_size
        while left > 0 and (block := stream.read(min(left, 2**20))):
            unpacked.write(block)
            left -= len(block)
        unpacked.seek(0)
        with _hdf5(unpacked) as file:
            yield file


@contextlib.contextmanager
def _hdf5(stream: BinaryIO) -> Iterator[Any]:
    try:
        file = h5py.File(stream, "r")
    except (OSError, RuntimeError, ValueError) as error:
        raise FormatError(f"{WEIGHTS_NAME} in it is no HDF5 file, or is cut") from error
    with file:
        yield file
