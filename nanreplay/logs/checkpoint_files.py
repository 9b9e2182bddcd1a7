"""Checkpoints of all kinds as `Checkpoint`s: read as data, one variable at a time.

A checkpoint that cannot be read, or of which a part cannot, is one with an error; nothing raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nanreplay.errors import FormatError, NanreplayError
from nanreplay.logs.logged_run import Checkpoint, VariableHealth
from nanreplay.logs.tensor_bundle import BundleEntry, TensorBundle, read_bundle, short_key
from nanreplay.logs.variable_health import measure
from nanreplay.logs.weight_files import Found, Progress, opened_archive, read_hdf5

_READ_BYTES = 2**22
_DAMAGE = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, MemoryError, NanreplayError,
    OverflowError, RecursionError, IndexError,
)  # fmt: skip
"""What h5py and NumPy raise on damaged files."""
_STEP = re.compile(r"(?<![a-z])(?:step|iter|iteration|global|update)s?[-_=. ]?0*(\d+)", re.I)
_EPOCH = re.compile(r"(?<![a-z])(?:epoch|ep|e)[-_=. ]?0*(\d+)", re.I)
_NUMBER = re.compile(r"(?<!\d)(?<!\d\.)0*(\d+)(?!\d)(?!\.\d)")
"""A whole number: neither part of `0.32` counts."""
_ENDINGS = re.compile(r"(\.weights)?\.(h5|hdf5|keras|index|ckpt)$", re.IGNORECASE)


def read_checkpoint(path: Path, kind: str, progress: Progress | None = None) -> Checkpoint:
    """Measure every variable of a checkpoint.

    Args:
        path: The file; of TensorFlow's checkpoints the `.index`.
        kind: `hdf5`, `keras` or `bundle`.
        progress: Called with bytes that were read since the last call.
    """
    name, readers = _KINDS[kind]
    variables: Sequence[VariableHealth] = ()
    counters: dict[str, int] = {}
    error = None
    try:
        variables, counters = readers(path, progress)
        if not variables:
            error = "holds no variables"
    except _DAMAGE as damage:
        error = " ".join(str(damage).split()).removeprefix(f"{path}: ") or type(damage).__name__
    unread = []
    for each in variables:
        if each.error is not None:
            unread.append(each)
    if unread and error is None:
        error = f"{len(unread)} of {len(variables)} variables cannot be read: {unread[0].error}"
    if kind == "bundle" and (path.parent.parent / "saved_model.pb").is_file():
        name = "SavedModel"
    shown = str(path.with_suffix("")) if kind == "bundle" else str(path)
    step, epoch, number = numbers_of_name(_ENDINGS.sub("", path.name))
    counted = _updates(counters)
    epoch = _backup_epoch(path) or epoch
    return Checkpoint(
        path=shown,
        kind=name,
        variables=tuple(variables),
        step=counted if counted is not None else step,
        epoch=epoch,
        number=number,
        written_s=_written(path),
        error=error,
    )


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def numbers_of_name(stem: str) -> tuple[int | None, int | None, int | None]:
    """Step, epoch, and a number that may be either, of a checkpoint's name.

    `weights.05-0.32` has the number 5, `ckpt-epoch3-step1200` the epoch 3 and the step 1200.
    """
    step, epoch = _STEP.search(stem), _EPOCH.search(stem)
    number = None
    if step is None and epoch is None:
        number = _NUMBER.search(stem)
    numbers = []
    for match in (step, epoch, number):
        numbers.append(None if match is None else int(match[1][:15]))
    return numbers[0], numbers[1], numbers[2]


def _updates(counters: dict[str, int]) -> int | None:
    """How many updates the optimizer counted."""
    for name, value in counters.items():
        last = name.rpartition("/")[2]
        if last in ("iteration", "iterations", "_iterations", "iter", "global_step"):
            return value
    # Keras's own format has numbers for names; the first variable of an optimizer counts, and of
    # a loss scale's optimizer both that and the one inside do
    firsts = []
    for name, value in counters.items():
        if name.endswith("/0") and value >= 0:
            firsts.append(value)
    return max(firsts, default=None)


def _backup_epoch(path: Path) -> int | None:
    """Epochs that were done, as `BackupAndRestore` writes beside its weights."""
    metadata = path.with_name("training_metadata.json")
    try:
        if not path.name.startswith(("latest", "prev")) or metadata.stat().st_size > 10_000:
            return None
        epoch = json.loads(metadata.read_text(encoding="utf-8")).get("epoch")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return epoch if isinstance(epoch, int) and epoch > 0 else None


def _read_hdf5(path: Path, progress: Progress | None) -> Found:
    with h5py.File(path, "r") as file:
        return read_hdf5(file, progress)


def _read_keras(path: Path, progress: Progress | None) -> Found:
    with opened_archive(path) as file:
        return read_hdf5(file, progress)


# TensorFlow's checkpoints.


def _read_bundle(path: Path, progress: Progress | None) -> Found:
    bundle = read_bundle(path)
    names = _telling_names(bundle)
    _check_shards(bundle)
    variables: list[VariableHealth] = []
    counters: dict[str, int] = {}
    seen: set[tuple[str, VariableHealth]] = set()
    for entry in bundle.entries:
        if entry.dtype is None:
            continue
        key = short_key(entry.key)
        name = names.get(entry.key, key)
        is_optimizer = _is_slot(key, name)
        health = _measure_entry(bundle, entry, name, is_optimizer, counters, progress)
        # a SavedModel lists a variable under each path that leads to it
        if (name, health) not in seen:
            variables.append(health)
            seen.add((name, health))
    return variables, counters


def _telling_names(bundle: TensorBundle) -> dict[str, str]:
    """Name of each variable by its key, where the name tells one variable from another."""
    names = bundle.names()
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for entry in bundle.entries:
        if entry.key in names:
            shapes.setdefault(names[entry.key], set()).add(entry.shape)
    telling = {}
    for key, name in names.items():
        if not re.fullmatch(r"Variable(_\d+)?", name) and len(shapes.get(name, ())) == 1:
            telling[key] = name
    return telling


def _is_slot(key: str, name: str) -> bool:
    """Whether a variable is the optimizer's own, and no weight that the optimizer lists."""
    if ".OPTIMIZER_SLOT" in key:
        return True
    parts = key.split("/")
    at = next((place for place, part in enumerate(parts) if "optimizer" in part.lower()), None)
    if at is None:
        return bool(re.search(r"/(Adam|Momentum|RMSProp|Adagrad|Ftrl)(_\d+)?$", name))
    return not (len(parts) > at + 1 and parts[at + 1] == "_trainable_variables")


