"""Writing a capture: all of it, or nothing under the final name."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nanreplay.capture.format import FORMAT, VERSION
from nanreplay.capture.tables import ops_table
from nanreplay.capture.values import write_array
from nanreplay.records import CaptureContents, ProgramRecord


def write_capture(path: str | os.PathLike[str], contents: CaptureContents) -> None:
    """Write `contents` to `path`, replacing an older file.

    The bytes go to a temporary file beside the target, which is flushed, synced and renamed.

    Raises:
        OSError: The file could not be written; nothing is left behind.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            _fill(file, contents)
            file.flush()
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.absolute().parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(file: Any, contents: CaptureContents) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["version"] = VERSION
    file.attrs["metadata"] = json.dumps(dict(contents.metadata))
    _write_json(file, "variables", [asdict(info) for info in contents.variables])
    for program in contents.programs:
        _write_program(file.create_group(f"program/{program.id}"), program)
    sources = file.create_group("sources")
    _write_json(sources, "frames", [[frame.file, frame.line, frame.function, frame.code] for frame in contents.frames])
    _write_json(sources, "stacks", [list(stack) for stack in contents.stacks])
    for name in ("keyframes", "weights", "gradients"):
        _write_steps(file.create_group(name), getattr(contents, name))
    batches = file.create_group("batches")
    for step, batch in contents.batches.items():
        group = batches.create_group(str(step))
        group.attrs["program"] = batch.program
        group.attrs["paths"] = json.dumps(list(batch.paths))
        _write_arrays(group, dict(enumerate(batch.leaves)))
        if batch.fingerprint is not None:
            write_array(group, "fingerprint", batch.fingerprint)
        if batch.overrides:
            _write_arrays(group.create_group("overrides"), batch.overrides)
    _write_timeline(file.create_group("timeline"), contents)
    file.create_group("incident").attrs["incident"] = json.dumps(asdict(contents.incident))
    file.attrs["complete"] = True


def _write_program(group: Any, program: ProgramRecord) -> None:
    write_array(group, "graph", np.frombuffer(program.graph, np.uint8))
    _write_json(group, "signature", asdict(program.signature))
    _write_json(group, "ops", ops_table(program.ops))
    _write_arrays(group.create_group("constants"), dict(enumerate(program.constants)))


def _write_steps(group: Any, steps: Mapping[int, Mapping[int, Any]]) -> None:
    for step, values in steps.items():
        _write_arrays(group.create_group(str(step)), values)


def _write_arrays(group: Any, values: Mapping[int, Any]) -> None:
    for index, value in values.items():
        write_array(group, str(index), value)


def _write_timeline(group: Any, contents: CaptureContents) -> None:
    timeline = contents.timeline
    group.attrs["variables"] = np.asarray(timeline.variables, np.int64)
    for name, column in timeline.columns.items():
        write_array(group, name, column)
    matrices = group.create_group("matrices")
    for name, matrix in timeline.matrices.items():
        write_array(matrices, name, matrix)


def _write_json(group: Any, name: str, value: Sequence[Any] | Mapping[str, Any]) -> None:
    """Write a table as deflated JSON: one small dataset in place of many."""
    packed = zlib.compress(json.dumps(value).encode(), 6)
    group.create_dataset(name, data=np.frombuffer(packed, np.uint8), track_times=False)
