"""Reading a capture, lazily. Needs h5py and numpy; imports no TensorFlow, and pandas only for tables."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanreplay import notebook
from nanreplay.capture.arrays import read_array, read_json
from nanreplay.capture.format import TIMELINE_COLUMNS, check_head, item
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
    ProgramRecord,
    Signature,
    Timeline,
)

if TYPE_CHECKING:
    import pandas as pd

_DAMAGE = (
    OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError,
    UnicodeError, RecursionError, zlib.error, struct.error,
)  # fmt: skip
"""What h5py, zlib and json raise on damaged files."""


class Capture:
    """One capture file, open for reading.

    ```python
    with Capture("run.h5") as capture:
        print(capture.incident.trigger, capture.timeline())
    ```

    Args:
        path: A file, or a URL that fsspec opens (`s3://...`), of which only the ranges that are asked for are read.

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
        """Names inside each group, by the table of contents: what is named there and missing is damage."""
        with self._reading("the file"):
            self._file, self._stream = open_hdf5(self.path)
        try:
            with self._reading("the header"):
                self._version = check_head(self._file, str(self.path))
            with self._reading("the table of contents"):
                for name in typed(
                    tuple[str, ...], read_json(self._item("contents")), "the table of contents"
                ):
                    parent, _, child = name.rpartition("/")
                    self._children.setdefault(parent, []).append(child)
            with self._reading("the incident"):
                self.incident = incident_from_json(read_json(self._item("incident")))
                self.variables_info = variables_from_json(read_json(self._item("variables")))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _repr_html_(self) -> str:
        """Show in a notebook what the file holds, with its timeline."""
        return notebook.page_of(self)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(*_DAMAGE):
            self._file.close()
            if self._stream is not None:
                self._stream.close()

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return size_bytes(self.path)

    @property
    def metadata(self) -> dict[str, str]:
        """Versions, platform, devices, time of creation."""
        with self._reading("the metadata"):
            return {
                readable(str(key)): readable(str(value))
                for key, value in read_json(self._item("metadata")).items()
            }

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
    def programs(self) -> tuple[str, ...]:
        """Ids of the programs."""
        return tuple(sorted(self._children.get("program", ()), key=lambda name: (len(name), name)))

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
                constants = self._children.get(f"program/{program_id}/constants", ())
                record = ProgramRecord(
                    program_id,
                    read_array(item(group, "graph")).astype(np.uint8).tobytes(),
                    signature_from_json(read_json(item(group, "signature"))),
                    ops_from_table(read_json(item(group, "ops"))),
                    tuple(
                        read_array(item(group, f"constants/{index}"))
                        for index in range(len(constants))
                    ),
                )
                check_references(record, len(self.variables_info))
                self._programs[program_id] = record
        return self._programs[program_id]

    def keyframe(self, step: int) -> dict[int, NDArray[Any]]:
        """State just before `step`, by variable index."""
        return self._step_arrays("keyframes", step)

    def weights(self, step: int) -> dict[int, NDArray[Any]]:
        """Trainable variables just after `step`, by variable index; empty when they were not written."""
        return (
            self._step_arrays("weights", step)
            if str(step) in self._children.get("weights", ())
            else {}
        )

    def gradients(self, step: int) -> dict[int, NDArray[Any]]:
        """Dense gradients of `step`, by variable index; empty when they were not written."""
        return (
            self._step_arrays("gradients", step)
            if str(step) in self._children.get("gradients", ())
            else {}
        )

    def batch(self, step: int) -> BatchRecord:
        """The input of `step`."""
        self._check_held("batches", str(step))
        with self._reading(f"the batch of step {step}"):
            group, held = self._item(f"batches/{step}"), self._children.get(f"batches/{step}", ())
            about = read_json(item(group, "about"))
            paths = typed(tuple[str, ...], about["paths"], "the paths of the batch")
            return BatchRecord(
                typed(str, about["program"], "the program of the batch"),
                tuple(read_array(item(group, str(index))) for index in range(len(paths))),
                paths,
                read_array(item(group, "fingerprint")) if "fingerprint" in held else None,
                self._arrays(f"batches/{step}/overrides"),
                tuple(
                    read_array(item(group, f"fed/{index}"))
                    for index in range(len(self._children.get(f"batches/{step}/fed", ())))
                ),
            )

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Python frames of the program's ops."""
        with self._reading("the sources"):
            rows = read_json(self._item("sources/frames"))
            return tuple(
                build(Frame, dict(zip(("file", "line", "function", "code"), row, strict=True)))
                for row in rows
            )

    @property
    def stacks(self) -> tuple[tuple[int, ...], ...]:
        """Stacks as indices into `frames`, outermost first."""
        with self._reading("the sources"):
            stacks: tuple[tuple[int, ...], ...] = typed(
                tuple[tuple[int, ...], ...], read_json(self._item("sources/stacks")), "the stacks"
            )
            return stacks

    def variables(self) -> pd.DataFrame:
        """The variables: path, shape, dtype, role."""
        import pandas as pd

        rows = [(info.path, info.shape, info.dtype, info.role) for info in self.variables_info]
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
        """One [step, variable] matrix: gradient_norm, gradient_absmax, weight_norm or update_ratio."""
        import pandas as pd

        timeline = self.timeline_record()
        if name not in timeline.matrices:
            raise FormatError(
                f"{self.path}: holds no matrix {name!r}; there are {', '.join(timeline.matrices)}."
            )
        paths = [self.variables_info[index].path for index in timeline.variables]
        return pd.DataFrame(
            timeline.matrices[name],
            index=pd.Index(timeline.columns["step"], name="step"),
            columns=paths,
        )

    def timeline_columns(self, last: int | None = None) -> dict[str, NDArray[Any]]:
        """Columns of the timeline, without its matrices; of the `last` steps only when that is given."""
        with self._reading("the timeline"):
            columns = self._datasets("timeline/columns")
            check_columns(columns)
        return {
            name: column if last is None else column[max(0, len(column) - last) :]
            for name, column in columns.items()
        }

    def timeline_record(self) -> Timeline:
        """The timeline as arrays."""
        with self._reading("the timeline"):
            columns, matrices = (
                self._datasets("timeline/columns"),
                self._datasets("timeline/matrices"),
            )
            timeline = Timeline(
                columns,
                matrices,
                tuple(int(index) for index in read_array(self._item("timeline/variables"))),
            )
            check_timeline(timeline, len(self.variables_info))
            return timeline

    def contents(self) -> CaptureContents:
        """Everything, in memory."""
        return CaptureContents(
            self.metadata,
            self.variables_info,
            tuple(self.program(name) for name in self.programs),
            {step: self.keyframe(step) for step in self.keyframe_steps},
            {step: self.batch(step) for step in self.steps},
            self.timeline_record(),
            self.incident,
            {step: self.weights(step) for step in self._steps("weights")},
            {step: self.gradients(step) for step in self._steps("gradients")},
            self.frames,
            self.stacks,
        )

    def _steps(self, name: str) -> tuple[int, ...]:
        with self._reading(f"/{name}"):
            return tuple(sorted(int(step) for step in self._children.get(name, ())))

    def _check_held(self, name: str, key: str) -> None:
        held = self._children.get(name, ())
        if key not in held:
            raise MissingPartError(
                f"{self.path}: holds no {name}/{key}; there are {', '.join(held) or 'none'}."
            )

    def _step_arrays(self, name: str, step: int) -> dict[int, NDArray[Any]]:
        self._check_held(name, str(step))
        with self._reading(f"/{name}/{step}"):
            return self._arrays(f"{name}/{step}")

    def _arrays(self, group: str) -> dict[int, NDArray[Any]]:
        return dict(sorted((int(index), array) for index, array in self._datasets(group).items()))

    def _item(self, path: str) -> Any:
        return item(self._file, path)

    def _datasets(self, group: str) -> dict[str, NDArray[Any]]:
        return {
            name: read_array(self._item(f"{group}/{name}"))
            for name in self._children.get(group, ())
        }

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except FormatError as error:
            said = str(error)
            raise type(error)(
                said
                if said.startswith(str(self.path))
                else f"{self.path}: {what} cannot be read: {said}"
            ) from error
        except MemoryLimitError as error:
            raise MemoryLimitError(f"{self.path}: {error}", hint=error.hint) from error
        except NanreplayError:
            raise
        except _DAMAGE as error:
            detail = (str(error).splitlines() or [type(error).__name__])[0]
            raise FormatError(
                f"{self.path}: {what} cannot be read; the file is damaged or not complete ({detail})."
            ) from error