def _check_shards(bundle: TensorBundle) -> None:
    paths = map(bundle.shard_path, range(bundle.n_shards))
    missing = []
    for path in paths:
        if not path.is_file():
            missing.append(path.name)
    if missing:
        raise FormatError(f"its data is missing: {missing[0]} is not there")


def _measure_entry(
    bundle: TensorBundle,
    entry: BundleEntry,
    name: str,
    is_optimizer: bool,
    counters: dict[str, int],
    progress: Progress | None,
) -> VariableHealth:
    layer = name.rpartition("/")[0] or name
    part: Any = "optimizer" if is_optimizer else "weight"
    error = None
    measured = measure(())
    try:
        size = int(np.prod(entry.shape, dtype=object)) * entry.dtype.itemsize
        path = bundle.shard_path(entry.shard)
        if size != entry.size_bytes:
            raise FormatError(f"{name} has {entry.size_bytes} bytes, its shape asks for {size}")
        if entry.shard >= bundle.n_shards or entry.offset + size > path.stat().st_size:
            raise FormatError(f"{path.name} ends before {name}")
        pieces: Iterator[NDArray[Any]] = _pieces(path, entry, progress)
        if entry.dtype.kind in "iu" and size == entry.dtype.itemsize:
            part = "counter"
            values = list(pieces)
            counters[name] = int(values[0][0])
            pieces = iter(values)
        measured = measure(pieces)
    except _DAMAGE as damage:
        error = " ".join(str(damage).split())[:200]
    return VariableHealth(
        name, layer, part, str(entry.dtype), entry.shape,
        measured.nan, measured.inf, measured.largest, measured.norm, error,
    )  # fmt: skip


def _pieces(path: Path, entry: BundleEntry, progress: Progress | None) -> Iterator[NDArray[Any]]:
    # read, not mapped: a file that shrinks while it is mapped ends the process
    buffer = bytearray(min(_READ_BYTES, entry.size_bytes))
    with path.open("rb", buffering=0) as file:
        file.seek(entry.offset)
        left = entry.size_bytes
        while left > 0:
            view = memoryview(buffer)[: min(left, len(buffer))]
            filled = 0
            while filled < len(view):
                count = file.readinto(view[filled:])
                if not count:
                    raise FormatError(f"{path.name} ends before {entry.key}")
                filled += count
            left -= len(view)
            if progress is not None:
                progress(len(view))
            yield np.frombuffer(view, entry.dtype)


_KINDS: dict[str, tuple[str, Callable[[Path, Progress | None], Found]]] = {
    "hdf5": ("Keras weights", _read_hdf5),
    "keras": ("Keras model", _read_keras),
    "bundle": ("TensorFlow checkpoint", _read_bundle),
}
