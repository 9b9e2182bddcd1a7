"""Reading a capture: `Capture`, which everything that looks into a file goes through.

Parts are read when they are asked for, and what is damaged raises a `FormatError` that says where.
Needs h5py and numpy; imports no TensorFlow, and pandas only for tables.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanreplay import notebook
from nanreplay.capture.arrays import read_array, read_json
from nanreplay.capture.format import TIMELINE_COLUMNS, check_head, item
from nanreplay.capture.lazy_parts import LazyParts
from nanreplay.capture.storage import location, open_hdf5, size_bytes
from nanreplay.capture.tables import (
    build,
    check_columns,
    check_references,
    check_timeline,
    incident_from_json,
    ops_frame,
    ops_from_table,
    readable,
    signature_from_json,
    typed,
    variables_from_json,
)
from nanreplay.errors import FormatError, MemoryLimitError, MissingPartError, NanreplayError
from nanreplay.records import (
    BatchRecord,
    CaptureContents,
    Frame,
    OptimizedGraph,
    ProgramRecord,
    Signature,
    Timeline,
)

if TYPE_CHECKING:
    import pandas as pd

_DAMAGE = (
    OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError,
    OverflowError, MemoryError, UnicodeError, RecursionError, zlib.error, struct.error,
)  # fmt: skip
"""What h5py, zlib and json raise on damaged files; the tests of damage and fuzzing met them all."""


class Capture:
    """One capture file, open for reading.

    Examples:
        >>> with Capture("run.h5") as capture:
        ...     print(capture.incident.step, capture.incident.trigger.what)
        12 loss

        Tables are pandas DataFrames, tensors are NumPy arrays:

        >>> with Capture("run.h5") as capture:
        ...     losses = capture.timeline()["loss"]
        ...     batch = capture.batch(capture.incident.step)
        >>> batch.arrays[0].shape
        (32, 4)

    Args:
        path: A file, or a URL that fsspec opens (`s3://...`). Of a URL only the ranges that are
            asked for are read.

    Raises:
        CaptureNotFoundError: There is no such file.
        StorageError: Its place cannot be reached.
        FormatError: It is no capture, or damaged.
        VersionError: A newer nanreplay wrote it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = location(path)
        self._programs: dict[str, ProgramRecord] = {}
        self._children: dict[str, list[str]] = {}
        # Names inside each group, from the file's own table of contents: a name that stands there
        # and is missing in the file is damage, and not a part that was never written.
        with self._reading("the file"):
            self._file, self._stream = open_hdf5(self.path)
        try:
            with self._reading("the header"):
                self._version = check_head(self._file, str(self.path))
            with self._reading("the table of contents"):
                self._read_contents()
            with self._reading("the incident"):
                self.incident = incident_from_json(read_json(self._item("incident")))
                self.variables_info = variables_from_json(read_json(self._item("variables")))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _repr_html_(self) -> str:
        """Show in a notebook what the file holds, with its timeline."""
        return notebook.html_of(self)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(*_DAMAGE):
            self._file.close()
            if self._stream is not None:
                self._stream.close()

    @property
    def size_bytes(self) -> int:
        """Size of the file in bytes."""
        return size_bytes(self.path)

    @property
    def metadata(self) -> dict[str, str]:
        """Versions, platform, devices, time of creation."""
        with self._reading("the metadata"):
            table = read_json(self._item("metadata"))
            return {readable(str(key)): readable(str(value)) for key, value in table.items()}

    @property
    def version(self) -> int:
        """Format version of the file."""
        return self._version

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps whose batches are held, ascending."""
        return self._steps("batches")

    @property
    def keyframe_steps(self) -> tuple[int, ...]:
        """Steps just before which all state was copied, ascending."""
        return self._steps("keyframes")

    @property
    def state_steps(self) -> tuple[int, ...]:
        """Steps just before which the state was taken as the file was written: the failing one."""
        return self._steps("states")

    @property
    def programs(self) -> tuple[str, ...]:
        """Ids of the programs, in the order of their numbers."""
        ids = self._children.get("program", ())
        return tuple(sorted(ids, key=lambda name: (len(name), name)))  # `p9` before `p10`

    def signature(self, program_id: str) -> Signature:
        """How one program is called, without reading the program."""
        self._check_held("program", program_id)
        with self._reading(f"program {program_id}"):
            return signature_from_json(read_json(self._item(f"program/{program_id}/signature")))

    def program(self, program_id: str) -> ProgramRecord:
        """One program, read once."""
        self._check_held("program", program_id)
        if program_id not in self._programs:
            with self._reading(f"program {program_id}"):
                group = self._item(f"program/{program_id}")
                record = ProgramRecord(
                    program_id,
                    read_array(item(group, "graph")).astype(np.uint8).tobytes(),
                    signature_from_json(read_json(item(group, "signature"))),
                    ops_from_table(read_json(item(group, "ops"))),
                    self._numbered_arrays(f"program/{program_id}/constants"),
                )
                check_references(record, len(self.variables_info))
                self._programs[program_id] = record
        return self._programs[program_id]

    def optimized_graph(self, program_id: str) -> OptimizedGraph | None:
        """What the graph optimizers made of one program at the dump; None where it is not kept."""
        self._check_held("program", program_id)
        if "optimized" not in self._children[f"program/{program_id}"]:
            return None
        with self._reading(f"the optimized graph of program {program_id}"):
            group = self._item(f"program/{program_id}/optimized")
            names = []
            for part in ("inputs", "outputs"):
                names.append(typed(tuple[str, ...], read_json(item(group, part)), part))
            packed = read_array(item(group, "graph")).astype(np.uint8)
            return OptimizedGraph(packed.tobytes(), *names)

    def keyframe(self, step: int) -> dict[int, NDArray[Any]]:
        """State just before `step`, by variable index."""
        return self._step_arrays("keyframes", step)

    def lazy_keyframe(self, step: int) -> Mapping[int, NDArray[Any]]:
        """State just before `step`; each variable is read from the file whenever it is asked for.

        For who looks at one variable after another: no more than one is in memory.
        """
        return self._lazy_arrays("keyframes", step)

    def state(self, step: int) -> dict[int, NDArray[Any]]:
        """State just before one of `state_steps`, by variable index; slots may be missing."""
        return self._step_arrays("states", step)

    def lazy_state(self, step: int) -> Mapping[int, NDArray[Any]]:
        """What `state` returns, each variable read from the file whenever it is asked for."""
        return self._lazy_arrays("states", step)

    def weights(self, step: int) -> dict[int, NDArray[Any]]:
        """Trainable variables just after `step`, by variable index; empty when not written."""
        is_written = str(step) in self._children.get("weights", ())
        return self._step_arrays("weights", step) if is_written else {}

    def gradients(self, step: int) -> dict[int, NDArray[Any]]:
        """Dense gradients of `step`, by variable index; empty when they were not written."""
        is_written = str(step) in self._children.get("gradients", ())
        return self._step_arrays("gradients", step) if is_written else {}

    def batch(self, step: int) -> BatchRecord:
        """The input of `step`."""
        self._check_held("batches", str(step))
        with self._reading(f"the batch of step {step}"):
            group = self._item(f"batches/{step}")
            about = read_json(item(group, "about"))
            paths = typed(tuple[str, ...], about["paths"], "the paths of the batch")
            has_fingerprint = "fingerprint" in self._children.get(f"batches/{step}", ())
            return BatchRecord(
                typed(str, about["program"], "the program of the batch"),
                tuple(read_array(item(group, str(index))) for index in range(len(paths))),
                paths,
                read_array(item(group, "fingerprint")) if has_fingerprint else None,
                self._arrays(f"batches/{step}/overrides"),
                self._numbered_arrays(f"batches/{step}/fed"),
            )

    def batch_program(self, step: int) -> str:
        """Id of the program of `step`, "" where it has none; reads no arrays."""
        self._check_held("batches", str(step))
        with self._reading(f"the batch of step {step}"):
            about = read_json(self._item(f"batches/{step}/about"))
            return str(typed(str, about["program"], "the program of the batch"))

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Python frames of the program's ops."""
        with self._reading("the sources"):
            rows = read_json(self._item("sources/frames"))
            names = ("file", "line", "function", "code")
            return tuple(build(Frame, dict(zip(names, row, strict=True))) for row in rows)

    @property
    def stacks(self) -> tuple[tuple[int, ...], ...]:
        """Stacks as indices into `frames`, outermost first."""
        with self._reading("the sources"):
            rows = read_json(self._item("sources/stacks"))
            stacks: tuple[tuple[int, ...], ...] = typed(
                tuple[tuple[int, ...], ...], rows, "the stacks"
            )
            return stacks

    def variables(self) -> pd.DataFrame:
        """The variables: path, shape, dtype, role."""
        import pandas as pd

        rows = []
        for info in self.variables_info:
            rows.append((info.path, info.shape, info.dtype, info.role))
        return pd.DataFrame(rows, columns=["path", "shape", "dtype", "role"])

    def ops(self, program_id: str | None = None) -> pd.DataFrame:
        """The ops of one program (the first one unless named)."""
        if program_id is None and not self.programs:
            raise FormatError(f"{self.path}: holds no program.")
        return ops_frame(self.program(program_id or self.programs[0]).ops)

    def timeline(self) -> pd.DataFrame:
        """The last steps in numbers, one row a step."""
        import pandas as pd

        columns = self.timeline_columns()
        return pd.DataFrame({name: columns[name] for name in TIMELINE_COLUMNS if name in columns})

    def matrix(self, name: str) -> pd.DataFrame:
        """One [step, variable] matrix, one row a step, with paths of variables as columns.

        Args:
            name: `gradient_norm`, `gradient_absmax`, `weight_norm` or `update_ratio`.

        Raises:
            FormatError: The capture holds no such matrix.
        """
        import pandas as pd

        timeline = self.timeline_record()
        if name not in timeline.matrices:
            raise FormatError(
                f"{self.path}: holds no matrix {name!r}; there are {', '.join(timeline.matrices)}."
            )
        paths = []
        for index in timeline.variables:
            paths.append(self.variables_info[index].path)
        steps = pd.Index(timeline.columns["step"], name="step")
        return pd.DataFrame(timeline.matrices[name], index=steps, columns=paths)

    def timeline_columns(self, last: int | None = None) -> dict[str, NDArray[Any]]:
        """Columns of the timeline, without its matrices; only the `last` steps where given."""
        with self._reading("the timeline"):
            columns = self._datasets("timeline/columns")
            check_columns(columns)
        if last is None:
            return columns
        return {name: column[max(0, len(column) - last) :] for name, column in columns.items()}

    def timeline_record(self) -> Timeline:
        """The timeline as arrays."""
        with self._reading("the timeline"):
            columns = self._datasets("timeline/columns")
            matrices = self._datasets("timeline/matrices")
            indices = read_array(self._item("timeline/variables"))
            timeline = Timeline(columns, matrices, tuple(map(int, indices)))
            check_timeline(timeline, len(self.variables_info))
            return timeline

    def stored_report(self) -> dict[str, Any] | None:
        """The report that was stored beside the data, as JSON; None where there is none.

        `nanreplay.report.stored_answers` reads it, and tells whether it is of this content.
        """
        if "report" not in self._children.get("", ()):
            return None
        with self._reading("the stored report"):
            table = read_json(self._item("report"))
            if not isinstance(table, dict):
                raise FormatError("it is no object")
            return table

    def content_digest(self) -> str:
        """A hash of everything in the file but its stored report; reads no tensors."""
        from nanreplay.capture.stored_report import content_digest

        names = []
        for parent, children in self._children.items():
            for child in children:
                if parent:
                    names.append(f"{parent}/{child}")
                else:
                    names.append(child)
        with self._reading("the file"):
            return content_digest(self._file, names)

    def contents(self) -> CaptureContents:
        """Everything, in memory."""
        return CaptureContents(
            self.metadata,
            self.variables_info,
            tuple(map(self.program, self.programs)),
            {step: self.keyframe(step) for step in self.keyframe_steps},
            {step: self.batch(step) for step in self.steps},
            self.timeline_record(),
            self.incident,
            {step: self.weights(step) for step in self._steps("weights")},
            {step: self.gradients(step) for step in self._steps("gradients")},
            {step: self.state(step) for step in self.state_steps},
            self.frames,
            self.stacks,
        )

    def _read_contents(self) -> None:
        listed = read_json(self._item("contents"))
        for name in typed(tuple[str, ...], listed, "the table of contents"):
            parent, _, child = name.rpartition("/")
            self._children.setdefault(parent, []).append(child)

    def _steps(self, name: str) -> tuple[int, ...]:
        with self._reading(f"/{name}"):
            return tuple(sorted(map(int, self._children.get(name, ()))))

    def _check_held(self, name: str, key: str) -> None:
        children = self._children.get(name, ())
        if key not in children:
            of_what = "" if name == "program" else "of step "
            others = f"only {of_what}{', '.join(children)}" if children else "nor any other"
            raise MissingPartError(f"{self.path}: holds no {name} {of_what}{key}, {others}.")

    def _step_arrays(self, name: str, step: int) -> dict[int, NDArray[Any]]:
        self._check_held(name, str(step))
        with self._reading(f"/{name}/{step}"):
            return self._arrays(f"{name}/{step}")

    def _lazy_arrays(self, name: str, step: int) -> Mapping[int, NDArray[Any]]:
        self._check_held(name, str(step))
        path = f"{name}/{step}"
        opened: list[Any] = []  # the group, once asked for: a state has hundreds of datasets

        def read(index: int) -> NDArray[Any]:
            with self._reading(f"/{path}"):
                if not opened:
                    opened.append(self._item(path))
                return read_array(item(opened[0], str(index)))

        return LazyParts(sorted(map(int, self._children.get(path, ()))), read)

    def _arrays(self, group: str) -> dict[int, NDArray[Any]]:
        return dict(sorted((int(index), array) for index, array in self._datasets(group).items()))

    def _numbered_arrays(self, group: str) -> tuple[NDArray[Any], ...]:
        """The datasets `0`, `1`, ... of a group; none for a group that was not written."""
        arrays = self._arrays(group)
        return tuple(arrays[index] for index in range(len(arrays)))

    def _item(self, path: str) -> Any:
        return item(self._file, path)

    def _datasets(self, group: str) -> dict[str, NDArray[Any]]:
        names = self._children.get(group, ())
        opened = self._item(group) if names else None
        return {name: read_array(item(opened, name)) for name in names}

    @contextlib.contextmanager
    def _reading(self, part: str) -> Iterator[None]:
        """Turn what damaged files raise into errors that name the file and the part of it."""
        try:
            yield
        except FormatError as error:
            message = str(error)
            if not message.startswith(str(self.path)):
                message = f"{self.path}: {part} cannot be read: {message}"
            raise type(error)(message, hint=error.hint) from error
        except MemoryLimitError as error:
            raise MemoryLimitError(f"{self.path}: {error}", hint=error.hint) from error
        except NanreplayError:
            raise
        except _DAMAGE as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise FormatError(
                f"{self.path}: {part} cannot be read; "
                f"the file is damaged or not complete ({lines[0]})."
            ) from error
