"""Writing a capture: all of it, or nothing under the final name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nanreplay.capture.format import FORMAT, VERSION
from nanreplay.capture.tables import ops_table
from nanreplay.capture.temporary import replacing
from nanreplay.capture.values import write_array, write_json, write_text
from nanreplay.records import CaptureContents, ProgramRecord


def write_capture(path: str | os.PathLike[str], contents: CaptureContents) -> None:
    """Write `contents` to `path`, replacing an older file.

    The bytes go to a temporary file beside the target, which is closed, synced and renamed.

    Raises:
        OSError: The file could not be written; nothing is left behind.
    """
    with replacing(Path(path)) as temporary, h5py.File(temporary, "w") as file:
        _fill(file, contents)


def _fill(file: Any, contents: CaptureContents) -> None:
    write_text(file, "format", FORMAT)
    file.attrs["version"] = VERSION
    write_json(file, "metadata", dict(contents.metadata))
    write_json(file, "incident", asdict(contents.incident))
    write_json(file, "variables", [asdict(info) for info in contents.variables])
    for program in contents.programs:
        _write_program(file.create_group(f"program/{program.id}"), program)
    sources = file.create_group("sources")
    write_json(sources, "frames", [[frame.file, frame.line, frame.function, frame.code] for frame in contents.frames])
    write_json(sources, "stacks", [list(stack) for stack in contents.stacks])
    for name in ("keyframes", "weights", "gradients"):
        _write_steps(file.create_group(name), getattr(contents, name))
    batches = file.create_group("batches")
    for step, batch in contents.batches.items():
        group = batches.create_group(str(step))
        write_json(group, "about", {"program": batch.program, "paths": list(batch.paths)})
        _write_arrays(group, dict(enumerate(batch.leaves)))
        if batch.fingerprint is not None:
            write_array(group, "fingerprint", batch.fingerprint)
        if batch.fed:
            _write_arrays(group.create_group("fed"), dict(enumerate(batch.fed)))
        if batch.overrides:
            _write_arrays(group.create_group("overrides"), batch.overrides)
    _write_timeline(file.create_group("timeline"), contents)
    names: list[str] = []
    file.visit(names.append)
    write_json(file, "contents", sorted(names))
    file.attrs["complete"] = True


def _write_program(group: Any, program: ProgramRecord) -> None:
    write_array(group, "graph", np.frombuffer(program.graph, np.uint8))
    write_json(group, "signature", asdict(program.signature))
    write_json(group, "ops", ops_table(program.ops))
    _write_arrays(group.create_group("constants"), dict(enumerate(program.constants)))


def _write_steps(group: Any, steps: Mapping[int, Mapping[int, Any]]) -> None:
    for step, values in steps.items():
        _write_arrays(group.create_group(str(step)), values)


def _write_arrays(group: Any, values: Mapping[int, Any]) -> None:
    for index, value in values.items():
        write_array(group, str(index), value)


def _write_timeline(group: Any, contents: CaptureContents) -> None:
    timeline = contents.timeline
    write_array(group, "variables", np.asarray(timeline.variables, np.int64))
    columns = group.create_group("columns")
    for name, column in timeline.columns.items():
        write_array(columns, name, column)
    matrices = group.create_group("matrices")
    for name, matrix in timeline.matrices.items():
        write_array(matrices, name, matrix)
