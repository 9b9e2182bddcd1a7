"""The timeline of a capture for tools that people have: TensorBoard, CSV, Parquet.

The incident is marked: by a column of its own, and in TensorBoard by a scalar and a text.
"""

from __future__ import annotations

import contextlib
import datetime
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from nanreplay.capture import Capture
from nanreplay.capture.temporary import written_whole
from nanreplay.errors import OutputExistsError, StorageError
from nanreplay.report.numbers import readable_trigger

if TYPE_CHECKING:
    import pandas as pd

INCIDENT = "incident"
"""Name of the column, and of the tag, that marks the failing step."""
_STRING, _FLOAT_TAG = 7, b"\x15"


def timeline_frame(capture: Capture) -> pd.DataFrame:
    """One row a step: what `Capture.timeline()` has, the matrices by variable, and the incident.

    Columns of matrices are called `gradient_norm/dense/kernel`. `incident` holds what failed at
    the failing step, and "" at the others.
    """
    import pandas as pd

    frame = capture.timeline()
    parts = [frame]
    for name in sorted(capture.timeline_record().matrices):
        matrix = capture.matrix(name)
        matrix.columns = [f"{name}/{path}" for path in matrix.columns]
        parts.append(matrix.reset_index(drop=True).astype(np.float64))
    result: pd.DataFrame = pd.concat(parts, axis=1)
    at = result["step"] == capture.incident.step
    result[INCIDENT] = np.where(at, readable_trigger(capture.incident.trigger), "")
    return result


def write_csv(capture: Capture, path: Path, *, force: bool = False) -> int:
    """Write the timeline as CSV; returns the number of rows.

    A loss that is not finite is `nan` or `inf`; what was not measured is empty.

    Raises:
        OutputExistsError: The file exists, and `force` is not given.
        StorageError: It cannot be written.
    """
    frame = timeline_frame(capture)
    if "loss" in frame:
        frame["loss"] = [repr(float(value)) for value in frame["loss"]]
    with _output(path, force=force) as temporary:
        frame.to_csv(temporary, index=False)
    return len(frame)


def write_parquet(capture: Capture, path: Path, *, force: bool = False) -> int:
    """Write the timeline as Parquet; returns the number of rows.

    Raises:
        OutputExistsError: The file exists, and `force` is not given.
        StorageError: It cannot be written.
        ImportError: fastparquet is not installed.
    """
    import fastparquet

    frame = timeline_frame(capture)
    with _output(path, force=force) as temporary:
        fastparquet.write(str(temporary), frame, write_index=False)
    return len(frame)


@contextlib.contextmanager
def _output(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a path to write to in the place of a file that may not exist yet."""
    if path.exists() and not force:
        instead = "Name another file, or replace it with --force."
        raise OutputExistsError(f"{path}: exists. {instead}")
    try:
        with written_whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}.") from error


# TensorBoard.


def write_tensorboard(capture: Capture, folder: Path, sentence: str = "") -> int:
    """Write the timeline as an event file into a folder; returns the number of scalars.

    TensorBoard is not needed for it. The failing step has the scalar `incident`, and a text with
    what failed.

    Args:
        capture: The capture.
        folder: A folder, made if it is not there. The file in it has a name of its own.
        sentence: What is known of the failure, for the text; what triggered unless given.

    Raises:
        StorageError: It cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"Cannot write into {folder}: it is a file. Name a folder.")
    frame = timeline_frame(capture).drop(columns=INCIDENT)
    created_s = _created(capture)
    path = folder / f"events.out.tfevents.{int(created_s)}.nanreplay.{capture.path.stem}.v2"
    events = list(_scalar_events(frame, created_s))
    incident = capture.incident
    text = sentence or readable_trigger(incident.trigger)
    events.append(_event(incident.step, created_s, _scalar(INCIDENT, 1.0)))
    events.append(_event(incident.step, created_s, _text("what failed", text)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _output(path, force=True) as temporary, temporary.open("wb") as file:
            file.write(_record(_double(1, created_s) + _bytes(3, b"brain.Event:2")))
            for event in events:
                file.write(_record(event))
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}.") from error
    return len(events) - 1


def _created(capture: Capture) -> float:
    """When the capture was written, in seconds since 1970."""
    try:
        return datetime.datetime.fromisoformat(capture.metadata["created"]).timestamp()
    except (KeyError, ValueError):
        return time.time()


def _scalar_events(frame: pd.DataFrame, created_s: float) -> Iterator[bytes]:
    steps = frame["step"].to_numpy()
    elapsed = np.zeros(len(frame))
    if "step_time_s" in frame:
        elapsed = np.nan_to_num(frame["step_time_s"].to_numpy(np.float64))
    # the capture was written after its last step
    times = created_s - elapsed[::-1].cumsum()[::-1] + elapsed
    for name in frame.columns:
        if name == "step":
            continue
        values = frame[name].to_numpy(np.float64)
        # a loss of NaN was the loss; elsewhere NaN is what was not measured
        keep = np.ones(len(values), bool) if name == "loss" else ~np.isnan(values)
        for position in np.flatnonzero(keep):
            value = _scalar(str(name), float(values[position]))
            yield _event(int(steps[position]), float(times[position]), value)


def _event(step: int, time_s: float, value: bytes) -> bytes:
    at = b"\x10" + _varint(step) if step else b""
    return _double(1, time_s) + at + _bytes(5, _bytes(1, value))


def _scalar(tag: str, value: float) -> bytes:
    with np.errstate(over="ignore"):
        number = np.float32(value)  # beyond float32's range it is infinite there too
    return _bytes(1, tag.encode()) + _FLOAT_TAG + number.tobytes()


def _text(tag: str, text: str) -> bytes:
    """A value of TensorBoard's plugin for texts: a tensor of one string."""
    tensor = (
        b"\x08" + bytes([_STRING]) + _bytes(2, _bytes(2, b"\x08\x01")) + _bytes(8, text.encode())
    )
    metadata = _bytes(1, _bytes(1, b"text"))
    return _bytes(1, tag.encode()) + _bytes(8, tensor) + _bytes(9, metadata)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + _masked(length) + event + _masked(event)


def _masked(data: bytes) -> bytes:
    value = google_crc32c.value(data)
    masked = (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    return struct.pack("<I", masked)
