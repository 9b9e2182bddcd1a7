"""Reading a capture, lazily. Needs h5py and numpy; imports no TensorFlow, and pandas only for tables."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nanreplay.capture.format import FORMAT, TIMELINE_COLUMNS, VERSION
from nanreplay.capture.tables import ops_frame, ops_from_table, signature_from_json
from nanreplay.capture.values import read_array
from nanreplay.errors import CaptureNotFoundError, FormatError, NanreplayError, VersionError
from nanreplay.records import BatchRecord, CaptureContents, Frame, Incident, ProgramRecord, Signature, Timeline, Trigger, VariableInfo

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

    Raises:
        CaptureNotFoundError: There is no such file.
        FormatError: It is no capture, or damaged.
        VersionError: A newer nanreplay wrote it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise CaptureNotFoundError(f"{self.path}: no such file.")
        if self.path.is_dir():
            raise FormatError(f"{self.path}: is a folder, not a capture.")
        if not os.access(self.path, os.R_OK):
            raise FormatError(f"{self.path}: no permission to read it.")
        if not h5py.is_hdf5(self.path):
            raise FormatError(f"{self.path}: not an HDF5 file, so not a capture (or damaged at its start).")
        self._programs: dict[str, ProgramRecord] = {}
        with self._reading("the file"):
            self._file = h5py.File(self.path, "r")
        try:
            self._check_head()
            with self._reading("the incident"):
                self.incident = _incident(json.loads(self._file["incident"].attrs["incident"]))
                self.variables_info = tuple(
                    VariableInfo(str(row["path"]), tuple(int(n) for n in row["shape"]), str(row["dtype"]), row["role"])
                    for row in self._json("variables")
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(*_DAMAGE):
            self._file.close()

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    @property
    def metadata(self) -> dict[str, str]:
        """Versions, platform, devices, time of creation."""
        with self._reading("the metadata"):
            found = json.loads(self._file.attrs["metadata"])
            return {str(key): str(value) for key, value in found.items()}

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
        with self._reading("the programs"):
            return tuple(self._file["program"]) if "program" in self._file else ()

    def signature(self, program_id: str) -> Signature:
        """How one program is called, without reading the program."""
        with self._reading(f"program {program_id}"):
            return signature_from_json(self._json("signature", self._file["program"][program_id]))

    def program(self, program_id: str) -> ProgramRecord:
        """One program, read once."""
        if program_id not in self._programs:
            with self._reading(f"program {program_id}"):
                group = self._file["program"][program_id]
                constants = group["constants"]
                self._programs[program_id] = ProgramRecord(
                    program_id,
                    read_array(group["graph"]).astype(np.uint8).tobytes(),
                    signature_from_json(self._json("signature", group)),
                    ops_from_table(self._json("ops", group)),
                    tuple(read_array(constants[str(index)]) for index in range(len(constants))),
                )
        return self._programs[program_id]

    def keyframe(self, step: int) -> dict[int, NDArray[Any]]:
        """State just before `step`, by variable index."""
        return self._arrays("keyframes", step)

    def weights(self, step: int) -> dict[int, NDArray[Any]]:
        """Trainable variables just after `step`, by variable index; empty when they were not written."""
        return self._arrays("weights", step, missing_is_empty=True)

    def gradients(self, step: int) -> dict[int, NDArray[Any]]:
        """Dense gradients of `step`, by variable index; empty when they were not written."""
        return self._arrays("gradients", step, missing_is_empty=True)

    def batch(self, step: int) -> BatchRecord:
        """The input of `step`."""
        with self._reading(f"the batch of step {step}"):
            group = self._file["batches"][str(step)]
            paths = [str(path) for path in json.loads(group.attrs["paths"])]
            overrides = group.get("overrides", {})
            return BatchRecord(
                str(group.attrs["program"]),
                tuple(read_array(group[str(index)]) for index in range(len(paths))),
                tuple(paths),
                read_array(group["fingerprint"]) if "fingerprint" in group else None,
                {int(index): read_array(overrides[index]) for index in overrides},
            )

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Python frames of the program's ops."""
        with self._reading("the sources"):
            rows = self._json("frames", self._file["sources"])
            return tuple(Frame(str(file), int(line), str(function), code) for file, line, function, code in rows)

    @property
    def stacks(self) -> tuple[tuple[int, ...], ...]:
        """Stacks as indices into `frames`, outermost first."""
        with self._reading("the sources"):
            return tuple(tuple(int(index) for index in stack) for stack in self._json("stacks", self._file["sources"]))

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
            raise FormatError(f"{self.path}: holds no matrix {name!r}; there are {', '.join(timeline.matrices)}.")
        paths = [self.variables_info[index].path for index in timeline.variables]
        return pd.DataFrame(timeline.matrices[name], index=pd.Index(timeline.columns["step"], name="step"), columns=paths)

    def timeline_columns(self, last: int | None = None) -> dict[str, NDArray[Any]]:
        """Columns of the timeline, without its matrices; of the `last` steps only when that is given."""
        with self._reading("the timeline"):
            group = self._file["timeline"]
            columns = {name: read_array(group[name]) for name in group if name != "matrices"}
        return {name: column if last is None else column[max(0, len(column) - last) :] for name, column in columns.items()}

    def timeline_record(self) -> Timeline:
        """The timeline as arrays."""
        with self._reading("the timeline"):
            group = self._file["timeline"]
            columns = {name: read_array(group[name]) for name in group if name != "matrices"}
            matrices = {name: read_array(group["matrices"][name]) for name in group["matrices"]}
            timeline = Timeline(columns, matrices, tuple(int(index) for index in group.attrs["variables"]))
            _check_timeline(timeline, len(self.variables_info))
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

    def _check_head(self) -> None:
        with self._reading("the header"):
            attrs = self._file.attrs
            if attrs.get("format") != FORMAT:
                raise FormatError(f"{self.path}: an HDF5 file, but not a nanreplay capture.")
            self._version = int(attrs["version"])
            if self._version > VERSION:
                raise VersionError(f"{self.path}: format version {self._version}; this nanreplay reads up to {VERSION}. Upgrade nanreplay.")
            if not bool(attrs.get("complete", False)):
                raise FormatError(f"{self.path}: was not written to its end.")

    def _steps(self, name: str) -> tuple[int, ...]:
        with self._reading(f"/{name}"):
            return tuple(sorted(int(step) for step in self._file[name])) if name in self._file else ()

    def _arrays(self, name: str, step: int, *, missing_is_empty: bool = False) -> dict[int, NDArray[Any]]:
        with self._reading(f"/{name}/{step}"):
            if missing_is_empty and (name not in self._file or str(step) not in self._file[name]):
                return {}
            group = self._file[name][str(step)]
            return {int(index): read_array(group[index]) for index in sorted(group, key=int)}

    def _json(self, name: str, group: Any = None) -> Any:
        dataset = (self._file if group is None else group)[name]
        return json.loads(zlib.decompress(np.asarray(dataset[()], np.uint8).tobytes()))

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except FormatError as error:
            text = str(error)
            raise type(error)(text if text.startswith(str(self.path)) else f"{self.path}: {what} cannot be read: {text}") from error
        except NanreplayError:
            raise
        except _DAMAGE as error:
            detail = (str(error).splitlines() or [type(error).__name__])[0]
            raise FormatError(f"{self.path}: {what} cannot be read; the file is damaged or not complete ({detail}).") from error


def _incident(value: Any) -> Incident:
    trigger = Trigger(**value.pop("trigger"))
    return Incident(trigger=trigger, **{**value, "step": int(value["step"]), "notes": tuple(map(str, value["notes"]))})


def _check_timeline(timeline: Timeline, n_variables: int) -> None:
    rows = {len(column) for column in timeline.columns.values()}
    shapes = {matrix.shape for matrix in timeline.matrices.values()}
    wanted = {(next(iter(rows), 0), len(timeline.variables))}
    if len(rows) > 1 or shapes - wanted or "step" not in timeline.columns:
        raise FormatError("its columns have different lengths")
    if any(not 0 <= index < n_variables for index in timeline.variables):
        raise FormatError("it names a variable that is not there")
