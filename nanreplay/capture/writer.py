"""Writing a capture: all of it, or nothing under the final name.

The recorder writes step by step through `writing`; `redact`, `minimize` and the tests write a
whole capture with `write_capture`, from `lazy_contents` where a capture is changed and written
again with no more than one step of it in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from nanreplay.capture.arrays import (
    FAST,
    SMALL,
    Checksums,
    packing,
    read_array,
    threaded_checksums,
    write_array,
    write_json,
    write_text,
)
from nanreplay.capture.format import FORMAT, VERSION
from nanreplay.capture.lazy_parts import LazyParts
from nanreplay.capture.reader import Capture
from nanreplay.capture.tables import ops_table
from nanreplay.capture.temporary import replacing
from nanreplay.records import (
    BatchRecord,
    CaptureContents,
    Frame,
    Incident,
    OptimizedGraph,
    ProgramRecord,
    Timeline,
    VariableInfo,
)

_STEP_GROUPS = ("keyframes", "weights", "gradients", "states", "batches")
"""Groups that hold a group a step."""


def write_capture(
    path: str | os.PathLike[str], contents: CaptureContents, *, small: bool = False
) -> None:
    """Write `contents` to `path`, replacing an older file.

    Args:
        path: The file.
        contents: What goes into it; a step of a mapping is asked for when it is written.
        small: Spend time to save bytes, for a file that is sent to somebody.

    Raises:
        OSError: The file could not be written; nothing is left behind.
    """
    with packing(SMALL if small else FAST), writing(path, small=small) as out:
        out.head(
            contents.metadata,
            contents.variables,
            contents.programs,
            contents.frames,
            contents.stacks,
        )
        for step, values in contents.keyframes.items():
            out.values("keyframes", step, values)
        for step, batch in contents.batches.items():
            out.batch(step, batch)
        for step, values in contents.weights.items():
            out.values("weights", step, values)
        for step, values in contents.gradients.items():
            out.values("gradients", step, values)
        for step, values in contents.states.items():
            out.state(step, values)
        out.finish(contents.incident, contents.timeline)


@contextmanager
def writing(
    path: str | os.PathLike[str],
    on_bytes: Callable[[int], None] = lambda count: None,
    *,
    small: bool = False,
    hurried: bool = False,
) -> Iterator[CaptureWriter]:
    """Give a writer whose file has its name once all of it is there.

    The bytes go to a temporary file beside the target, which is closed, synced and renamed.

    Args:
        path: The file, which is replaced.
        on_bytes: Called after each array with its size.
        small: Lay it out as HDF5 1.10 does, whose groups and headers take half the bytes.
        hurried: Give it its name before it is synced: the process may be killed at any moment. The
            file is whole then, unless the machine crashes as well.

    Raises:
        OSError: The file could not be written; nothing is left behind.
    """
    with (
        replacing(Path(path), hurried=hurried) as temporary,
        h5py.File(temporary, "w", libver="v110" if small else None) as file,
        threaded_checksums() as checksums,
    ):
        yield CaptureWriter(file, on_bytes, checksums)


class CaptureWriter:
    """Writes the parts of one capture as they come: `head` first, `finish` last.

    Args:
        file: An empty HDF5 file.
        on_bytes: Called after each array with its size.
        checksums: Those that are on their way.
    """

    def __init__(self, file: Any, on_bytes: Callable[[int], None], checksums: Checksums) -> None:
        self._file = file
        self._checksums = checksums
        self._on_bytes = on_bytes
        self._is_abandoned = False
        for name in _STEP_GROUPS:
            file.create_group(name)

    def head(
        self,
        metadata: Mapping[str, str],
        variables: Sequence[VariableInfo],
        programs: Sequence[ProgramRecord],
        frames: Sequence[Frame],
        stacks: Sequence[Sequence[int]],
    ) -> None:
        """Write what is known before any step is."""
        write_text(self._file, "format", FORMAT)
        self._file.attrs["version"] = VERSION
        write_json(self._file, "metadata", dict(metadata))
        write_json(self._file, "variables", list(map(asdict, variables)))
        for program in programs:
            _write_program(self._file.create_group(f"program/{program.id}"), program)
        sources = self._file.create_group("sources")
        rows = []
        for frame in frames:
            rows.append([frame.file, frame.line, frame.function, frame.code])
        write_json(sources, "frames", rows)
        write_json(sources, "stacks", list(map(list, stacks)))

    def optimized_graph(self, program_id: str, optimized: OptimizedGraph) -> None:
        """Write what the graph optimizers made of a program that has been written."""
        group = self._file[f"program/{program_id}"].create_group("optimized")
        write_array(group, "graph", np.frombuffer(optimized.graph, np.uint8))
        write_json(group, "inputs", optimized.inputs)
        write_json(group, "outputs", optimized.outputs)

    def values(
        self,
        kind: Literal["keyframes", "weights", "gradients"],
        step: int,
        values: Mapping[int, Any],
    ) -> None:
        """Write values of variables at one step."""
        self._arrays(self._file[kind].create_group(str(step)), values)

    def state(self, step: int, values: Mapping[int, Any]) -> None:
        """Write the state just before a step, whose batch has been written.

        A variable that the step before it left so, and that is in the file already, is a second
        name of that dataset.
        """
        group = self._file["states"].create_group(str(step))
        before, changed = f"weights/{step - 1}", f"batches/{step}/overrides"
        for index, value in values.items():
            is_written = f"{before}/{index}" in self._file
            if is_written and f"{changed}/{index}" not in self._file:
                group[str(index)] = self._file[f"{before}/{index}"]
            else:
                self._on_bytes(write_array(group, str(index), value))

    def written_keyframe(self, step: int) -> dict[int, Any]:
        """Read a keyframe again that has been written; nothing where it has not."""
        return dict(self.written_values(step))

    def written_values(self, step: int) -> Iterator[tuple[int, Any]]:
        """Read a keyframe again that has been written, one variable after the other."""
        self._checksums.settle()
        if str(step) in self._file["keyframes"]:
            group = self._file["keyframes"][str(step)]
            for index in group:
                yield int(index), read_array(group[index])

    def batch(self, step: int, batch: BatchRecord) -> None:
        """Write the input of one step."""
        group = self._file["batches"].create_group(str(step))
        write_json(group, "about", {"program": batch.program, "paths": list(batch.paths)})
        self._arrays(group, dict(enumerate(batch.leaves)))
        if batch.fingerprint is not None:
            write_array(group, "fingerprint", batch.fingerprint)
        if batch.fed:
            _write_arrays(group.create_group("fed"), dict(enumerate(batch.fed)))
        if batch.overrides:
            _write_arrays(group.create_group("overrides"), batch.overrides)

    def forget_after(self, step: int) -> None:
        """Take out what was written of the steps after `step`."""
        self._checksums.settle()  # a checksum on its way belongs to a dataset that may go now
        for kind in _STEP_GROUPS:
            later = []
            for name in self._file[kind]:
                if int(name) > step:
                    later.append(name)
            for name in later:
                del self._file[kind][name]

    def abandon(self) -> None:
        """Have another thread that writes values end soon: there will be no file."""
        self._is_abandoned = True

    def finish(self, incident: Incident, timeline: Timeline) -> None:
        """Write what is known once all steps are, and the mark of a whole file."""
        write_json(self._file, "incident", asdict(incident))
        _write_timeline(self._file.create_group("timeline"), timeline)
        write_json(self._file, "contents", sorted(self._names()))
        self._file.attrs["complete"] = True

    def _names(self) -> set[str]:
        """Names of all groups and datasets; a dataset of two names has both."""
        names: set[str] = set()
        # The file's own `visit` tells one name of each object, and opens every one for it.
        self._file.id.links.visit(lambda name: names.add(name.decode()))
        return names

    def _arrays(self, group: Any, values: Mapping[int, Any]) -> None:
        for index, value in values.items():
            if self._is_abandoned:
                return
            self._on_bytes(write_array(group, str(index), value))


def _write_program(group: Any, program: ProgramRecord) -> None:
    write_array(group, "graph", np.frombuffer(program.graph, np.uint8))
    write_json(group, "signature", asdict(program.signature))
    write_json(group, "ops", ops_table(program.ops))
    _write_arrays(group.create_group("constants"), dict(enumerate(program.constants)))


def _write_arrays(group: Any, values: Mapping[int, Any]) -> None:
    for index, value in values.items():
        write_array(group, str(index), value)


def _write_timeline(group: Any, timeline: Timeline) -> None:
    write_array(group, "variables", np.asarray(timeline.variables, np.int64))
    columns = group.create_group("columns")
    for name, column in timeline.columns.items():
        write_array(columns, name, column)
    matrices = group.create_group("matrices")
    for name, matrix in timeline.matrices.items():
        write_array(matrices, name, matrix)


# A capture as contents to be changed and written again.


def lazy_contents(capture: Capture) -> CaptureContents:
    """Return what an open capture holds, with the parts of each step read as they are asked for.

    Weights and gradients of single steps are left out: a replay gives them again. Change it with
    `dataclasses.replace` and write it with `write_capture` while the capture is open.
    """
    return CaptureContents(
        metadata=capture.metadata,
        variables=capture.variables_info,
        programs=tuple(capture.program(name) for name in capture.programs),
        keyframes=LazyParts(capture.keyframe_steps, capture.keyframe),
        batches=LazyParts(capture.steps, capture.batch),
        timeline=capture.timeline_record(),
        incident=capture.incident,
        states=LazyParts(capture.state_steps, capture.state),
        frames=capture.frames,
        stacks=capture.stacks,
    )
